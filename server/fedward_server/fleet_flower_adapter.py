"""Flower's internal names for the SuperLink's register of nodes: who is admitted, and what is handed out again.

Flower keeps one key for each node, for ever, and hands a message out once. Fedward lets its roster say whose key
counts, so that keys are renewed, expire and are revoked, and hands a message out again that never arrived.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, cast

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState, SqlLinkState
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import select, update

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flwr.app import Message

__all__ = ["INTERNAL_NAMES", "RESUMING", "VISITING", "Admits", "Nodes", "guard"]

INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.common.constant": "HEARTBEAT_DEFAULT_INTERVAL NOOP_ACCOUNT_NAME NOOP_FLWR_AID",
    "flwr.server.superlink.linkstate": "LinkState.acknowledge_node_heartbeat LinkState.activate_node"
    " LinkState.create_node LinkState.deactivate_node"
    " LinkState.delete_node LinkState.get_message_ins LinkState.get_node_id_by_public_key LinkState.get_node_info"
    " SqlLinkState.session",
    "flwr.supercore.state.schema.linkstate_models": "MessageIns.delivered_at MessageIns.dst_node_id"
    " MessageIns.message_id MessageRes.reply_to_message_id",
    "flwr.supercore.utils": "uint64_to_int64",
}
"""Module and names of all that is used here beyond Flower's public API."""

Admits = Callable[[bytes], int | None]
"""Returns the number of the site that a public key (PEM) stands for, or None where it does not count (any more)."""

RESUMING: Final[ContextVar[bool]] = ContextVar("resuming", default=False)
"""Whether the request in work wants what was handed out before and never arrived."""

VISITING: Final[ContextVar[bool]] = ContextVar("visiting", default=False)
"""Whether the request in work only proves who sends it: its sender is turned away, whatever it asks."""


class _GuardedState:
    """Flower's state of the SuperLink, but for the methods that are ours."""

    def __init__(self, state: LinkState, admits: Admits | None) -> None:
        self._state = state
        self._admits = admits
        self._heard: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        """Return the node of a key that counts; every request and every activation asks this."""
        if self._admits is None:
            return self._state.get_node_id_by_public_key(public_key)
        return self._admits(public_key)

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Begin a site's session; of a visitor, nothing begins and nothing is in the way.

        Of a session that is said to last, and of which this process has heard nothing, the site may know nothing: the
        answer was lost, with the process before this one or on its way. It begins anew, before it would expire.
        """
        if VISITING.get():
            return True
        begins = self._state.activate_node(node_id, heartbeat_interval)
        if not begins and node_id not in self._heard and self._state.deactivate_node(node_id):
            begins = self._state.activate_node(node_id, heartbeat_interval)
        if begins:
            self._heard.discard(node_id)
        return begins

    def acknowledge_node_heartbeat(self, node_id: int, heartbeat_interval: float) -> bool:
        """Take a sign of life."""
        self._heard.add(node_id)
        return self._state.acknowledge_node_heartbeat(node_id, heartbeat_interval)

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        """Return the messages that wait for a node; first those again that it never got, if it asks for them."""
        self._heard.add(node_id)
        if RESUMING.get() and isinstance(self._state, SqlLinkState):
            _hand_out_again(self._state, node_id)
        return self._state.get_message_ins(node_id, limit, run_id=run_id)


class _GuardedFactory:
    """What Flower's Fleet and Control APIs take their state from."""

    def __init__(self, state: LinkState, admits: Admits | None) -> None:
        self._state = cast("LinkState", _GuardedState(state, admits))

    def state(self) -> LinkState:
        """Return the one state."""
        return self._state


def guard(app: FastAPI, admits: Admits | None) -> Nodes:
    """Let `admits` say whose requests the SuperLink's application answers; None leaves that to Flower's own register.

    Returns:
        That register.
    """
    state = cast("LinkState", app.state.linkstate_factory.state())
    app.state.linkstate_factory = _GuardedFactory(state, admits)
    return Nodes(state)


def _hand_out_again(state: SqlLinkState, node_id: int) -> None:
    """Let a node have those messages once more that it has neither confirmed nor answered.

    Confirming a message deletes its objects, so what is confirmed is never handed out again.
    """
    answered = select(MessageRes.reply_to_message_id)
    query = select(MessageIns.message_id).where(
        MessageIns.dst_node_id == uint64_to_int64(node_id),
        MessageIns.delivered_at != "",
        MessageIns.message_id.not_in(answered),
    )
    with state.session() as session:
        lost = [message for message in session.scalars(query) if message and message in state.object_store]
        if lost:
            session.execute(update(MessageIns).where(MessageIns.message_id.in_(lost)).values(delivered_at=""))


class Nodes:
    """The SuperLink's register of nodes, from within its process."""

    def __init__(self, state: LinkState) -> None:
        self._state = state

    def ensure(self, public_key: bytes, name: str) -> int:
        """Return the number of the node with this key (PEM), registered now if it was not.

        Raises:
            ValueError: the key belonged to a node that was removed.
        """
        known = self._state.get_node_id_by_public_key(public_key)
        if known is not None:
            return known
        return self._state.create_node(
            NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, HEARTBEAT_DEFAULT_INTERVAL, name=name
        )

    def exists(self, node: int) -> bool:
        """Return whether there is such a node, removed ones included."""
        return bool(self._state.get_node_info(node_ids=[node]))

    def remove(self, node: int) -> None:
        """Remove a node for good; the coordinator is told at once that it is gone. Removing it twice does nothing."""
        with contextlib.suppress(ValueError):
            self._state.delete_node(NOOP_FLWR_AID, node)

    def rest(self, node: int) -> None:
        """Call a node offline, until it is admitted again."""
        self._state.deactivate_node(node)
