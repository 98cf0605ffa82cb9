"""The rules against plain numpy, and the arithmetic's independence of order."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.fixed_point import encode_weighted
from fedward_common.flower_adapter import assume_identity
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_common.wire import Update
from fedward_server.aggregation import Aggregator, aggregator_for
from tests.builders import small_study

SITES = ("a", "b", "c", "d")
WEIGHTS = (40, 1, 25, 1 << 20)
SIZE = parameter_spec(small_study()).size
Vector = npt.NDArray[np.float64]


def study(**rule: Any) -> Study:
    return small_study(sites=list(SITES), aggregation=rule)


def changes(seed: int) -> list[Vector]:
    """Return one change of the weights for each site."""
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 0.5, SIZE).astype(np.float32).astype(np.float64) for _ in SITES]


def one_round(
    rule: Aggregator, weights: Vector, updates: list[Vector], order: tuple[int, ...] = (0, 1, 2, 3)
) -> npt.NDArray[np.float32]:
    assume_identity(run=1, node=1)  # Flower's strategies make messages while they prepare a round
    rule.start(weights.astype(np.float32))
    for number in order:
        values = encode_weighted(updates[number].astype(np.float32), WEIGHTS[number], bound=64.0)
        rule.add(Update(SITES[number], "", 1, WEIGHTS[number], 0, values, {}))
    return rule.finish()


def weighted_mean(updates: list[Vector], number: int = 4) -> Vector:
    return np.average(updates[:number], axis=0, weights=WEIGHTS[:number])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_fedavg_equals_a_plain_weighted_mean(seed: int, factor: float) -> None:
    start, updates = changes(seed + 100)[0], changes(seed)
    new = one_round(aggregator_for(study(rule="fedavg", server_learning_rate=factor)), start, updates)
    np.testing.assert_allclose(new, start + factor * weighted_mean(updates), atol=1e-6, rtol=0)
    assert new.dtype == np.float32


def test_fedprox_aggregates_as_fedavg_because_its_penalty_is_the_sites() -> None:
    start, updates = changes(1)[0], changes(2)
    prox = one_round(aggregator_for(study(rule="fedprox", mu=0.1)), start, updates)
    assert prox.tobytes() == one_round(aggregator_for(study(rule="fedavg")), start, updates).tobytes()


def test_fedadam_equals_algorithm_two_of_reddi_et_al() -> None:
    options = {"server_learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01}
    rule = aggregator_for(study(rule="fedadam", **options))
    weights = changes(9)[0].astype(np.float32)
    reference = weights.astype(np.float64)
    first, second = np.zeros(SIZE), np.full(SIZE, 0.01**2)
    for round_ in range(5):
        updates = changes(round_)
        mean = weighted_mean(updates)
        first = 0.8 * first + 0.2 * mean
        second = 0.95 * second + 0.05 * mean**2
        reference = (reference + 0.05 * first / (np.sqrt(second) + 0.01)).astype(np.float32).astype(np.float64)
        weights = one_round(rule, weights.astype(np.float64), updates)
        np.testing.assert_allclose(weights, reference, atol=1e-6, rtol=0)
    state = rule.state()
    np.testing.assert_allclose(state["first"], first, atol=1e-6)
    np.testing.assert_allclose(state["second"], second, atol=1e-6)


@pytest.mark.parametrize("rule", [{"rule": "fedavg"}, {"rule": "fedprox", "mu": 1.0}])
def test_rules_without_memory_carry_no_state(rule: dict[str, Any]) -> None:
    aggregator = aggregator_for(study(**rule))
    one_round(aggregator, np.zeros(SIZE), changes(0))
    assert aggregator.state() == {}


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "fedavg"},
        {"rule": "fedadam"},
        {"rule": "flower", "_target_": "flwr.serverapp.strategy.FedAvg"},
        {"rule": "flower", "_target_": "flwr.serverapp.strategy.FedMedian"},
        {"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum", "options": {"num_malicious_nodes": 1}},
    ],
    ids=["fedavg", "fedadam", "flower-fedavg", "flower-median", "flower-krum"],
)
def test_every_order_of_arrival_gives_the_same_bits(rule: dict[str, Any]) -> None:
    start, updates = changes(3)[0], changes(4)
    models = {
        one_round(aggregator_for(study(**rule)), start, updates, order).tobytes() for order in permutations(range(4))
    }
    assert len(models) == 1


@given(st.lists(st.integers(-(1 << 62), (1 << 62)), min_size=1, max_size=6), st.randoms())
def test_masks_that_cancel_leave_no_trace(masks: list[int], shuffler: Any) -> None:
    """The sum is modulo 2**64, so what is added and taken off again changes nothing, however large it is."""
    updates = changes(5)
    bare = one_round(aggregator_for(study(rule="fedavg")), np.zeros(SIZE), updates)
    wrapped = [mask % (1 << 64) for mask in masks]
    wrapped.append(-sum(wrapped) % (1 << 64))
    rule = aggregator_for(study(rule="fedavg"))
    rule.start(np.zeros(SIZE, dtype=np.float32))
    parts = [(encode_weighted(u.astype(np.float32), w, bound=64.0), w) for u, w in zip(updates, WEIGHTS, strict=True)]
    parts += [(np.full(SIZE, mask, dtype=np.uint64).view(np.int64), 0) for mask in wrapped]
    shuffler.shuffle(parts)
    for values, weight in parts:
        rule.add(Update("a", "", 1, weight, 0, values, {}))
    assert rule.finish().tobytes() == bare.tobytes()


def test_a_new_round_forgets_what_was_added_before() -> None:
    rule = aggregator_for(study(rule="fedavg"))
    rule.start(np.zeros(SIZE, dtype=np.float32))
    rule.add(Update("a", "", 1, 1, 0, encode_weighted(np.full(SIZE, 9, np.float32), 1, bound=64.0), {}))
    updates = changes(6)
    assert (
        one_round(rule, np.zeros(SIZE), updates).tobytes()
        == one_round(aggregator_for(study(rule="fedavg")), np.zeros(SIZE), updates).tobytes()
    )


def test_a_round_without_updates_has_no_mean() -> None:
    rule = aggregator_for(study(rule="fedavg"))
    rule.start(np.zeros(SIZE, dtype=np.float32))
    with pytest.raises(ValueError, match="sum to less than 1"):
        rule.finish()


def test_four_thousand_sites_at_the_bound_do_not_overflow() -> None:
    rule = aggregator_for(study(rule="fedavg"))
    rule.start(np.zeros(1, dtype=np.float32))
    values = encode_weighted(np.array([64.0], np.float32), 1 << 20, bound=64.0)
    for _ in range(4096):
        rule.add(Update("a", "", 1, 1 << 20, 0, values, {}))
    assert rule.finish().tolist() == [64.0]
