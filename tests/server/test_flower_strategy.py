"""Flower's strategies behind our gatekeeper, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedward_common.errors import CoordinatorError, StudyError
from fedward_common.fixed_point import encode_weighted
from fedward_common.flower_adapter import assume_identity
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_common.wire import Update
from fedward_server.aggregation import Aggregator, aggregator_for
from tests.builders import small_study

SITES = ("a", "b", "c", "d", "e")
WEIGHTS = (10, 20, 30, 40, 50)
SIZE = parameter_spec(small_study()).size
Vector = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _identity() -> None:
    assume_identity(run=1, node=1)


def flower(name: str, model: dict[str, Any] | None = None, **options: bool | float | str) -> Study:
    rule = {"rule": "flower", "_target_": f"flwr.serverapp.strategy.{name}", "options": options}
    return small_study(sites=list(SITES), aggregation=rule, model=model or {"name": "linear"})


def changes(seed: int, size: int = SIZE) -> list[Vector]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 0.5, size).astype(np.float32) for _ in SITES]


def one_round(rule: Aggregator, start: Vector, updates: list[Vector]) -> Vector:
    rule.start(start)
    for site, weight, change in zip(SITES, WEIGHTS, updates, strict=False):
        rule.add(Update(site, "", 1, weight, 0, encode_weighted(change, weight, bound=64.0), {}))
    return rule.finish()


def test_fedmedian_equals_numpys_median() -> None:
    start, updates = changes(1)[0], changes(2)
    new = one_round(aggregator_for(flower("FedMedian")), start, updates)
    np.testing.assert_allclose(new, np.median([start + u for u in updates], axis=0), atol=1e-6)
    assert new.dtype == np.float32


def test_fedavg_of_flower_equals_ours() -> None:
    start, updates = changes(3)[0], changes(4)
    ours = one_round(aggregator_for(small_study(sites=list(SITES))), start, updates)
    np.testing.assert_allclose(one_round(aggregator_for(flower("FedAvg")), start, updates), ours, atol=1e-6)


def test_fedtrimmedavg_leaves_the_extremes_out() -> None:
    start, updates = np.zeros(SIZE, np.float32), changes(5)
    new = one_round(aggregator_for(flower("FedTrimmedAvg", beta=0.2)), start, updates)
    np.testing.assert_allclose(new, np.sort(updates, axis=0)[1:-1].mean(axis=0), atol=1e-6)


def krum(models: list[Vector], malicious: int) -> int:
    """Return which model Krum takes (Blanchard et al. 2017): the least sum of its n-f-2 least squared distances."""
    stack = np.array(models, dtype=np.float64)
    distances = ((stack[:, None] - stack[None]) ** 2).sum(axis=2)
    near = len(models) - malicious - 2
    return int(np.argmin([np.sort(np.delete(row, number))[:near].sum() for number, row in enumerate(distances)]))


@pytest.mark.parametrize("outlier", range(5))
def test_krum_takes_one_honest_model_and_never_the_outlier(outlier: int) -> None:
    start, updates = changes(6)[0], changes(7)
    updates[outlier] = updates[outlier] + np.float32(20)
    models = [start + u for u in updates]
    new = one_round(aggregator_for(flower("Krum", num_malicious_nodes=1)), start, updates)
    chosen = krum(models, malicious=1)
    assert chosen != outlier
    np.testing.assert_allclose(new, models[chosen], atol=1e-6)


def test_multikrum_takes_the_mean_of_several() -> None:
    start, updates = np.zeros(SIZE, np.float32), changes(8)
    updates[0] = updates[0] + np.float32(20)
    rule = aggregator_for(flower("MultiKrum", num_malicious_nodes=1, num_nodes_to_select=4))
    new = one_round(rule, start, updates)
    np.testing.assert_allclose(new, np.average(updates[1:], axis=0, weights=WEIGHTS[1:]), atol=1e-6)


def test_fedadam_of_flower_keeps_its_moments_from_round_to_round() -> None:
    rule = aggregator_for(flower("FedAdam", eta=0.1, beta_1=0.9, beta_2=0.99, tau=0.01))
    start = np.zeros(SIZE, np.float32)
    first = one_round(rule, start, changes(9))
    second = one_round(rule, first, changes(9))
    assert not np.allclose(second - first, first - start)


def test_tensors_keep_their_names_and_shapes() -> None:
    study = flower("FedMedian", model={"name": "mlp", "hidden": [3]})
    size = parameter_spec(study).size
    updates = changes(10, size)
    new = one_round(aggregator_for(study), np.zeros(size, np.float32), updates)
    np.testing.assert_allclose(new, np.median(updates, axis=0), atol=1e-6)


def test_no_replies_give_no_model() -> None:
    rule = aggregator_for(flower("FedMedian"))
    rule.start(np.zeros(SIZE, np.float32))
    with pytest.raises(CoordinatorError, match="FedMedian returned no model"):
        rule.finish()


def test_a_key_that_no_update_has_is_an_error_with_a_remedy() -> None:
    rule = aggregator_for(flower("FedAvg", weighted_by_key="examples"))
    with pytest.raises(CoordinatorError, match="FedAvg refuses these replies") as caught:
        one_round(rule, np.zeros(SIZE, np.float32), changes(11))
    assert "options" in caught.value.remedy


@pytest.mark.parametrize("options", [{"min_available_nodes": 6}, {"min_train_nodes": 5000}, {"fraction_train": 1.5}])
def test_strategy_that_waits_for_more_nodes_than_there_are_sites_does_not_wait_for_ever(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    rule = aggregator_for(flower("FedAvg", **options))
    with pytest.raises(CoordinatorError, match="waits for more nodes than the study's 5 sites"):
        rule.start(np.zeros(SIZE, np.float32))


def test_strategy_that_wants_metrics_which_no_site_sends_is_an_error() -> None:
    rule = aggregator_for(flower("QFedAvg", client_learning_rate=0.1))
    with pytest.raises(CoordinatorError, match="QFedAvg"):
        one_round(rule, np.zeros(SIZE, np.float32), changes(12))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FedMedian", {"fraction": 0.5}, "options do not fit FedMedian"),
        ("FedTrimmedAvg", {"beta": 0.7}, "options do not fit FedTrimmedAvg"),
        ("NoSuchStrategy", {}, "is no strategy of Flower"),
        ("Result", {}, "is no strategy of Flower"),
        ("Strategy", {}, "options do not fit Strategy"),
        ("DifferentialPrivacyServerSideFixedClipping", {"noise_multiplier": 1.0}, "options do not fit"),
    ],
)
def test_a_wrong_class_or_option_is_an_error_before_anything_starts(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        aggregator_for(flower(name, **options))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "target", ["os.system", "flwr.serverapp.Grid", "flwr.serverapp.strategy.FedAvg.start", "builtins.eval"]
)
def test_a_target_outside_flowers_strategies_is_no_study(target: str) -> None:
    with pytest.raises(StudyError, match="_target_"):
        small_study(aggregation={"rule": "flower", "_target_": target})
