"""Vectors in records: one record up to the size of a part, exact bytes, and nothing that a sender says is believed."""

from __future__ import annotations

import hashlib
import pickle
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.flower_adapter import entry_on_demand
from fedward_common.packing import PART_BYTES, VECTOR_KEYS, pack, part_names, unpack, unpack_parts

INT64, FLOAT32 = np.dtype("<i8"), np.dtype("<f4")
SMALL = 64
"""Bytes of a part in these tests: eight integers."""


def packed(values: npt.NDArray[Any], dtype: np.dtype[Any] = INT64, part_bytes: int = SMALL) -> RecordDict:
    entries, parts = pack(values, dtype, part_bytes=part_bytes)
    return RecordDict({"header": ConfigRecord(dict(entries)), **parts})


def read(content: RecordDict, length: int, dtype: np.dtype[Any] = INT64) -> npt.NDArray[Any]:
    return unpack(content, content.config_records["header"], dtype=dtype, length=length, part_bytes=SMALL)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40))
def test_integers_of_any_number_of_parts_cross_unchanged(values: list[int]) -> None:
    content = packed(np.array(values, dtype=np.int64))

    assert read(content, len(values)).tolist() == values
    assert len(content) == -(-8 * len(values) // SMALL)


@given(st.lists(st.floats(width=32), min_size=1, max_size=60))
def test_floats_cross_bit_for_bit(values: list[float]) -> None:
    sent = np.array(values, dtype=np.float32)

    got = read(packed(sent, FLOAT32), len(values), FLOAT32)

    assert got.tobytes() == sent.tobytes()
    assert got.dtype == np.float32


@pytest.mark.parametrize("length", [1, 7, 8])
def test_a_vector_of_at_most_one_part_is_the_header_alone(length: int) -> None:
    content = packed(np.arange(length))

    assert list(content) == ["header"]
    assert set(content.config_records["header"]) == VECTOR_KEYS


@pytest.mark.parametrize(("length", "parts"), [(9, [1]), (16, [1]), (17, [1, 2]), (24, [1, 2]), (25, [1, 2, 3])])
def test_each_further_part_is_a_record_of_its_own(length: int, parts: list[int]) -> None:
    content = packed(np.arange(length))

    assert list(content) == ["header", *(f"part-{number}" for number in parts)]
    assert part_names(8 * length, part_bytes=SMALL) == list(content)[1:]
    assert all(set(content.config_records[name]) == {"vector"} for name in list(content)[1:])


def test_parts_that_did_not_change_keep_their_address() -> None:
    """A transfer is resumed, and a repeated part is stored once, by the SHA-256 of a record."""
    first, second = np.arange(32), np.arange(32)
    second[20] += 1

    before, after = (
        {name: hashlib.sha256(record.deflate()).hexdigest() for name, record in packed(values).config_records.items()}
        for values in (first, second)
    )

    assert {name for name in before if before[name] != after[name]} == {"part-2"}


def test_a_part_leaves_room_for_the_header_in_a_request() -> None:
    assert PART_BYTES == 8 << 20
    assert part_names(PART_BYTES) == []
    assert part_names(PART_BYTES + 1) == ["part-1"]
    assert len(part_names(100 << 20)) == 12


def test_other_byte_orders_and_layouts_are_written_as_little_endian() -> None:
    values = np.arange(24, dtype=np.int64)
    for odd in (values.astype(">i8"), np.repeat(values, 2)[::2], np.asfortranarray(values)):
        assert read(packed(odd), 24).tolist() == values.tolist()


def test_what_was_read_cannot_be_written_to() -> None:
    got = read(packed(np.arange(4)), 4)

    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1


def test_one_part_is_read_without_a_copy() -> None:
    content = packed(np.arange(8))
    raw = content.config_records["header"]["vector"]

    assert isinstance(raw, bytes)
    assert np.shares_memory(read(content, 8), np.frombuffer(raw, dtype=np.int64))


@pytest.mark.parametrize("key", sorted(VECTOR_KEYS))
def test_missing_entry_is_an_error(key: str) -> None:
    content = packed(np.arange(24))
    del content.config_records["header"][key]

    with pytest.raises(ValueError, match=r"not declared as|missing"):
        read(content, 24)


@pytest.mark.parametrize(
    "record",
    [
        None,
        ConfigRecord(),
        ConfigRecord({"vector": bytes(SMALL - 1)}),
        ConfigRecord({"vector": bytes(SMALL + 1)}),
        ConfigRecord({"vector": "x" * SMALL}),
        ConfigRecord({"vector": [bytes(SMALL)]}),
        ConfigRecord({"vector": bytes(SMALL), "more": 1}),
        ConfigRecord({"other": bytes(SMALL)}),
        MetricRecord({"vector": 1.0}),
        ArrayRecord(),
    ],
    ids=["missing", "empty", "short", "long", "text", "list", "more", "other", "metric", "array"],
)
@pytest.mark.parametrize("name", ["part-1", "part-2"])
def test_part_that_is_no_part_is_an_error(record: Any, name: str) -> None:
    records: dict[str, Any] = {**packed(np.arange(24)), name: record}

    content = RecordDict({key: value for key, value in records.items() if value is not None})

    with pytest.raises(ValueError, match="a part of the vector is missing or has not its 64 bytes"):
        read(content, 24)


def test_last_part_has_its_own_length() -> None:
    content = packed(np.arange(17))
    content["part-2"] = ConfigRecord({"vector": bytes(SMALL)})

    with pytest.raises(ValueError, match="has not its 8 bytes"):
        read(content, 17)


def test_an_error_says_nothing_that_the_sender_wrote() -> None:
    content = packed(np.arange(8))
    content.config_records["header"]["dtype"] = "Mrs Canary"

    with pytest.raises(ValueError, match="not declared as 8 numbers of type <i8") as caught:
        read(content, 8)

    assert "Canary" not in str(caught.value)


@pytest.mark.parametrize("dtype", [INT64, FLOAT32])
def test_a_large_vector_costs_a_part_to_write_and_one_copy_to_read(dtype: np.dtype[Any]) -> None:
    """40 MB, in the production's parts: a writer holds the first one, a reader the whole and two parts."""
    values = np.zeros(40_000_000 // dtype.itemsize, dtype=dtype)
    tracemalloc.start()
    try:
        entries, parts = pack(values, dtype)
        written = tracemalloc.get_traced_memory()[1]
        content = RecordDict({"header": ConfigRecord(dict(entries)), **parts})
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        unpack(content, content.config_records["header"], dtype=dtype, length=len(values))
        got = tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()

    assert written < 1.05 * PART_BYTES
    assert got < 1.05 * (values.nbytes + 2 * PART_BYTES)


def test_parts_that_are_cut_on_demand_are_the_objects_that_whole_ones_are() -> None:
    values = np.arange(40)

    _, lazy = pack(values, INT64, part_bytes=80)
    whole = {name: ConfigRecord(dict(record)) for name, record in lazy.items()}

    assert list(whole) == ["part-1", "part-2", "part-3"]
    assert [lazy[name].object_id for name in whole] == [record.object_id for record in whole.values()]
    assert lazy == whole
    assert pickle.loads(pickle.dumps(lazy)) == whole  # noqa: S301  (our own bytes)
    assert lazy["part-1"].copy() == whole["part-1"]
    assert "other" not in lazy["part-1"]


def test_a_part_is_not_read_before_its_turn() -> None:
    entries, parts = pack(np.arange(40), INT64, part_bytes=80)
    read: list[int] = []

    def told(number: int, record: ConfigRecord) -> ConfigRecord:
        def look() -> bytes:
            read.append(number)
            return bytes(record["vector"])  # type: ignore[arg-type]

        return entry_on_demand("vector", look)

    records = {name: told(number, record) for number, (name, record) in enumerate(parts.items(), start=1)}
    content = RecordDict({"header": ConfigRecord(dict(entries)), **records})

    pieces = unpack_parts(content, content.config_records["header"], dtype=INT64, length=40, part_bytes=80)

    assert [(len(piece), list(read)) for piece in pieces] == [(80, []), (80, [1]), (80, [1, 2]), (80, [1, 2, 3])]
