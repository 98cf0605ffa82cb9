"""The global model, judged on central data: against scikit-learn, with one-class centres and clustered intervals."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from fedward_common.models import initial_weights, parameter_spec
from fedward_common.study import Study
from fedward_common.tables import Rows, encode
from fedward_server.evaluation import HoldOut, TorchPredictor, final_metrics, point_metrics, roc_curve
from tests.builders import hold_out, small_study, table

Scores = npt.NDArray[np.float64]


def scored(
    labels: list[int], scores: list[float], centres: list[int] | None = None, patients: list[int] | None = None
) -> tuple[HoldOut, Scores]:
    """Return a hold-out with these outcomes, and a model's probabilities for it."""
    count = len(labels)
    rows = Rows(
        features=np.zeros((count, 1), dtype=np.float32),
        labels=np.array(labels, dtype=np.int64),
        patients=np.array(patients if patients is not None else range(count), dtype=np.int64),
        identifiers=None,
        dropped=0,
    )
    codes = np.array(centres if centres is not None else [0] * count, dtype=np.int64)
    names = tuple(f"centre{code}" for code in range(max(codes, default=0) + 1))
    return HoldOut(rows, codes, names), np.array(scores, dtype=np.float64)


def drawn(seed: int, count: int = 80) -> tuple[HoldOut, Scores]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    scores = np.round(np.clip(draw.normal(0.4 + 0.2 * labels, 0.3), 0, 1), 1)  # rounded: many ties
    return scored(labels.tolist(), scores.tolist(), draw.integers(0, 3, count).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_point_metrics_equal_scikit_learns(seed: int) -> None:
    central, scores = drawn(seed)
    labels, study = central.rows.labels, small_study(evaluation={"threshold": 0.4})
    found = point_metrics(study, central, scores)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, scores >= 0.4))
    by_centre = [accuracy_score(labels[central.centres == c], scores[central.centres == c] >= 0.4) for c in range(3)]
    assert [found[f"accuracy.centre{c}"] for c in range(3)] == pytest.approx(by_centre)
    assert found["accuracy_mean_of_centres"] == pytest.approx(np.mean(by_centre))


def test_final_metrics_have_the_same_values_and_an_interval_around_them() -> None:
    central, scores = drawn(7)
    study = small_study()
    points, finals = point_metrics(study, central, scores), final_metrics(study, central, scores)
    assert points.keys() == finals.keys()
    for name, interval in finals.items():
        assert interval.value == pytest.approx(points[name])
        assert interval.low < interval.value < interval.high


def test_one_seed_gives_one_interval() -> None:
    central, scores = drawn(8)
    assert final_metrics(small_study(), central, scores) == final_metrics(small_study(), central, scores)
    assert final_metrics(small_study(), central, scores) != final_metrics(small_study(seed=2), central, scores)


def test_wider_confidence_gives_a_wider_interval() -> None:
    central, scores = drawn(9)
    narrow = final_metrics(small_study(evaluation={"confidence": 0.6}), central, scores)["accuracy"]
    wide = final_metrics(small_study(evaluation={"confidence": 0.99}), central, scores)["accuracy"]
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_one_centre_has_no_metrics_of_its_own() -> None:
    central, scores = scored([0, 1], [0.2, 0.9])
    assert point_metrics(small_study(), central, scores).keys() == {"auroc", "accuracy", "accuracy_mean_of_centres"}


def test_centre_with_one_class_counts_and_does_not_break_the_others() -> None:
    central, scores = scored([0, 1, 1, 1, 1], [0.1, 0.9, 0.8, 0.3, 0.7], centres=[0, 0, 1, 1, 1])
    found = final_metrics(small_study(), central, scores)
    assert found["auroc"].value == 1.0
    assert found["accuracy.centre1"].value == pytest.approx(2 / 3)
    assert found["accuracy_mean_of_centres"].value == pytest.approx((1 + 2 / 3) / 2)
    assert all(math.isfinite(interval.low) for interval in found.values())


def test_hold_out_with_one_class_has_an_accuracy_and_no_auroc() -> None:
    central, scores = scored([1, 1, 1], [0.9, 0.2, 0.6])
    found = final_metrics(small_study(), central, scores)
    assert math.isnan(found["auroc"].value)
    assert math.isnan(found["auroc"].low)
    assert found["accuracy"].value == pytest.approx(2 / 3)


def test_centre_without_rows_has_no_accuracy_and_does_not_enter_the_mean() -> None:
    central, scores = scored([0, 1], [0.1, 0.9])
    central = HoldOut(central.rows, np.array([0, 2]), ("a", "empty", "c"))
    found = point_metrics(small_study(), central, scores)
    assert math.isnan(found["accuracy.empty"])
    assert found["accuracy_mean_of_centres"] == 1.0


def test_rows_of_a_patient_are_resampled_together() -> None:
    """Ten copies of each patient's row carry no more information than one: the interval must not shrink."""
    draw = np.random.default_rng(3)
    labels, scores = draw.integers(0, 2, 40), draw.random(40)
    study = small_study(evaluation={"bootstrap": 400})
    one = final_metrics(study, *scored(labels.tolist(), scores.tolist()))
    repeated, patients = np.repeat(labels, 10).tolist(), np.repeat(np.arange(40), 10).tolist()
    clustered = final_metrics(study, *scored(repeated, np.repeat(scores, 10).tolist(), patients=patients))
    independent = final_metrics(study, *scored(repeated, np.repeat(scores, 10).tolist()))
    for name in ("auroc", "accuracy"):
        assert clustered[name].value == pytest.approx(one[name].value)
        assert (clustered[name].low, clustered[name].high) == pytest.approx((one[name].low, one[name].high))
        assert independent[name].high - independent[name].low < 0.5 * (one[name].high - one[name].low)


def test_roc_curve_runs_from_corner_to_corner_with_the_area_of_the_auroc() -> None:
    central, scores = drawn(11)
    false, true = roc_curve(central, scores)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(point_metrics(small_study(), central, scores)["auroc"])
    expected = sklearn_roc_curve(central.rows.labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, expected[0])
    np.testing.assert_allclose(true, expected[1])


@pytest.mark.parametrize("study", [small_study(), small_study(model={"name": "mlp", "hidden": [5, 3]})])
def test_the_predictor_computes_what_the_weights_say(study: Study) -> None:
    features = encode(table(50, seed=5), study.cohort).features
    weights = np.random.default_rng(0).normal(size=parameter_spec(study).size).astype(np.float32)
    tensors = parameter_spec(study).split(weights)
    names = list(tensors)
    hidden = features.astype(np.float64)
    for weight, bias in zip(names[::2], names[1::2], strict=True):
        hidden = hidden @ tensors[weight].T + tensors[bias]
        hidden = np.maximum(hidden, 0) if weight != names[-2] else hidden
    predictor = TorchPredictor(study, features)
    np.testing.assert_allclose(predictor(weights), 1 / (1 + np.exp(-hidden[:, 0])), atol=1e-6)


def test_the_predictor_forgets_the_weights_of_the_last_call() -> None:
    study = small_study(model={"name": "mlp", "hidden": [4]})
    central = hold_out(study)
    predictor = TorchPredictor(study, central.rows.features)
    start = initial_weights(study)
    before = predictor(start)
    predictor(start + 1)
    np.testing.assert_array_equal(predictor(start), before)
