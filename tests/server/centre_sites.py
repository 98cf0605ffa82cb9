"""Sites that are connected to a real SuperLink and answer as a test says."""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedward_client.flower_adapter import FleetConnection, open_fleet
from fedward_common.certificates import create_node_key, public_key_bytes
from fedward_common.packing import pack
from fedward_simulations.engines.deployed import SuperLinkProcess

INT64 = np.dtype("<i8")


def small(number: int = 0) -> RecordDict:
    """Return content that travels inside an announcement."""
    return RecordDict({"fedward": ConfigRecord({"number": number, "vector": bytes(248)})})


def large(size: int, first: int = 0) -> RecordDict:
    """Return a vector of `size` numbers, in parts."""
    values = np.arange(first, first + size, dtype=np.int64)
    entries, parts = pack(values, INT64)
    return RecordDict({"fedward": ConfigRecord(dict(entries)), **parts})


@dataclass
class Site:
    """One site's connection, and which requests it has made."""

    node: int
    fleet: FleetConnection
    requests: Counter[str] = field(default_factory=Counter)

    def receive(self) -> Message:
        """Return the next message."""
        deadline = time.monotonic() + 30
        while (incoming := self.fleet.receive()) is None:
            assert time.monotonic() < deadline
        return self.fleet.fetch(incoming)

    def answer(self, content: RecordDict | None = None) -> Message:
        """Answer the next message with `content`, or with what was asked, and return what was asked."""
        asked = self.receive()
        self.fleet.reply(Message(content or asked.content, reply_to=asked), 0.1)
        return asked


@contextmanager
def connected_site(superlink: SuperLinkProcess, folder: Path, name: str) -> Iterator[Site]:
    """Yield a new site, registered and connected."""
    key = create_node_key(folder / f"{name}-{time.monotonic_ns()}.key")
    node = superlink.client.register(public_key_bytes(key), name)
    stop = threading.Event()
    with open_fleet(superlink.public_address, trust(superlink), key, stop, heartbeat_s=10.0) as fleet:
        site = Site(node, fleet)
        counted(fleet.client._client, site.requests)
        yield site


def trust(superlink: SuperLinkProcess) -> ssl.SSLContext:
    """Return a context that trusts the SuperLink's authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=superlink.ca_pem.decode())
    return context


def counted(client: httpx.Client, requests: Counter[str]) -> None:
    """Count a client's requests by the last part of their path."""
    hooks = client.event_hooks
    hooks["request"].append(lambda request: requests.update([request.url.path.rpartition("/")[2]]))
    client.event_hooks = hooks
