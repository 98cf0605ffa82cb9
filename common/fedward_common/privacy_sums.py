"""ε of sums of many independent privacy losses, each sum tilted so that its tail is computed to relative precision.

The sum of losses is a convolution, done by one Fourier transform of each kind of step. Each kind is first tilted: its
masses are multiplied by e^(λ loss) / M(λ), with λ where the Chernoff bound on the sum is smallest. The tilted sum has
its centre near the ε that is asked for, so that a short window holds it, and rounding errors are relative to δ instead
of to one (exponential tilting: Grübel and Hermesmeier 1999, section 2; λ is the order of the moments accountant, Abadi
et al. 2016, theorem 2). What may lie above the window is bounded by Chernoff and added to δ; what wraps around it can
only add to δ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.privacy_losses import Losses

__all__ = ["epsilons_of_sums"]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_TILTS: Final = 2.0 ** np.arange(-4, 4.125, 0.25)
_NEGLIGIBLE: Final = math.log(1e9)
_MARGIN: Final = 12.0
_MOST: Final = float(1 << 60)
_SMALL: Final = math.log(1e6)
_ROUNDING: Final = 8 * float(np.finfo(np.float64).eps)
_GUARD: Final = 64
_LARGEST: Final = 700.0
_TINY: Final = 1e-300
_LEAST_SUM: Final = 1e-290


@dataclass(frozen=True, slots=True)
class _Window:
    """Where the tilted sums lie: `size` points from `low`, at `tilt`; `logs` is ln M(tilt) of each kind of step."""

    tilt: float
    logs: Floats
    low: int
    size: int


def epsilons_of_sums(
    losses: Sequence[Losses], counts: Counts, delta: float, *, tilt: float, most_points: int
) -> Floats | int:
    """Return for each row an ε at which the sum of its losses is within `delta`; infinity where no ε is.

    Never below the ε of the given losses: rounding errors of the transforms are bounded by eight units in the last
    place of the largest mass for each step and added to every mass, and ε is rounded up.

    Args:
        losses: of one step of each kind, on one grid.
        counts: steps, int64, shape (rows, kinds).
        delta: above 0.
        tilt: about where λ is; within a factor of 16 is enough, and any λ is sound.
        most_points: longest transform.

    Returns:
        float64, shape (rows,), at least 0; or by which power of two the grid is too fine for `most_points`.
    """
    infinite = counts @ np.array([one.infinite for one in losses])
    tilts = tilt * _TILTS
    moments = _log_moments(losses, tilts)
    totals = counts @ moments
    window = _window(totals, moments, tilts, delta, interval=losses[0].interval)
    if window.size > most_points:
        return math.ceil(math.log2(window.size / most_points))
    tops = (window.low + window.size) * losses[0].interval
    above = np.exp(np.minimum(0.0, (totals - tilts * tops).min(axis=1)))
    sums = _tilted_sums(losses, counts, window)
    points = np.asarray((window.low + np.arange(window.size)) * losses[0].interval, dtype=np.float64)
    found = np.empty(len(counts))
    for row, masses in enumerate(sums):
        log_moment = float(counts[row] @ window.logs)
        untilted = masses * np.exp(np.minimum(log_moment - window.tilt * np.maximum(points, 0.0), _LARGEST))
        found[row] = _epsilon(points, untilted, delta - float(infinite[row] + above[row]))
    return found


def _log_moments(losses: Sequence[Losses], tilts: Floats) -> Floats:
    """Return ln E[e^(λ loss)] of the finite losses, shape (kinds, tilts); where it underflows, something above it."""
    longest = max(len(one.masses) for one in losses)
    found = np.empty((len(losses), len(tilts)))
    for place, tilt in enumerate(tilts.tolist()):
        falling = np.exp(-tilt * losses[0].interval * np.arange(longest))
        for kind, one in enumerate(losses):
            top = (one.low + len(one.masses) - 1) * one.interval
            sum_ = float(one.masses[::-1] @ falling[: len(one.masses)])
            found[kind, place] = tilt * top + math.log(max(sum_, _LEAST_SUM))
    return found


def _window(totals: Floats, moments: Floats, tilts: Floats, delta: float, *, interval: float) -> _Window:
    """Return the tilt with the shortest window for all rows, of those that suit the row with the largest bound.

    A tilt suits that is at most the best one, at which the Chernoff bound on ε is the smallest, and leaves, to leading
    order, e^-12 of the tilted mass above this bound. At a larger one, the sum may be carried by rare large losses.
    """
    bounds = (totals - math.log(delta)) / tilts
    worst = int(np.argmax(bounds.min(axis=1)))
    reached = math.log(delta) + tilts * float(bounds[worst].min()) - totals[worst]
    top = float(((totals - math.log(delta) + _NEGLIGIBLE) / tilts).min(axis=1).max())
    chosen, low, high = 0, 0.0, math.inf
    best = int(np.argmin(bounds[worst]))
    for place in np.flatnonzero(reached[: best + 1] >= -_MARGIN).tolist():
        start, end = _ends(totals, tilts, place, top)
        if end - start < high - low:
            chosen, low, high = place, start, end
    first = math.floor(low / interval)
    size = min(max((high - low) / interval, 0.0) + 2, _MOST)
    return _Window(float(tilts[chosen]), moments[:, chosen], first, _fast(math.ceil(size)))


def _ends(totals: Floats, tilts: Floats, place: int, top: float) -> tuple[float, float]:
    """Return where the window of one tilt begins and ends, by Chernoff bounds.

    It ends at `top`, above which lies at most δ / 10^9 of each sum's mass, or above it. Of the tilted mass, whose rest
    wraps around and makes ε a little larger, it holds all but 10^-9 at its lower and 10^-6 at its upper end.
    """
    tilt, own = tilts[place], totals[:, place : place + 1]
    starts = np.concatenate(
        [(own - totals[:, :place] - _NEGLIGIBLE) / (tilt - tilts[:place]), (own - _NEGLIGIBLE) / tilt], axis=1
    )
    ends = (totals[:, place + 1 :] - own + _SMALL) / (tilts[place + 1 :] - tilt)
    return float(starts.max(axis=1).min()), max(top, float(ends.min(axis=1, initial=math.inf).max()))


def _fast(size: int) -> int:
    from scipy.fft import next_fast_len  # noqa: PLC0415  (half a second of start-up)

    return int(next_fast_len(size, real=True))


def _tilted_sums(losses: Sequence[Losses], counts: Counts, window: _Window) -> Floats:
    """Return the tilted masses of each row's sum on the window, rounded up, shape (rows, size)."""
    size = window.size
    spectrum = np.zeros((len(counts), size // 2 + 1), dtype=np.complex128)
    for kind, one in enumerate(losses):
        steps = counts[:, kind]
        if not steps.any():
            continue
        values = (one.low + np.arange(len(one.masses))) * one.interval
        tilted = one.masses * np.exp(np.minimum(window.tilt * values - window.logs[kind], _LARGEST))
        transform = np.fft.rfft(_folded(tilted, size))
        transform[np.abs(transform) < _TINY] = _TINY
        spectrum += steps[:, None] * np.log(transform)
    found = np.maximum(np.fft.irfft(np.exp(spectrum), size, axis=1), 0.0)
    for row, steps in enumerate(counts):
        base = sum(int(count) * one.low for count, one in zip(steps.tolist(), losses, strict=True))
        found[row] = np.roll(found[row], (base - window.low) % size)
    errors = _ROUNDING * (counts.sum(axis=1) + _GUARD) * found.max(axis=1)
    return np.asarray(np.minimum(found + errors[:, None], 1.0))


def _folded(masses: Floats, size: int) -> Floats:
    """Return the masses modulo `size`."""
    padded = np.zeros(-(-len(masses) // size) * size)
    padded[: len(masses)] = masses
    return np.asarray(padded.reshape(-1, size).sum(axis=0))


def _epsilon(points: Floats, masses: Floats, delta: float) -> float:
    """Return the least ε ≥ 0 with Σ over losses above it of mass × (1 - e^(ε - loss)) ≤ `delta`, or one above it."""

    def excess(epsilon: float, start: int) -> float:
        return float(masses[start:] @ -np.expm1(epsilon - points[start:]))

    if delta <= 0:
        return math.inf
    low = max(0.0, float(points[0]))
    first = int(np.searchsorted(points, low, side="right"))
    if first == len(points) or excess(low, first) <= delta:
        return low
    last = len(points) - 1  # nothing lies above the last point
    while last - first > 0:
        middle = (first + last) // 2
        first, last = (middle + 1, last) if excess(float(points[middle]), middle + 1) > delta else (first, middle)
    # Between the point before and this one: S0 - e^(ε - point) S1 = δ.
    here = float(points[first])
    whole, scaled = float(masses[first:].sum()), float(masses[first:] @ np.exp(here - points[first:]))
    return min(here, max(low, here + math.log(max(whole - delta, _TINY) / scaled)))
