"""A round whose deadline comes without a quorum stays open while there may be one, and fails where there may not."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedward_client.ledger import Ledger
from fedward_common.errors import QuorumLostError, RefusalCode
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_server.board import Board
from fedward_server.coordinator import Coordinator
from fedward_server.journal import Accepted, Asked, Asking, Begun, Extended, Joined, Missed, Retried, Seat, story_of
from fedward_server.rounds import RoundLoop
from fedward_server.run_status import RunStatus
from tests.builders import private_study
from tests.doubles import Behaviour, Delivery, Exchange, FakeClock, Rehearsal, ScriptedGrid, fails, faithful, silent
from tests.server.killings import Reaper, Scene, answering
from tests.server.test_asking_again import noted
from tests.server.test_resume import asks, instants, lasting
from tests.server.test_rounds import SITES, a_study, grid_of, loop_of, refuses, run

DEADLINE = 60.0
OUT = fails("away", code=5)


class During:
    """A site that does something else between two times of the grid's clock."""

    def __init__(self, behaviour: Behaviour, start: float, end: float, then: Behaviour) -> None:
        self.clock = FakeClock()
        self._behaviour, self._start, self._end, self._then = behaviour, start, end, then

    def __call__(self, exchange: Exchange) -> Iterable[Delivery]:
        return (self._behaviour if self._start <= self.clock.now < self._end else self._then)(exchange)


def on_the_clock_of(grid: ScriptedGrid, script: Mapping[Any, Behaviour]) -> None:
    """Let the absences in a script go by a grid's clock."""
    for behaviour in script.values():
        if isinstance(behaviour, During):
            behaviour.clock = grid.clock


def needy(**aggregation: Any) -> Study:
    """Return a study that needs all three sites in each round."""
    return a_study(aggregation={"quorum": 3, "deadline_seconds": DEADLINE, **aggregation})


def patient(study: Study, script: Mapping[Any, Behaviour] | None = None) -> RoundLoop:
    loop = loop_of(study, dict(script or {}))
    loop.patient = True
    on_the_clock_of(grid_of(loop), script or {})
    return loop


@pytest.mark.parametrize("behaviour", [OUT, silent, refuses(RefusalCode.OUTSIDE_HOURS)], ids=["out", "silent", "night"])
@pytest.mark.parametrize("away", [("south",), SITES], ids=["one", "all"])
def test_a_round_outlasts_an_absence_of_many_deadlines(behaviour: Behaviour, away: tuple[str, ...]) -> None:
    study = needy()
    absent = {site: During(behaviour, 2.5, 2.5 + 6 * DEADLINE, answering(study)) for site in away}
    loop = patient(study, absent)
    notes = noted(loop)
    closed = run(loop)
    assert [entry.accepted for entry in closed] == [SITES] * 3
    assert closed[-1].weights.tobytes() == run(loop_of(study))[-1].weights.tobytes()
    assert max(entry.seconds for entry in closed) > 5 * DEADLINE
    assert 4 <= len(notes.of(Extended)) <= 12
    accepted = [(record.round, record.site) for record in notes.of(Accepted)]
    assert len(accepted) == len(set(accepted)) == 9
    for site in set(SITES) - set(away):
        assert [grid_of(loop).asked.count((site, round_)) for round_ in (1, 2, 3)] == [1, 1, 1]
    for site in away:  # its log is not filled with calls
        assert len([None for name, _ in grid_of(loop).asked if name == site]) < 18


@pytest.mark.parametrize(
    "code",
    [
        RefusalCode.ROUND_REPLAYED,
        RefusalCode.BUDGET_EXCEEDED,
        RefusalCode.TASK_OUT_OF_MEMORY,
        RefusalCode.TASK_CRASHED,
        RefusalCode.AWAITING_APPROVAL,
    ],
)
def test_what_time_does_not_mend_is_not_waited_for(code: RefusalCode) -> None:
    loop = patient(needy(), {("south", 2): refuses(code)})
    loop.enrol()
    rounds = loop.rounds(initial_weights(loop.study))
    next(rounds)
    began = loop.clock()
    with pytest.raises(QuorumLostError, match="2 sites answered in round 2"):
        next(rounds)
    assert loop.clock() - began < DEADLINE / 2


def test_where_too_few_are_left_nobody_is_waited_for() -> None:
    """One of three may be back, but another has refused for good."""
    loop = patient(needy(), {("south", 2): refuses(RefusalCode.BUDGET_EXCEEDED), ("west", 2): silent})
    notes = noted(loop)
    with pytest.raises(QuorumLostError):
        run(loop)
    assert notes.of(Extended) == []


def test_with_a_quorum_the_deadline_is_the_end() -> None:
    loop = patient(a_study(aggregation={"deadline_seconds": DEADLINE}), {("south", 2): silent})
    notes = noted(loop)
    assert [entry.accepted for entry in run(loop)] == [SITES, ("north", "west"), SITES]
    assert notes.of(Extended) == []


def test_a_required_site_is_waited_for_beyond_the_deadline() -> None:
    study = a_study(aggregation={"deadline_seconds": DEADLINE, "required_sites": ["south"]})
    loop = patient(study, {"south": During(silent, 2.5, 400.0, answering(study))})
    assert [entry.accepted for entry in run(loop)] == [SITES] * 3


