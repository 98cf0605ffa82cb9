"""ε is what was spent: against published numbers, against other accountants, and in every order."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedward_common.errors import StudyError
from fedward_common.privacy import (
    Spend,
    calibrated,
    epsilon_of,
    epsilon_schedule,
    noise_multiplier_for,
    round_spend,
)
from fedward_common.study import DpSgd, Study
from tests.builders import private_study, small_study

GOLDEN = [
    # noise, sampling rate, steps, delta: RDP, PRV, PLD  (shared/reference/privacy.md, table 2.1)
    (Spend(1.0, 256 / 10_000, 1953), 1e-5, 8.03, 7.37, 7.36),
    (Spend(2.0, 64 / 1_000, 1562), 1e-4, 6.08, 5.54, 5.53),
    (Spend(3.0, 32 / 300, 562), 1e-3, 3.03, 2.68, 2.67),
    (Spend(1.0, 4096 / 100_000, 488), 1e-6, 7.41, 6.77, 6.76),
    (Spend(10.0, 1.0, 100), 1e-5, 4.73, 4.39, 4.38),
    (Spend(0.6, 256 / 10_000, 390), 1e-5, 13.17, 11.51, 11.50),
]


def opacus_epsilon(kind: type[Any], spend: Spend, delta: float) -> float:
    accountant = kind()
    accountant.history = [(spend.noise_multiplier, spend.sampling_rate, spend.steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the largest alpha": RDP is only an upper bound here
        return float(accountant.get_epsilon(delta=delta))


@pytest.mark.parametrize(("spend", "delta", "rdp", "prv", "pld"), GOLDEN)
def test_epsilon_is_that_of_the_published_table(spend: Spend, delta: float, rdp: float, prv: float, pld: float) -> None:
    epsilon = epsilon_of([spend], delta)
    assert epsilon == pytest.approx(pld, abs=0.02)
    assert epsilon == pytest.approx(prv, abs=0.02)
    assert epsilon < rdp


@pytest.mark.parametrize("spend", [case[0] for case in GOLDEN[1:3]] + [Spend(0.8, 0.3, 20), Spend(5.0, 1.0, 40)])
def test_epsilon_agrees_with_opacus_prv_and_stays_below_rdp(spend: Spend) -> None:
    epsilon = epsilon_of([spend], 1e-4)
    assert epsilon == pytest.approx(opacus_epsilon(PRVAccountant, spend, 1e-4), abs=0.02)
    assert epsilon <= opacus_epsilon(RDPAccountant, spend, 1e-4)


@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 10), (8.0, 64), (2.0, 3)])
def test_full_batches_in_closed_form_equal_the_composition(sigma: float, steps: int) -> None:
    closed = epsilon_of([Spend(sigma, 1.0, steps)], 1e-4)
    composed = epsilon_of([Spend(sigma, 1.0 - 1e-12, steps)], 1e-4)
    assert closed == pytest.approx(composed, abs=0.005)


def test_gaussian_mechanism_of_balle_and_wang() -> None:
    """Theorem 8 of Balle & Wang 2018: δ(ε) = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ), solved by bisection elsewhere."""

    def excess(epsilon: float, sigma: float, delta: float) -> float:
        left = norm.cdf(0.5 / sigma - epsilon * sigma)
        return float(left - math.exp(epsilon + norm.logcdf(-0.5 / sigma - epsilon * sigma)) - delta)

    for sigma, delta in [(1.0, 1e-5), (3.0, 1e-3), (10.0, 1e-6), (0.1, 1e-9)]:
        exact = brentq(excess, 0.0, 200.0, args=(sigma, delta), xtol=1e-12)
        found = epsilon_of([Spend(sigma, 1.0, 1)], delta)
        assert exact <= found + 1e-9
        assert found == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("spend", [Spend(3.0, 1.0, 1), Spend(1.5, 0.1, 2)])
def test_schedule_after_k_rounds_is_epsilon_of_k_rounds(spend: Spend) -> None:
    schedule = list(itertools.islice(epsilon_schedule(spend, 1e-4), 12))
    for rounds in (1, 2, 7, 12):
        whole = Spend(spend.noise_multiplier, spend.sampling_rate, spend.steps * rounds)
        assert schedule[rounds - 1] == pytest.approx(epsilon_of([whole], 1e-4), rel=1e-3)
    assert schedule == sorted(schedule)


SPENDS = st.lists(
    st.builds(Spend, st.sampled_from([1.0, 2.0, 5.0]), st.sampled_from([0.1, 1.0]), st.integers(1, 20)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=6, phases=[Phase.generate])  # shrinking takes minutes
@given(SPENDS, st.randoms(use_true_random=False))
def test_order_of_spending_does_not_matter(spends: list[Spend], order: random.Random) -> None:
    shuffled = list(spends)
    order.shuffle(shuffled)
    assert epsilon_of(shuffled, 1e-4) == epsilon_of(spends, 1e-4)


@settings(max_examples=6, phases=[Phase.generate])  # shrinking takes minutes
@given(SPENDS, SPENDS)
def test_more_spending_never_costs_less(spends: list[Spend], more: list[Spend]) -> None:
    assert epsilon_of([*spends, *more], 1e-4) >= epsilon_of(spends, 1e-4)


def test_more_noise_rarer_draws_fewer_steps_and_larger_delta_cost_less() -> None:
    base = epsilon_of([Spend(2.0, 0.2, 50)], 1e-5)
    for less in (Spend(2.5, 0.2, 50), Spend(2.0, 0.1, 50), Spend(2.0, 0.2, 40)):
        assert epsilon_of([less], 1e-5) < base
    assert epsilon_of([Spend(2.0, 0.2, 50)], 1e-4) < base


def test_split_of_equal_steps_costs_what_they_cost_together() -> None:
    parts = [Spend(2.0, 0.3, 1) for _ in range(30)]
    assert epsilon_of(parts, 1e-4) == epsilon_of([Spend(2.0, 0.3, 30)], 1e-4)


def test_nothing_costs_nothing() -> None:
    assert epsilon_of([], 1e-4) == 0
    assert epsilon_of([Spend(1.0, 0.5, 0)], 1e-4) == 0


@pytest.mark.parametrize("spend", [Spend(1e5, 1e-4, 1), Spend(1e4, 1.0, 1), Spend(1e5, 1.0, 10_000)])
def test_hardly_any_loss_is_never_negative(spend: Spend) -> None:
    assert 0 <= epsilon_of([spend], 1e-4) < 0.5


@pytest.mark.parametrize("spend", [Spend(0.2, 1.0, 1), Spend(0.2, 1.0, 1000), Spend(0.3, 1.0, 10**8)])
def test_hardly_any_noise_costs_a_lot_and_no_memory(spend: Spend) -> None:
    """Its distribution of privacy losses would need 75 GiB; the closed form needs none."""
    assert epsilon_of([spend], 1e-6) > 20
    assert epsilon_of([Spend(0.3, 1.0, 10**8), Spend(2.0, 0.5, 10)], 1e-6) == math.inf


def test_full_and_sampled_batches_compose_together() -> None:
    full, sampled = Spend(4.0, 1.0, 5), Spend(2.0, 0.2, 30)
    both = epsilon_of([full, sampled], 1e-4)
    reference = epsilon_of([Spend(4.0, 1.0 - 1e-12, 5), sampled], 1e-4)
    assert both == pytest.approx(reference, abs=0.01)
    assert both > max(epsilon_of([full], 1e-4), epsilon_of([sampled], 1e-4))


@settings(max_examples=6, phases=[Phase.generate])  # shrinking takes minutes
@given(st.floats(0.3, 12), st.sampled_from([1e-6, 1e-4, 1e-3]), st.sampled_from([0.05, 0.5, 1.0]), st.integers(1, 200))
def test_calibration_never_exceeds_the_budget_and_wastes_less_than_a_hundredth(
    epsilon: float, delta: float, rate: float, steps: int
) -> None:
    sigma = noise_multiplier_for(epsilon, delta, rate, steps)
    assert epsilon_of([Spend(sigma, rate, steps)], delta) <= epsilon
    assert sigma < 0.21 or epsilon_of([Spend(sigma * 0.99, rate, steps)], delta) > epsilon


def test_calibrated_noise_has_four_digits() -> None:
    sigma = noise_multiplier_for(2.0, 1e-5, 0.1, 300)
    assert sigma == float(f"{sigma:.4g}")


def test_budget_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(StudyError, match="no noise reaches epsilon 1e-05") as caught:
        noise_multiplier_for(1e-5, 1e-9, 1.0, 10**8)
    assert "fewer rounds" in caught.value.remedy


def test_study_is_calibrated_over_all_its_rounds_and_steps() -> None:
    study = private_study(training={"rounds": 20, "local_steps": 5, "sampling_rate": 0.5}, privacy={"epsilon": 3})
    assert isinstance(study.privacy, DpSgd)
    assert study.privacy.noise_multiplier is not None
    whole = Spend(study.privacy.noise_multiplier, 0.5, 100)
    assert 3 * 0.97 < epsilon_of([whole], study.privacy.delta) <= 3
    assert round_spend(study) == Spend(study.privacy.noise_multiplier, 0.5, 5)


def test_calibration_twice_changes_nothing() -> None:
    study = private_study()
    assert calibrated(study) is study


def test_study_without_privacy_is_left_alone() -> None:
    study = small_study()
    assert calibrated(study) is study
    assert round_spend(study) is None


def test_more_noise_than_needed_is_the_authors_choice() -> None:
    study = private_study(privacy={"noise_multiplier": 50.0})
    assert isinstance(study.privacy, DpSgd)
    assert study.privacy.noise_multiplier == 50


def test_noise_written_out_that_breaks_the_promise_is_refused() -> None:
    with pytest.raises(StudyError, match=r"privacy\.noise_multiplier = 0\.5 spends epsilon .*, more than 8"):
        private_study(privacy={"noise_multiplier": 0.5})


def test_noise_written_out_is_counted_over_every_local_step() -> None:
    enough = {"noise_multiplier": noise_multiplier_for(8.0, 1e-4, 1.0, 30)}
    private_study(training={"rounds": 3, "local_steps": 10}, privacy=enough)
    with pytest.raises(StudyError, match="spends epsilon"):
        private_study(training={"rounds": 3, "local_steps": 11}, privacy=enough)


def test_spend_of_a_study_that_is_not_calibrated_is_refused() -> None:
    privacy = {"mechanism": "dp_sgd", "epsilon": 8, "delta": 1e-4, "clip_norm": 1}
    study: Study = small_study(privacy=privacy)
    with pytest.raises(StudyError, match="not calibrated"):
        round_spend(study)
