"""A base for Flower grids that are not a connection: everything that the round loop does not use is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["BareGrid"]


class BareGrid(Grid):
    """A `Grid` of which a subclass offers what it has; every other call is a programming error."""

    def set_run(self, run: Any) -> None:
        """Take no run: there is one."""

    @property
    def run(self) -> Any:
        """Not offered: there is no run of Flower's."""
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Not offered: Flower deprecates it for `Message`."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Not offered."""
        raise NotImplementedError

    def get_nodes(self) -> Iterable[Any]:
        """Not offered: these nodes have no keys and no owners."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not offered."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not offered."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not offered: it cannot hand replies on as they arrive."""
        raise NotImplementedError
