"""What may become of a study at the centre: which state follows which wish or event. Rules only.

::

    queued ──▶ running ──▶ completed | degraded | failed | interrupted
      ▲  ▲        │ │
      │  └─ died ─┘ ├─ pause ──▶ paused ── resume ──▶ queued
      └─────────────┘            any of them ── stop ──▶ stopping ──▶ interrupted | what it ended as before it heard

``running`` is said of a study whose process lives and of no other: where the process is gone, the study waits in the
queue for the next one.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from fedward_common.errors import CoordinatorError
from fedward_server.run_status import Wish as RunWish

__all__ = ["ENDED", "LIVE", "EndState", "State", "Wish", "after_death", "after_wish", "given_up", "run_wish"]

State = Literal["queued", "running", "paused", "stopping", "completed", "degraded", "interrupted", "failed"]
EndState = Literal["completed", "degraded", "interrupted", "failed"]
Wish = Literal["pause", "resume", "stop"]

ENDED: Final[frozenset[State]] = frozenset(get_args(EndState))
LIVE: Final[frozenset[State]] = frozenset(get_args(State)) - ENDED

_WISHES: Final[dict[tuple[State, Wish], State]] = {
    ("queued", "pause"): "paused",
    ("queued", "stop"): "stopping",
    ("running", "pause"): "paused",
    ("running", "stop"): "stopping",
    ("paused", "pause"): "paused",
    ("paused", "resume"): "queued",
    ("paused", "stop"): "stopping",
    ("stopping", "stop"): "stopping",
}


def after_wish(state: State, wish: Wish, *, started: bool) -> State:
    """Return the state of a study in `state` once `wish` is noted.

    A study that never had a process has nothing to wind up: a stop ends it at once.

    Raises:
        CoordinatorError: it has ended, or the wish has no meaning in this state.
    """
    following = _WISHES.get((state, wish))
    if following is None:
        msg = f"a study that is {state} cannot be told to {wish}"
        ended = state in ENDED
        raise CoordinatorError(msg, remedy="it has ended; submit it again" if ended else "fedward server study show")
    if following == "stopping" and not started:
        return "interrupted"
    return following


def after_death(state: State) -> State:
    """Return the state of a study whose process has ended without a result and will be started again."""
    return "queued" if state == "running" else state


def given_up(state: State) -> EndState:
    """Return what a study ends as whose process is not started again: no failure where a stop was asked for."""
    return "interrupted" if state == "stopping" else "failed"


def run_wish(state: State) -> RunWish:
    """Return what the process of a study in `state` is told; one that waits in the queue does not go on meanwhile."""
    return {"running": "run", "stopping": "stop"}.get(state, "pause")  # type: ignore[return-value]
