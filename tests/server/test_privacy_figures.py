"""Figures of the privacy statement against formulas, exact decimals and accountants that share no code with ours."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import norm

from fedward_common.privacy import Spend
from fedward_server.privacy_figures import certainty, for_group, rdp_bound
from fedward_server.wording import percent_bound

DELTA = 1e-4


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return δ(ε) of the Gaussian mechanism with sensitivity over noise `mu` (Balle and Wang 2018, theorem 8)."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


def known(value: float | None) -> float:
    assert value is not None
    return value


@pytest.mark.parametrize("size", [1, 2, 4])
def test_group_of_patients_in_every_step_is_the_gaussian_mechanism_with_their_sensitivity(size: int) -> None:
    epsilon = known(for_group(Spend(4.0, 1.0, 6), size, DELTA))
    assert gaussian_delta(size * math.sqrt(6) / 4, epsilon) == pytest.approx(DELTA, rel=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_group_of_sampled_patients_is_never_below_the_exact_mixture_of_gaussians(size: int) -> None:
    """Of a group, a binomial number is drawn; dp-accounting has the exact distribution (Ganesh, arXiv:2401.10294)."""
    spend = Spend(2.2, 0.05, 40)
    drawn = [math.comb(size, n) * 0.05**n * 0.95 ** (size - n) for n in range(size + 1)]
    step = pld.from_mixture_gaussian_mechanism(
        2.2, list(map(float, range(size + 1))), drawn, value_discretization_interval=1e-2
    )
    exact = step.self_compose(40).get_epsilon_for_delta(DELTA)
    ours = known(for_group(spend, size, DELTA))
    assert exact <= ours <= 1.6 * exact


@given(before=st.floats(1e-6, 1 - 1e-6), epsilon=st.floats(0, 600))
@example(before=0.01, epsilon=0.0)
@example(before=0.5, epsilon=600.0)
def test_certainty_is_bayes_rule_and_never_rounded_down(before: float, epsilon: float) -> None:
    with localcontext() as context:
        context.prec = 400
        prior, factor = Decimal(before), Decimal(epsilon).exp()
        exact = prior * factor / (1 + prior * (factor - 1))
        after = Decimal(certainty(before, epsilon))
        assert exact <= after <= exact * (1 + Decimal("1e-11")) or (after == 1 and exact > 1 - Decimal("1e-11"))


def test_one_per_cent_at_epsilon_one_becomes_two_point_seven_per_cent() -> None:
    assert certainty(0.01, 1.0) == pytest.approx(0.01 * math.e / (1 + 0.01 * (math.e - 1)), rel=1e-11)
    assert percent_bound(certainty(0.01, 1.0)) == "2.68 %"
    assert percent_bound(certainty(0.5, 8.0)) == "over 99.9 %"


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_odds_shift_by_more_than_twice_the_factor_with_at_most_twice_delta(mu: float) -> None:
    """The report says so of δ; of a Gaussian mechanism the privacy loss is N(μ²/2, μ²)."""
    epsilon = next(e / 100 for e in range(10_000) if gaussian_delta(mu, e / 100) <= DELTA)
    above = norm.sf((epsilon + math.log(2) - mu**2 / 2) / mu)
    assert 0 < above <= 2 * DELTA


def test_cross_check_warns_nobody_and_is_zero_where_nothing_was_spent(caplog: pytest.LogCaptureFixture) -> None:
    assert rdp_bound(Spend(1.268, 0.2, 90), DELTA) is not None
    assert rdp_bound(Spend(100.0, 0.001, 1), DELTA) is not None
    assert rdp_bound(Spend(1.0, 0.5, 0), DELTA) == 0.0
    assert caplog.records == []
