"""A run waits for approvals instead of failing, and asks less and less often."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from fedward_common.errors import Refusal, RefusalCode
from fedward_common.wire import write_refusal
from fedward_server.aggregation import aggregator_for
from fedward_server.board import Board
from fedward_server.gathering import GRACE_S, LONGEST_S, gather
from fedward_server.rounds import RoundLoop
from fedward_server.run_status import RunStatus
from tests.builders import small_study
from tests.doubles import ScriptedGrid, says
from tests.server.killings import answering

STUDY = small_study(sites=["north", "south"], aggregation={"quorum": 2})
REFUSES = says(write_refusal("south", Refusal(RefusalCode.AWAITING_APPROVAL)))


class Over(BaseException):
    """The waiting is ended from outside."""


@dataclass
class Waits:
    """A clock, and a site that approves after so many waits."""

    approves_after: int
    calls: int = 0
    waited: list[float] = field(default_factory=list)
    shown: list[RunStatus] = field(default_factory=list)
    online: bool = True
    time: float = 0.0

    def call(self) -> RoundLoop:
        self.calls += 1
        ready = answering(STUDY)
        south = ready if len([s for s in self.waited if s >= 1]) >= self.approves_after else REFUSES
        grid = ScriptedGrid({"north": None, "south": None}, {"north": ready, "south": south})
        if not self.online:
            grid.get_node_ids = list  # type: ignore[method-assign]
        return RoundLoop(STUDY, grid, grid.roster, aggregator_for(STUDY), poll_seconds=0, clock=grid.clock)

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.time += seconds
        if len(self.waited) > 200:
            raise Over

    def gather(self) -> None:
        board = Board(STUDY, 1, lambda: "now", self.shown.append)
        gather(self.call, board, self.wait, clock=lambda: self.time)


def test_with_the_quorum_there_nobody_waits() -> None:
    waits = Waits(approves_after=0)
    waits.gather()

    assert waits.waited == []
    assert waits.shown == []


def test_a_study_that_is_not_approved_yet_is_awaited_and_not_failed() -> None:
    waits = Waits(approves_after=3)
    waits.gather()

    assert waits.waited == [5.0, 10.0, 20.0]
    assert [status.state for status in waits.shown] == ["enrolling"] * 3
    assert waits.shown[-1].sites["south"].reason == "awaiting_approval"
    assert waits.shown[-1].sites["north"].state == "waiting"


def test_hospitals_logs_are_not_filled_with_roll_calls() -> None:
    waits = Waits(approves_after=1000)
    with pytest.raises(Over):
        waits.gather()

    assert max(waits.waited) == LONGEST_S
    assert waits.waited[-1] == LONGEST_S


def test_a_hospital_that_is_about_to_connect_is_waited_for_a_little() -> None:
    waits = Waits(approves_after=0, online=False)
    waits.gather()

    assert sum(waits.waited) == pytest.approx(GRACE_S, abs=0.3)
    assert waits.calls == 2
