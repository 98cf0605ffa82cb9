"""A base for Flower grids that are not a connection: everything that the round loop does not use is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["BareGrid"]


def _refuse(what: str) -> NoReturn:
    msg = f"this grid does not offer {what}"
    raise TypeError(msg)


class BareGrid(Grid):
    """A `Grid` of which a subclass offers what it has; every other call is a programming error."""

    def set_run(self, run: Any) -> None:
        """Take no run: there is one."""

    @property
    def run(self) -> Any:
        """Not offered: there is no run of Flower's."""
        _refuse("run")

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Not offered: Flower deprecates it for `Message`."""
        _refuse("create_message")

    def get_node_ids(self) -> Iterable[int]:
        """Not offered."""
        _refuse("get_node_ids")

    def get_nodes(self) -> Iterable[Any]:
        """Not offered: these nodes have no keys and no owners."""
        _refuse("get_nodes")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not offered."""
        _refuse("push_messages")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not offered."""
        _refuse("pull_messages")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not offered: it cannot hand replies on as they arrive."""
        _refuse("send_and_receive")
