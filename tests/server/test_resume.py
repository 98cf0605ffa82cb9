"""A coordinator that is killed at any instant goes on where it was: the same bits, nobody asked or charged twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedward_common.errors import CoordinatorError, InstallationError, RefusalCode
from fedward_common.study import Study
from fedward_server.checkpoint import read_checkpoint, write_checkpoint
from fedward_server.journal import Begun
from fedward_server.journal_file import JournalFile
from fedward_server.result import RunResult
from fedward_server.resume import CHECKPOINT, JOURNAL, held
from tests.builders import private_study, small_study
from tests.doubles import Behaviour, ScriptedGrid, fails, silent
from tests.server.killings import LastingGrid, Reaper, Scene, answering, files_of, paying

SITES = ("north", "south", "west")
ENDED = {"study.json", CHECKPOINT, "model.safetensors", "privacy.json", "result.json"}


def a_study(*, rounds: int = 3, **aggregation: Any) -> Study:
    rule = {"deadline_seconds": 10, **aggregation}
    return small_study(sites=list(SITES), training={"rounds": rounds}, aggregation=rule)


def told(result: RunResult) -> dict[str, Any]:
    """Return all of a result but what a clock says."""
    values = result.model_dump(exclude={"started_at", "seconds"})
    for entry in values["rounds"]:
        del entry["seconds"]
    return values


def instants(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the scene unkilled and return the instants at which it could have been killed."""
    lasting(scene).reaper = reaper = Reaper()
    with files_of(reaper, monkeypatch):
        scene.run()
    return reaper.seen


def lasting(scene: Scene) -> LastingGrid:
    assert isinstance(scene.grid, LastingGrid)
    return scene.grid


def asks(scene: Scene) -> Counter[tuple[str, int]]:
    return Counter(key for key in scene.grid.asked if key[1])


# ------------------------------------------------------------------------------------------------------- every instant
def test_killed_at_any_instant_it_ends_with_the_same_bits_and_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With moments, a mean of the last two models, and a site that misses a round."""
    study = a_study(rule="fedadam", average_last=0.67)
    script: Mapping[Any, Behaviour] = {("west", 2): fails()}
    whole = Scene.of(study, tmp_path / "whole", script)
    seen = instants(whole, monkeypatch)
    expected = told(RunResult.model_validate_json((whole.folder / "result.json").read_bytes()))
    kinds = {"push", "pushed", "pull", "pulled", "sync", "synced", "half a record", f"put {CHECKPOINT}"}
    assert kinds | {f"have put {CHECKPOINT}", f"put {JOURNAL}", "put result.json", f"remove {JOURNAL}"} <= set(seen)
    for at in range(1, len(seen) + 1):
        scene = Scene.of(study, tmp_path / f"run-{at}", script)
        assert scene.killed_at(at, monkeypatch), seen[at - 1]
        grid, before = lasting(scene), asks(scene)
        lost = set(grid.delivered)
        kept = scene.accepted() if (scene.folder / JOURNAL).exists() else set()
        result = scene.run()
        assert told(result) == expected, seen[at - 1]
        assert scene.model == whole.model, seen[at - 1]
        assert {path.name for path in scene.folder.iterdir()} == ENDED
        assert all(asks(scene)[key] == before[key] for key in kept)
        assert asks(scene) == Counter({key: count for key, count in grid.delivered.items() if key[1]})
        again = {key for key, count in asks(scene).items() if count > 1}
        assert again <= lost - kept | {("west", 2)}, seen[at - 1]  # which falls out, and is asked once more
        assert asks(scene)["west", 2] <= 2 + (("west", 2) in lost)


@pytest.mark.parametrize(("seed", "rule"), [(0, "fedadam"), (1, "fedadam"), (2, "fedyogi"), (3, "fedadagrad")])
def test_killed_again_and_again_it_ends_with_the_same_bits(
    seed: int, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_study(rounds=5, rule=rule, average_last=0.4)
    whole = Scene.of(study, tmp_path / "whole")
    whole.run()
    scene = Scene.of(study, tmp_path / "run")
    draw = random.Random(seed)  # noqa: S311  (a plan of kills)
    kills = 0
    while scene.killed_at(draw.randint(8, 40), monkeypatch):
        kills += 1
    assert kills >= 5
    assert scene.model == whole.model
    assert [entry.sites for entry in scene.run().rounds] == [SITES] * 5


def test_a_site_that_pays_once_for_a_round_loses_one_round_at_most_and_no_other_site_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under differential privacy: what is accepted stays, what was pulled and not yet written is lost, once."""
    study = private_study(sites=list(SITES), aggregation={"deadline_seconds": 10, "quorum": 2})
    whole = Scene.of(study, tmp_path / "whole", dict.fromkeys(SITES, paying(study)))
    seen = instants(whole, monkeypatch)
    epsilons = [entry.epsilon for entry in whole.run().rounds]
    for at in range(1, len(seen) + 1, 5):
        scene = Scene.of(study, tmp_path / f"run-{at}", dict.fromkeys(SITES, paying(study)))
        assert scene.killed_at(at, monkeypatch)
        kept = scene.accepted() if (scene.folder / JOURNAL).exists() else set()
        before = asks(scene)
        result = scene.run()
        grid = lasting(scene)
        for entry in result.rounds:
            assert set(entry.missing.values()) <= {f"round_replayed round={entry.round}"}
            assert {site for site, round_ in kept if round_ == entry.round} <= set(entry.sites)
        assert [entry.epsilon for entry in result.rounds] == epsilons
        assert sum(len(entry.missing) for entry in result.rounds) <= 1
        assert all(asks(scene)[key] == before[key] for key in kept)
        for site in SITES:  # what it says was spent covers every round that the site was asked for
            rounds = {round_ for name, round_ in grid.asked if name == site and round_}
            steps = result.sites[site].steps
            assert steps is not None
            assert steps >= len(rounds) * study.training.local_steps


