"""The adaptive server steps against algorithm 2 of Reddi et al. 2021, and their way through a checkpoint."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.fixed_point import encode_weighted
from fedward_common.models import parameter_spec
from fedward_common.study import FedAdagrad, FedAdam, FedYogi
from fedward_common.wire import Update
from fedward_server.aggregation import Aggregator, aggregator_for
from fedward_server.server_steps import Adaptive
from tests.builders import small_study

SITES = ("a", "b", "c")
WEIGHTS = (40, 1, 25)
SIZE = parameter_spec(small_study()).size
Vector = npt.NDArray[np.float64]

YOGI = {"rule": "fedyogi", "server_learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01}
ADAGRAD = {"rule": "fedadagrad", "server_learning_rate": 0.05, "beta_1": 0.8, "tau": 0.01}
ADAM = {**YOGI, "rule": "fedadam"}
RULES = [ADAM, YOGI, ADAGRAD]


def rule_of(options: dict[str, Any], state: dict[str, Vector] | None = None) -> Aggregator:
    return aggregator_for(small_study(sites=list(SITES), aggregation=options), state)


def changes(seed: int) -> list[Vector]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 0.5, SIZE).astype(np.float32).astype(np.float64) for _ in SITES]


def one_round(
    rule: Aggregator, start: Vector, updates: list[Vector], order: tuple[int, ...] = (0, 1, 2)
) -> npt.NDArray[np.float32]:
    rule.start(start.astype(np.float32))
    for number in order:
        values = encode_weighted(updates[number].astype(np.float32), WEIGHTS[number], bound=64.0)
        rule.add(Update(SITES[number], "", 1, WEIGHTS[number], 0, values, {}))
    return rule.finish()


def second_moment(rule: str, before: float, change: float) -> float:
    """Return one entry's second moment as the paper writes it."""
    square = change * change
    if rule == "fedadagrad":
        return before + square
    if rule == "fedadam":
        return 0.95 * before + 0.05 * square
    sign = int(before > square) - int(before < square)
    return before - 0.05 * square * sign


@pytest.mark.parametrize("options", RULES, ids=lambda o: str(o["rule"]))
def test_adaptive_step_equals_algorithm_two_of_reddi_et_al(options: dict[str, Any]) -> None:
    rule = rule_of(options)
    weights = changes(9)[0].astype(np.float32)
    first, second = [0.0] * SIZE, [0.01**2] * SIZE
    grew = shrank = False
    for round_ in range(6):
        updates = [u * 0.5**round_ for u in changes(round_)]
        mean = np.average(updates, axis=0, weights=WEIGHTS)
        first = [0.8 * m + 0.2 * d for m, d in zip(first, mean, strict=True)]
        after = [second_moment(options["rule"], v, d) for v, d in zip(second, mean, strict=True)]
        grew |= any(a > b for a, b in zip(after, second, strict=True))
        shrank |= any(a < b for a, b in zip(after, second, strict=True))
        second = after
        step = [0.05 * m / (v**0.5 + 0.01) for m, v in zip(first, second, strict=True)]
        expected = weights.astype(np.float64) + step
        weights = one_round(rule, weights.astype(np.float64), updates)
        np.testing.assert_allclose(weights, expected, atol=2e-6, rtol=0)
    assert grew
    assert shrank is (options["rule"] != "fedadagrad")  # both branches of Yogi's sign were taken
    np.testing.assert_allclose(rule.state()["second"], second, atol=1e-6)


@pytest.mark.parametrize("options", RULES, ids=lambda o: str(o["rule"]))
def test_a_run_that_goes_on_from_its_state_ends_with_the_same_bits(options: dict[str, Any]) -> None:
    whole = rule_of(options)
    weights = changes(1)[0].astype(np.float32)
    for seed in (1, 2):
        weights = one_round(whole, weights.astype(np.float64), changes(seed))
    ends = [
        one_round(rule, weights.astype(np.float64), changes(3)).tobytes()
        for rule in (rule_of(options, whole.state()), rule_of(options), whole)
    ]
    assert ends[0] == ends[2] != ends[1]


@pytest.mark.parametrize("options", RULES, ids=lambda o: str(o["rule"]))
def test_every_order_of_arrival_gives_the_same_bits(options: dict[str, Any]) -> None:
    updates = changes(4)
    assert len({one_round(rule_of(options), np.zeros(SIZE), updates, o).tobytes() for o in permutations(range(3))}) == 1


@given(
    st.lists(st.floats(-64, 64), min_size=1, max_size=20),
    st.sampled_from([FedAdam(), FedYogi(), FedAdagrad(), FedAdagrad(beta_1=0.9)]),
)
def test_no_step_is_longer_than_its_bound_and_no_second_moment_is_negative(
    means: list[float], rule: FedAdam | FedYogi | FedAdagrad
) -> None:
    step = Adaptive(rule)
    for mean in means:
        moved = step(np.array([mean]))
        largest = max(abs(m) for m in means)
        assert abs(moved[0]) <= rule.server_learning_rate * largest / rule.tau * (1 + 1e-12)
        assert step.state()["second"][0] >= 0
