"""One child for each session: what goes in, what comes out, and what happens to the daemon when a child misbehaves."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedward_client.cohorts import TableEntry, open_cohort
from fedward_client.runner import Runner, TaskLimits, _read_facts, _read_trained, coded
from fedward_client.worker import Facts, InProcessWorker, Job, Trained
from fedward_common.errors import InstallationError, Refusal, RefusalCode
from fedward_common.models import initial_weights
from tests.builders import COHORT, site_home, small_study
from tests.tiny_worker import CANARY, DIARY

WORKER = "tests.tiny_worker:TinyWorker"
WEIGHTS = np.arange(7, dtype=np.float32)


@pytest.fixture(scope="module")
def runner() -> Runner:
    runner = Runner(WORKER, TaskLimits(wall_s=20.0))
    runner.start()
    return runner


def job(home: Path, how: str = "") -> Job:
    return Job(home, "north", TableEntry(table=f"{COHORT}.csv"), small_study(description=how), "f" * 64)


def train(runner: Runner, home: Path, how: str = "", weights: npt.NDArray[np.float32] = WEIGHTS) -> Trained:
    with runner.open(job(home, how)) as session:
        return session.train(2, weights)


def refusal(runner: Runner, home: Path, how: str) -> str:
    with pytest.raises(Refusal) as refused:
        train(runner, home, how)
    return refused.value.crossing()


def diary(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / DIARY).read_text()))


def test_facts_and_change_come_back(runner: Runner, tmp_path: Path) -> None:
    with runner.open(job(tmp_path)) as session:
        assert session.facts.fingerprint == "f" * 64
        assert session.facts.patients == 3
        assert session.facts.identities.tolist() == np.arange(48).reshape(3, 16).tolist()
        trained = session.train(2, WEIGHTS)

    assert np.array_equal(trained.change, WEIGHTS + 2)
    assert trained.loss == 0.5


def test_a_large_model_goes_there_and_back(runner: Runner, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)

    trained = train(runner, tmp_path, weights=weights)

    assert np.array_equal(trained.change, weights + np.float32(2))


def test_the_child_trains_bit_for_bit_as_this_process_would(tmp_path: Path) -> None:
    study = small_study(model={"name": "mlp", "hidden": [4]})
    home = site_home(tmp_path, study)
    entry = TableEntry(table=f"{COHORT}.csv")
    same = Job(home, "north", entry, study, open_cohort(entry, study.cohort, home).fingerprint())
    weights = initial_weights(study)
    forked = Runner()
    forked.start()

    with forked.open(same) as there, InProcessWorker().open(same) as here:
        assert there.facts.fingerprint == here.facts.fingerprint
        assert np.array_equal(there.facts.identities, here.facts.identities)
        assert np.array_equal(there.train(1, weights).change, here.train(1, weights).change)


def test_every_session_has_a_process_of_its_own(runner: Runner, tmp_path: Path) -> None:
    pids = set()
    for number in range(3):
        train(runner, tmp_path / str(number))
        pids.add(diary(tmp_path / str(number))["pid"])

    assert len(pids) == 3
    assert os.getpid() not in pids


def test_siblings_share_no_random_state(runner: Runner, tmp_path: Path) -> None:
    draws = set()
    for number in range(2):
        train(runner, tmp_path / str(number))
        draws.add(diary(tmp_path / str(number))["draw"])

    assert len(draws) == 2


def test_a_child_has_one_thread_and_one_socket_which_leads_to_its_daemon(runner: Runner, tmp_path: Path) -> None:
    with (tmp_path / "node.key").open("w"):
        train(runner, tmp_path)

    told = diary(tmp_path)
    assert told["threads"] == 1
    assert len([name for name in told["files"] if "socket" in name]) <= 1
    assert not [name for name in told["files"] if "key" in name]


def test_a_site_that_decides_against_training_leaves_no_child(runner: Runner, tmp_path: Path) -> None:
    with runner.open(job(tmp_path)):
        child = diary(tmp_path)["pid"]

    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("when", ["open", "train"])
def test_exception_text_never_crosses(runner: Runner, tmp_path: Path, when: str) -> None:
    assert refusal(runner, tmp_path, f"{when}: raise") == "internal_error"


def test_exception_text_is_not_logged_either(runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refusal(runner, tmp_path, "train: raise")

    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("when", ["open", "train"])
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("refuse", "budget_exceeded limit=8"),
        ("break the schema", "cohort_mismatch rule_count=2"),
        ("miss the table", "cohort_missing"),
        ("exit", "task_crashed"),
        ("be killed", "task_crashed"),
        ("stammer", "task_crashed"),
    ],
)
def test_whatever_happens_to_the_child_becomes_a_code(
    runner: Runner, tmp_path: Path, when: str, how: str, code: str
) -> None:
    assert refusal(runner, tmp_path, f"{when}: {how}") == code
    assert np.array_equal(train(runner, tmp_path).change, WEIGHTS + 2)


def test_a_child_that_dies_before_it_has_read_its_order_has_crashed(runner: Runner, tmp_path: Path) -> None:
    with runner.open(job(tmp_path)) as session:
        pid = session._task._child.pid  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(Refusal) as refused:
            session.train(2, WEIGHTS)

    assert refused.value.crossing() == "task_crashed"


@pytest.mark.parametrize("when", ["open", "train"])
def test_a_task_over_its_time_is_killed(tmp_path: Path, when: str) -> None:
    runner = Runner(WORKER, TaskLimits(wall_s=0.5))
    runner.start()
    started = time.monotonic()

    assert refusal(runner, tmp_path, f"{when}: hang") == "task_timed_out"
    assert time.monotonic() - started < 15.0


def test_stopping_the_daemon_kills_the_task(tmp_path: Path) -> None:
    stop = threading.Event()
    runner = Runner(WORKER, stop=stop)
    runner.start()  # the probe may take longer than the timer on a busy computer
    threading.Timer(0.3, stop.set).start()

    assert refusal(runner, tmp_path, "train: hang") == "task_crashed"


@pytest.mark.parametrize("how", ["boast", "shrink"])
def test_a_change_of_another_length_is_dropped(runner: Runner, tmp_path: Path, how: str) -> None:
    assert refusal(runner, tmp_path, f"train: {how}") == "update_out_of_bounds"


@pytest.mark.parametrize("answer", [b"", b"F", b"X", b"R", b"C", b"Rno_such_code", b"R" + CANARY.encode(), b"F" * 66])
def test_a_child_that_babbles_is_a_fault_of_the_task(answer: bytes) -> None:
    if answer == b"F":
        assert _read_facts(answer).patients == 0  # which no policy admits
        return

    with pytest.raises(Refusal) as refused:
        _read_facts(answer)

    assert refused.value.crossing() in {"internal_error", "task_crashed"}


@pytest.mark.parametrize("answer", [b"", b"C", b"C" + struct.pack("<d", 1.0), b"F" * 37, b"C" * 36, b"C" * 38])
def test_a_change_is_read_only_at_its_exact_length(answer: bytes) -> None:
    with pytest.raises(Refusal):
        _read_trained(answer, 1 + 8 + 7 * 4)


def test_a_change_of_the_exact_length_is_read() -> None:
    answer = b"C" + struct.pack("<d", 0.25) + WEIGHTS.tobytes()

    trained = _read_trained(answer, len(answer))

    assert trained.loss == 0.25
    assert np.array_equal(trained.change, WEIGHTS)


@pytest.mark.parametrize("reference", ["", "worker", "a b:app", "http://example.org:app", "os:system()", "../x:app"])
def test_a_worker_is_named_by_an_installed_module(reference: str) -> None:
    with pytest.raises(InstallationError):
        Runner(reference)


@pytest.mark.parametrize("reference", ["tests.tiny_worker:CANARY", "tests.tiny_worker:nothing", "no.such.module:app"])
def test_a_worker_that_is_not_there_is_told_at_the_start(reference: str) -> None:
    with pytest.raises(InstallationError, match="does not start"):
        Runner(reference).start()


@pytest.mark.parametrize("code", list(RefusalCode))
def test_every_code_passes_the_last_gate(code: RefusalCode) -> None:
    assert coded(code.value) == code.value
    assert coded(f"{code.value} round=3 limit=0.5") == f"{code.value} round=3 limit=0.5"


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        "",
        f"internal_error {CANARY}",
        "internal_error age=81",
        "budget_exceeded limit=8 age=81",
        f"budget_exceeded limit={'9' * 65}",
        "budget_exceeded limit=8\nname=Smith",
        "budget_exceeded  limit=8",
        "no_such_code",
    ],
)
def test_no_other_words_pass_the_last_gate(text: str) -> None:
    assert coded(text) == "internal_error"


def test_facts_count_their_patients() -> None:
    assert Facts("", np.zeros((5, 16), dtype=np.uint8)).patients == 5
