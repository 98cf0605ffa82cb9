"""What worst-case patients show of a site's release is what the study's ε says: no more, and no less.

Noise comes from the operating system, so no seed makes these tests repeatable. How often each turns a correct release
away is written beside it, and is below one in a million for all of them together.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedward_client.cohorts import Patients
from fedward_client.trainer import train_round
from fedward_common.study import DpSgd, Study
from fedward_simulations.attacks.audit import (
    ALARM,
    findings,
    gdp_audit,
    ideal_bands,
    judged,
    one_run_epsilon,
    one_run_p_value,
)
from fedward_simulations.attacks.campaign import audits
from fedward_simulations.attacks.canaries import Scores, canary_scores, canary_study
from fedward_simulations.attacks.statistics import gdp_of_epsilon

DELTA = 1e-5
TINY_DELTA = 1e-12
SAMPLED = {"sampling_rate": 0.1, "local_steps": 10, "rounds": 2}


def changed(
    study: Study, patients: Patients, weights: npt.NDArray[np.float32], *, noise: float, clip: float, **place: Any
) -> tuple[npt.NDArray[np.float32], float]:
    """Train as a defective site would: with noise and clip multiplied, σ's other factor left as the study says."""
    assert isinstance(study.privacy, DpSgd)
    sigma = (study.privacy.noise_multiplier or 0.0) * noise / clip
    privacy = study.privacy.model_copy(update={"noise_multiplier": sigma, "clip_norm": study.privacy.clip_norm * clip})
    return train_round(study.model_copy(update={"privacy": privacy}), patients, weights, **place)


def gaussian_scores(mu: float, canaries: int, seed: int) -> Scores:
    generator = np.random.default_rng(seed)
    half = canaries // 2
    return Scores(1 + generator.normal(0, 1 / mu, half), generator.normal(0, 1 / mu, half))


@pytest.mark.parametrize(("epsilon", "runs"), [(8.0, 60), (2.0, 400)])
def test_gradient_canaries_measure_the_claim_at_a_full_step(epsilon: float, runs: int) -> None:
    """The bound exceeds the claim once in 1e7, and misses 0.85 of it less than once in 1e10 (exact binomial tails)."""
    study = canary_study(epsilon, DELTA)
    audit = gdp_audit(study, train_round, runs=runs)
    assert 0.85 * epsilon <= audit.epsilon_lower <= epsilon
    assert findings(study, audit) == ()


@pytest.mark.parametrize(
    "privacy",
    [{"noise": "discrete_gaussian"}, {"engine": "bookkeeping"}, {"engine": "ghost"}, {"engine": "hooks"}],
    ids=["discrete noise", "book-keeping", "ghost", "hooks"],
)
def test_every_tier_of_noise_and_every_engine_releases_what_is_claimed(privacy: dict[str, str]) -> None:
    """Each wrong once in 3e7."""
    study = canary_study(8.0, DELTA, privacy=privacy)
    assert findings(study, gdp_audit(study, train_round, runs=30, alarm=1e-8)) == ()


@pytest.mark.parametrize("records", [1, 3])
def test_gradient_canaries_measure_the_ideal_at_sampled_training(records: int) -> None:
    """Wrong once in 1e7; a patient of three records weighs what one of a single record does."""
    study = canary_study(8.0, DELTA, training=SAMPLED)
    assert findings(study, gdp_audit(study, train_round, runs=20, records=records)) == ()


@pytest.mark.parametrize(
    ("noise", "clip"), [(1 / 1.1, 1.0), (1.1, 1.0), (1.0, 1.5)], ids=["less noise", "more noise", "larger clip"]
)
def test_an_audit_sees_a_defect_of_a_tenth(noise: float, clip: float) -> None:
    """Missed once in 1e15: the estimate is 0.8 from the claim, its standard deviation .055, the band ± .36."""
    study = canary_study(8.0, DELTA)
    audit = gdp_audit(study, partial(changed, noise=noise, clip=clip), runs=60)
    assert findings(study, audit)
    assert (audit.epsilon_lower > audit.claim) == (noise / clip < 1)


def test_a_sampler_without_chance_is_seen() -> None:
    """A shuffled batch of fixed size in place of Poisson sampling: each canary in exactly one of ten steps.

    The scores inside lose the variance of sampling.
    """
    study = canary_study(8.0, DELTA, training=SAMPLED)
    assert isinstance(study.privacy, DpSgd)
    steps, half = study.total_steps, 20_000
    generator, scale = np.random.default_rng(0), float(study.privacy.noise_multiplier or 0.0) * np.sqrt(steps)
    fixed = Scores(steps * 0.1 + generator.normal(0, scale, half), generator.normal(0, scale, half))
    assert any("spread" in finding for finding in findings(study, judged(study, fixed)))


