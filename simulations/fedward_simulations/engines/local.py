"""``engine=local``: Flower's `Grid` over warm worker processes on this computer, without a server and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict

from fedward_common.errors import RefusalCode
from fedward_common.flower_adapter import assume_identity, detached_message
from fedward_server.bare_grid import BareGrid
from fedward_simulations.pool import WorkerLostError, WorkerPool

__all__ = ["LocalGrid"]

_RUN = 1
_CRASHED = 8  # Flower's ErrorCode.CLIENT_APP_CRASHED
_LOOK_S = 0.05


class LocalGrid(BareGrid):
    """A grid whose nodes are folders: node i is the i-th site's home, its messages run in the pool.

    Args:
        homes: the sites' folders, by name.
        pool: where the ClientApp runs.
    """

    def __init__(self, homes: Mapping[str, Path], pool: WorkerPool) -> None:
        assume_identity(run=_RUN, node=1)
        self._homes = {node: home for node, (_, home) in enumerate(sorted(homes.items()), start=2)}
        self.roster = {node: site for node, (site, _) in enumerate(sorted(homes.items()), start=2)}
        self._pool = pool
        self._waiting: dict[str, tuple[Message, Future[RecordDict]]] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, one for each site."""
        return list(self._homes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start the work on every message; returns the messages' identifiers, in order."""
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            home = self._homes[message.metadata.dst_node_id]
            task = self._pool.submit(
                _work, message.content, message.metadata.message_type, message.metadata.dst_node_id, str(home)
            )
            self._waiting[identifier] = (message, task)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, waiting up to 50 ms for a first one; each is returned once."""
        asked = {identifier: self._waiting[identifier] for identifier in message_ids if identifier in self._waiting}
        wait([task for _, task in asked.values()], timeout=_LOOK_S, return_when=FIRST_COMPLETED)
        replies = []
        for identifier, (message, task) in asked.items():
            if task.done():
                del self._waiting[identifier]
                replies.append(_reply(message, task))
        return replies


def _reply(message: Message, task: Future[RecordDict]) -> Message:
    error = task.exception()
    if error is None:
        return Message(task.result(), reply_to=message)
    code = RefusalCode.TASK_CRASHED if isinstance(error, WorkerLostError) else RefusalCode.INTERNAL
    return Message(Error(_CRASHED, code.value), reply_to=message)


def _work(content: RecordDict, kind: str, node: int, home: str) -> RecordDict:
    """Run the installed ClientApp on one message; in a worker."""
    from fedward_client.app import HOME_KEY, app  # noqa: PLC0415  (imported by the fork server)

    assume_identity(run=_RUN, node=node)
    message = detached_message(content, source=1, target=node, message_type=kind)
    context = Context(run_id=_RUN, node_id=node, node_config={HOME_KEY: home}, state=RecordDict(), run_config={})
    return app(message, context).content
