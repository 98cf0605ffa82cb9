"""The benchmark of a child times the production's children, warmed and cold, and its JSON keeps its shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedward_simulations.bench import child_time
from fedward_simulations.bench.harness import run_process


@pytest.mark.reduced
def test_each_kind_of_child_is_timed_so_often(tmp_path: Path) -> None:
    found = child_time.measure(tmp_path, 2)

    assert found.keys() == {"warmed_s", "cold_s"}
    assert [len(seconds) for seconds in found.values()] == [2, 2]
    assert all(value > 0 for seconds in found.values() for value in seconds)


@pytest.mark.reduced
def test_the_figures_keep_their_shape() -> None:
    command = [sys.executable, "-m", "fedward_simulations.bench.child_time", "--json", "--repeats", "1"]

    figures = json.loads(run_process(command))

    assert figures.keys() == {
        "warmed_s", "cold_s", "warmed_s_largest", "cold_s_largest", "repeats", "machine",
    }  # fmt: skip
    assert figures["repeats"] == 1
    assert figures["warmed_s"] > 0
