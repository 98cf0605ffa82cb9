"""An open round goes on after a kill with the end, the second chances and the absences that it had."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error

from fedward_common.errors import CoordinatorError, RefusalCode
from fedward_common.study import Study
from fedward_server.coordinator import Coordinator
from fedward_server.journal import Accepted, Asking, Begun, Joined, Late, Missed, Retried, Seat, story_of, time_left
from fedward_server.result import RunResult
from tests.doubles import Behaviour, Delivery, Exchange, fails, silent
from tests.server.killings import Killed, LastingGrid, Reaper, Scene, answering, files_of
from tests.server.test_asking_again import first
from tests.server.test_resume import SITES, a_study, asks, instants, lasting, told
from tests.server.test_rounds import later

WHOLE = 600.0
BEGUN = Begun(study="d" * 64, after=1, started="2026-11-27T00:00:00+00:00")
SOUTH = Seat(node=3, site="south", patients=40, version="1")


# ------------------------------------------------------------------------------------------------------- how much left
@pytest.mark.parametrize(
    ("until", "now", "left"),
    [
        (1600.0, 1100.0, 500.0),
        (1600.0, 1590.0, 60.0),  # a tenth is the least
        (1600.0, 1e9, 60.0),  # the clock jumped forth, or the centre was off for days
        (1600.0, 0.0, WHOLE),  # the clock jumped back
        (0.0, 1e9, WHOLE),  # an older version wrote no end
    ],
)
def test_what_is_left_is_bounded_by_both_ends(until: float, now: float, left: float) -> None:
    assert time_left(until, now, WHOLE) == left


@pytest.mark.parametrize(("whole", "least"), [(10.0, 10.0), (100.0, 30.0), (7200.0, 720.0)])
def test_the_least_is_never_more_than_the_deadline_itself(whole: float, least: float) -> None:
    assert time_left(1.0, 1e9, whole) == least


# ---------------------------------------------------------------------------------------------------- the story's rules
def open_round(*records: Any) -> Any:
    return story_of([BEGUN, *records]).open


def test_the_last_end_that_was_written_counts() -> None:
    asking = [Asking(round=2, sites=("north",), until=at) for at in (5.0, 9.0, 0.0)]
    assert open_round(*asking).until == 9.0
    assert open_round(asking[2]).until == 0.0


def test_joined_retried_and_late_are_told() -> None:
    joined, late = Joined(round=2, seat=SOUTH, excluded="why"), Late(round=2, of=1, site="north", reason="r")
    asking = Asking(round=2, sites=("south",))
    found = open_round(joined, asking, late, Retried(round=2, site="south", reason="task_crashed"), asking)
    assert (found.joined, found.late, found.retried) == ({"south": joined}, [late], {"south": "task_crashed"})
    assert found.settled == frozenset()


@pytest.mark.parametrize(
    "records",
    [
        [Retried(round=2, site="south", reason="r")],
        [Asking(round=2, sites=("south",)), *[Retried(round=2, site="south", reason="r")] * 2],
        [Asking(round=2, sites=("south",)), Missed(round=2, site="south", reason="r", for_good=False),
         Retried(round=2, site="south", reason="r")],
        [Asking(round=2, sites=("south",)), Accepted(round=2, site="south", weight=1, steps=0, metrics={}),
         Retried(round=2, site="south", reason="r")],
        [Asking(round=2, sites=("south",)), Joined(round=2, seat=SOUTH)],
        [Late(round=2, of=2, site="south", reason="r")],
        [Joined(round=3, seat=SOUTH)],
    ],
    ids=["not-asked", "twice", "missed", "accepted", "asked-already", "not-late", "another-round"],
)  # fmt: skip
def test_what_no_coordinator_writes_is_refused(records: list[Any]) -> None:
    with pytest.raises(CoordinatorError, match="contradicts itself"):
        open_round(*records)


# -------------------------------------------------------------------------------------------------- a scene with a wall
class Walled(Scene):
    """A scene whose coordinators read the time of day from `wall`."""

    wall = 1e9

    def run(self, study: Study | None = None) -> RunResult:
        began, at = self.grid.clock.now, self.wall
        coordinator = Coordinator(
            study or self.study, self.central, self.predictor, self.folder, "rehearsal", clock=self.grid.clock,
            wall=lambda: at + self.grid.clock.now - began,
        )  # fmt: skip
        return coordinator.run(self.grid, self.roster, poll_seconds=0)


def walled(folder: Path, script: dict[Any, Behaviour], **aggregation: Any) -> Walled:
    study = a_study(**aggregation)
    grid = LastingGrid(dict.fromkeys(SITES), {**dict.fromkeys(SITES, answering(study)), **script})
    return Walled(study, folder, grid, grid.roster)


def killed_in_round_two(scene: Scene, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the coordinator once round 2 has been open for so long; it waits for south."""
    grid, opened = lasting(scene), [0.0]
    reaper = Reaper()

    def instant(name: str) -> None:
        if ("south", 2) in grid.asked:
            opened[0] = opened[0] or grid.clock.now
            if name == "pull" and grid.clock.now - opened[0] >= seconds:
                raise Killed(name)

    monkeypatch.setattr(reaper, "instant", instant)
    grid.reaper = reaper
    with pytest.raises(Killed), files_of(reaper, monkeypatch):
        scene.run()
    grid.reaper = Reaper()


