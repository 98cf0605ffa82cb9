"""The only module of the common room that imports internal Flower names: task identity and bare messages."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Final

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.app import ConfigRecord, Message, Metadata
from flwr.app.message import make_message
from flwr.supercore.task_identity import TaskIdentity

from fedward_common.errors import InstallationError

if TYPE_CHECKING:
    from flwr.app import RecordDict

__all__ = [
    "ANNOUNCEMENT_BYTES",
    "INLINE_BYTES",
    "SUPPORTED_FLOWER",
    "assume_identity",
    "check_flower_version",
    "detached_message",
    "entry_on_demand",
    "quieten",
]

SUPPORTED_FLOWER: Final = "1.41."
INLINE_BYTES: Final = 256 * 1024
"""Content of at most so many bytes travels inside the announcement of its message; larger content as objects."""
ANNOUNCEMENT_BYTES: Final = 1 << 20
"""Largest announcement that a site may send: small content, or the tree of some thousand objects."""
_ONE_DAY_S = 86_400.0


def check_flower_version() -> str:
    """Return the installed flwr version.

    Raises:
        InstallationError: it is not a 1.41 release; the internal names in the rooms' adapters may have moved.
    """
    version = metadata.version("flwr")
    if not version.startswith(SUPPORTED_FLOWER):
        msg = f"flwr {version} is installed, Fedward stands on {SUPPORTED_FLOWER}x"
        raise InstallationError(msg, remedy="pip install 'flwr==1.41.0'")
    return version


def assume_identity(*, run: int, node: int, task: int = 1) -> None:
    """Let this process make messages of `run` as `node`; Flower keeps one identity for each process."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, node, task


def detached_message(
    content: RecordDict, *, source: int, target: int = 1, message_type: str = "train", answers: str = ""
) -> Message:
    """Return a message from `source` that no grid has carried.

    Args:
        content: its records.
        source: node that it comes from.
        target: node that it goes to; 1 is the coordinator.
        message_type: ``train`` or ``query``.
        answers: identifier of the message that it answers.
    """
    head = Metadata(
        run_id=1,
        message_id="",
        src_node_id=source,
        dst_node_id=target,
        reply_to_message_id=answers,
        group_id="",
        created_at=time.time(),
        ttl=_ONE_DAY_S,
        message_type=message_type,
    )
    return make_message(metadata=head, content=content)


class _OnDemand(Mapping[str, bytes]):
    """One entry, made anew whenever it is looked at."""

    def __init__(self, key: str, read: Callable[[], bytes]) -> None:
        self._key, self._read = key, read

    def __getitem__(self, key: str) -> bytes:
        if key != self._key:
            raise KeyError(key)
        return self._read()

    def __iter__(self) -> Iterator[str]:
        yield self._key

    def __len__(self) -> int:
        return 1

    def copy(self) -> dict[str, bytes]:
        """Return a dictionary, as a dictionary's own method does."""
        return dict(self)

    def __reduce__(self) -> tuple[type[dict[str, bytes]], tuple[dict[str, bytes]]]:
        return dict, (dict(self),)


def entry_on_demand(key: str, read: Callable[[], bytes]) -> ConfigRecord:
    """Return a record with one entry that takes no memory: `read` is called whenever somebody looks at it.

    Whoever sends or stores it sees no difference to a record that holds the bytes.
    """
    record = ConfigRecord()
    record.__dict__["_data"] = _OnDemand(key, read)
    return record


def quieten() -> None:
    """Keep Flower's own log to warnings; ours says what happens."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
