"""What noise costs: ε by privacy loss distributions, for one cohort over all it ever took part in.

Events are Poisson-sampled Gaussian sums under add-or-remove-one, which also bounds zero-out adjacency: replacing a
patient by nothing changes the sum by at most the clipping bound. Sums over all patients have a closed form. The others
are put on a grid, rounded up (`fedward_common.privacy_losses`), and convolved (`fedward_common.privacy_sums`); the
answer is never above the Rényi bound (`fedward_common.renyi`). Google's dp-accounting and Opacus' PRV accountant are
the references that it is held against (`fedward_common.privacy_check`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import StudyError
from fedward_common.privacy_losses import discretised, reach
from fedward_common.privacy_sums import epsilons_of_sums
from fedward_common.renyi import renyi_best
from fedward_common.study import DpSgd, Study

__all__ = [
    "Mechanism",
    "Spend",
    "calibrated",
    "epsilon_of",
    "epsilon_schedule",
    "epsilons_of_rows",
    "merged",
    "noise_multiplier_for",
    "round_spend",
]

Mechanism = tuple[float, float]
"""Noise multiplier and sampling rate of one noised step."""

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_SIGMA_MIN, _SIGMA_MAX = 0.2, 1e5
_START: Final = 0.5
_STRIDE: Final = 1.3
_PRECISION: Final = 1e-10
_ROUNDING: Final = 1e-13
_HOPELESS: Final = 1000.0
_FAR_BEYOND: Final = 1e6
_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e6
_NO_NOISE: Final = 1e-9
_LEAST_RATE: Final = 1e-9
_ERROR: Final = 5e-4
_LEAST_EPSILON: Final = 1e-3
_POINTS_BELOW_EPSILON: Final = 256
_TAIL: Final = 1e-6
_LEAST_TAIL: Final = 1e-300
_MOST_EVENT_POINTS: Final = 1 << 21
_MOST_SUM_POINTS: Final = 1 << 18
_ATTEMPTS: Final = 8


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


def merged(spends: Iterable[Spend]) -> dict[Mechanism, int]:
    """Return the steps of each kind that cost something, in the order of noise and rate.

    Raises:
        StudyError: a noise multiplier, sampling rate or number of steps that is none.
    """
    total: Counter[Mechanism] = Counter()
    for spend in spends:
        sigma, rate, steps = spend.noise_multiplier, spend.sampling_rate, spend.steps
        if not (sigma >= 0 and 0 <= rate <= 1 and steps >= 0 and steps == int(steps)):
            msg = f"no privacy cost: noise multiplier {sigma:g}, sampling rate {rate:g}, {steps} steps"
            raise StudyError(msg, remedy="noise is at least 0, a rate between 0 and 1, steps are whole and at least 0")
        if rate and steps and sigma < math.inf:
            total[sigma, rate] += int(steps)
    return dict(sorted(total.items()))


def epsilon_of(spends: Iterable[Spend], delta: float) -> float:
    """Return the ε, at least 0, for which everything in `spends` together is (ε, `delta`)-DP; inf if none is.

    Order does not matter, and equal events are one. Never below the true ε and, where sums over all patients are
    alone, equal to it; else mostly 0.05 % above it, and never above the Rényi bound. Where patients are sampled it is
    inf from 1,000 on, with noise below 0.001, and where the Rényi bound is above a million: budgets that promise
    nothing. Time and memory are bounded for every input: 200 kinds of steps take tenths of a second, and at most 2^22
    points of a grid are held for each direction.

    Raises:
        StudyError: a value that has no meaning, for example a negative number of steps or a δ that is not a number.
    """
    total = merged(spends)
    counts = np.array([list(total.values())], dtype=np.int64).reshape(1, len(total))
    return float(epsilons_of_rows(counts, list(total), delta)[0])


def epsilons_of_rows(counts: Counts, mechanisms: Sequence[Mechanism], delta: float) -> Floats:
    """Return ε of each row of `counts` as `epsilon_of` does, all rows on one grid: each costs one transform more.

    Args:
        counts: noised steps, shape (rows, mechanisms).
        mechanisms: what a step of each column is, as `merged` returns them.
        delta: of the answer; 0 makes everything infinite that costs something, 1 nothing.

    Raises:
        StudyError: `delta` is not between 0 and 1.
    """
    if not 0 <= delta <= 1:
        msg = f"delta = {delta:g} is not between 0 and 1"
        raise StudyError(msg, remedy="a delta well below one over the number of patients, for example 1e-5")
    spent = counts.any(axis=1)
    if not counts.size or delta in {0, 1}:
        return np.where(spent, 0.0 if delta else math.inf, 0.0)
    full = [place for place, (_, rate) in enumerate(mechanisms) if rate == 1.0]
    sampled = [place for place, (_, rate) in enumerate(mechanisms) if rate != 1.0]
    squares = np.zeros(len(counts))
    for place in full:
        sigma = mechanisms[place][0]
        squares[counts[:, place] > 0] += math.inf if sigma < _NO_NOISE else 0.0
        squares += counts[:, place] / max(sigma, _NO_NOISE) ** 2
    found = np.array([_gaussian_epsilon(math.sqrt(square), delta) for square in squares.tolist()])
    rows = np.flatnonzero(counts[:, sampled].any(axis=1) & np.isfinite(found))
    if not rows.size:
        return found
    kinds, part = [mechanisms[place] for place in sampled], counts[rows][:, sampled]
    with_sampling = _sampled_epsilons(part, kinds, squares[rows], delta)
    rarely = (squares[rows] == 0) & (_ever_drawn(part, kinds) <= delta)
    hopeless = np.maximum(with_sampling, found[rows]) > _HOPELESS
    found[rows] = np.where(rarely, 0.0, np.where(hopeless, math.inf, np.maximum(with_sampling, 0.0)))
    return found


def _ever_drawn(counts: Counts, kinds: Sequence[Mechanism]) -> Floats:
    """Return the probability, rounded up, that a patient is drawn at all; no ε is needed where δ is above it."""
    rates = np.array([rate for _, rate in kinds])
    return np.asarray(-np.expm1(counts @ np.log1p(-rates)) * (1 + _ROUNDING))


def _sampled_epsilons(counts: Counts, kinds: Sequence[Mechanism], squares: Floats, delta: float) -> Floats:
    """Return ε of rows of sampled steps, each with Gaussian sums beside them whose (sensitivity / σ)² is `squares`.

    Infinity where a step has less noise than 0.001, or the Rényi bound of a row is above a million: no grid is made.
    """
    silent = [place for place, (sigma, _) in enumerate(kinds) if sigma < _LEAST_NOISE]
    found = np.full(len(counts), math.inf)
    rows = np.flatnonzero(~counts[:, silent].any(axis=1) & (squares <= 1 / _LEAST_NOISE**2))
    if not rows.size:
        return found
    heard = [place for place in range(len(kinds)) if counts[rows, place].any()]
    bounded = [(min(kinds[place][0], _MOST_NOISE), max(kinds[place][1], _LEAST_RATE)) for place in heard]
    steps = counts[rows][:, heard]
    levels = sorted({max(square, 1 / _MOST_NOISE**2) for square in squares[rows].tolist() if square})
    for level in levels:
        bounded.append((1 / math.sqrt(level), 1.0))
        own = (np.maximum(squares[rows], 1 / _MOST_NOISE**2) == level) & (squares[rows] > 0)
        steps = np.concatenate([steps, own[:, None].astype(np.int64)], axis=1)
    bounds, orders = renyi_best(steps, bounded, delta)
    if bounds.max() > _FAR_BEYOND:
        return found
    worst = int(bounds.argmax())
    exact = _composed(steps, bounded, delta, bound=float(bounds[worst]), order=int(orders[worst]))
    found[rows] = np.minimum(bounds, exact)
    return found


def _composed(steps: Counts, kinds: Sequence[Mechanism], delta: float, *, bound: float, order: int) -> Floats:
    """Return ε of each row by convolution; infinity where no grid of bounded size gives one.

    The grid follows the error: splitting mass over an interval h adds about (1 + λ) h² / 12 to ε in each step, and this
    is kept at 0.05 % of `bound`; at least 256 points lie below `bound`.

    Args:
        steps: of each kind, shape (rows, kinds).
        kinds: noise and rate.
        delta: of the answer.
        bound: the largest Rényi bound of the rows.
        order: at which it was found.
    """
    most = int(steps.sum(axis=1).max())
    tail = max(_TAIL * delta / most, _LEAST_TAIL)
    wanted = math.sqrt(12 * _ERROR * max(min(bound, _HOPELESS), _LEAST_EPSILON) / (order * most))
    wanted = min(wanted, max(bound, _LEAST_EPSILON) / _POINTS_BELOW_EPSILON)
    ranges = [reach(sigma, rate, tail) for sigma, rate in kinds]
    interval = max(wanted, sum(high - low for low, high in ranges) / _MOST_EVENT_POINTS)
    interval = 2.0 ** math.floor(math.log2(interval))
    size = max(min(_MOST_SUM_POINTS, _MOST_EVENT_POINTS // len(steps)), 1 << 12)
    for _ in range(_ATTEMPTS):
        pairs = [discretised(sigma, rate, interval=interval, tail=tail) for sigma, rate in kinds]
        found = np.zeros(len(steps))
        finer = 0
        for side in zip(*pairs, strict=True):
            answer = epsilons_of_sums(side, steps, delta, tilt=order - 1.0, most_points=size)
            if isinstance(answer, int):
                finer = max(finer, answer)
                break
            found = np.maximum(found, answer)
        if not finer:
            return found
        interval *= 2.0**finer
    return np.full(len(steps), math.inf)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Return ε of unsampled Gaussian sums with sensitivity over noise `mu` in all: exact, rounded up.

    Balle & Wang 2018, theorem 8: δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ), which falls with ε.
    """
    from scipy.special import log_ndtr, ndtr  # noqa: PLC0415  (half a second of start-up)

    def exceeds(epsilon: float) -> bool:
        first = float(ndtr(mu / 2 - epsilon / mu))
        second = math.exp(min(0.0, epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))
        return first - second + _ROUNDING * first > delta

    if mu == math.inf:
        return math.inf
    if mu == 0 or not exceeds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while exceeds(high):
        low, high = high, high * 2
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high


def epsilon_schedule(spend: Spend, delta: float) -> Iterator[float]:
    """Yield ε after 1, 2, 3, … rounds of `spend`, which never falls; each takes hundredths of a second."""
    highest = 0.0
    for rounds in itertools.count(1):
        whole = Spend(spend.noise_multiplier, spend.sampling_rate, spend.steps * rounds)
        highest = max(highest, epsilon_of([whole], delta))
        yield highest


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
    unit = math.ceil(high * 10.0**digits)
    while not keeps(float(unit / 10.0**digits)):  # another grid may cost a little more
        unit += 1
    return float(unit / 10.0**digits)


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