def test_a_coordinator_that_is_not_told_to_be_patient_fails_at_the_deadline() -> None:
    with pytest.raises(QuorumLostError):
        run(loop_of(needy(), {("south", 2): silent}))


def test_who_has_paid_before_the_deadline_pays_no_second_time(tmp_path: Path) -> None:
    """All sites train and the centre loses what they say, until long after the deadline."""
    study = private_study(sites=list(SITES), aggregation={"deadline_seconds": DEADLINE, "quorum": 3})
    rehearsal = Rehearsal(study, tmp_path)
    lossy: dict[Any, Any] = {
        site: During(fails("lost", code=5, trained=True), 2.5, 2.5 + 3 * DEADLINE, faithful) for site in SITES
    }
    grid = ScriptedGrid(dict(rehearsal.homes), lossy)
    on_the_clock_of(grid, lossy)
    folder = tmp_path / "run"
    folder.mkdir()
    coordinator = Coordinator(
        study, rehearsal.central, rehearsal.predictor, folder, "test", clock=grid.clock, patient=True
    )
    result = coordinator.run(grid, grid.roster, poll_seconds=0)
    assert result.status == "completed"
    assert [entry.sites for entry in result.rounds] == [SITES] * study.training.rounds
    for home in rehearsal.homes.values():
        paid = [c.round for c in Ledger(home / "ledger.sqlite").changes() if c.event == "reserved"]
        assert paid == list(range(1, study.training.rounds + 1))


# ---------------------------------------------------------------------------------------------------------------- kills
class Patient(Scene):
    """A scene whose coordinators are patient."""

    def coordinator(self, study: Study | None = None) -> Coordinator:
        made = super().coordinator(study)
        made.patient = True
        return made


def scene_of(study: Study, folder: Path) -> Patient:
    script = {
        "west": During(OUT, 2.5, 200.0, answering(study)),
        "north": During(silent, 2.5, 150.0, answering(study)),
    }
    scene = Patient.of(study, folder, script)
    on_the_clock_of(scene.grid, script)
    assert isinstance(scene, Patient)
    return scene


def test_killed_at_any_instant_of_a_long_absence_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = needy()
    whole = scene_of(study, tmp_path / "whole")
    seen = instants(whole, monkeypatch)
    for at in range(1, len(seen) + 1, 7):
        scene = scene_of(study, tmp_path / f"run-{at}")
        assert scene.killed_at(at, monkeypatch)
        kept = scene.accepted() if (scene.folder / "journal.fedward").exists() else set()
        before = asks(scene)
        result = scene.run()
        assert (result.status, [entry.sites for entry in result.rounds]) == ("completed", [SITES] * 3), at
        assert scene.model == whole.model
        assert all(asks(scene)[key] == before[key] for key in kept)


def test_killed_again_and_again_while_it_waits_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = needy()
    whole = scene_of(study, tmp_path / "whole")
    whole.run()
    scene = scene_of(study, tmp_path / "run")
    draw, kills = random.Random(5), 0  # noqa: S311  (a plan of kills)
    while scene.killed_at(draw.randint(8, 120), monkeypatch):
        kills += 1
    assert kills >= 3
    lasting(scene).reaper = Reaper()
    assert scene.model == whole.model


# --------------------------------------------------------------------------------------------------------- what is told
def test_an_extension_lets_who_may_be_back_join_and_keeps_what_was_accepted() -> None:
    seat = Seat(node=3, site="south", patients=40, version="1")
    records: list[Any] = [
        Begun(study="d" * 64, after=1, started="2026-11-27T00:00:00+00:00"),
        Asking(round=2, sites=("north", "south", "west", "east"), until=5.0),
        Asked(round=2, lineage="x", messages={"m1": "east"}),
        Accepted(round=2, site="north", weight=1, steps=0, metrics={}),
        Retried(round=2, site="south", reason="transport_error code=5"),
        Missed(round=2, site="south", reason="transport_error code=5", for_good=False),
        Missed(round=2, site="west", reason="round_replayed round=2", for_good=False),
        Extended(round=2, until=9.0, sites=("south",)),
        Joined(round=2, seat=seat),
        Asking(round=2, sites=("south",)),
        Retried(round=2, site="south", reason="task_crashed"),
        Accepted(round=2, site="south", weight=1, steps=0, metrics={}),
    ]
    told = story_of(records).open
    assert told is not None
    assert (told.until, set(told.accepted), set(told.missed)) == (9.0, {"north", "south"}, {"west"})
    assert told.waiting == {"m1": "east"}
    assert told.asked == {"north", "south", "west", "east"}


def test_the_board_says_what_a_round_waits_for_and_no_longer_than_it_does() -> None:
    shown: list[RunStatus] = []
    board = Board(needy(), 1, lambda: "now", shown.append)
    board.told(Asking(round=2, sites=SITES))
    board.told(Extended(round=2, until=9.0, sites=("south",)))
    assert (shown[-1].state, shown[-1].reason) == ("running", "round 2 waits for a quorum")
    board.told(Asking(round=2, sites=("south",)))
    assert shown[-1].reason is None
