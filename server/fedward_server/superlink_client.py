"""What the coordinator asks of its SuperLink: register a site, start a run, be its ServerApp."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flwr.app import Context

from fedward_server import flower_adapter, session_flower_adapter
from fedward_server.grid_flower_adapter import CoordinatorGrid
from fedward_server.session_flower_adapter import LastingSession

__all__ = ["Bundle", "SuperLinkClient", "code_free_bundle"]

_README: Final = """\
# Fedward

This bundle holds no code. A hospital runs the Fedward that its own staff installed, and refuses any run
whose bundle has another SHA-256 than this one's.
"""
_PYPROJECT: Final = """\
[project]
name = "fedward"
version = "1.0.0"
description = "A code-free bundle: sites run the fedward_client that they installed themselves."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedward"

[tool.flwr.app.components]
serverapp = "fedward_server.app:app"
clientapp = "fedward_client.app:app"
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A Flower app bundle and its SHA-256 as 64 lower-case hexadecimal digits."""

    content: bytes
    sha256: str


def code_free_bundle() -> Bundle:
    """Return the one bundle of this version of Fedward: two texts and their manifest, the same bytes everywhere.

    Entries are stored (not compressed), sorted, with fixed times and modes, so that neither the platform nor the zlib
    at hand changes the digest that sites pin.
    """
    texts = {"README.md": _README.encode(), "pyproject.toml": _PYPROJECT.encode()}
    lines = [f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}\n" for name, data in sorted(texts.items())]
    texts[".info/CONTENT"] = "".join(lines).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(texts.items()):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    content = target.getvalue()
    return Bundle(content, hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class SuperLinkClient:
    """The coordinator's side of the loopback listener.

    Args:
        address: host:port of that listener.
        secret: the secret shared with the SuperLink; left out of `repr`.
    """

    address: str
    secret: bytes

    def __repr__(self) -> str:
        return f"SuperLinkClient({self.address!r}, secret=<hidden>)"

    def register(self, public_key: bytes, name: str) -> int:
        """Make a site known by its public key (PEM) and return its node id; see `flower_adapter.register_node`."""
        return flower_adapter.register_node(self.address, self.secret, public_key, name)

    def start_run(self, bundle: Bundle) -> int:
        """Create a run and return its id; see `flower_adapter.start_run`."""
        return flower_adapter.start_run(self.address, self.secret, bundle.content)

    @contextlib.contextmanager
    def session(self, run_id: int) -> Iterator[tuple[CoordinatorGrid, Context]]:
        """Be the ServerApp of `run_id` inside the ``with``; see `session_flower_adapter.task_session`."""
        with session_flower_adapter.task_session(self.address, self.secret, run_id) as (grid, context):
            yield grid, context

    @contextlib.contextmanager
    def lasting_session(self, ticket: Path, bundle: Bundle) -> Iterator[LastingSession]:
        """Be the ServerApp of the run that `ticket` names; see `session_flower_adapter.lasting_session`."""

        def start() -> int:
            return self.start_run(bundle)

        with session_flower_adapter.lasting_session(self.address, self.secret, ticket, start) as session:
            yield session
