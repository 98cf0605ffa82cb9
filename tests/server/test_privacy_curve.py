"""A curve holds what runs of this study measured; it is read between its points and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import StudyError
from fedward_common.study import DpSgd, Study
from fedward_server import privacy_curve
from fedward_server.privacy_curve import Curve, Measured, Run, curve_of, read_curve, same_study
from tests.builders import private_study, small_study
from tests.server.earlier_runs import leave_run


def at(epsilon: float, seed: int = 1, **changes: Any) -> Study:
    return private_study(privacy={"epsilon": epsilon}, seed=seed, **changes)


def the_curve(folder: Path, study: Study) -> Curve:
    curve = read_curve(folder, study, "auroc")
    assert curve is not None
    return curve


def test_runs_over_seeds_become_a_mean_and_a_spread(tmp_path: Path) -> None:
    for seed, value in ((1, 0.80), (2, 0.84)):
        leave_run(tmp_path / f"one-{seed}", at(1.0, seed), value, alone=value - 0.1)
    leave_run(tmp_path / "deeper" / "eight", at(8.0), 0.90)
    leave_run(tmp_path / "none", small_study(), 0.92)

    curve = the_curve(tmp_path, at(4.0, 7))

    one, eight = curve.federation.values()
    assert list(curve.federation) == [1.0, 8.0]
    assert [one.mean, one.spread, one.runs] == pytest.approx([0.82, 0.02 * 2**0.5, 2])
    assert eight == Measured(0.9, 0.0, 1)
    (alone,) = curve.alone["south"].values()
    assert [alone.mean, alone.spread, alone.runs] == pytest.approx([0.72, 0.02 * 2**0.5, 2])
    assert curve.without == Measured(0.92, 0.0, 1)
    assert curve.patients == {"north": 40, "south": 40}
    assert curve.skipped == 0


def test_what_is_not_this_study_or_not_whole_is_skipped(tmp_path: Path) -> None:
    leave_run(tmp_path / "good", at(1.0), 0.8)
    leave_run(tmp_path / "other", at(1.0, training={"learning_rate": 0.1}), 0.1)
    leave_run(tmp_path / "clip", private_study(privacy={"clip_norm": 0.5}), 0.1)
    leave_run(tmp_path / "failed", at(1.0), 0.1, status="failed")
    leave_run(tmp_path / "degraded", at(1.0), 0.1, status="degraded")
    leave_run(tmp_path / "one-class", at(1.0), None)
    (leave_run(tmp_path / "torn", at(1.0), 0.1) / "result.json").write_text("{", encoding="utf-8")
    (leave_run(tmp_path / "lost", at(1.0), 0.1) / "study.json").unlink()

    curve = the_curve(tmp_path, at(2.0))

    assert curve.federation == {1.0: Measured(0.8, 0.0, 1)}
    assert curve.skipped == 7


def test_without_a_run_there_is_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path, at(1.0), "auroc") is None
    leave_run(tmp_path / "run", at(1.0), 0.8)
    assert read_curve(tmp_path, at(1.0), "no_such_metric") is None


def test_a_folder_that_is_none_or_too_full_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="is no folder"):
        read_curve(tmp_path / "nowhere", at(1.0), "auroc")
    monkeypatch.setattr(privacy_curve, "_MOST_RUNS", 1)
    for name in ("a", "b"):
        leave_run(tmp_path / name, at(1.0), 0.8)
    with pytest.raises(StudyError, match="more than 1 runs"):
        read_curve(tmp_path, at(1.0), "auroc")


def test_same_study_is_all_but_epsilon_noise_and_seed() -> None:
    base = at(1.0)
    assert same_study(base, at(8.0, 5))
    assert same_study(base, small_study(seed=9))
    assert not same_study(base, at(1.0, training={"rounds": 4}))
    assert not same_study(base, private_study(privacy={"delta": 1e-5}))
    assert isinstance(base.privacy, DpSgd)


POINTS = st.dictionaries(
    st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]), st.lists(st.floats(0, 1), min_size=1, max_size=3), min_size=1
)


@given(POINTS, st.floats(0.01, 100))
def test_between_points_a_value_lies_between_theirs_and_beyond_there_is_none(
    points: dict[float, list[float]], epsilon: float
) -> None:
    curve = curve_of([Run(e, value) for e, values in points.items() for value in values], "auroc")
    assert curve is not None
    found = curve.federation_at(epsilon)
    if not min(points) <= epsilon <= max(points):
        assert found is None
        return
    assert found is not None
    low = max(e for e in points if e <= epsilon)
    high = min(e for e in points if e >= epsilon)
    ends = sorted(curve.federation[e].mean for e in (low, high))
    assert ends[0] - 1e-12 <= found.mean <= ends[1] + 1e-12
    assert found.between == (() if epsilon in points else (low, high))
    assert found.runs == min(len(points[low]), len(points[high]))


def test_hospital_that_was_not_measured_has_no_value() -> None:
    curve = curve_of([Run(1.0, 0.8)], "auroc")
    assert curve is not None
    assert curve.alone_at("south", 1.0) is None
    assert curve_of([], "auroc") is None
