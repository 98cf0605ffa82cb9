"""Flower's internal names for what the SuperLink owes a coordinator that was killed: its run, and what it never took.

Flower ends a run whose ServerApp is silent for a minute, and hands a reply out once. Here a run lasts until its
coordinator ends it, or `LEASE_S` after its last sign of life; and a coordinator that says that it resumes gets again
whatever its predecessor had been handed and had not confirmed.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any, Final

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.server.superlink.linkstate import LinkState, SqlLinkState
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.state.schema.corestate_models import Task as TaskModel
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import func, select, update

from fedward_server.fleet_flower_adapter import RESUMING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flwr.app import Message

__all__ = ["INTERNAL_NAMES", "LEASE_S", "keep_runs"]

INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.server.superlink.linkstate": "LinkState.acknowledge_task_heartbeat LinkState.activate_task"
    " LinkState.get_message_res SqlLinkState.delete_messages SqlLinkState.object_store SqlLinkState.session",
    "flwr.supercore.date": "now",
    "flwr.supercore.inflatable.inflatable_object": "iterate_object_tree",
    "flwr.supercore.object_store": "NoObjectInStoreError ObjectStore.delete ObjectStore.get"
    " ObjectStore.get_object_tree",
    "flwr.supercore.state.schema.corestate_models": "Task.active_until Task.task_id",
    "flwr.supercore.state.schema.linkstate_models": "MessageIns.created_at MessageIns.message_id MessageIns.run_id"
    " MessageIns.ttl"
    " MessageRes.created_at MessageRes.delivered_at MessageRes.message_id MessageRes.reply_to_message_id"
    " MessageRes.ttl",
    "flwr.supercore.utils": "uint64_to_int64",
}
"""Module and names of all that is used here beyond Flower's public API."""

LEASE_S: Final = 7 * 86400.0
"""A run outlives its coordinator for this long: a machine may stay off over a long weekend."""


_GRACE_S: Final = 300.0


def keep_runs(app: FastAPI) -> None:
    """Let the SuperLink's application keep the runs of coordinators that are away."""
    app.state.runtime_state_factory = _LastingFactory(app.state.runtime_state_factory.state())


class _LastingFactory:
    """What Flower's Runtime API takes its state from."""

    def __init__(self, state: LinkState) -> None:
        self._state = _LastingState(state) if isinstance(state, SqlLinkState) else state

    def state(self) -> Any:
        """Return the one state."""
        return self._state


class _ConfirmingStore:
    """Flower's store of objects, but that a confirmed message goes as well, and not before."""

    def __init__(self, state: SqlLinkState) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state.object_store, name)

    def delete(self, object_id: str) -> None:
        """Forget a reply that its coordinator has confirmed: the question, the reply and its objects."""
        query = select(MessageRes.reply_to_message_id).where(MessageRes.message_id == object_id)
        with self._state.session() as session:
            asked = {message for message in session.scalars(query) if message}
        self._state.delete_messages(asked)
        self._state.object_store.delete(object_id)


class _LastingState:
    """Flower's state of the SuperLink, but for what is ours."""

    def __init__(self, state: SqlLinkState) -> None:
        self._state = state
        self.object_store = _ConfirmingStore(state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def activate_task(self, task_id: int) -> bool:
        """Let a coordinator begin its run, and give it its lease."""
        return self._state.activate_task(task_id) and self._lease(task_id)

    def acknowledge_task_heartbeat(self, task_id: int) -> bool:
        """Renew the lease of a coordinator that lives."""
        return self._state.acknowledge_task_heartbeat(task_id) and self._lease(task_id)

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """Return the replies that have come; first what can be mended of what a killed coordinator left, if asked."""
        if RESUMING.get():
            _hand_out_again(self._state, message_ids)
            _drop_torn(self._state, run_id)
        return self._state.get_message_res(message_ids, run_id)

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Keep what was handed out until it is confirmed: Flower deletes it at once."""

    def _lease(self, task_id: int) -> bool:
        until = now() + dt.timedelta(seconds=LEASE_S)
        with self._state.session() as session:
            session.execute(
                update(TaskModel).where(TaskModel.task_id == uint64_to_int64(task_id)).values(active_until=until)
            )
        return True


def _hand_out_again(state: SqlLinkState, asked: set[str]) -> None:
    """Let the replies to `asked` be fetched that came in time, also once more, and however long nobody fetched them.

    Confirming a reply deletes it, so what is confirmed is never handed out again.
    """
    query = select(MessageRes.message_id, MessageRes.reply_to_message_id).where(
        MessageRes.reply_to_message_id.in_(asked)
    )
    with state.session() as session:
        kept = [
            (reply, question) for reply, question in session.execute(query) if reply and reply in state.object_store
        ]
        for table, names in ((MessageRes, [reply for reply, _ in kept]), (MessageIns, [name for _, name in kept])):
            until = now().timestamp() + _GRACE_S - table.created_at
            session.execute(update(table).where(table.message_id.in_(names)).values(ttl=func.max(table.ttl, until)))
        session.execute(
            update(MessageRes).where(MessageRes.message_id.in_([reply for reply, _ in kept])).values(delivered_at="")
        )


def _drop_torn(state: SqlLinkState, run_id: int) -> None:
    """Take out those messages of a run whose upload a kill cut short: nobody has the rest, and no site can read them.

    All that is whole of whoever resumes has been uploaded by the time it asks. It hears that what it knows of them is
    unavailable, and asks anew; a site that waits for the rest, of a roll call as well, hears that there is none.
    """
    answered = select(MessageRes.reply_to_message_id)
    query = select(MessageIns.message_id).where(
        MessageIns.run_id == uint64_to_int64(run_id), MessageIns.message_id.not_in(answered)
    )
    with state.session() as session:
        torn = {message for message in session.scalars(query) if message and _torn(state, message)}
    state.delete_messages(torn)
    for message in torn:
        state.object_store.delete(message)


def _torn(state: SqlLinkState, message_id: str) -> bool:
    """Return whether objects of a message are announced and not there; a confirmed one has no objects at all."""
    try:
        tree = state.object_store.get_object_tree(message_id)
    except NoObjectInStoreError:
        return False
    if not tree.children:  # its content came inside the announcement
        return False
    return any(not state.object_store.get(node.object_id) for node in iterate_object_tree(tree))
