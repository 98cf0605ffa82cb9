"""A link that drops in the middle of a model costs the part that was under way, in both directions."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedward_client.connection import tls_context
from fedward_client.flower_adapter import FleetConnection, Incoming, PackedReply, open_fleet, pack_reply
from fedward_client.mailbox import Box, Key, ObjectCache
from fedward_common.certificates import create_node_key, public_key_bytes
from fedward_common.errors import TransportError
from fedward_common.packing import PART_BYTES, pack, unpack
from fedward_server.grid_flower_adapter import CoordinatorGrid
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.engines.deployed import SuperLinkProcess

INT64 = np.dtype("<i8")
PARTS = 4
SIZE = PARTS * PART_BYTES // 8

pytestmark = pytest.mark.deployed


def model(first: int = 0) -> RecordDict:
    entries, parts = pack(np.arange(first, first + SIZE, dtype=np.int64), INT64)
    return RecordDict({"fedward": ConfigRecord(dict(entries)), **parts})


def values(message: Message) -> npt.NDArray[np.int64]:
    return unpack(message.content, message.content.config_records["fedward"], dtype=INT64, length=SIZE)


@dataclass
class Link:
    """What passes one connection, by the last word of its path; it drops after so many of one kind."""

    drops_at: str = ""
    after: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    got: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def on(self, fleet: FleetConnection) -> None:
        hooks = fleet.client._client.event_hooks
        hooks["request"].append(self._request)
        hooks["response"].append(self._response)
        fleet.client._client.event_hooks = hooks

    def _request(self, request: httpx.Request) -> None:
        kind = request.url.path.rpartition("/")[2]
        if kind == self.drops_at and self.count.get(kind, 0) >= self.after:
            msg = "the link is down"
            raise httpx.ConnectError(msg)
        self.count[kind] = self.count.get(kind, 0) + 1
        self.sent[kind] = self.sent.get(kind, 0) + len(request.content)

    def _response(self, response: httpx.Response) -> None:
        kind = response.request.url.path.rpartition("/")[2]
        self.got[kind] = self.got.get(kind, 0) + int(response.headers["content-length"])


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("logs")) as process:
        process.await_ready()
        yield process


@pytest.fixture
def grid(superlink: SuperLinkProcess) -> Iterator[CoordinatorGrid]:
    with superlink.client.session(superlink.client.start_run(code_free_bundle())) as (grid, _):
        yield grid


@pytest.fixture
def fleet(superlink: SuperLinkProcess, tmp_path: Path) -> Iterator[FleetConnection]:
    key = create_node_key(tmp_path / "node.key")
    superlink.client.register(public_key_bytes(key), f"north-{time.monotonic_ns()}")
    (tmp_path / "ca.pem").write_bytes(superlink.ca_pem)
    trust = tls_context(tmp_path / "ca.pem")
    with open_fleet(superlink.public_address, trust, key, threading.Event(), patience_s=0.2) as fleet:
        yield fleet


def received(fleet: FleetConnection) -> Incoming:
    deadline = time.monotonic() + 60
    while (incoming := fleet.receive()) is None:
        assert time.monotonic() < deadline
    return incoming


def test_a_download_goes_on_with_the_parts_that_are_missing(
    grid: CoordinatorGrid, fleet: FleetConnection, tmp_path: Path
) -> None:
    grid.push_messages([Message(model(), fleet.node_id, "train", ttl=600)])
    incoming, store, link = received(fleet), ObjectCache(tmp_path / "cache", 1 << 30), Link("pull-object", 2)
    link.on(fleet)
    with pytest.raises(TransportError):
        fleet.fetch(incoming, store)
    for thread in threading.enumerate():  # Flower's, of which one may still be at its last part
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(60)
    kept = store.used
    assert 0 < kept < PARTS * PART_BYTES

    link.drops_at, before = "", link.got["pull-object"]
    twin = Incoming.from_bytes(incoming.to_bytes())  # as after a restart
    message = fleet.fetch(twin, ObjectCache(tmp_path / "cache", 1 << 30))

    assert (values(message) == np.arange(SIZE)).all()
    assert before >= kept
    assert link.got["pull-object"] - before <= PARTS * PART_BYTES - kept + 20_000  # frames and small objects


def test_an_upload_goes_on_with_the_parts_that_are_missing(
    grid: CoordinatorGrid, fleet: FleetConnection, tmp_path: Path
) -> None:
    (asked,) = grid.push_messages([Message(model(), fleet.node_id, "train", ttl=600)])
    question = fleet.fetch(received(fleet))
    packed, outbox, link = pack_reply(Message(model(7), reply_to=question), 0.1), Box(tmp_path / "outbox"), Link()
    outbox.keep_pieces(Key(1, "reply"), packed.pieces())
    link.drops_at, link.after = "push-object", 2
    link.on(fleet)
    with pytest.raises(TransportError):
        fleet.push(packed)
    assert 2 * PART_BYTES <= link.sent["push-object"] < 2 * PART_BYTES + 10_000
    assert grid.pull_messages([asked]) == []  # announced, and not whole: it keeps nobody waiting

    link.drops_at = ""
    ((_, content),) = outbox.entries()  # as after a restart
    fleet.push(PackedReply.from_bytes(content))
    deadline = time.monotonic() + 60
    while not (replies := grid.pull_messages([asked])):
        assert time.monotonic() < deadline

    assert (values(replies[0]) == np.arange(7, SIZE + 7)).all()
    assert link.sent["push-object"] < PARTS * PART_BYTES + 20_000  # nothing went twice


def test_a_capped_site_gets_and_sends_the_same_bytes(
    grid: CoordinatorGrid, superlink: SuperLinkProcess, tmp_path: Path
) -> None:
    key = create_node_key(tmp_path / "node.key")
    superlink.client.register(public_key_bytes(key), f"capped-{time.monotonic_ns()}")
    (tmp_path / "ca.pem").write_bytes(superlink.ca_pem)
    trust = tls_context(tmp_path / "ca.pem")
    with open_fleet(
        superlink.public_address, trust, key, threading.Event(), upload_mbit_s=2000.0, download_mbit_s=2000.0
    ) as fleet:
        (asked,) = grid.push_messages([Message(model(), fleet.node_id, "train", ttl=600)])
        question = fleet.fetch(received(fleet))
        fleet.reply(Message(model(3), reply_to=question), 0.1)
        (reply,) = grid.pull_messages([asked])
        got = values(reply)

    assert (values(question) == np.arange(SIZE)).all()
    assert (got == np.arange(3, SIZE + 3)).all()
