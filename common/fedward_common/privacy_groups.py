"""The worst ε over many groups of patients, each of which took part in other studies; rules without I/O.

A group is a row of counts: how many noised steps of each kind its patients stood in. All groups are bounded by Rényi
divergences first, which costs a matrix product; only those whose bound matters are composed exactly, all of them on one
grid (`fedward_common.privacy.epsilons_of_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.privacy import Mechanism, Spend, epsilon_of, epsilons_of_rows
from fedward_common.renyi import renyi_bounds

__all__ = ["composed", "worst_epsilon"]

Counts = npt.NDArray[np.int64]

_EXACT: Final = 16


def worst_epsilon(
    counts: Counts, mechanisms: Sequence[Mechanism], delta: float, *, enough: float = 0.0
) -> tuple[float, int]:
    """Return an ε for which every group is (ε, `delta`)-DP, and the row of the group that it is the ε of.

    The answer is the ε of the worst group (`epsilon_of`), but for two cases: it may be any bound up to `enough`, and
    where more than 16 groups lie so close together that none is plainly the worst, it is the larger bound of the rest.

    Args:
        counts: noised steps, shape (groups, mechanisms).
        mechanisms: what a step of each column is; noise above 0, rate in (0, 1].
        delta: of the answer, in (0, 1).
        enough: a limit below which the exact value does not matter.
    """
    if not counts.size or not counts.any():
        return 0.0, 0
    bounds = renyi_bounds(counts, mechanisms, delta)
    order = np.argsort(-bounds, kind="stable").tolist()
    worst = order[0]
    if bounds[worst] <= enough:
        return float(bounds[worst]), worst
    best = _exact(counts[worst], mechanisms, delta)
    rows, rest = _undecided(counts, bounds, order, max(best, enough))
    if rows:
        values = epsilons_of_rows(counts[rows], mechanisms, delta)
        best, worst = max((best, worst), (float(values.max()), rows[int(values.argmax())]))
    if rest is not None and bounds[rest] > best:
        return float(bounds[rest]), rest
    return best, worst


def _undecided(
    counts: Counts, bounds: npt.NDArray[np.float64], order: Sequence[int], limit: float
) -> tuple[list[int], int | None]:
    """Return the rows, after the first, that may be worse than `limit`, at most 15, and the first one left over.

    A row that another one holds, step for step, is not among them.
    """
    rows: list[int] = []
    held = [counts[order[0]]]
    for row in order[1:]:
        if bounds[row] <= limit or len(held) == _EXACT:
            return rows, row
        if not any((counts[row] <= other).all() for other in held):
            held.append(counts[row])
            rows.append(row)
    return rows, None


def composed(spends: Sequence[Spend], delta: float) -> float:
    """Return `epsilon_of` of `spends`, remembered: the order does not matter and nothing is composed twice."""
    return _composed(tuple(sorted(spends, key=lambda s: (s.noise_multiplier, s.sampling_rate, s.steps))), delta)


@lru_cache(maxsize=512)
def _composed(spends: tuple[Spend, ...], delta: float) -> float:
    return epsilon_of(spends, delta)


def _exact(row: Counts, mechanisms: Sequence[Mechanism], delta: float) -> float:
    pairs = zip(mechanisms, row.tolist(), strict=True)
    return composed([Spend(sigma, rate, steps) for (sigma, rate), steps in pairs if steps], delta)
