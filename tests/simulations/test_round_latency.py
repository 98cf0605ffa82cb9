"""The benchmark of a deployed round: both sides do the same work, nothing outlives it, and its JSON keeps its shape."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fedward_common.errors import InstallationError
from fedward_simulations.bench import round_latency, stock_flower, stock_job
from fedward_simulations.bench.harness import filesystem
from fedward_simulations.bench.stock_flower import _Processes
from fedward_simulations.ports import free_ports
from fedward_simulations.run import compose_plan

MODULE = "fedward_simulations.bench.round_latency"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --------------------------------------------------------------------------------------------------------- the two jobs
def test_both_sides_get_the_same_small_job() -> None:
    plan, federation, study = compose_plan([*round_latency.OVERRIDES, "training.rounds=3"])

    assert study.sites == ("north", "south")
    assert study.model.name == "linear"
    assert study.training.local_steps == 5
    assert study.training.sampling_rate == 0.5
    assert study.privacy is not None
    assert study.privacy.mechanism == "dp_sgd"
    assert [len(frame) for frame in federation.tables.values()] == [227, 228]
    assert plan.policy.min_noise_multiplier > 0


@pytest.mark.parametrize("steps", [stock_job._with_numpy, stock_job._with_torch], ids=["numpy", "torch"])
def test_stock_job_learns_with_either_library(steps: object) -> None:
    draw = np.random.default_rng(3)
    features = draw.normal(size=(400, 4)).astype(np.float32)
    labels = (features @ np.array([2, -1, 0, 1]) + 0.5 > 0).astype(np.float32)
    weights: npt.NDArray[np.float32] = np.zeros(5, dtype=np.float32)
    assert callable(steps)

    for _ in range(40):
        weights = steps(weights, features, labels, 5, 0.5, 0.5)

    assert weights.dtype == np.float32
    assert weights.shape == (5,)
    assert ((features @ weights[:-1] + weights[-1] > 0) == (labels > 0)).mean() > 0.95


def test_run_config_is_toml_of_flowers_kind() -> None:
    values: dict[str, str | float] = {"torch": False, "rate": 0.5, "rounds": 9, "tables": "/tmp/x.npz"}  # noqa: S108  (a text, no file)
    lines = "\n".join(f"{key} = {stock_flower._toml(value)}" for key, value in values.items())

    project = tomllib.loads(stock_flower._PYPROJECT.format(config=lines))

    assert project["tool"]["flwr"]["app"]["config"] == values
    assert project["project"]["dependencies"] == []


# -------------------------------------------------------------------------------------------------------- the processes
def test_ports_are_free_and_each_is_another() -> None:
    ports = free_ports(8)

    assert len(set(ports)) == 8
    assert max(ports) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", ports[0]))


def test_a_process_that_left_for_a_session_of_its_own_is_ended_too(tmp_path: Path) -> None:
    """Flower starts its executors detached."""
    detached = (
        "import subprocess;[print(subprocess.Popen(['sleep','300'],start_new_session=True).pid) for _ in range(8)]"
    )

    with _Processes(tmp_path, 60.0, stop_s=0.5) as processes:
        first = processes.start("first", ["sleep", "300"])
        processes.run("second", [sys.executable, "-c", detached])
        strays = [int(line) for line in (tmp_path / "second.log").read_text().split()]
        assert [alive(stray) for stray in strays] == [True] * 8

    assert first.poll() is not None
    assert [stray for stray in strays if alive(stray)] == []


def test_a_process_ends_by_itself_after_its_time(tmp_path: Path) -> None:
    with _Processes(tmp_path, 1.0) as processes:
        assert processes.start("sleeper", ["sleep", "300"]).wait(30) == 124


def test_stock_flower_that_does_not_start_is_an_error_that_shows_its_log(tmp_path: Path) -> None:
    with _Processes(tmp_path, 60.0) as processes:
        processes.start("superlink", ["sh", "-c", "echo it is broken; exit 3"]).wait(10)
        began = time.monotonic()
        with pytest.raises(InstallationError, match="it is broken") as caught:
            processes.await_port("127.0.0.1:1")
        with pytest.raises(InstallationError, match="it is broken"):
            processes.await_marks(tmp_path / "marks", 3, 60.0)
        with pytest.raises(InstallationError, match="does not run the job"):
            processes.run("run", ["false"])

    assert time.monotonic() - began < 30
    assert str(tmp_path) in caught.value.remedy


def test_marks_are_read_once_all_are_written(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.write_text("1.5\n2.5\n3.5")

    with _Processes(tmp_path, 60.0) as processes:
        with pytest.raises(InstallationError):
            processes.await_marks(marks, 3, 0.3)
        marks.write_text("1.5\n2.5\n3.5\n4.5\n")
        assert processes.await_marks(marks, 3, 5.0) == [1.5, 2.5, 3.5]


def test_the_kind_of_file_system_is_told() -> None:
    assert filesystem(Path("/proc")) == "proc"
    assert filesystem(Path("/")) not in {"", "unknown"}


# ---------------------------------------------------------------------------------------------------------- the command
@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--rounds", "0"], ["--rounds", "x"], ["--unknown"]])
def test_wrong_arguments_are_told_before_anything_starts(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["round_latency", *arguments])

    with pytest.raises(SystemExit) as ended:
        round_latency.main()
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.deployed
def test_both_sides_run_and_the_figures_keep_their_shape(tmp_path: Path) -> None:
    command = [sys.executable, "-m", MODULE, "--json", "--rounds", "2", "--folder", str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)

    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures.keys() == {
        "fedward_s", "flower_s", "ratio", "fedward_rounds_s", "flower_rounds_s", "rounds", "flower_job",
        "flower_transport", "fedward_transport", "filesystem", "machine", "load_before",
    }  # fmt: skip
    assert figures["rounds"] == 2
    assert len(figures["fedward_rounds_s"]) == len(figures["flower_rounds_s"]) == 1
    assert figures["ratio"] == pytest.approx(figures["flower_s"] / figures["fedward_s"], rel=0.05)
    assert figures["fedward_s"] > 0
    assert not list(tmp_path.glob("fedward-bench-*"))