@pytest.mark.parametrize(
    ("gone", "left"),
    [(0.0, 500.0), (300.0, 200.0), (450.0, 60.0), (1e7, 60.0), (-1e7, 600.0)],
    ids=["at-once", "a-while", "nearly-all", "jumped-forth", "jumped-back"],
)
def test_a_round_that_was_open_has_what_is_left_of_it(
    gone: float, left: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = walled(tmp_path / "run", {("south", 2): silent}, deadline_seconds=WHOLE)
    killed_in_round_two(scene, 100.0, monkeypatch)
    scene.wall += 100.0 + gone
    result = scene.run()
    assert result.rounds[1].statuses["south"].reason == "no_reply_before_the_deadline"
    assert abs(result.rounds[1].seconds - left) <= 5
    assert result.rounds[2].sites == SITES


@pytest.mark.parametrize("gone", [1e7, -1e7])
def test_a_clock_that_jumped_costs_no_site_its_answer(
    gone: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_study(deadline_seconds=WHOLE)
    scene = walled(tmp_path / "run", {("south", 2): later(study, 130.0)}, deadline_seconds=WHOLE)
    killed_in_round_two(scene, 100.0, monkeypatch)
    scene.wall += gone
    assert [entry.sites for entry in scene.run().rounds] == [SITES] * 3


# ---------------------------------------------------------------------------------------------------- second chances
def test_the_second_chance_of_a_site_is_not_given_again_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = first(1, fails(), lambda _: [Delivery(Error(8, RefusalCode.TASK_CRASHED), after=6.0)])
    scene = walled(tmp_path / "run", {("south", 2): slow}, deadline_seconds=WHOLE)
    killed_in_round_two(scene, 3.0, monkeypatch)
    assert asks(scene)["south", 2] == 2
    result = scene.run()
    assert asks(scene)["south", 2] == 2
    assert result.rounds[1].statuses["south"].model_dump() == {
        "status": "missed", "reason": "task_crashed", "retried": "task_crashed",
    }  # fmt: skip


def test_killed_at_any_instant_a_site_that_comes_back_is_back_for_the_next_process_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_study(rounds=4)

    def script() -> dict[Any, Behaviour]:
        return {("south", 0): first(1, silent, answering(study)), ("west", 2): silent}

    whole = Scene.of(study, tmp_path / "whole", script())
    seen = instants(whole, monkeypatch)
    expected = told(RunResult.model_validate_json((whole.folder / "result.json").read_bytes()))
    assert expected["rounds"][0]["statuses"]["south"]["status"] == "accepted"
    assert expected["rounds"][1]["statuses"]["west"]["status"] == "missed"
    joined = 0
    for at in range(1, len(seen) + 1, 2):
        scene = Scene.of(study, tmp_path / f"run-{at}", script())
        assert scene.killed_at(at, monkeypatch)
        result = scene.run()
        assert result.status == "degraded"
        assert [entry.round for entry in result.rounds] == [1, 2, 3, 4]
        assert all(set(entry.statuses) == set(SITES) for entry in result.rounds)
        assert result.rounds[3].sites == SITES, seen[at - 1]
        joined += result.rounds[0].statuses["south"].status == "accepted"
    assert joined > len(seen) / 4


def test_a_late_reply_is_told_whatever_kills_the_process_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_study()
    script: dict[Any, Behaviour] = {("south", 1): later(study, 11.0), ("north", 2): later(study, 4.0)}
    whole = Scene.of(study, tmp_path / "whole", script)
    seen = instants(whole, monkeypatch)
    late = whole.run().rounds[0].statuses["south"].model_dump(exclude_none=True)
    assert late == {"status": "late", "reason": "reply_after_the_deadline"}
    half = [number for number, name in enumerate(seen, start=1) if name == "synced"]
    told_of = 0
    for at in half:
        scene = Scene.of(study, tmp_path / f"run-{at}", script)
        assert scene.killed_at(at, monkeypatch)
        kinds = _kinds(scene)
        status = scene.run().rounds[0].statuses["south"].status
        told_of += status == "late"
        assert status == "late" or "late" not in kinds
    assert told_of


def _kinds(scene: Scene) -> set[str]:
    path = scene.folder / "journal.fedward"
    content = path.read_bytes() if path.exists() else b""
    return {kind for kind in ("late", "joined") if f'"kind":"{kind}"'.encode() in content}


def test_whom_a_process_called_for_in_vain_the_next_one_calls_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_study(deadline_seconds=WHOLE)
    calls: list[int] = []

    def absent(exchange: Exchange) -> Iterable[Delivery]:
        calls.append(exchange.round)
        return [] if len(calls) < 3 else answering(study)(exchange)

    scene = walled(tmp_path / "run", {("south", 0): absent, ("north", 2): later(study, 9.0)}, deadline_seconds=WHOLE)
    grid, reaper = lasting(scene), Reaper()

    def instant(name: str) -> None:
        if name == "pull" and ("north", 2) in grid.asked:
            raise Killed(name)

    monkeypatch.setattr(reaper, "instant", instant)
    grid.reaper = reaper
    with pytest.raises(Killed):
        scene.run()
    grid.reaper = Reaper()
    result = scene.run()
    assert len(calls) == 3
    assert result.rounds[2].sites == SITES
    assert (result.sites["south"].status, result.sites["south"].reason) == ("degraded", "no_reply_before_the_deadline")
