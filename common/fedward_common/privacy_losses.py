"""What one noised sum tells about one patient: its privacy losses on a grid, rounded up.

A Poisson-sampled Gaussian sum is the pair P = (1 - q) N(0, σ²) + q N(1, σ²) and Q = N(0, σ²), in units of the clipping
bound (Abadi et al. 2016, section 3). Its privacy loss is ln dP/dQ under P where the patient is removed and ln dQ/dP
under Q where one is added (Zhu, Dong and Wang 2022, definition 7 and theorem 11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Losses", "discretised", "reach"]

Floats = npt.NDArray[np.float64]

_CENTRE: Final = 1.0
_HALF: Final = math.log(2)


@dataclass(frozen=True, slots=True)
class Losses:
    """Privacy losses (`low` + i) × `interval` with probabilities `masses[i]`, and +infinity with `infinite`."""

    interval: float
    low: int
    masses: Floats
    infinite: float


def discretised(sigma: float, rate: float, *, interval: float, tail: float) -> tuple[Losses, Losses]:
    """Return the losses of one step where a patient is removed, and where one is added.

    Both dominate the true ones: a composition of them spends at least as much at every δ. The mass between two points
    of the grid is split so that its probability under both P and Q stays (Doroshenko et al. 2022, algorithm 1, written
    with interval masses, whose rounding errors are relative to the mass); what lies above the grid counts as an
    infinite loss, what lies below it is moved up to its lowest point.

    Args:
        sigma: noise multiplier, above 0.
        rate: sampling rate, above 0 and at most 1.
        interval: of the grid, in nats, above 0.
        tail: probability, at most, that is made infinite; in (0, 0.1).
    """
    from scipy.special import ndtr  # noqa: PLC0415  (half a second of start-up)

    low_loss, high_loss = reach(sigma, rate, tail)
    low = math.floor(low_loss / interval)
    high = max(math.ceil(high_loss / interval), low + 1)
    losses = np.asarray(np.arange(low, high + 1) * interval, dtype=np.float64)
    outcomes = _outcomes(losses, sigma, rate)
    plain, shifted = _between(outcomes / sigma), _between((outcomes - _CENTRE) / sigma)
    with_patient = (1 - rate) * plain + rate * shifted
    below, above = float(ndtr(outcomes[0] / sigma)), float(ndtr(-outcomes[-1] / sigma))
    below_with = (1 - rate) * below + rate * float(ndtr((outcomes[0] - _CENTRE) / sigma))
    above_with = (1 - rate) * above + rate * float(ndtr((_CENTRE - outcomes[-1]) / sigma))
    share = _lower_share(with_patient, plain, losses, interval)
    removed = _split(with_patient, share, interval)
    removed[0] += below_with
    added = _split(plain[::-1], interval - share[::-1], interval)
    added[0] += above
    return Losses(interval, low, removed, above_with), Losses(interval, -high, added, below)


def reach(sigma: float, rate: float, tail: float) -> tuple[float, float]:
    """Return the least and the largest loss, in nats, outside which a step has at most the mass `tail` on each side."""
    from scipy.special import ndtri  # noqa: PLC0415  (half a second of start-up)

    far = -float(ndtri(tail)) * sigma
    rest = math.log1p(-rate) if rate < 1 else -math.inf
    low, high = ((2 * outcome - _CENTRE) / (2 * sigma**2) for outcome in (-far, _CENTRE + far))
    return float(np.logaddexp(math.log(rate) + low, rest)), float(np.logaddexp(math.log(rate) + high, rest))


def _outcomes(losses: Floats, sigma: float, rate: float) -> Floats:
    """Return where each loss lies on the axis of the noised sum; -infinity for those below ln(1 - q)."""
    found = np.full(losses.shape, -np.inf)
    high = losses > 0
    found[high] = losses[high] + np.log1p((rate - 1) * np.exp(-losses[high]))
    rest = losses[~high]  # either form is exact to rounding where it is used
    odds = np.where(rest > -_HALF, np.expm1(rest) + rate, np.exp(rest) - (1 - rate))
    found[~high] = np.log(odds, out=np.full(odds.shape, -np.inf), where=odds > 0)
    return sigma**2 * (found - math.log(rate)) + _CENTRE / 2


def _between(points: Floats) -> Floats:
    """Return the standard normal's mass between neighbours, exact to rounding in both tails."""
    from scipy.special import ndtr  # noqa: PLC0415  (half a second of start-up)

    tails = ndtr(-np.abs(points))
    left, right = tails[:-1], tails[1:]
    inner = np.where(points[1:] <= 0, right - left, 1 - left - right)
    return np.maximum(np.where(points[:-1] >= 0, left - right, inner), 0.0)


def _lower_share(upper: Floats, lower: Floats, losses: Floats, interval: float) -> Floats:
    """Return ln(ρ), ρ = Q e^(upper end) / P of each interval, between 0 and `interval`; 0 where Q underflows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(lower) - np.log(upper) + losses[1:]
    return np.clip(np.nan_to_num(found, nan=0.0, posinf=interval, neginf=0.0), 0.0, interval)


def _split(masses: Floats, share: Floats, interval: float) -> Floats:
    """Return masses on the points from those between them: (ρ - 1) / (e^h - 1) of each goes to its lower end."""
    lower = masses * (np.exp(share - interval) * (np.expm1(-share) / math.expm1(-interval)))
    points = np.zeros(len(masses) + 1)
    points[:-1] = lower
    points[1:] += masses - lower
    return points
