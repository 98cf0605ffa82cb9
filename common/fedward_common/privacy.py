"""What noise costs: ε by privacy loss distributions, for one cohort over all it ever took part in.

Accounting is Google's dp-accounting, connect-the-dots PLD (Doroshenko et al. 2022), an upper bound at the
grid used here. Events are Poisson-sampled Gaussian sums under add-or-remove-one, which also bounds zero-out
adjacency: replacing a patient by nothing changes the sum by at most the clipping bound.
"""

from __future__ import annotations

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
    if sampling_rate == 1.0:  # a sum of Gaussians is a Gaussian: exact, and one distribution instead of `steps`
        return _one_step(noise_multiplier / math.sqrt(steps), 1.0)
    return _one_step(noise_multiplier, sampling_rate).self_compose(steps)


def epsilon_of(spends: Iterable[Spend], delta: float) -> float:
    """Return the ε, at least 0, for which everything in `spends` together is (ε, `delta`)-DP; inf if none is.

    Order does not matter, and equal events cost one composition.
    """
    total: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        total[spend.noise_multiplier, spend.sampling_rate] += spend.steps
    distributions = [_composed(sigma, rate, steps) for (sigma, rate), steps in sorted(total.items()) if steps]
    if not distributions:
        return 0.0
    whole = distributions[0]
    for other in distributions[1:]:
        whole = whole.compose(other)
    return max(0.0, float(whole.get_epsilon_for_delta(delta)))


def epsilon_schedule(spend: Spend, delta: float) -> Iterator[float]:
    """Yield ε after 1, 2, 3, … rounds of `spend`; each in milliseconds, without composing anew."""
    one: Any = _composed(spend.noise_multiplier, spend.sampling_rate, spend.steps)
    whole, rounds = one, 1
    while True:
        yield max(0.0, float(whole.get_epsilon_for_delta(delta)))
        rounds += 1
        exact = spend.sampling_rate == 1.0
        whole = _composed(spend.noise_multiplier, 1.0, spend.steps * rounds) if exact else whole.compose(one)


@lru_cache(maxsize=64)
def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the smallest noise multiplier, to four digits and rounded up, that keeps (`epsilon`, `delta`).

    Raises:
        StudyError: no multiplier between 0.2 and 100,000 does.
    """

    def spent(sigma: float) -> float:
        return epsilon_of([Spend(sigma, sampling_rate, steps)], delta)

    low, high = _SIGMA_MIN, 1.0
    while spent(high) > epsilon:
        low, high = high, high * 2
        if high > _SIGMA_MAX:
            msg = f"no noise reaches epsilon {epsilon:g} at delta {delta:g} in {steps} steps"
            raise StudyError(msg, remedy="fewer rounds or steps, a smaller sampling rate, or a larger epsilon")
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
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
