"""The round view of a run: who answered in which round, what it cost, when it will be over. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby
from statistics import median
from typing import Final, Literal

from fedward_common.privacy import Spend, epsilon_of, round_spend
from fedward_common.study import DpSgd
from fedward_server.console.facts import RunFacts
from fedward_server.console.words import parsed, span
from fedward_server.report import explained
from fedward_server.result import RoundResult
from fedward_server.run_status import ENDED
from fedward_server.wording import bound, number

__all__ = [
    "Cell",
    "CellState",
    "Cost",
    "Eta",
    "Grid",
    "Row",
    "Trouble",
    "costs",
    "eta",
    "grid",
    "open_round",
    "spent",
    "troubles",
]

SHOWN_ROUNDS: Final = 20
"""Rounds that the grid shows unless it is asked for all."""

CellState = Literal["accepted", "missed", "late", "absent", "excluded", "waiting", "ahead"]
_SIGNS: Final[Mapping[CellState, str]] = {
    "accepted": "✓", "missed": "!", "late": "»", "absent": "–", "excluded": "×", "waiting": "…", "ahead": "·",
}  # fmt: skip
_WORDS: Final[Mapping[CellState, str]] = {
    "late": "too late, not used", "absent": "away, not asked", "waiting": "waiting for its answer",
    "ahead": "not yet asked",
}  # fmt: skip
_NOT_ASKED: Final = "not_asked"


@dataclass(frozen=True, slots=True)
class Cell:
    """What one hospital did in one round, and why it did not take part."""

    state: CellState
    reason: str = ""

    @property
    def sign(self) -> str:
        """A sign that tells the states apart without colour."""
        return _SIGNS[self.state]

    @property
    def word(self) -> str:
        """The state in words."""
        return _WORDS.get(self.state, self.state)


@dataclass(frozen=True, slots=True)
class Row:
    """One hospital's rounds, in the order of the grid's columns; `accepted` counts all rounds, shown or not."""

    site: str
    cells: tuple[Cell, ...]
    accepted: int


@dataclass(frozen=True, slots=True)
class Grid:
    """Hospitals by rounds.

    Attributes:
        rounds: the columns, ascending.
        rows: the hospitals, in the study's order.
        hidden: earlier rounds that are not shown.
        open: the round that is open now, 0 for the roll call; None between rounds and after the last.
        closed: how many rounds are over.
    """

    rounds: tuple[int, ...]
    rows: tuple[Row, ...]
    hidden: int
    open: int | None
    closed: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a hospital did not take part, over one or several rounds in a row."""

    site: str
    first: int
    last: int
    sentence: str
    code: str
    cell: Cell = Cell("missed")

    @property
    def when(self) -> str:
        """The rounds in words; 0 stands for the roll call."""
        if not self.last:
            return "at the roll call"
        return f"round {self.first}" if self.first == self.last else f"rounds {self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Cost:
    """ε of one hospital beside what the study claims; `share` of the claim for a bar, 0 to 100.

    `spent` is empty where nothing bounds it.
    """

    site: str
    spent: str
    claim: str
    share: float
    over: bool = False


@dataclass(frozen=True, slots=True)
class Eta:
    """When a run will be over, if its rounds go on as they did; `text` says why there is none."""

    seconds: float | None
    text: str
    at: datetime | None = None


def open_round(facts: RunFacts) -> int | None:
    """Return the open round, 0 for the roll call; None where none is, or the status is older than the last commit."""
    status = facts.status
    if status is None or facts.result is not None or status.state in ENDED:
        return None
    if status.state == "enrolling" and not status.round:
        return 0
    return status.round if status.round > len(facts.closed) else None


def grid(facts: RunFacts, *, shown: int = SHOWN_ROUNDS) -> Grid:
    """Return hospitals by rounds: the closed ones, the open one, and those ahead as far as there is room.

    Args:
        facts: of the run.
        shown: columns at most, the last that have begun; a study with fewer rounds shows all of them.
    """
    closed, current = len(facts.closed), open_round(facts)
    begun = max(closed, current or 0)
    last = min(max(begun, shown), max(facts.planned, begun))
    first = max(1, last - shown + 1)
    rounds = tuple(range(first, last + 1))
    if current == 0:
        rounds = (0, *rounds)
    rows = tuple(
        Row(
            site,
            tuple(_cell(facts, site, round_, current) for round_ in rounds),
            sum(site in entry.sites for entry in facts.closed),
        )
        for site in facts.sites
    )
    return Grid(rounds, rows, first - 1, current, closed)


def _cell(facts: RunFacts, site: str, round_: int, current: int | None) -> Cell:
    if 0 < round_ <= len(facts.closed):
        return _closed_cell(facts, site, facts.closed[round_ - 1])
    if round_ == current:
        return _open_cell(facts, site)
    if site in _excluded(facts):
        return Cell("excluded", _excluded(facts)[site])
    return Cell("ahead")


def _closed_cell(facts: RunFacts, site: str, entry: RoundResult) -> Cell:
    """Return what a closed round says of a site; one of an earlier version does not name those that were not asked."""
    told = entry.statuses.get(site)
    if told is not None:
        return Cell(told.status, told.reason or "")
    if site in entry.sites:
        return Cell("accepted")
    if site in entry.missing:
        return Cell("missed", entry.missing[site])
    return Cell("excluded", _excluded(facts).get(site, _NOT_ASKED))


