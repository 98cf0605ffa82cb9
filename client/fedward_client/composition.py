"""The worst ε over many groups of patients, each of which took part in other studies; rules without I/O.

A group is a row of counts: how many noised steps of each kind its patients stood in. All groups are bounded by Rényi
divergences first, which costs a matrix product; only those whose bound matters are composed exactly
(`fedward_common.privacy.epsilon_of`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.privacy import Spend, epsilon_of

__all__ = ["Mechanism", "composed", "renyi_bounds", "worst_epsilon"]

Mechanism = tuple[float, float]
"""Noise multiplier and sampling rate of one noised step."""

Counts = npt.NDArray[np.int64]

_ORDERS: Final = np.unique(np.round(np.geomspace(2, 512, 48)).astype(np.int64))
_EXACT: Final = 16
_CHUNK: Final = 8192


def worst_epsilon(
    counts: Counts, mechanisms: Sequence[Mechanism], delta: float, *, enough: float = 0.0
) -> tuple[float, int]:
    """Return an ε for which every group is (ε, `delta`)-DP, and the row of the group that it is the ε of.

    The answer is the ε of the worst group (`epsilon_of`), but for two cases: it may be any bound up to `enough`, and
    where more than 16 groups lie so close together that none is plainly the worst, it is the larger bound of the rest.

    Args:
        counts: noised steps, shape (groups, mechanisms).
        mechanisms: what a step of each column is.
        delta: of the answer.
        enough: a limit below which the exact value does not matter.
    """
    if not counts.size or not counts.any():
        return 0.0, 0
    bounds = renyi_bounds(counts, mechanisms, delta)
    best, worst, done = 0.0, 0, list[Counts]()
    for row in np.argsort(-bounds, kind="stable").tolist():
        settled = bounds[row] <= max(best, enough)
        if settled or len(done) == _EXACT:
            return max((best, worst), (float(bounds[row]), row))
        if any((counts[row] <= other).all() for other in done):
            continue
        done.append(counts[row])
        best, worst = max((best, worst), (_exact(counts[row], mechanisms, delta), row))
    return best, worst


def composed(spends: Sequence[Spend], delta: float) -> float:
    """Return `epsilon_of` of `spends`, remembered: the order does not matter and nothing is composed twice."""
    return _composed(tuple(sorted(spends, key=lambda s: (s.noise_multiplier, s.sampling_rate, s.steps))), delta)


@lru_cache(maxsize=512)
def _composed(spends: tuple[Spend, ...], delta: float) -> float:
    return epsilon_of(spends, delta)


def _exact(row: Counts, mechanisms: Sequence[Mechanism], delta: float) -> float:
    pairs = zip(mechanisms, row.tolist(), strict=True)
    return composed([Spend(sigma, rate, steps) for (sigma, rate), steps in pairs if steps], delta)


def renyi_bounds(counts: Counts, mechanisms: Sequence[Mechanism], delta: float) -> npt.NDArray[np.float64]:
    """Return for each group an ε for which it is (ε, `delta`)-DP, mostly 5 to 25 % above that of `epsilon_of`.

    Rényi divergences add up (Mironov 2017, proposition 1); the conversion is that of Canonne et al. 2020,
    proposition 12, taken at the best of the integer orders used here.

    Args:
        counts: noised steps, shape (groups, mechanisms).
        mechanisms: what a step of each column is.
        delta: of the answer.

    Returns:
        float64, shape (groups,).
    """
    curves = np.stack([_renyi(*mechanism) for mechanism in mechanisms])
    alpha = _ORDERS.astype(np.float64)
    tail = np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)
    found = np.empty(len(counts))
    for start in range(0, len(counts), _CHUNK):
        part = counts[start : start + _CHUNK].astype(np.float64)
        found[start : start + _CHUNK] = (part @ curves + tail).min(axis=1)
    return np.maximum(found, 0.0)


@lru_cache(maxsize=512)
def _renyi(noise_multiplier: float, sampling_rate: float) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of one Poisson-sampled Gaussian sum at each order.

    Mironov, Talwar and Zhang 2019, section 3.3: for an integer α it is log A / (α - 1) with
    A = Σ_k binom(α, k) (1 - q)^(α - k) q^k exp((k² - k) / (2σ²)).
    """
    from scipy.special import gammaln, logsumexp  # noqa: PLC0415  (half a second of start-up)

    if sampling_rate == 1.0:
        return _ORDERS / (2 * noise_multiplier**2)
    found = []
    for order in _ORDERS.tolist():
        k = np.arange(order + 1)
        choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        likely = (order - k) * math.log1p(-sampling_rate) + k * math.log(sampling_rate)
        found.append(float(logsumexp(choose + likely + (k * k - k) / (2 * noise_multiplier**2))) / (order - 1))
    return np.maximum(found, 0.0)