# --------------------------------------------------------------------------------------------------- kill -9 for real
CHILD = """
import os, signal, sys
from pathlib import Path
from tests.server.test_resume import settled_scene

scene = settled_scene(Path(sys.argv[1]))
left, fsync = int(sys.argv[2]), os.fsync

def deadly(handle):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)

os.fsync = deadly
scene.run()
"""


def settled_scene(folder: Path) -> Scene:
    """Return a scene over a grid that ends with its process, as an engine's in memory does."""
    study = a_study(rule="fedadam", average_last=0.67)
    grid = ScriptedGrid(dict.fromkeys(SITES), dict.fromkeys(SITES, answering(study)))
    return Scene(study, folder, grid, grid.roster)


def test_process_after_process_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = settled_scene(tmp_path / "whole")
    whole.run()
    folder = tmp_path / "run"
    for syncs in (9, 11, 8):
        killed = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(syncs)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not (folder / "result.json").exists()
    scene = settled_scene(folder)
    assert told(scene.run()) == told(whole.run())
    assert scene.model == whole.model
    assert 0 < len(asks(scene)) < len(SITES) * 3
    assert {path.name for path in folder.iterdir()} == ENDED


# ------------------------------------------------------------------------------------------------------- another grid
def killed(scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch, *, nth: int = 1) -> None:
    """Kill the scene's coordinator at the `nth` instant of this name."""
    rehearsed = Scene.of(scene.study, scene.folder.with_name("rehearsed"))
    seen = instants(rehearsed, monkeypatch)
    at = [number for number, instant in enumerate(seen, start=1) if instant == name][nth - 1]
    assert scene.killed_at(at, monkeypatch)