@pytest.mark.parametrize("epsilon", [2.0, 8.0])
def test_a_one_run_audit_stays_below_the_claim_and_above_nothing(epsilon: float) -> None:
    """Valid for any mechanism. Wrong once in 1e7; δ is small enough for a p-value as small.

    Below a tenth of the claim once in 1e10: twenty runs gave 0.37 with a standard deviation of 0.024 at ε = 2, and 2.2
    with 0.13 at ε = 8.
    """
    scores = canary_scores(canary_study(epsilon, TINY_DELTA), train_round, runs=20)
    assert 0.1 * epsilon < one_run_epsilon(scores, TINY_DELTA, alarm=ALARM) <= epsilon


def test_a_tenth_of_the_noise_is_seen_in_one_run_without_assuming_a_gaussian() -> None:
    study = canary_study(1.0, TINY_DELTA)
    scores = canary_scores(study, partial(changed, noise=0.1, clip=1.0), runs=20)
    assert one_run_epsilon(scores, TINY_DELTA, alarm=ALARM) > 1.0


def test_the_estimate_of_a_gaussian_mechanism_is_its_epsilon() -> None:
    study = canary_study(4.0, DELTA)
    audit = judged(study, gaussian_scores(gdp_of_epsilon(4.0, DELTA), 400_000, seed=1))
    assert audit.epsilon_estimate == pytest.approx(4.0, rel=0.02)
    assert audit.epsilon_lower < 4.0


def test_the_calibrated_noise_is_that_of_the_closed_form() -> None:
    """σ = 1/μ at a full step; the study's is rounded up to four digits."""
    for epsilon in (0.5, 1.0, 2.0, 8.0):
        study = canary_study(epsilon, DELTA)
        assert isinstance(study.privacy, DpSgd)
        exact = 1 / gdp_of_epsilon(epsilon, DELTA)
        assert exact * (1 - 1e-9) <= (study.privacy.noise_multiplier or 0.0) <= exact * 1.002


def test_a_study_without_privacy_claims_nothing_to_audit() -> None:
    study = canary_study(8.0, DELTA)
    open_study = Study.of(study.contract() | {"privacy": {"mechanism": "none"}})
    with pytest.raises(TypeError, match="without privacy"):
        judged(open_study, gaussian_scores(1.0, 100, seed=0))
    with pytest.raises(TypeError, match="no calibrated privacy"):
        ideal_bands(open_study, 100)


def test_the_one_run_p_value_is_the_binomial_tail_without_delta() -> None:
    """Steinke et al. 2023, theorem 5.2: ε = ln 3 lets three of four guesses be right."""
    assert one_run_p_value(100, 4, 4, float(np.log(3)), 0.0) == pytest.approx(0.75**4)
    assert one_run_p_value(100, 4, 0, 1.0, 0.0) == 1.0


def test_the_one_run_p_value_grows_with_delta_as_the_theorem_says() -> None:
    """For v = r = 1 at ε = 0, f(0) - f(1) = 1/2, so the second term is 2 m δ / 2."""
    assert one_run_p_value(10, 1, 1, 0.0, 1e-3) == pytest.approx(0.5 + 10 * 1e-3)


def test_one_run_audits_of_randomised_response_are_right_as_often_as_promised() -> None:
    """ε = 1, no δ: the bound at 95 % exceeds 1 in at most 5 % of runs."""
    generator, chance = np.random.default_rng(0), 1 / (1 + np.exp(-1.0))
    wrong = 0
    for _ in range(100):
        bits = generator.integers(0, 2, 1000)
        answers = np.where(generator.random(1000) < chance, bits, 1 - bits) + generator.uniform(0, 0.1, 1000)
        wrong += one_run_epsilon(Scores(answers[bits == 1], answers[bits == 0]), 0.0) > 1.0
    assert wrong <= 20


@pytest.mark.campaign
def test_audits_at_full_length_find_nothing() -> None:
    """A full step and 200 sampled ones, at ε = 8 and 2; wrong once in 2e6 for all four together."""
    found = list(audits())
    assert len(found) == 4
    for figure in found:
        assert figure.values["findings"] == 0, figure.line
        assert figure.values["epsilon_lower"] > 0.5 * figure.values["claim"], figure.line
