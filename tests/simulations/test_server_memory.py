"""The benchmarks of the centre's memory and of the sum run whole in a small form, and their JSON keeps its shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedward_common.models import parameter_spec
from fedward_simulations.bench import aggregation_speed
from fedward_simulations.bench.memory_probe import Probe, peak_rss, pss
from fedward_simulations.bench.server_memory import study_of
from tests.builders import small_study

MODULE = "fedward_simulations.bench.server_memory"


def test_the_probe_reads_what_the_kernel_counts() -> None:
    own = os.getpid()
    with Probe({"own": own, "gone": 2**22 + 1}) as probe:
        block = bytearray(50 << 20)
        block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert peak_rss(own) >= pss(own) > 50 << 20
    assert probe.peaks["own"] >= 50 << 20
    assert probe.peaks["gone"] == 0
    assert probe.together > 50 << 20


@pytest.mark.parametrize("size", [10_000, 1_000_000, 100_000_000])
def test_the_study_has_about_so_many_parameters(size: int) -> None:
    study = study_of(small_study(), 3, size, 1)
    assert study.sites == ("site-1", "site-2", "site-3")
    assert parameter_spec(study).size == pytest.approx(size, rel=0.2)


@pytest.mark.reduced
@pytest.mark.deployed
def test_both_sides_run_and_tell_what_was_counted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", MODULE, "--json", "--sites", "2", "--megabytes", "20", "--folder", str(tmp_path)]
    done = subprocess.run([*command, "--limit", "300"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)

    assert figures["counted"] == "server application and SuperLink, sum of each one's VmHWM"
    for side in ("fedward", "flower"):
        assert set(figures[side]["peaks_mb"]) == {"application", "superlink"}
        assert min(figures[side]["peaks_mb"].values()) > 20
        assert figures[f"{side}_peak_over_model"] == figures[side]["peak_over_model"] > 1
    assert not list(tmp_path.iterdir())


def test_the_speed_of_the_sum_is_measured_against_the_memory_of_the_same_run(tmp_path: Path) -> None:
    figures = aggregation_speed.measure(1.0, 2, tmp_path, repeats=1)
    assert {"copy_gb_s", "triad_gb_s", "add_gb_s", "stored_gb_s", "add_over_memory", "stored_over_memory"} <= set(
        figures
    )
    assert min(float(str(figures[name])) for name in figures if name.endswith("_gb_s")) > 0
