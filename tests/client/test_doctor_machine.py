"""The doctor on the computer itself: room, memory, software, and a step that is really trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedward_client.config import create_site
from fedward_client.doctor import machine
from fedward_client.doctor.gpu_step import trained_devices
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import MIB, Finding, Level
from fedward_client.probe import training_problem
from fedward_client.worker import Facts, Job, Session, Trained
from fedward_common.errors import Refusal, RefusalCode

GIB = 1024 * MIB
Weights = npt.NDArray[np.float32]


def one(check: Callable[[Place], Iterable[Finding]], place: Place) -> Finding:
    (finding,) = check(place)
    return finding


def room(free: int, *, total: int = 100 * GIB, files: int = 10**6) -> Callable[[Path], os.statvfs_result]:
    """Return a file system's answer to how much room it has; blocks of 4 KiB."""
    block = 4096
    return lambda _: os.statvfs_result(
        (block, block, total // block, free // block, free // block, 2 * files, files, files, 0, 255)
    )


# ----------------------------------------------------------------------------------------------------------- disk


@pytest.mark.parametrize(("free", "level"), [(50 * GIB, Level.PASS), (2 * GIB, Level.WARN), (MIB, Level.FAIL)])
def test_a_disk_is_judged_by_what_an_ordinary_account_may_still_write(free: int, level: Level, tmp_path: Path) -> None:
    assert one(machine.disk, Place(tmp_path, statvfs=room(free))).level is level


def test_a_disk_that_takes_no_more_files_is_warned_of(tmp_path: Path) -> None:
    finding = one(machine.disk, Place(tmp_path, statvfs=room(50 * GIB, files=3)))

    assert finding.level is Level.WARN
    assert "inodes" in finding.what


def test_this_computer_s_disk_is_measured(tmp_path: Path) -> None:
    finding = one(machine.disk, Place(tmp_path))

    assert str(tmp_path) in finding.what


# --------------------------------------------------------------------------------------------------------- memory


def kernel(folder: Path, available_kib: int, group: str = "/system.slice/fedward.service") -> Place:
    """Return a place with a kernel of its own: so much memory is available, and this process is in `group`."""
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 999999 kB\nMemFree: 1 kB\nMemAvailable: {available_kib} kB\n")
    (proc / "self" / "cgroup").write_text(f"0::{group}\n")
    return Place(folder, proc=proc, cgroup=folder / "cgroup")


def limit(place: Place, group: str, most: str, used: int) -> None:
    folder = place.cgroup / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")


@pytest.mark.parametrize(("mib", "level"), [(8000, Level.PASS), (1000, Level.WARN), (100, Level.FAIL)])
def test_memory_that_is_left_decides(mib: int, level: Level, tmp_path: Path) -> None:
    assert one(machine.memory, kernel(tmp_path, mib * 1024)).level is level


def test_the_service_s_own_limit_counts_although_the_computer_has_more(tmp_path: Path) -> None:
    place = kernel(tmp_path, 64 * 1024 * 1024)
    limit(place, "system.slice/fedward.service", str(2 * GIB), 2 * GIB - 200 * MIB)

    finding = one(machine.memory, place)

    assert finding.level is Level.FAIL
    assert "200.0 MiB" in finding.what
    assert "MemoryMax" in finding.remedy


def test_a_limit_above_the_service_counts_too_and_none_is_none(tmp_path: Path) -> None:
    place = kernel(tmp_path, 64 * 1024 * 1024)
    limit(place, "system.slice/fedward.service", "max", 5)
    limit(place, "system.slice", str(GIB), 5 * MIB)

    assert one(machine.memory, place).level is Level.WARN


def test_this_computer_s_memory_is_measured(tmp_path: Path) -> None:
    assert "available" in one(machine.memory, Place(tmp_path)).what


# ------------------------------------------------------------------------------------------------------------ shm


@pytest.mark.parametrize(("total", "level"), [(2 * GIB, Level.PASS), (64 * MIB, Level.WARN), (0, Level.FAIL)])
def test_shared_memory_is_judged_by_its_size(total: int, level: Level, tmp_path: Path) -> None:
    assert one(machine.shm, Place(tmp_path, statvfs=room(0, total=total))).level is level


def test_a_computer_without_shared_memory_fails(tmp_path: Path) -> None:
    finding = one(machine.shm, Place(tmp_path, shm=tmp_path / "nothing"))

    assert finding.level is Level.FAIL
    assert "FileNotFoundError" in finding.what


# ------------------------------------------------------------------------------------------------------- software


def test_what_is_installed_is_named(tmp_path: Path) -> None:
    finding = one(machine.software, Place(tmp_path))

    assert finding.level is Level.PASS
    assert f"torch {torch.__version__.partition('+')[0]}" in finding.what


# ------------------------------------------------------------------------------------------------------- training


def test_a_step_is_trained_in_a_forked_child(tmp_path: Path) -> None:
    sandbox, finding = machine.training(Place(tmp_path))

    assert finding.level is Level.PASS, finding
    assert sandbox.what.startswith("network: ")
    assert not list(tmp_path.iterdir())


def test_a_child_that_dies_fails_the_check(tmp_path: Path) -> None:
    place = Place(tmp_path, worker="tests.crashing_worker:Crashing", preload="fedward_client.worker")
    _, finding = machine.training(place)

    assert finding.level is Level.FAIL
    assert "the task process" in finding.what


class Scripted:
    """A worker that trains nothing and answers with what `train` makes of the weights."""

    def __init__(self, train: Callable[[Weights], Weights]) -> None:
        self._train = train
        self.homes: list[Path] = []

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        train = self._train
        self.homes.append(job.home)

        class Answering:
            facts = Facts(job.approved, np.zeros((8, 16), dtype=np.uint8))

            def train(self, _: int, weights: Weights) -> Trained:
                return Trained(train(weights), 0.0)

        yield Answering()


def test_a_step_that_changes_the_model_is_a_working_step_and_leaves_nothing_behind() -> None:
    worker = Scripted(lambda weights: weights + 1)

    assert training_problem(worker) == ""
    assert not worker.homes[0].exists()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_step_whose_result_is_wrong_is_no_working_step(value: float) -> None:
    assert training_problem(Scripted(lambda weights: np.full_like(weights, value)))


def test_a_step_of_another_length_is_no_working_step() -> None:
    assert training_problem(Scripted(lambda weights: weights[1:] + 1))


def test_a_refusal_of_the_worker_is_the_problem() -> None:
    def refuse(_: Weights) -> Weights:
        raise Refusal(RefusalCode.TASK_TIMED_OUT, "the task process: timeout")

    assert training_problem(Scripted(refuse)) == "the task process: timeout"


# ------------------------------------------------------------------------------------------------------------ gpu


def test_a_computer_without_a_gpu_passes(tmp_path: Path) -> None:
    assert one(machine.gpu, Place(tmp_path, dev=tmp_path)).level is Level.PASS


def interpreter(folder: Path, says: str) -> str:
    """Return a program that prints `says` in place of what a step on each GPU would."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o700)
    return str(path)


def test_a_gpu_that_torch_cannot_use_fails_where_the_policy_counts_on_it(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    create_site(tmp_path / "north", "north")
    path = tmp_path / "north" / "site.yaml"
    path.write_text(path.read_text().replace("gpu_memory_share: 0", "gpu_memory_share: 0.5 #"))

    finding = one(machine.gpu, Place(tmp_path / "north", dev=tmp_path, python=interpreter(tmp_path, "[]")))

    assert finding.level is Level.FAIL
    assert "nvidia0: torch cannot use it" in finding.what
    assert "nvidia-smi" in finding.remedy


def test_a_gpu_that_takes_its_process_down_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "kfd").touch()

    finding = one(machine.gpu, Place(tmp_path, dev=tmp_path, python="/bin/false"))

    assert finding.level is Level.WARN
    assert "exit code 1" in finding.what


def test_a_gpu_that_trains_is_named(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()

    finding = one(machine.gpu, Place(tmp_path, dev=tmp_path, python=interpreter(tmp_path, '["Tesla T4"]')))

    assert finding.level is Level.PASS
    assert "Tesla T4" in finding.what


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_works_on_the_gpu_that_is_there(tmp_path: Path) -> None:
    finding = one(machine.gpu, Place(tmp_path))

    assert finding.level is Level.PASS
    assert torch.cuda.get_device_name(0) in finding.what


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_without_a_gpu_no_step_is_claimed() -> None:
    assert trained_devices() == []
