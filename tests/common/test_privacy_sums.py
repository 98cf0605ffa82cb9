"""Losses on a grid and their sums: the whole mass, never below the truth, to relative precision in every tail."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import privacy_loss_distribution as reference
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedward_common.privacy import Spend, epsilon_of
from fedward_common.privacy_losses import Losses, discretised, reach
from fedward_common.privacy_sums import epsilons_of_sums
from fedward_common.renyi import renyi_best

SIGMAS = st.floats(0.2, 20)
RATES = st.one_of(st.floats(1e-5, 1), st.just(1.0))


def epsilon_of_sum(losses: Losses, steps: int, delta: float, *, tilt: float) -> float:
    found = epsilons_of_sums([losses], np.array([[steps]], dtype=np.int64), delta, tilt=tilt, most_points=1 << 20)
    assert not isinstance(found, int)
    return float(found[0])


def moment(losses: Losses, order: float) -> float:
    """Return E[e^(order × loss)] of the finite losses."""
    points = (losses.low + np.arange(len(losses.masses))) * losses.interval
    return float(losses.masses @ np.exp(order * points))


@given(SIGMAS, RATES, st.sampled_from([0.01, 0.1]), st.sampled_from([1e-6, 1e-12]))
def test_losses_are_a_distribution_and_keep_both_of_its_sides(
    sigma: float, rate: float, interval: float, tail: float
) -> None:
    """E[e^-loss] is the mass of the other side: what discretising must not change."""
    for losses in discretised(sigma, rate, interval=interval, tail=tail):
        assert losses.masses.min() >= 0
        assert 0 <= losses.infinite <= tail * 1.0001
        assert losses.masses.sum() + losses.infinite == pytest.approx(1, abs=1e-12)
        assert moment(losses, -1.0) <= 1 + 1e-9
        assert moment(losses, -1.0) >= 1 - 20 * tail - 1e-9


@given(SIGMAS, RATES, st.sampled_from([1e-4, 1e-9]))
def test_reach_leaves_at_most_the_tail_outside(sigma: float, rate: float, tail: float) -> None:
    low, high = reach(sigma, rate, tail)
    above = norm.sf(1 + sigma * norm.isf(tail), loc=1, scale=sigma)
    assert low < high
    assert above <= tail * 1.001
    outcome = 1 + sigma * norm.isf(tail)
    assert high == pytest.approx(math.log(1 - rate + rate * math.exp((2 * outcome - 1) / (2 * sigma**2))), rel=1e-9)


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.02), (0.7, 0.3), (4.0, 1.0), (2.0, 1e-3)])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 3.0])
def test_one_step_is_that_of_dp_accounting_on_the_same_grid(sigma: float, rate: float, epsilon: float) -> None:
    theirs = reference.from_gaussian_mechanism(sigma, sampling_prob=rate, value_discretization_interval=0.01)
    found = 0.0
    for losses in discretised(sigma, rate, interval=0.01, tail=1e-15):
        points = (losses.low + np.arange(len(losses.masses))) * 0.01
        above = points > epsilon
        found = max(found, losses.infinite + float(losses.masses[above] @ -np.expm1(epsilon - points[above])))
    assert found == pytest.approx(float(theirs.get_delta_for_epsilon(epsilon)), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-30, 1e-100])
@pytest.mark.parametrize(("mu", "parts"), [(1.0, 1), (1.0, 50), (0.2, 7)])
def test_sums_of_gaussians_are_exact_in_every_tail(delta: float, mu: float, parts: int) -> None:
    """The closed form knows the answer; the transform without tilting would lose it below 1e-15."""
    sigma = math.sqrt(parts) / mu
    truth = epsilon_of([Spend(sigma, 1.0, parts)], delta)
    answers = []
    for losses in discretised(sigma, 1.0, interval=2.0**-11, tail=1e-6 * delta / parts):
        found = epsilon_of_sum(losses, parts, delta, tilt=truth / mu**2)
        answers.append(found)
    assert all(truth * (1 - 1e-9) <= found <= truth * 1.001 + 1e-4 for found in answers)


@settings(max_examples=20)
@given(st.floats(0.1, 16))
def test_any_tilt_near_the_right_one_gives_the_same(factor: float) -> None:
    removed, _ = discretised(1.2, 0.05, interval=2.0**-9, tail=1e-14)
    found = epsilon_of_sum(removed, 300, 1e-5, tilt=6 * factor)
    best = epsilon_of_sum(removed, 300, 1e-5, tilt=6.0)
    assert found == pytest.approx(best, rel=1e-6)


def test_too_fine_a_grid_is_told_by_how_much() -> None:
    removed, _ = discretised(1.2, 0.05, interval=2.0**-9, tail=1e-14)
    answer = epsilons_of_sums([removed], np.array([[300]], dtype=np.int64), 1e-5, tilt=6.0, most_points=256)
    assert isinstance(answer, int)
    coarse, _ = discretised(1.2, 0.05, interval=2.0 ** (answer - 9), tail=1e-14)
    again = epsilons_of_sums([coarse], np.array([[300]], dtype=np.int64), 1e-5, tilt=6.0, most_points=300)
    assert not isinstance(again, int)


def test_infinite_mass_above_delta_has_no_epsilon() -> None:
    broken = Losses(0.1, 0, np.array([0.5, 0.4]), 0.1)
    found = epsilon_of_sum(broken, 1, 0.05, tilt=4.0)
    assert found == math.inf


GRID = [
    (0.6, 0.01, 300), (0.8, 0.02, 1000), (0.8, 0.3, 20), (1.0, 0.001, 20_000), (1.0, 0.5, 10), (1.5, 0.05, 500),
    (2.0, 0.1, 800), (3.0, 0.3, 200), (5.0, 0.9, 50), (8.0, 0.25, 2000), (20.0, 0.5, 3000), (4.0, 1.0, 30),
]  # fmt: skip


@pytest.mark.parametrize(("sigma", "rate", "steps"), GRID)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7])
def test_epsilon_is_between_the_bounds_of_two_other_accountants(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    """Opacus' PRV gives a lower and an upper bound of the truth, dp-accounting an upper one."""
    epsilon = epsilon_of([Spend(sigma, rate, steps)], delta)
    prv = PRVAccountant()
    prv.history = [(sigma, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it takes logarithms of zero
        lower, _, upper = prv._get_dprv(0.01, delta / 1000).compute_epsilon(delta, delta / 1000, 0.01)
    google = PLDAccountant(value_discretization_interval=1e-3)
    google.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps)
    assert lower <= epsilon
    assert abs(epsilon - upper) <= 0.02
    assert -0.01 <= google.get_epsilon(delta) - epsilon <= 0.05  # its grid costs it up to 0.03 where steps are small


@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(st.floats(0.8, 10), st.floats(1e-3, 0.4), st.integers(1, 300), st.sampled_from([1e-12, 1e-6, 1e-3]))
def test_halving_the_grid_s_error_never_uncovers_a_larger_epsilon(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    """Rounding up is an upper bound: a finer grid may only come from above."""
    counts = np.array([[steps]], dtype=np.int64)
    _, orders = renyi_best(counts, [(sigma, rate)], delta)
    found = []
    for exponent in (-4, -6, -8):
        sides = discretised(sigma, rate, interval=2.0**exponent, tail=1e-6 * delta / steps)
        both = [
            epsilons_of_sums([side], counts, delta, tilt=float(orders[0]) - 1, most_points=1 << 20) for side in sides
        ]
        found.append(max(float(side[0]) for side in both if not isinstance(side, int)))
    coarse, middle, fine = found
    assert coarse >= middle * (1 - 1e-6) - 1e-9
    assert middle >= fine * (1 - 1e-6) - 1e-9


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.002), (2.0, 0.1), (0.7, 0.5)])
@pytest.mark.parametrize("delta", [1e-12, 1e-5])
def test_one_sampled_step_has_the_epsilon_of_its_closed_form(sigma: float, rate: float, delta: float) -> None:
    """δ(ε) = P(x > t) - e^ε Q(x > t) at the t where the loss is ε; Zhu, Dong and Wang 2022, theorem 11."""

    def excess(epsilon: float) -> float:
        edge = sigma**2 * math.log((math.expm1(epsilon) + rate) / rate) + 0.5
        plain, shifted = float(norm.sf(edge / sigma)), float(norm.sf((edge - 1) / sigma))
        return (1 - rate) * plain + rate * shifted - math.exp(epsilon) * plain - delta

    exact = brentq(excess, 0.0, 60.0, xtol=1e-12)
    assert exact <= epsilon_of([Spend(sigma, rate, 1)], delta) <= exact * 1.005
