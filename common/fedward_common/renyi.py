"""Rényi differential privacy of Poisson-sampled Gaussian sums: an upper bound that costs a matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["ORDERS", "renyi_best", "renyi_bounds"]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

ORDERS: Final = np.unique(np.round(np.geomspace(2, 512, 48)).astype(np.int64))
_CHUNK: Final = 8192
_LEAST, _MOST = 1e-100, 1e100


def renyi_bounds(counts: Counts, mechanisms: Sequence[tuple[float, float]], delta: float) -> Floats:
    """Return for each row an ε for which it is (ε, `delta`)-DP, mostly 5 to 25 % above the exact one.

    Args:
        counts: noised steps, shape (rows, mechanisms).
        mechanisms: noise multiplier, above 0, and sampling rate, in (0, 1], of a step of each column.
        delta: of the answer, in (0, 1).

    Returns:
        float64, shape (rows,), at least 0.
    """
    return renyi_best(counts, mechanisms, delta)[0]


def renyi_best(
    counts: Counts, mechanisms: Sequence[tuple[float, float]], delta: float
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the bounds of `renyi_bounds` and the order at which each is the smallest.

    Rényi divergences add up (Mironov 2017, proposition 1); the conversion is that of Canonne et al. 2020,
    proposition 12, taken at the best of the integer orders used here.
    """
    curves = np.stack([_curve(*mechanism) for mechanism in mechanisms])
    alpha = ORDERS.astype(np.float64)
    tail = np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)
    found, best = np.empty(len(counts)), np.empty(len(counts), dtype=np.int64)
    for start in range(0, len(counts), _CHUNK):
        part = counts[start : start + _CHUNK].astype(np.float64) @ curves + tail
        best[start : start + _CHUNK] = ORDERS[part.argmin(axis=1)]
        found[start : start + _CHUNK] = part.min(axis=1)
    return np.maximum(found, 0.0), best


@lru_cache(maxsize=1)
def _choose() -> tuple[Floats, Floats]:
    """Return ln binom(α, k) and k² - k for each order and each k up to 512; -infinity where k is above α."""
    from scipy.special import gammaln  # noqa: PLC0415  (half a second of start-up)

    k = np.arange(ORDERS[-1] + 1, dtype=np.float64)
    rest = ORDERS[:, None] - k
    inside = gammaln(ORDERS + 1)[:, None] - gammaln(k + 1) - gammaln(np.maximum(rest, 0) + 1)
    return np.where(rest >= 0, inside, -np.inf), k * k - k


@lru_cache(maxsize=4096)
def _curve(noise_multiplier: float, sampling_rate: float) -> Floats:
    """Return the Rényi divergence of one Poisson-sampled Gaussian sum at each order.

    Mironov, Talwar and Zhang 2019, section 3.3: for an integer α it is log A / (α - 1) with
    A = Σ_k binom(α, k) (1 - q)^(α - k) q^k exp((k² - k) / (2σ²)).
    """
    doubled = 2 * min(max(noise_multiplier, _LEAST), _MOST) ** 2
    if sampling_rate == 1.0:
        return np.asarray(ORDERS / doubled)
    choose, pairs = _choose()
    k = np.arange(ORDERS[-1] + 1)
    likely = (ORDERS[:, None] - k) * math.log1p(-sampling_rate) + k * math.log(sampling_rate)
    logs = choose + likely + pairs / doubled
    top = logs.max(axis=1)
    moments = top + np.log(np.exp(logs - top[:, None]).sum(axis=1))
    return np.asarray(np.maximum(moments / (ORDERS - 1), 0.0))
