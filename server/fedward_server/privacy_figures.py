"""What one run's spent noise means for a patient: at several hospitals, in a group, and in a bet. Pure arithmetic.

Every figure is an upper bound: `fedward_common.privacy` rounds privacy losses up, and what is derived from them here is
never rounded down. None where no finite bound is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from fedward_common.privacy import Spend, epsilon_of
from fedward_common.privacy_check import epsilon_by

__all__ = ["certainty", "composed", "for_group", "rdp_bound"]

_HALVINGS: Final = 4
_STRIDE: Final = 1.4
_ORDERS: Final = (*range(2, 64), 128, 256, 512)
"""Whole ones: for others dp-accounting sums a series that may not converge."""
_LARGEST_EXPONENT: Final = 300.0
_MARGIN: Final = 1 + 1e-12
"""Above the rounding error of a handful of operations in double precision."""


def composed(spend: Spend, steps: Sequence[int], delta: float) -> float | None:
    """Return the ε at `delta` of a patient whose records were in every one of several mechanisms.

    Each hospital draws its own noise, so a patient's records at several of them are as many independent mechanisms
    with one noise and one rate, adaptively composed: as if one hospital had taken all the steps. What
    `fedward_common.privacy_sites.across_sites` says of any hospitals, at the price of one composition.

    Args:
        spend: noise and rate of a step; its own number of steps does not count.
        steps: noised steps at each hospital.
        delta: of the guarantee.
    """
    total = sum(steps)
    if not total:
        return 0.0
    epsilon = epsilon_of([Spend(spend.noise_multiplier, spend.sampling_rate, total)], delta)
    return epsilon if math.isfinite(epsilon) else None


@lru_cache(maxsize=256)
def for_group(spend: Spend, size: int, delta: float) -> float | None:
    """Return an ε at `delta` for `size` patients of one hospital together, `size` at least 1.

    With every patient in every step the group's part of a sum is at most ``size`` clipping bounds: the Gaussian
    mechanism with that sensitivity, exact. Else group privacy (Vadhan 2017, lemma 2.2): (ε₀, δ₀) for one patient is
    (size · ε₀, δ₀ · (1 + e^ε₀ + … + e^((size-1) ε₀))) for the group; a large δ₀ is taken whose right side is at
    most `delta`. Two together also bound how well two values of one patient's record can be told apart: each is
    compared with nothing. The lemma is tight for ε up to about 1 and loose above: at ε = 8 for one patient it gave
    31.4 for two, where the exact mixture of Gaussians has 19.5.
    """
    if not spend.steps:
        return 0.0
    if size == 1 or spend.sampling_rate == 1.0:
        epsilon = epsilon_of([Spend(spend.noise_multiplier / size, spend.sampling_rate, spend.steps)], delta)
        return epsilon if math.isfinite(epsilon) else None

    def cost(surplus: float) -> tuple[float, bool]:
        """Return the group's ε with δ₀ = delta · e^-surplus, and whether its δ is at most `delta`."""
        epsilon = epsilon_of([spend], delta * math.exp(-surplus))
        weight = math.inf if epsilon * size > _LARGEST_EXPONENT else sum(math.exp(n * epsilon) for n in range(size))
        return epsilon * size, weight * _MARGIN <= math.exp(surplus)

    low = high = math.log(size)
    found, enough = cost(low)
    while not enough:
        low, high = high, max(high * _STRIDE, found * (size - 1) / size)
        if max(high, found) > _LARGEST_EXPONENT:  # ε only grows from here
            return None
        found, enough = cost(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        better, enough = cost(middle)
        low, high, found = (low, middle, better) if enough else (middle, high, found)
    return found


@lru_cache(maxsize=64)
def rdp_bound(spend: Spend, delta: float) -> float | None:
    """Return ε at `delta` by dp-accounting's Rényi divergences (Mironov, Talwar and Zhang 2019): other code, looser."""
    if not spend.steps:
        return 0.0
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  (two seconds of start-up)

    kind = (spend.noise_multiplier, spend.sampling_rate)
    epsilon = epsilon_by(RdpAccountant(orders=_ORDERS), {kind: spend.steps}, delta)
    return epsilon if math.isfinite(epsilon) else None


def certainty(before: float, epsilon: float) -> float:
    """Return the largest probability, δ aside, that `before` can become: p·e^ε / (1 + p·(e^ε - 1)), rounded up.

    Args:
        before: the probability before, in (0, 1), that a patient's records were used.
        epsilon: at least 0.
    """
    odds = (1 - before) / before * math.exp(-epsilon)
    return min(1.0, _MARGIN / (1 + odds))
