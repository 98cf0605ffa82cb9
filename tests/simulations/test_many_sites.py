"""The centre's work grows in proportion to the number of hospitals, and its memory does not grow."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from fedward_common.models import parameter_spec
from fedward_simulations.bench import many_sites
from fedward_simulations.bench.many_sites import measure, operations, study_of

ROUNDS = 2


def peak_bytes(sites: int) -> int:
    """Return the most that a run over thin sites allocates at once."""
    tracemalloc.start()
    try:
        measure("centre", sites, rounds=ROUNDS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_each_hospital_more_costs_the_same_number_of_calls() -> None:
    counted = {sites: operations(sites, rounds=ROUNDS) for sites in (10, 20, 40, 80)}

    steps = [(counted[2 * sites] - counted[sites]) / sites for sites in (10, 20, 40)]
    assert steps[0] > 0
    assert max(steps) <= 1.02 * steps[0], counted


def test_memory_is_flat_in_the_number_of_hospitals() -> None:
    update = 8 * parameter_spec(study_of(2, rounds=ROUNDS, hidden=[1024, 512])).size

    few, many = peak_bytes(4), peak_bytes(12)

    assert many < few + update / 2, f"{(many - few) / update:.2f} updates more for 8 hospitals more"


def test_whole_hospitals_are_measured_and_none_is_missing() -> None:
    point = measure("local", 3, rounds=ROUNDS)

    assert (point.engine, point.sites) == ("local", 3)
    assert point.peak_mib >= point.grown_mib >= 0
    assert point.cpu_per_round > 0


def test_the_command_prints_each_point_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "images" / "many.svg"
    arguments = ["--sites", "2", "3", "--rounds", "2", "--engines", "centre", "--json", "--plot", str(picture)]

    assert many_sites.main(arguments) == 0

    points = json.loads(capsys.readouterr().out)["points"]
    assert [(point["engine"], point["sites"]) for point in points] == [("centre", 2), ("centre", 3)]
    assert "</svg>" in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["--sites", "1"], ["--rounds", "1"], ["--engines", "ray"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        many_sites.main(arguments)
    assert error.value.code == 2
