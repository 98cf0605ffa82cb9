"""What the page of a run shows is what its coordinator wrote down."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from fedward_server.application import _Reins
from fedward_server.board import Board
from fedward_server.journal import Accepted, Asked, Asking, Begun, Enrolled, Joined, Missed, Record, Seat
from fedward_server.result import RoundResult, RunResult, SiteResult, StudyRef
from fedward_server.run_status import RunStatus, SiteStatus
from tests.builders import small_study

STUDY = small_study(sites=["north", "south", "west"])


def seat(site: str) -> Seat:
    return Seat(node=1, site=site, patients=40, version="0")


def accepted(site: str, round_: int) -> Accepted:
    return Accepted(round=round_, site=site, weight=40, steps=0, metrics={})


def missed(site: str, round_: int, *, for_good: bool = False) -> Missed:
    return Missed(round=round_, site=site, reason="task_crashed", for_good=for_good)


class Watched:
    """A board, and everything that it showed."""

    def __init__(self) -> None:
        self.shown: list[RunStatus] = []
        ticks = itertools.count()
        self.board = Board(STUDY, 17, lambda: f"at {next(ticks)}", self.shown.append)

    def tell(self, *records: Record) -> RunStatus:
        for record in records:
            self.board.told(record)
        return self.shown[-1]


def states(status: RunStatus) -> dict[str, str]:
    return {site: said.state for site, said in status.sites.items()}


def test_before_the_roll_call_nobody_has_enrolled() -> None:
    watched = Watched()
    watched.board.enter("starting")

    assert watched.shown[-1].state == "starting"
    assert watched.shown[-1].pid == 17
    assert set(states(watched.shown[-1]).values()) == {"absent"}


def test_a_sign_of_life_changes_the_time_and_nothing_else() -> None:
    watched = Watched()
    before = watched.tell(Asking(round=1, sites=("north",)))
    watched.board.again()

    assert watched.shown[-1].updated_at != before.updated_at
    assert watched.shown[-1].model_copy(update={"updated_at": before.updated_at}) == before


def test_a_run_that_waits_gives_a_sign_of_life_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round may be hours long, and nothing happens in it; who looks must not take the process for a dead one."""
    watched, clock = Watched(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    reins = _Reins(tmp_path, watched.board)
    for _ in range(1000):
        clock += 0.5
        reins.obey()

    assert 15 <= len(watched.shown) <= 17


def test_who_is_awaited_before_the_first_round_is_told_with_the_reason() -> None:
    watched = Watched()
    watched.board.awaiting(["north"], {"south": "study_not_approved", "node 9": "enrolment: …"}, "1 of 2")
    status = watched.shown[-1]

    assert status.state == "enrolling"
    assert status.reason == "1 of 2"
    assert status.sites["south"] == SiteStatus(state="absent", reason="study_not_approved")
    assert states(status) == {"north": "waiting", "south": "absent", "west": "absent"}


def test_a_round_is_followed_site_by_site() -> None:
    watched = Watched()
    roll = Enrolled(seats=(seat("north"), seat("south")), excluded={"west": "not_connected"})
    status = watched.tell(roll, Asking(round=1, sites=("north", "south")))

    assert (status.state, status.round) == ("running", 1)
    assert states(status) == {"north": "waiting", "south": "waiting", "west": "excluded"}
    opened = status.opened_at
    status = watched.tell(accepted("north", 1), missed("south", 1))
    assert states(status) == {"north": "accepted", "south": "missed", "west": "excluded"}
    assert status.sites["south"].reason == "task_crashed"
    assert status.opened_at == opened
    status = watched.tell(Asking(round=2, sites=("north", "south")))
    assert (status.round, states(status)["north"]) == (2, "waiting")
    assert status.opened_at != opened


def test_a_site_that_is_asked_again_leaves_the_round_s_beginning_where_it_was() -> None:
    watched = Watched()
    opened = watched.tell(Asking(round=1, sites=("north", "south"))).opened_at

    assert watched.tell(Asking(round=1, sites=("south",))).opened_at == opened


def test_a_site_that_was_away_at_the_roll_call_is_absent_until_it_comes() -> None:
    watched = Watched()
    status = watched.tell(Enrolled(seats=(seat("north"),), excluded={"west": "not_connected"}, away=("west",)))
    assert status.sites["west"] == SiteStatus(state="absent", reason="not_connected")
    watched.board.closed(RoundResult(round=1, sites=("north",), missing={"west": "not_connected"}, seconds=1.0))
    assert states(watched.shown[-1])["west"] == "absent"
    assert states(watched.tell(Joined(round=2, seat=seat("west"), excluded="not_connected")))["west"] == "waiting"


def test_a_closed_round_names_who_was_missing() -> None:
    watched = Watched()
    watched.tell(Asking(round=1, sites=("north", "south", "west")), missed("west", 1, for_good=True))
    missing = {"south": "no_reply_before_the_deadline", "west": "task_crashed"}
    watched.board.closed(RoundResult(round=1, sites=("north",), missing=missing, seconds=1.0))

    assert states(watched.shown[-1]) == {"north": "accepted", "south": "missed", "west": "excluded"}


@pytest.mark.parametrize("record", [Begun(study="x", after=0, started="now"), Asked(round=1, lineage="", messages={})])
def test_what_says_nothing_of_a_site_shows_nothing(record: Record) -> None:
    watched = Watched()
    watched.board.told(record)

    assert not watched.shown


def test_a_stranger_is_not_shown() -> None:
    watched = Watched()
    status = watched.tell(Enrolled(seats=(seat("north"),), excluded={"node 4": "enrolment: not a site of this study"}))

    assert set(status.sites) == set(STUDY.sites)


def test_the_end_of_a_run_is_its_result() -> None:
    watched = Watched()
    out = SiteResult(status="excluded", reason="study_not_approved")
    result = RunResult(
        study=StudyRef(name="s", digest="d"), engine="deployed", seed=1, status="failed", reason="2 sites enrolled",
        started_at="", seconds=0, versions={}, privacy=None, sites={"north": out}, rounds=(), central={},
    )  # fmt: skip
    watched.board.ended(result)

    assert (watched.shown[-1].state, watched.shown[-1].reason) == ("failed", "2 sites enrolled")
    assert watched.shown[-1].sites["north"] == SiteStatus(state="excluded", reason="study_not_approved")
