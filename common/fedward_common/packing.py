"""A vector as raw bytes inside records: as few objects as its size allows, and nothing in it to parse.

Flower transfers each record of a message as one object, addressed by its SHA-256, with one request each way. A vector
of at most `PART_BYTES` travels inside the header itself; a longer one is cut, and every further part is a record of
its own, so that an interrupted transfer goes on with the parts that are missing. Byte order is little-endian.

A receiver knows data type and length from the study. It compares both, and the number of bytes of every part, before
it touches a byte; a sender's own words about them decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, RecordDict

from fedward_common.flower_adapter import entry_on_demand
from fedward_common.paged import let_go

__all__ = ["PART_BYTES", "PART_KEY", "VECTOR_KEYS", "pack", "part_names", "unpack", "unpack_parts"]

PART_BYTES: Final = 8 << 20
PART_KEY: Final = "vector"
"""The one entry of a record that is a part."""

_DTYPE, _LENGTH, _BYTES = "dtype", "length", PART_KEY
VECTOR_KEYS: Final = frozenset({_DTYPE, _LENGTH, _BYTES})
"""Entries of a header that describe its vector."""


def pack(
    values: npt.NDArray[Any], dtype: np.dtype[Any], *, part_bytes: int = PART_BYTES
) -> tuple[dict[str, str | int | bytes], dict[str, ConfigRecord]]:
    """Return the header's entries for `values`, and the records of all parts but the first.

    The first part is copied; the others are cut from `values` whenever somebody looks at them, so `values` must stay as
    it is until then. `dtype` is little-endian; `values` is one-dimensional and not empty.
    """
    whole = np.ascontiguousarray(values, dtype=dtype)
    raw = whole.view(np.uint8)

    def cut(start: int) -> bytes:
        part = raw[start : start + part_bytes].tobytes()
        let_go(raw)
        return part

    entries: dict[str, str | int | bytes] = {_DTYPE: dtype.str, _LENGTH: len(values), _BYTES: cut(0)}
    names = part_names(len(raw), part_bytes=part_bytes)
    starts = range(part_bytes, len(raw), part_bytes)
    parts = {name: entry_on_demand(_BYTES, partial(cut, start)) for name, start in zip(names, starts, strict=True)}
    return entries, parts


def part_names(total: int, *, part_bytes: int = PART_BYTES) -> list[str]:
    """Return the names of the records beside the header in which `total` bytes travel; none up to `part_bytes`."""
    return [f"part-{number}" for number in range(1, -(-total // part_bytes))]


def unpack(
    content: RecordDict,
    header: ConfigRecord,
    *,
    dtype: np.dtype[Any],
    length: int,
    part_bytes: int = PART_BYTES,
) -> npt.NDArray[Any]:
    """Return the vector of exactly this type and length; read-only, and without a copy if it came in one part.

    Raises:
        ValueError: it is another one; a template of expected names and numbers, with nothing of the sender's.
    """
    parts = unpack_parts(content, header, dtype=dtype, length=length, part_bytes=part_bytes)
    if length * dtype.itemsize <= part_bytes:
        return np.frombuffer(b"".join(parts), dtype=dtype)
    vector = np.empty(length, dtype=dtype)
    raw = vector.view(np.uint8)
    for number, part in enumerate(parts):
        raw[number * part_bytes : number * part_bytes + len(part)] = np.frombuffer(part, dtype=np.uint8)
    vector.setflags(write=False)
    return vector


def unpack_parts(
    content: RecordDict,
    header: ConfigRecord,
    *,
    dtype: np.dtype[Any],
    length: int,
    part_bytes: int = PART_BYTES,
) -> Iterator[bytes]:
    """Yield the parts of the vector of exactly this type and length, each once it has been compared.

    Raises:
        ValueError: as `unpack`, with the part that is another one; what the header says is compared before the first.
    """
    if header.get(_DTYPE) != dtype.str or type(header.get(_LENGTH)) is not int or header[_LENGTH] != length:
        msg = f"the vector is not declared as {length} numbers of type {dtype.str}"
        raise ValueError(msg)
    total = length * dtype.itemsize
    names = part_names(total, part_bytes=part_bytes)
    for number, start in enumerate(range(0, total, part_bytes)):
        part = _part(content, names[number - 1]) if number else header.get(_BYTES)
        expected = min(part_bytes, total - start)
        if not isinstance(part, bytes) or len(part) != expected:
            msg = f"a part of the vector is missing or has not its {expected} bytes"
            raise ValueError(msg)
        yield part


def _part(content: RecordDict, name: str) -> object:
    record = content.get(name)
    return record[_BYTES] if isinstance(record, ConfigRecord) and set(record) == {_BYTES} else None
