"""What a patient who is known at several hospitals has spent; rules without I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from fedward_common.privacy import Mechanism, Spend, epsilon_of, merged
from fedward_common.privacy_groups import worst_epsilon

__all__ = ["AcrossSites", "across_sites"]

_TWO: Final = 2
_MOST_CELLS: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class AcrossSites:
    """The ε of a patient, all at `delta`, by how many hospitals hold the patient's records.

    Attributes:
        delta: at which all are taken.
        one: of a patient of each hospital alone, by its name.
        any_two: of a patient of two hospitals, for the worst two; None where there is only one.
        pair: these two, in alphabetical order; empty where there is only one, or where `any_two` is that of all.
        everywhere: of a patient of all hospitals; inf where no ε is.
    """

    delta: float
    one: Mapping[str, float]
    any_two: float | None
    pair: tuple[str, ...]
    everywhere: float

    @property
    def worst_of_one(self) -> float:
        """The largest ε of a patient of one hospital; 0 without hospitals."""
        return max(self.one.values(), default=0.0)


def across_sites(sites: Mapping[str, Sequence[Spend]], delta: float) -> AcrossSites:
    """Return what a patient spends who is at one, at any two and at all hospitals, everything composed.

    Parallel composition (McSherry 2009, theorem 4) says that mechanisms on disjoint parts of a data set cost together
    what the worst of them costs. It does not hold here. Its unit is a row of one table that was split; ours is the
    patient, and hospitals do not split one register: whoever is treated at two has records in both cohorts. Removing
    this patient changes both noised sums, the noise of the two is independent, and a reader of all messages sees both.
    So the two mechanisms compose one after the other like two studies on one cohort, and the ε of the worst hospital is
    a guarantee only for patients of one hospital. Nobody can check which these are, for identities never leave.

    Args:
        sites: what each hospital spent, over the same or over different studies.
        delta: of every answer.

    Raises:
        StudyError: as `epsilon_of`.
    """
    names = sorted(sites)
    budgets = {name: tuple(sorted(merged(sites[name]).items())) for name in names}
    of_budget = {budget: epsilon_of(_spends(budget), delta) for budget in sorted(set(budgets.values()))}
    one = {name: of_budget[budgets[name]] for name in names}
    everywhere = epsilon_of([spend for budget in budgets.values() for spend in _spends(budget)], delta)
    if len(names) < _TWO:
        return AcrossSites(delta, one, None, (), everywhere)
    any_two, pair = _worst_pair(names, budgets, delta)
    return AcrossSites(delta, one, min(any_two, everywhere), pair, everywhere)


Budget = tuple[tuple[Mechanism, int], ...]


def _spends(budget: Budget) -> list[Spend]:
    return [Spend(sigma, rate, steps) for (sigma, rate), steps in budget]


def _worst_pair(names: Sequence[str], budgets: Mapping[str, Budget], delta: float) -> tuple[float, tuple[str, ...]]:
    """Return an ε for which each pair is safe, and the pair whose ε it is; hospitals with equal budgets count once.

    Infinity where the table of all pairs would be too large (some hundreds of hospitals, each with a budget of its
    own) or a value is extreme: of that, the caller takes the ε of all hospitals, which holds for any two.
    """
    of: dict[Budget, list[str]] = {}
    for name in names:
        of.setdefault(budgets[name], []).append(name)
    pairs = [(group[0], group[1]) for group in of.values() if len(group) > 1]
    kinds = sorted({mechanism for budget in of for mechanism, _ in budget})
    size = len(of) ** 2 // 2 * len(kinds)
    if size > _MOST_CELLS or not 0 < delta < 1 or any(sigma == 0 for sigma, _ in kinds):
        return math.inf, ()
    pairs += [(a[0], b[0]) for a, b in combinations(of.values(), 2)]
    place = {mechanism: column for column, mechanism in enumerate(kinds)}
    counts = np.zeros((len(pairs), len(kinds)), dtype=np.int64)
    for row, pair in enumerate(pairs):
        for name in pair:
            for mechanism, steps in budgets[name]:
                counts[row, place[mechanism]] += steps
    epsilon, row = worst_epsilon(counts, kinds, delta)
    return epsilon, (min(pairs[row]), max(pairs[row]))
