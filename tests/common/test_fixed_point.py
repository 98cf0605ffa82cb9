"""Sums of updates are exact: in any order, with or without a mask, and never of a number that is none."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedward_common.fixed_point import SCALE, decode_mean, encode_weighted

ENTRIES = st.floats(-64, 64, width=32)
UPDATES = arrays.arrays(np.float32, 5, elements=ENTRIES)
WEIGHTS = st.integers(1, 1 << 20)
PARTS = st.lists(st.tuples(UPDATES, WEIGHTS), min_size=1, max_size=8)


@given(UPDATES, WEIGHTS)
def test_one_update_decodes_to_itself_within_half_a_step(update: np.ndarray, weight: int) -> None:
    decoded = decode_mean(encode_weighted(update, weight, bound=64), weight)
    assert np.abs(decoded - update.astype(np.float64)).max() <= 0.5 / SCALE


@given(UPDATES, WEIGHTS)
def test_encoding_is_weight_times_the_rounded_number_exactly(update: np.ndarray, weight: int) -> None:
    encoded = encode_weighted(update, weight, bound=64)
    assert encoded.dtype == np.int64
    assert [int(e) for e in encoded] == [weight * round(float(u) * SCALE) for u in update]
    assert max(abs(int(e)) for e in encoded) <= 64 * SCALE * weight < 1 << 50


@given(PARTS, st.randoms(use_true_random=False))
def test_sum_does_not_depend_on_the_order_of_arrival(parts: list[tuple[np.ndarray, int]], order: random.Random) -> None:
    encoded = [encode_weighted(update, weight, bound=64) for update, weight in parts]
    shuffled = list(encoded)
    order.shuffle(shuffled)
    assert (np.sum(shuffled, axis=0) == np.sum(encoded, axis=0)).all()


@given(PARTS)
def test_sum_is_the_exact_integer_sum_and_cannot_overflow(parts: list[tuple[np.ndarray, int]]) -> None:
    total = np.zeros(5, dtype=np.int64)
    exact = [0] * 5
    for update, weight in parts:
        encoded = encode_weighted(update, weight, bound=64)
        total += encoded
        exact = [a + int(b) for a, b in zip(exact, encoded, strict=True)]
    assert total.tolist() == exact


def test_headroom_holds_the_largest_federation() -> None:
    assert 64 * SCALE * (1 << 20) * (1 << 12) < 1 << 63


@given(PARTS, st.integers(0, 2**63 - 1))
def test_mask_added_and_taken_off_changes_nothing(parts: list[tuple[np.ndarray, int]], seed: int) -> None:
    """Masks are uniform modulo 2**64, so sums wrap; two sites' masks cancel whatever the wraps."""
    total = np.zeros(5, dtype=np.int64)
    mask = np.random.default_rng(seed).integers(-(2**63), 2**63, 5, dtype=np.int64, endpoint=False)
    with np.errstate(over="ignore"):
        for update, weight in parts:
            total += encode_weighted(update, weight, bound=64)
        masked = total + mask
        assert (masked - mask == total).all()


@given(PARTS)
def test_mean_is_the_weighted_mean(parts: list[tuple[np.ndarray, int]]) -> None:
    weight = sum(w for _, w in parts)
    total = np.sum([encode_weighted(u, w, bound=64) for u, w in parts], axis=0)
    expected = sum(u.astype(np.float64) * w for u, w in parts) / weight
    assert np.abs(decode_mean(total, weight) - expected).max() <= 0.5 / SCALE + 1e-12


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf])
def test_number_without_fixed_point_form_is_refused(entry: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        encode_weighted(np.array([0, entry], dtype=np.float32), 1, bound=64)


@pytest.mark.parametrize("entry", [64.00001, -65, 3e38])
def test_entry_above_the_bound_is_refused_not_clipped(entry: float) -> None:
    with pytest.raises(ValueError, match="exceeds the bound 64"):
        encode_weighted(np.array([entry], dtype=np.float32), 1, bound=64)


@pytest.mark.parametrize("weight", [-9, 0, (1 << 20) + 1, 10**15])
def test_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match=f"weight {weight} "):
        encode_weighted(np.zeros(1, dtype=np.float32), weight, bound=64)


@pytest.mark.parametrize("weight", [0, -9])
def test_mean_of_nothing_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match="less than 1"):
        decode_mean(np.zeros(1, dtype=np.int64), weight)


def test_empty_update_encodes_to_nothing() -> None:
    assert encode_weighted(np.zeros(0, dtype=np.float32), 1, bound=64).shape == (0,)
