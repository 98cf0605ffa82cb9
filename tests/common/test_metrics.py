"""Metrics agree with scikit-learn; intervals resample patients and cover what they promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.metrics import auroc, auroc_of_levels, bootstrap, bootstrap_all, roc_points
from fedward_common.tables import Rows
from fedward_server.evaluation import HoldOut, point_metrics
from tests.builders import small_study

CASES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=60)
"""Labels with scores on a grid of seven: most samples have ties."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def arrays(cases: list[tuple[int, int]]) -> tuple[Ints, Floats]:
    table = np.array(cases)
    return table[:, 0].astype(np.int64), table[:, 1] / 6


@given(CASES)
def test_auroc_agrees_with_scikit_learn_with_ties(cases: list[tuple[int, int]]) -> None:
    labels, scores = arrays(cases)
    if len(set(labels.tolist())) < 2:
        assert math.isnan(auroc(labels, scores))
    else:
        assert auroc(labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)
        levels = np.unique(scores, return_inverse=True)[1].astype(np.int64)
        assert auroc_of_levels(labels, levels) == auroc(labels, scores)


@given(CASES)
def test_curve_agrees_with_scikit_learn(cases: list[tuple[int, int]]) -> None:
    labels, scores = arrays(cases)
    if len(set(labels.tolist())) < 2:
        return
    false, true = roc_points(labels, scores)
    expected_false, expected_true, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert false == pytest.approx(expected_false)
    assert true == pytest.approx(expected_true)
    assert np.trapezoid(true, false) == pytest.approx(auroc(labels, scores))


@given(CASES, st.floats(0.01, 0.99))
def test_accuracy_agrees_with_scikit_learn(cases: list[tuple[int, int]], threshold: float) -> None:
    labels, scores = arrays(cases)
    study = small_study(evaluation={"threshold": threshold})
    rows = Rows(np.zeros((len(labels), 7), dtype=np.float32), labels, np.arange(len(labels)), None, 0)
    centres = np.minimum(np.arange(len(labels)), 1)
    found = point_metrics(study, HoldOut(rows, centres, ("first", "others")), scores)
    calls = scores >= threshold
    first, others = float(calls[0] == labels[0]), sklearn.metrics.accuracy_score(labels[1:], calls[1:])
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, calls))
    assert (found["accuracy.first"], found["accuracy.others"]) == pytest.approx((first, others))
    assert found["accuracy_mean_of_centres"] == pytest.approx((first + others) / 2)


def test_auroc_without_rows_is_nan() -> None:
    assert math.isnan(auroc(np.zeros(0, dtype=np.int64), np.zeros(0)))


def mean_rows(values: Floats) -> Callable[[Ints], float]:
    return lambda rows: float(values[rows].mean())


def test_bootstrap_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    values = np.random.default_rng(0).normal(size=50)

    def interval(seed: int) -> tuple[float, float]:
        found = bootstrap(mean_rows(values), np.arange(50), resamples=200, confidence=0.9, seed=seed)
        assert found.value == values.mean()
        return found.low, found.high

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)


def test_bootstrap_interval_of_a_mean_is_the_normal_one() -> None:
    """For a mean the percentile interval tends to mean ± 1.96 s/√n (Efron & Tibshirani 1993, section 13.3)."""
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap(mean_rows(values), np.arange(400), resamples=4000, confidence=0.95, seed=1)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """200 samples at 90 %: some three standard deviations of the binomial below and above."""
    generator = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        values = generator.normal(size=60)
        found = bootstrap(mean_rows(values), np.arange(60), resamples=200, confidence=0.9, seed=seed)
        covered += found.low <= 0 <= found.high
    assert 0.82 <= covered / 200 <= 0.97


def test_bootstrap_draws_whole_patients() -> None:
    """Ten copies of each patient's row carry no more information than one: the interval must not shrink."""
    generator = np.random.default_rng(3)
    values = generator.normal(size=40)
    patients = np.repeat(np.arange(40), 10)
    shuffle = generator.permutation(400)
    copies = values[patients][shuffle]
    one = bootstrap(mean_rows(values), np.arange(40), resamples=2000, confidence=0.95, seed=1)
    ten = bootstrap(mean_rows(copies), patients[shuffle], resamples=2000, confidence=0.95, seed=1)
    naive = bootstrap(mean_rows(copies), np.arange(400), resamples=2000, confidence=0.95, seed=1)
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=0.05)
    assert naive.high - naive.low < 0.5 * (ten.high - ten.low)


def test_rows_of_a_patient_are_drawn_together() -> None:
    patients = np.array([2, 0, 1, 0, 2, 2])

    def whole_patients(rows: Ints) -> float:
        counts = {code: int((patients[rows] == code).sum()) for code in range(3)}
        assert counts[0] % 2 == 0
        assert counts[2] % 3 == 0
        return 1.0

    bootstrap(whole_patients, patients, resamples=100, confidence=0.95, seed=1)


def test_one_class_has_no_auroc_and_no_interval() -> None:
    labels, scores = np.ones(10, dtype=np.int64), np.linspace(0, 1, 10)
    found = bootstrap(lambda r: auroc(labels[r], scores[r]), np.arange(10), resamples=100, confidence=0.95, seed=1)
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_resamples_of_one_class_are_left_out_for_the_metric_that_needs_two() -> None:
    labels, scores = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3])
    area, share = bootstrap_all(
        lambda r: np.array([auroc(labels[r], scores[r]), float(np.mean(r >= 0))]),
        np.arange(4),
        resamples=200,
        confidence=0.95,
        seed=1,
    )
    assert (area.low, area.high) == (1.0, 1.0)
    assert (share.low, share.high) == (1.0, 1.0)


def test_no_patients_give_no_interval() -> None:
    found = bootstrap(lambda r: float(len(r)), np.zeros(0, dtype=np.int64), resamples=100, confidence=0.95, seed=1)
    assert found.value == 0
    assert math.isnan(found.low)
