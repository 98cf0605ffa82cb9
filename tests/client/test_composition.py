"""The worst ε over many groups: never below the truth, exact where it matters, quick whatever the groups are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st

from fedward_common import privacy_groups
from fedward_common.privacy import Mechanism, Spend, epsilon_of, epsilons_of_rows
from fedward_common.privacy_groups import composed, worst_epsilon
from fedward_common.renyi import ORDERS, renyi_bounds

MECHANISMS = [(4.0, 1.0), (9.0, 1.0), (30.0, 1.0)]  # sums over all patients: exact in microseconds
DELTA = 1e-4


def exact(row: list[int], mechanisms: list[tuple[float, float]], delta: float = DELTA) -> float:
    return epsilon_of([Spend(s, q, n) for (s, q), n in zip(mechanisms, row, strict=True) if n], delta)


rows_ = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200), st.integers(0, 60)), min_size=1, max_size=6)


@given(rows_)
def test_worst_is_the_largest_of_the_exact_values(rows: list[tuple[int, int, int]]) -> None:
    counts = np.array(rows, dtype=np.int64)

    epsilon, row = worst_epsilon(counts, MECHANISMS, DELTA)

    assert epsilon == max(exact(list(one), MECHANISMS) for one in rows)
    assert epsilon == exact(list(rows[row]), MECHANISMS)


@given(rows_, st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]))
def test_within_the_limit_or_not_is_always_answered_as_the_exact_values_say(
    rows: list[tuple[int, int, int]], limit: float
) -> None:
    epsilon, _ = worst_epsilon(np.array(rows, dtype=np.int64), MECHANISMS, DELTA, enough=limit)

    worst = max(exact(list(one), MECHANISMS) for one in rows)
    assert (epsilon <= limit) == (worst <= limit)
    assert epsilon >= worst


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_bound_is_that_of_google_s_renyi_accountant(noise: float, rate: float, delta: float) -> None:
    counts = np.array([[1], [30], [2000]], dtype=np.int64)

    bounds = renyi_bounds(counts, [(noise, rate)], delta)

    for steps, bound in zip((1, 30, 2000), bounds.tolist(), strict=True):
        accountant = RdpAccountant(orders=ORDERS.tolist())
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
        assert bound == pytest.approx(accountant.get_epsilon(delta), rel=1e-6)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_bound_is_never_below_the_closed_form(noise: float, delta: float) -> None:
    counts = np.array([[1], [30], [2000]], dtype=np.int64)

    bounds = renyi_bounds(counts, [(noise, 1.0)], delta)

    truth = [exact([steps], [(noise, 1.0)], delta) for steps in (1, 30, 2000)]
    assert all(bound >= true for bound, true in zip(bounds.tolist(), truth, strict=True))


def test_sampled_and_unsampled_sums_are_composed_together() -> None:
    mechanisms = [(4.0, 1.0), (2.0, 0.05), (8.0, 0.3)]
    counts = np.array([[3, 40, 0], [0, 100, 5], [1, 1, 1]], dtype=np.int64)

    epsilon, _ = worst_epsilon(counts, mechanisms, DELTA)

    assert epsilon == max(exact(row, mechanisms) for row in counts.tolist())


def test_bound_is_near_enough_to_sort_by() -> None:
    (bound,) = renyi_bounds(np.array([[1563]], dtype=np.int64), [(2.0, 0.064)], 1e-4)

    assert epsilon_of([Spend(2.0, 0.064, 1563)], 1e-4) == pytest.approx(bound, rel=0.15)


def test_nothing_spent_is_zero() -> None:
    assert worst_epsilon(np.zeros((0, 0), np.int64), [], DELTA) == (0.0, 0)
    assert worst_epsilon(np.zeros((3, 2), np.int64), MECHANISMS[:2], DELTA) == (0.0, 0)
    assert composed([], DELTA) == 0.0


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of groups of each call that composes exactly."""
    asked: list[int] = []

    def one(spends: list[Spend], delta: float) -> float:
        asked.append(1)
        return epsilon_of(spends, delta)

    def many(counts: npt.NDArray[np.int64], mechanisms: list[Mechanism], delta: float) -> npt.NDArray[np.float64]:
        asked.append(len(counts))
        return epsilons_of_rows(counts, mechanisms, delta)

    monkeypatch.setattr(privacy_groups, "composed", one)
    monkeypatch.setattr(privacy_groups, "epsilons_of_rows", many)
    return asked


def test_groups_far_below_the_limit_are_not_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)

    epsilon, _ = worst_epsilon(np.array([[1, 0], [0, 1], [1, 1]], np.int64), MECHANISMS[:2], DELTA, enough=16.0)

    assert 0 < epsilon < 16.0
    assert not asked


def test_thousands_of_groups_close_together_cost_a_bounded_number_of_compositions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each patient in another half of 20 studies: no group holds another, and the answer still comes, from above."""
    draw = np.random.default_rng(0)
    counts = np.unique([draw.permutation([1] * 10 + [0] * 10) for _ in range(3000)], axis=0).astype(np.int64)
    mechanisms = [(30.0 + place / 1000, 1.0) for place in range(20)]
    asked = counting(monkeypatch)

    epsilon, _ = worst_epsilon(counts, mechanisms, DELTA)

    assert sum(asked) <= 16
    assert epsilon >= max(exact(row, mechanisms) for row in counts[:50].tolist())
    assert epsilon == pytest.approx(exact(counts[0].tolist(), mechanisms), rel=0.2)


def test_a_group_that_another_holds_is_not_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)
    nested = np.array([[steps, 0] for steps in range(1, 40)], dtype=np.int64)

    assert worst_epsilon(nested, MECHANISMS[:2], DELTA) == (exact([39, 0], MECHANISMS[:2]), 38)
    assert asked == [1]


def test_order_of_what_is_composed_does_not_matter() -> None:
    spends = [Spend(4.0, 1.0, 3), Spend(2.0, 0.05, 40), Spend(8.0, 0.3, 5)]

    assert composed(spends, DELTA) == composed(spends[::-1], DELTA) == epsilon_of(spends, DELTA)


def test_groups_composed_together_are_as_if_composed_alone() -> None:
    """One grid for all of them, made for the worst: the others come out a little larger, never smaller."""
    mechanisms = [(1.5, 0.05), (1.1, 0.02), (3.0, 0.3), (6.0, 1.0)]
    counts = np.array([[100, 0, 20, 3], [0, 300, 0, 0], [50, 50, 50, 0], [400, 0, 0, 1]], dtype=np.int64)

    together = epsilons_of_rows(counts, mechanisms, DELTA)

    for row, epsilon in zip(counts.tolist(), together.tolist(), strict=True):
        assert epsilon == pytest.approx(exact(row, mechanisms), rel=0.003)


def test_sampled_groups_that_no_bound_decides_are_covered_by_the_answer() -> None:
    draw = np.random.default_rng(1)
    mechanisms = [(round(1 + place / 50, 4), 0.05) for place in range(20)]
    counts = np.unique([draw.permutation([20] * 10 + [0] * 10) for _ in range(30)], axis=0).astype(np.int64)

    epsilon, row = worst_epsilon(counts, mechanisms, DELTA)

    truth = [exact(one, mechanisms) for one in counts.tolist()]
    assert max(truth) * 0.999 <= epsilon <= max(truth) * 1.2
    assert 0 <= row < len(counts)
