"""What noise costs: ε by privacy loss distributions, for one cohort over all it ever took part in.

Accounting is Google's dp-accounting, connect-the-dots PLD (Doroshenko et al. 2022), an upper bound at the
grid used here; sums over all patients have a closed form. Events are Poisson-sampled Gaussian sums under
add-or-remove-one, which also bounds zero-out adjacency: replacing a patient by nothing changes the sum by at
most the clipping bound.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from fedward_common.errors import StudyError
from fedward_common.study import DpSgd, Study

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = ["Spend", "calibrated", "epsilon_of", "epsilon_schedule", "noise_multiplier_for", "round_spend"]

_GRID: Final = 1e-3
_SIGMA_MIN, _SIGMA_MAX = 0.2, 1e5
_START: Final = 0.5
_STRIDE: Final = 1.3
_PRECISION: Final = 1e-10
_HOPELESS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Spend:
    """`steps` noised sums with noise σ = `noise_multiplier` × clip, each patient drawn with `sampling_rate`."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


def round_spend(study: Study) -> Spend | None:
    """Return what one round costs each site, or None for a study without privacy.

    Raises:
        StudyError: the study has a privacy section whose noise is not yet calibrated.
    """
    if not isinstance(study.privacy, DpSgd):
        return None
    if study.privacy.noise_multiplier is None:
        msg = "privacy.noise_multiplier is not calibrated"
        raise StudyError(msg, remedy="fedward study show calibrates it")
    return Spend(study.privacy.noise_multiplier, study.training.sampling_rate, study.training.local_steps)


def _one_step(noise_multiplier: float, sampling_rate: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415  (two seconds of start-up)

    return pld.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=_GRID,
        use_connect_dots=True,
    )


@lru_cache(maxsize=64)
def _composed(noise_multiplier: float, sampling_rate: float, steps: int) -> PrivacyLossDistribution:
    return _one_step(noise_multiplier, sampling_rate).self_compose(steps)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Return ε of unsampled Gaussian sums with sensitivity over noise `mu` in all: exact, rounded up.

    Balle & Wang 2018, theorem 8: δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ), which falls with ε.
    """
    from scipy.special import log_ndtr, ndtr  # noqa: PLC0415  (half a second of start-up)

    def exceeds(epsilon: float) -> bool:
        second = math.exp(min(0.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))
        return float(ndtr(mu / 2 - epsilon / mu)) - second > delta

    if not exceeds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while exceeds(high):
        low, high = high, high * 2
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high


def epsilon_of(spends: Iterable[Spend], delta: float) -> float:
    """Return the ε, at least 0, for which everything in `spends` together is (ε, `delta`)-DP; inf if none is.

    Order does not matter, and equal events cost one composition. Sums over all patients are Gaussian together
    and have a closed form; where they alone spend more than 1,000, the rest is not composed: the answer is inf.
    """
    total: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        total[spend.noise_multiplier, spend.sampling_rate] += spend.steps
    mu = math.sqrt(sum(steps / sigma**2 for (sigma, rate), steps in sorted(total.items()) if rate == 1.0))
    sampled = [(sigma, rate, steps) for (sigma, rate), steps in sorted(total.items()) if rate != 1.0 and steps]
    unsampled = _gaussian_epsilon(mu, delta) if mu else 0.0
    if not sampled:
        return unsampled
    if unsampled > _HOPELESS:
        return math.inf
    distributions = [_composed(*event) for event in sampled]
    whole = _one_step(1 / mu, 1.0) if mu else distributions.pop()
    for other in distributions:
        whole = whole.compose(other)
    return max(0.0, float(whole.get_epsilon_for_delta(delta)))


def epsilon_schedule(spend: Spend, delta: float) -> Iterator[float]:
    """Yield ε after 1, 2, 3, … rounds of `spend`; each in milliseconds, without composing anew."""
    if spend.sampling_rate == 1.0:
        for rounds in itertools.count(1):
            yield _gaussian_epsilon(math.sqrt(rounds * spend.steps) / spend.noise_multiplier, delta)
    one: Any = _composed(spend.noise_multiplier, spend.sampling_rate, spend.steps)
    whole = one
    while True:
        yield max(0.0, float(whole.get_epsilon_for_delta(delta)))
        whole = whole.compose(one)


@lru_cache(maxsize=64)
def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the smallest noise multiplier, to four digits and rounded up, that keeps (`epsilon`, `delta`).

    Raises:
        StudyError: no multiplier between 0.2 and 100,000 does.
    """

    def keeps(sigma: float) -> bool:
        return epsilon_of([Spend(sigma, sampling_rate, steps)], delta) <= epsilon

    # Little noise makes a large distribution: the search starts near the answer, where the central limit lies.
    high = _START
    while high < _SIGMA_MAX and _gaussian_epsilon(sampling_rate * math.sqrt(steps) / high, delta) > epsilon:
        high *= _STRIDE
    while not keeps(high):
        high *= _STRIDE
        if high > _SIGMA_MAX:
            msg = f"no noise reaches epsilon {epsilon:g} at delta {delta:g} in {steps} steps"
            raise StudyError(msg, remedy="fewer rounds or steps, a smaller sampling rate, or a larger epsilon")
    low = max(high / _STRIDE, _SIGMA_MIN)
    while low > _SIGMA_MIN and keeps(low):
        low, high = max(low / _STRIDE, _SIGMA_MIN), low
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if keeps(middle) else (middle, high)
    digits = 3 - math.floor(math.log10(high))
    return float(math.ceil(high * 10.0**digits) / 10.0**digits)


def calibrated(study: Study) -> Study:
    """Return the study with its noise multiplier filled in; unchanged if it has one or needs none.

    Raises:
        StudyError: the noise that the study writes out does not keep the ε that it promises.
    """
    if not isinstance(study.privacy, DpSgd):
        return study
    privacy, rate = study.privacy, study.training.sampling_rate
    if privacy.noise_multiplier is None:
        sigma = noise_multiplier_for(privacy.epsilon, privacy.delta, rate, study.total_steps)
        return study.model_copy(update={"privacy": privacy.model_copy(update={"noise_multiplier": sigma})})
    spent = epsilon_of([Spend(privacy.noise_multiplier, rate, study.total_steps)], privacy.delta)
    if spent > privacy.epsilon:
        sigma = privacy.noise_multiplier
        msg = f"privacy.noise_multiplier = {sigma:g} spends epsilon {spent:.3f}, more than {privacy.epsilon:g}"
        raise StudyError(msg, remedy="leave noise_multiplier out: it is calibrated from epsilon, delta and the steps")
    return study
