"""Sets of patients without their names: equal where the people are equal, silent about who they are."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.patient_sets import distinct, groups, mark, members, numbered, pack, tags

KEY, OTHER_KEY = b"k" * 32, b"o" * 32

numbers_ = st.sets(st.integers(0, 300), max_size=40)


def people(*codes: int) -> npt.NDArray[np.uint8]:
    """Return the identities of the patients with these codes."""
    return np.array([list(hashlib.sha256(bytes([code])).digest()[:16]) for code in codes], np.uint8).reshape(-1, 16)


def array(numbers: set[int]) -> npt.NDArray[np.int64]:
    return np.array(sorted(numbers), dtype=np.int64)


def test_the_same_patients_in_another_order_or_twice_are_the_same_set() -> None:
    first, second = distinct(people(3, 1, 2)), distinct(people(2, 3, 1, 3, 1))

    assert first.tolist() == second.tolist()
    assert mark(first, KEY) == mark(second, KEY)
    assert tags(first, KEY).tolist() == tags(second, KEY).tolist()


def test_one_patient_more_is_another_set_with_the_same_tags_for_the_others() -> None:
    first, second = distinct(people(1, 2)), distinct(people(1, 2, 3))

    assert mark(first, KEY) != mark(second, KEY)
    assert set(tags(first, KEY).tolist()) < set(tags(second, KEY).tolist())


def test_a_tag_is_an_hmac_that_nobody_makes_without_the_key() -> None:
    (identity,) = people(7)

    expected = int.from_bytes(hmac.new(KEY, identity.tobytes(), hashlib.sha256).digest()[:8], "little")

    assert tags(people(7), KEY).tolist() == [expected]
    assert tags(people(7), OTHER_KEY).tolist() != [expected]
    assert mark(people(7), OTHER_KEY) != mark(people(7), KEY)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((3, 15), np.uint8), np.zeros(16, np.uint8), np.zeros((3, 16), np.int64)],
    ids=["narrow", "flat", "wide numbers"],
)
def test_what_are_no_identities_is_refused(wrong: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="uint8 of shape"):
        distinct(wrong)  # type: ignore[arg-type]


def test_no_patient_is_a_set_too() -> None:
    nobody = distinct(np.zeros((0, 16), np.uint8))

    assert len(nobody) == len(tags(nobody, KEY)) == 0
    assert members(pack(array(set()))).tolist() == []
    assert groups(array(set()), [b"\x01", None]).shape == (0, 2)


@given(st.lists(st.integers(0, 1 << 63), unique=True, max_size=30), st.sets(st.integers(0, 1 << 63), max_size=30))
def test_known_patients_keep_their_number_and_new_ones_follow(known: list[int], wanted: set[int]) -> None:
    found, new = numbered(np.array(sorted(wanted), np.uint64), np.array(known, np.uint64))

    everybody = [*known, *new.tolist()]
    assert [everybody[number] for number in found.tolist()] == sorted(wanted)
    assert set(new.tolist()) == wanted - set(known)


@given(numbers_)
def test_a_bitmap_holds_exactly_its_members(numbers: set[int]) -> None:
    assert members(pack(array(numbers))).tolist() == sorted(numbers)


@given(numbers_, st.lists(st.none() | numbers_, max_size=70))
def test_groups_are_the_combinations_that_occur_each_once(numbers: set[int], sets: list[set[int] | None]) -> None:
    found = groups(array(numbers), [None if one is None else pack(array(one)) for one in sets])

    expected = {tuple(one is None or number in one for one in sets) for number in numbers}
    assert {tuple(row) for row in found.tolist()} == expected
    assert len(found) == len(expected)
