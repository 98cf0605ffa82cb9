"""The round view as its page shows it: the parts of `live` and the curve put together. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fedward_server.console.curve import Curve, curve
from fedward_server.console.facts import RunFacts
from fedward_server.console.live import SHOWN_ROUNDS, Cost, Eta, Grid, Trouble, costs, eta, grid, troubles
from fedward_server.console.words import ago, moment, parsed, span
from fedward_server.report import explained, outcome
from fedward_server.run_status import ENDED

__all__ = ["LiveView", "live_view"]

_SILENT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class LiveView:
    """All that the page shows of a run.

    Attributes:
        now: what it does at this moment, in one sentence.
        since: when the open round began; empty where none is open.
        sign: when its process last wrote; `silent` where that is long ago for a run that goes on.
        reason: why it stands still, or ended as it did.
        live: whether it goes on.
    """

    now: str
    since: str
    sign: str
    silent: bool
    reason: str
    live: bool
    grid: Grid
    troubles: list[Trouble]
    curve: Curve | None
    costs: list[Cost]
    eta: Eta
    done: int
    planned: int


def live_view(facts: RunFacts, now: datetime, *, every: bool = False) -> LiveView:
    """Return the page's content.

    Args:
        facts: of the run.
        now: aware.
        every: whether all rounds are shown in the grid, not the last ones only.
    """
    shown = grid(facts, shown=max(facts.planned, len(facts.closed), 1) if every else SHOWN_ROUNDS)
    status, over = facts.status, facts.line.state in ENDED
    updated = parsed(status.updated_at) if status is not None else None
    age = (now - updated) / timedelta(seconds=1) if updated is not None else None
    working = facts.line.state in {"running", "stopping"}
    reason = facts.line.reason or (status.reason if status is not None else None) or ""
    return LiveView(
        now=_sentence(facts, shown, now),
        since=moment(status.opened_at) if status is not None and shown.open is not None else "",
        sign=f"Last sign of life {ago(status.updated_at, now)}." if status is not None and not over else "",
        silent=working and age is not None and age > _SILENT_S,
        reason=explained(reason)[0] if reason.isidentifier() else outcome(reason),
        live=not over,
        grid=shown,
        troubles=troubles(shown),
        curve=curve(facts.closed, facts.planned),
        costs=costs(facts),
        eta=eta(facts, now),
        done=len(facts.closed),
        planned=facts.planned,
    )


_STANDS: Final = {
    "completed": "Completed",
    "degraded": "Completed, but hospitals are missing",
    "interrupted": "Stopped",
    "failed": "Failed",
    "queued": "Waits in the queue",
    "stopping": "Stops; what was closed stays",
}


def _sentence(facts: RunFacts, shown: Grid, now: datetime) -> str:
    """Return what a run does at this moment."""
    state = facts.line.state
    if state == "running":
        return _working(facts, shown, now)
    if state == "paused":
        return f"Paused after {len(facts.closed)} of {facts.planned} rounds."
    seconds = f" after {span(facts.result.seconds)}" if facts.result is not None and state in ENDED else ""
    return f"{_STANDS.get(state, state)}{seconds}."


def _working(facts: RunFacts, shown: Grid, now: datetime) -> str:
    status = facts.status
    if status is None or status.state == "starting":
        return "Starts."
    if status.state == "enrolling":
        return "Asks the hospitals whether they take part."
    if shown.open is None:
        return f"Between rounds: {len(facts.closed)} of {facts.planned} closed."
    states = [site.state for site in status.sites.values()]
    answered = states.count("accepted") + states.count("missed")
    opened = ago(status.opened_at, now).removesuffix(" ago")
    lasting = f", open for {opened}" if opened else ""
    asked = answered + states.count("waiting")
    return f"Round {shown.open} of {facts.planned}{lasting}: {answered} of {asked} hospitals have answered."
