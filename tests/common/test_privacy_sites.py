"""A patient of two hospitals has spent both budgets, composed; the worst hospital alone is no bound."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.privacy import Spend, epsilon_of
from fedward_common.privacy_sites import across_sites

DELTA = 1e-5
WEAK, STRONG, MIDDLE = Spend(20.0, 1.0, 10), Spend(5.0, 1.0, 10), Spend(9.0, 1.0, 10)


def test_two_hospitals_of_one_study_cost_what_twice_the_steps_cost() -> None:
    spend = Spend(4.0, 0.2, 100)
    found = across_sites({"north": [spend], "south": [spend], "east": [spend]}, DELTA)

    assert found.one == dict.fromkeys(("north", "south", "east"), epsilon_of([spend], DELTA))
    assert found.any_two == epsilon_of([Spend(4.0, 0.2, 200)], DELTA)
    assert found.pair == ("east", "north")
    assert found.everywhere == epsilon_of([Spend(4.0, 0.2, 300)], DELTA)


def test_worst_two_are_those_that_spent_most() -> None:
    found = across_sites({"a": [WEAK], "b": [STRONG], "c": [MIDDLE], "d": [WEAK]}, DELTA)

    assert found.pair == ("b", "c")
    assert found.any_two == epsilon_of([STRONG, MIDDLE], DELTA)
    assert found.worst_of_one == found.one["b"]
    assert found.worst_of_one < found.any_two < found.everywhere


BUDGETS = st.lists(st.sampled_from([WEAK, STRONG, MIDDLE]), max_size=3)


@given(st.dictionaries(st.sampled_from("abcdef"), BUDGETS, min_size=2))
def test_no_pair_spends_more_than_any_two_and_no_two_more_than_all(sites: dict[str, list[Spend]]) -> None:
    found = across_sites(sites, DELTA)

    assert found.any_two is not None
    for one, other in itertools.combinations(sites.values(), 2):
        assert epsilon_of([*one, *other], DELTA) <= found.any_two
    assert found.worst_of_one <= found.any_two <= found.everywhere


def test_one_hospital_has_no_pair() -> None:
    found = across_sites({"north": [WEAK]}, DELTA)
    assert (found.any_two, found.pair) == (None, ())
    assert found.everywhere == found.one["north"]


def test_no_noise_anywhere_is_infinite_for_all() -> None:
    found = across_sites({"a": [Spend(0.0, 1.0, 1)], "b": [WEAK]}, DELTA)
    assert (found.any_two, found.everywhere) == (math.inf, math.inf)
    assert found.one["b"] < 5


@pytest.mark.parametrize("sites", [{}, {"a": [], "b": []}])
def test_nothing_spent_is_zero(sites: dict[str, list[Spend]]) -> None:
    found = across_sites(sites, DELTA)
    assert (found.worst_of_one, found.any_two or 0.0, found.everywhere) == (0.0, 0.0, 0.0)
