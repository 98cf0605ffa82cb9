"""``engine=local``: the production sites in real worker processes, killed ones included."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fedward_client.ledger import Ledger
from fedward_common.models import initial_weights
from fedward_common.wire import read_enrolment, read_refusal, read_update, write_roll_call, write_task
from fedward_server.coordinator import Coordinator
from fedward_server.result import RunResult
from fedward_simulations.engines.local import LocalGrid
from fedward_simulations.pool import WorkerPool
from fedward_simulations.predictor import PoolPredictor
from tests.builders import COHORT, private_study, small_study
from tests.doubles import Rehearsal

SITES = ("north", "south", "west")
LONG = {"local_steps": 500, "rounds": 2}  # half a second: long enough to be killed in the middle of it


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as workers:
        yield workers


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    study = small_study(sites=list(SITES), model={"name": "mlp", "hidden": [4]}, training={"sampling_rate": 0.5})
    return Rehearsal(study, tmp_path_factory.mktemp("local"))


def run(rehearsal: Rehearsal, grid: LocalGrid, folder: Path, pool: WorkerPool) -> tuple[RunResult, bytes]:
    """Run the study as ``fedward simulate`` does, evaluation in the pool; return the result and the model file."""
    folder.mkdir()
    scratch = folder / "scratch"
    scratch.mkdir()
    predictor = PoolPredictor(rehearsal.study, rehearsal.central.rows.features, scratch, pool)
    coordinator = Coordinator(rehearsal.study, rehearsal.central, predictor, folder, "local")
    result = coordinator.run(grid, grid.roster, poll_seconds=0)
    model = folder / "model.safetensors"
    return result, model.read_bytes() if model.exists() else b""


def replies(grid: LocalGrid, identifiers: Iterable[str], count: int) -> dict[str, Message]:
    """Return `count` replies by site, looking again and again."""
    found: dict[str, Message] = {}
    identifiers = list(identifiers)
    while len(found) < count:
        for reply in grid.pull_messages(identifiers):
            name = grid.roster[reply.metadata.src_node_id]
            assert name not in found
            found[name] = reply
    return found


def messages(grid: LocalGrid, content: RecordDict, kind: str) -> list[Message]:
    return [Message(content, node, kind) for node in grid.get_node_ids()]


# ------------------------------------------------------------------------------------------------------------- the grid
def test_each_home_is_a_node_that_answers_once(rehearsal: Rehearsal, pool: WorkerPool) -> None:
    grid = LocalGrid(rehearsal.homes, pool)
    assert sorted(grid.roster.values()) == sorted(SITES)
    identifiers = list(grid.push_messages(messages(grid, write_roll_call(rehearsal.study), "query")))
    found = replies(grid, identifiers, 3)
    assert {site: read_enrolment(reply.content).site for site, reply in found.items()} == {s: s for s in SITES}
    assert list(grid.pull_messages(identifiers)) == []
    assert list(grid.pull_messages(["an identifier that nobody gave"])) == []


def test_a_reply_answers_the_message_that_asked_for_it(rehearsal: Rehearsal, pool: WorkerPool) -> None:
    grid = LocalGrid(rehearsal.homes, pool)
    weights = initial_weights(rehearsal.study)
    asked = messages(grid, write_task(rehearsal.study, 1, weights), "train")
    identifiers = list(grid.push_messages(asked))
    assert len(set(identifiers)) == 3
    by_question = dict(zip(identifiers, asked, strict=True))
    for site, reply in replies(grid, identifiers, 3).items():
        question = by_question[reply.metadata.reply_to_message_id]
        assert reply.metadata.src_node_id == question.metadata.dst_node_id
        assert read_update(reply.content, size=len(weights)).site == site


def test_a_home_that_is_gone_is_a_code_and_no_text(rehearsal: Rehearsal, pool: WorkerPool, tmp_path: Path) -> None:
    grid = LocalGrid({"gone": tmp_path / "Jane Doe"}, pool)
    asked = messages(grid, write_roll_call(rehearsal.study), "query")
    found = replies(grid, grid.push_messages(asked), 1)
    assert read_refusal(found["gone"].content) == "internal_error"


# ----------------------------------------------------------------------------------------------------------- whole runs
def test_the_same_seed_gives_the_same_bits_twice_and_those_of_one_process(
    rehearsal: Rehearsal, pool: WorkerPool, tmp_path: Path
) -> None:
    runs = [run(rehearsal, LocalGrid(rehearsal.homes, pool), tmp_path / str(n), pool) for n in range(2)]
    assert [result.status for result, _ in runs] == ["completed"] * 2
    assert runs[0][1] == runs[1][1] == rehearsal.run().model
    assert runs[0][0].central == runs[1][0].central


def test_another_seed_gives_another_model(pool: WorkerPool, tmp_path: Path) -> None:
    models = set()
    for seed in (1, 2):
        study = small_study(seed=seed, training={"sampling_rate": 0.5})
        rehearsal = Rehearsal(study, tmp_path / f"seed-{seed}")
        models.add(run(rehearsal, LocalGrid(rehearsal.homes, pool), tmp_path / f"run-{seed}", pool)[1])
    assert len(models) == 2


def test_noise_is_new_in_every_run_of_one_seed(pool: WorkerPool, tmp_path: Path) -> None:
    study = private_study(training={"rounds": 1})
    models = set()
    for n in range(2):
        rehearsal = Rehearsal(study, tmp_path / f"homes-{n}")
        result, model = run(rehearsal, LocalGrid(rehearsal.homes, pool), tmp_path / f"run-{n}", pool)
        assert result.status == "completed"
        for site, home in rehearsal.homes.items():
            (entry,) = Ledger(home / "ledger.sqlite").entries(COHORT)
            assert result.sites[site].epsilon == pytest.approx(entry.epsilon)
        models.add(model)
    assert len(models) == 2


# -------------------------------------------------------------------------------------------------------------- SIGKILL
class Assassin(LocalGrid):
    """A grid that kills the one worker right after round 1 was handed out for the first time."""

    def __init__(self, homes: dict[str, Path], pool: WorkerPool) -> None:
        super().__init__(homes, pool)
        self._victim: Future[int] = pool.submit(os.getpid)
        self.killed = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        wanted = list(messages)
        identifiers = super().push_messages(wanted)
        if wanted[0].metadata.group_id == "1" and not self.killed:
            os.kill(self._victim.result(), signal.SIGKILL)
            self.killed += 1
        return identifiers


def test_worker_killed_in_mid_task_costs_nobody_a_round(tmp_path: Path) -> None:
    study = small_study(sites=list(SITES), training=LONG)
    rehearsal = Rehearsal(study, tmp_path / "sites")
    with WorkerPool(1) as alone:
        grid = Assassin(rehearsal.homes, alone)
        result, model = run(rehearsal, grid, tmp_path / "run", alone)
        others = Rehearsal(study, tmp_path / "others")
        _, whole = run(others, LocalGrid(others.homes, alone), tmp_path / "whole", alone)
    assert grid.killed == 1
    assert result.status == "completed"
    retried = {site: part.retried for site, part in result.rounds[0].statuses.items()}
    assert retried == {"north": "task_crashed"} | dict.fromkeys(SITES[1:])  # the first in the queue, and nobody else
    assert all(entry.sites == SITES for entry in result.rounds)
    assert model == whole