def _open_cell(facts: RunFacts, site: str) -> Cell:
    status = facts.status
    told = status.sites.get(site) if status is not None else None
    if status is None or told is None:
        return Cell("excluded", _excluded(facts)[site]) if site in _excluded(facts) else Cell("waiting")
    match told.state:
        case "waiting" | "accepted":
            return Cell(told.state)
        case "missed":
            return Cell("missed", told.reason or "")
        case "absent":
            return Cell("absent", told.reason or "")
        case _:
            return Cell("excluded", told.reason or _excluded(facts).get(site, _NOT_ASKED))


def _excluded(facts: RunFacts) -> dict[str, str]:
    """Return the hospitals that are asked no more, and why."""
    if facts.result is not None:
        return {
            name: site.reason or _NOT_ASKED for name, site in facts.result.sites.items() if site.status == "excluded"
        }
    return dict(facts.progress.excluded) if facts.progress is not None else {}


def troubles(shown: Grid) -> list[Trouble]:
    """Return each reason in a grid once, with the rounds for which it stands, the last round first."""
    begun = max(shown.closed, shown.open or 0)
    found = []
    for row in shown.rows:
        cells = list(zip(shown.rounds, row.cells, strict=True))
        told = [(round_, cell) for round_, cell in cells if round_ <= begun] or [(0, cell) for _, cell in cells[:1]]
        for cell, group in groupby(told, key=lambda place: place[1]):
            rounds = [round_ for round_, _ in group]
            if cell.state in {"missed", "late", "absent", "excluded"}:
                found.append(_trouble(row.site, rounds, cell))
    return sorted(found, key=lambda trouble: (-trouble.last, trouble.site))


def _trouble(site: str, rounds: list[int], cell: Cell) -> Trouble:
    sentence, code = explained(cell.reason)
    if cell.reason == _NOT_ASKED:
        sentence, code = "The hospital was not asked.", ""
    return Trouble(site, rounds[0], rounds[-1], sentence, code, cell)


def eta(facts: RunFacts, now: datetime) -> Eta:
    """Return when the run will be over, from the median of the seconds that its rounds took.

    Args:
        facts: of the run.
        now: aware.
    """
    if facts.result is not None or (facts.status is not None and facts.status.state in ENDED):
        return Eta(None, "The run is over.")
    if facts.line.state in {"queued", "paused", "stopping"} or facts.wish != "run":
        return Eta(None, "No estimate while the run is " + _standstill(facts) + ".")
    if not facts.closed:
        return Eta(None, "No estimate before the first round is closed.")
    seconds = median(entry.seconds for entry in facts.closed)
    left = (facts.planned - len(facts.closed)) * seconds
    opened = parsed(facts.status.opened_at) if facts.status is not None else None
    if opened is not None and open_round(facts) is not None:
        left -= min(seconds, max(0.0, (now - opened) / timedelta(seconds=1)))
    left = max(0.0, left)
    basis = (
        f"median of {len(facts.closed)} rounds: {number(seconds, trim=True)} s"
        if len(facts.closed) > 1
        else (f"the first round took {number(seconds, trim=True)} s")
    )
    return Eta(left, f"about {span(left)} ({basis})", now + timedelta(seconds=left))


def _standstill(facts: RunFacts) -> str:
    if facts.line.state == "queued":
        return "queued"
    return "stopping" if facts.wish == "stop" or facts.line.state == "stopping" else "paused"


def costs(facts: RunFacts) -> list[Cost]:
    """Return ε of each hospital so far beside the study's claim; nothing for a study without privacy.

    Of a run that goes on, every round that a hospital was asked for counts, answered or not: it may have paid.
    """
    privacy = facts.file.study.privacy if facts.file is not None else None
    if not isinstance(privacy, DpSgd):
        return []
    return [_cost(site, spent(facts, site), privacy.epsilon) for site in facts.sites]


def _cost(site: str, spent: float | None, claim: float) -> Cost:
    if spent is None:
        return Cost(site, "", number(claim, trim=True), 100.0, over=True)
    share = min(100.0, 100.0 * spent / claim)
    return Cost(site, bound(spent), number(claim, trim=True), share, over=spent > claim)


def spent(facts: RunFacts, site: str) -> float | None:
    """Return a hospital's ε so far, as `costs` shows it; None where nothing bounds it."""
    if facts.result is not None:
        found = facts.result.sites.get(site)
        return 0.0 if found is None else found.epsilon
    if facts.file is None:
        return None
    spend = round_spend(facts.file.study)
    privacy = facts.file.study.privacy
    if spend is None or not isinstance(privacy, DpSgd):
        return 0.0
    steps = _steps(facts, site, spend.steps)
    value = _epsilon(Spend(spend.noise_multiplier, spend.sampling_rate, steps), privacy.delta) if steps else 0.0
    return value if value != float("inf") else None


def _steps(facts: RunFacts, site: str, of_round: int) -> int:
    known = facts.progress
    steps, reported, asked = (
        (known.steps.get(site, 0), known.reported.get(site, 0), known.asked.get(site, 0)) if known else (0, 0, 0)
    )
    current = open_round(facts)
    if current is not None and _open_cell(facts, site).state != "excluded":
        asked = max(asked, current)
    return steps + max(0, asked - reported) * of_round


@lru_cache(maxsize=4096)
def _epsilon(spend: Spend, delta: float) -> float:
    return epsilon_of([spend], delta)