def test_where_the_grid_died_too_only_sites_without_an_accepted_update_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    killed(scene, "half a record", monkeypatch, nth=14)  # in the second update of round 1
    kept = scene.accepted()
    assert 0 < len(kept) < len(SITES)
    grid = LastingGrid(dict.fromkeys(SITES), dict.fromkeys(SITES, answering(scene.study)))
    grid.lineage = "another"
    grid.roster = {node + 100: site for node, site in grid.roster.items()}
    scene.grid, scene.roster = grid, grid.roster
    result = scene.run()
    assert {key for key in grid.asked if key[1] == 1} == {(site, 1) for site in SITES} - kept
    assert [entry.sites for entry in result.rounds] == [SITES] * 3


@pytest.mark.parametrize("moved", [False, True])
def test_nodes_without_keys_are_asked_who_they_are_again_where_they_have_moved(
    moved: bool,  # noqa: FBT001  (a parameter of pytest's)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    scene.roster = None
    killed(scene, f"have put {CHECKPOINT}", monkeypatch)
    grid = LastingGrid(dict.fromkeys(SITES), dict.fromkeys(SITES, answering(scene.study)))
    grid.roster = {node + 100 * moved: site for node, site in grid.roster.items()}
    scene.grid = grid
    assert [entry.sites for entry in scene.run().rounds] == [SITES] * 3
    assert [site for site, round_ in grid.asked if round_ == 0] == (list(SITES) if moved else [])
    assert not [key for key in grid.asked if key[1] == 1]


def test_a_site_that_left_the_roster_in_between_is_reported_and_the_quorum_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    killed(scene, f"have put {CHECKPOINT}", monkeypatch)
    scene.roster = {node: site for node, site in scene.grid.roster.items() if site != "west"}
    result = scene.run()
    assert [entry.sites for entry in result.rounds] == [SITES, SITES[:2], SITES[:2]]
    assert (result.status, result.sites["west"].reason) == ("degraded", "not_connected")


def test_a_site_that_was_asked_and_left_has_spent_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = private_study(sites=list(SITES), aggregation={"deadline_seconds": 10, "quorum": 2})
    scene = Scene.of(study, tmp_path / "run")
    killed(scene, "pushed", monkeypatch, nth=3)  # the roll call, the first round, the second
    scene.roster = {node: site for node, site in scene.grid.roster.items() if site != "west"}
    result = scene.run()
    assert result.sites["west"].steps == 2 * study.training.local_steps
    assert result.sites["north"].steps == 3 * study.training.local_steps


# ------------------------------------------------------------------------------------------------------------ verdicts
def test_a_refusal_for_good_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = fails(RefusalCode.BUDGET_EXCEEDED)
    scene = Scene.of(a_study(), tmp_path / "run", {("north", 1): gone})
    seen = instants(Scene.of(scene.study, tmp_path / "whole", {("north", 1): gone}), monkeypatch)
    halves = [number for number, name in enumerate(seen, start=1) if name == "half a record"]
    assert scene.killed_at(halves[14], monkeypatch)  # south's update is being written
    result = scene.run()
    assert [entry.sites for entry in result.rounds] == [SITES[1:]] * 3
    assert [key for key in scene.grid.asked if key[0] == "north"] == [("north", 0), ("north", 1)]
    assert (result.sites["north"].status, result.sites["north"].reason) == ("excluded", "budget_exceeded")


def test_a_lost_quorum_stays_lost_and_the_run_reaches_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: dict[Any, Behaviour] = {("south", 2): silent, ("west", 2): fails()}
    whole = Scene.of(a_study(), tmp_path / "whole", script)
    seen = instants(whole, monkeypatch)
    assert "1 sites answered in round 2" in str(whole.run().reason)
    for at in range(len(seen) - 30, len(seen) + 1):
        scene = Scene.of(whole.study, tmp_path / f"run-{at}", script)
        assert scene.killed_at(at, monkeypatch)
        result = scene.run()
        assert (result.status, len(result.rounds), scene.model) == ("failed", 1, whole.model)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    first, model, asked = scene.run(), scene.model, list(scene.grid.asked)
    assert scene.run() == first
    assert (scene.model, scene.grid.asked) == (model, asked)


@pytest.mark.parametrize(("rule", "ends"), [("FedMedian", "completed"), ("FedAvgM", "failed")])
def test_strategy_of_flower_goes_on_only_where_it_carries_nothing(
    rule: str, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"rule": "flower", "_target_": f"flwr.serverapp.strategy.{rule}", "deadline_seconds": 10}
    study = small_study(sites=list(SITES), aggregation=named)
    scene = Scene.of(study, tmp_path / "run")
    killed(scene, f"have put {CHECKPOINT}", monkeypatch)
    result = scene.run()
    assert result.status == ends
    assert (scene.model == (tmp_path / "rehearsed" / "model.safetensors").read_bytes()) == (ends == "completed")
    assert ends == "completed" or "keeps a state between rounds" in str(result.reason)


# ------------------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("instant", ["pull", f"have put {CHECKPOINT}", "put result.json", f"have put {JOURNAL}"])
def test_another_study_never_goes_on_in_this_folder(
    instant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    killed(scene, instant, monkeypatch)
    for name in ("", "study.json"):  # also where the study's file is gone
        (scene.folder / name).unlink(missing_ok=True) if name else None
        before = {path.name: path.read_bytes() for path in scene.folder.iterdir() if path.name[0] != "."}
        with pytest.raises(CoordinatorError, match="belongs to another study"):
            scene.run(a_study(rule="fedadam"))
        assert {path.name: path.read_bytes() for path in scene.folder.iterdir()} == before
    scene.run()
    with pytest.raises(CoordinatorError, match="belongs to another study"):
        scene.run(a_study(rule="fedadam"))


def test_a_damaged_journal_checkpoint_or_result_is_named_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    killed(scene, "pull", monkeypatch, nth=3)
    asked = list(scene.grid.asked)
    for name in (JOURNAL, CHECKPOINT):
        path = scene.folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        with pytest.raises(CoordinatorError, match=name) as caught:
            scene.run()
        assert caught.value.remedy
        path.unlink()
        with pytest.raises(CoordinatorError, match=name):
            scene.run()
        path.write_bytes(whole)
    (scene.folder / "result.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CoordinatorError, match=r"result\.json cannot be read"):
        scene.run()
    assert scene.grid.asked == asked
    (scene.folder / "result.json").unlink()
    assert scene.run().status == "completed"


def test_a_checkpoint_of_another_moment_than_its_journal_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    killed(scene, "pull", monkeypatch, nth=3)
    begun = Begun(study=scene.study.digest, after=2, started="2026-11-27T00:00:00+00:00")
    JournalFile.create(scene.folder / JOURNAL, begun).close()
    with pytest.raises(CoordinatorError, match="is of round 1, the journal beside it goes on after round 2"):
        scene.run()


@pytest.mark.parametrize("progress", ["", "{}", '{"started": "", "more": 1}'])
def test_a_checkpoint_of_another_version_is_refused(
    progress: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    killed(scene, "pull", monkeypatch, nth=3)
    path = scene.folder / CHECKPOINT
    found = read_checkpoint(path)
    write_checkpoint(path, study=found.study, round_=1, arrays=found.arrays, progress=progress)
    with pytest.raises(CoordinatorError, match="another version of Fedward"):
        scene.run()
    write_checkpoint(path, study=found.study, round_=1, arrays={}, progress=found.progress)
    with pytest.raises(CoordinatorError, match="holds no model"):
        scene.run()


def test_two_coordinators_never_work_in_one_folder(tmp_path: Path) -> None:
    scene = Scene.of(a_study(), tmp_path / "run")
    with held(scene.folder), pytest.raises(InstallationError, match="another coordinator works in"):
        scene.run()
    assert scene.grid.asked == []
    assert scene.run().status == "completed"
