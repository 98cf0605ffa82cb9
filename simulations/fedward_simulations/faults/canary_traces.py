"""Values that occur nowhere else, and the search for every form in which one could stand in bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["Traces", "canary_name", "canary_number", "planted_table"]

_MARK: Final = "Qx7vZt9KpL3m"
_DIGITS: Final = "730461"  # behind the decimal point; six more digits tell the records apart
_PATTERN_BYTES: Final = 8


def canary_name(record: int, field: str) -> str:
    """Return a text that no other field of no other record holds; it begins with the mark that is searched for."""
    return f"{_MARK}-{field}-{record:04d}"


def canary_number(record: int, field: int, low: float) -> float:
    """Return a number in [low, low + 50) that no other field of no other record holds."""
    return float(f"{low + record % 50:.0f}.{_DIGITS}{field:02d}{record:04d}")


def planted_table(records: int) -> pd.DataFrame:
    """Return a cohort with a canary in every field that can hold one.

    Category and outcome are words of the study's own vocabulary, which the centre wrote: no canary fits there, and
    `fedward_simulations.faults.canary` plants one where it makes a field invalid.
    """
    numbers = range(records)
    return pd.DataFrame({
        "patient": [canary_name(n, "patient") for n in numbers],
        "age": [canary_number(n, 1, 20) for n in numbers],
        "pressure": [canary_number(n, 2, 100) for n in numbers],
        "stage": [("first", "second", "third")[n % 3] for n in numbers],
        "outcome": [("no", "yes")[n % 2] for n in numbers],
        "name": [canary_name(n, "name") for n in numbers],
        "weight": [canary_number(n, 3, 40) for n in numbers],
        "note": [f"seen on the ward, {canary_name(n, 'note')}" for n in numbers],
    })  # fmt: skip


class Traces:
    """What to look for: the canaries' mark and digits in any encoding of text, and numbers in binary.

    A single-precision number of 4 bytes would be found by chance; two that stand beside each other in a record are
    looked for, as raw values and as the model is fed them.

    Args:
        numbers: raw values, shape (records, fields).
        encoded: what the model is fed, shape (records, features).
    """

    def __init__(self, numbers: npt.NDArray[np.float64], encoded: npt.NDArray[np.float32]) -> None:
        self._folded = {"text": _MARK.lower().encode(), "text in hexadecimal": _MARK.encode().hex().encode()}
        self._exact = dict(_encoded_text(_MARK)) | {f"digits, {form}": mark for form, mark in _encoded_text(_DIGITS)}
        self._exact |= {"digits": f".{_DIGITS}".encode(), "digits, rounded": f".{int(_DIGITS) + 1}".encode()}
        self._binary = frozenset([*_doubles(numbers), *_pairs(numbers), *_pairs(encoded)])

    def found_in(self, data: bytes) -> list[str]:
        """Return which forms of a canary stand in `data`; none, if it is clean."""
        folded = data.lower()
        found = [form for form, mark in self._folded.items() if mark in folded]
        found += [form for form, mark in self._exact.items() if mark in data]
        return found + (["a number in binary"] if self._binary & _windows(data) else [])


def _encoded_text(mark: str) -> Iterator[tuple[str, bytes]]:
    """Yield a text in UTF-16, and in Base64 at each of the three places where it can begin."""
    yield "text in UTF-16", mark.encode("utf-16-le")
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + mark.encode())
        whole = slice((8 * shift + 5) // 6, 8 * (shift + len(mark)) // 6)  # the rest depends on the neighbours
        yield f"text in Base64, place {shift}", coded[whole]


def _doubles(numbers: npt.NDArray[np.float64]) -> Iterator[bytes]:
    for order in ("<f8", ">f8"):
        data = numbers.astype(order).tobytes()
        yield from (data[place : place + 8] for place in range(0, len(data), 8))


def _pairs(numbers: npt.NDArray[np.floating]) -> Iterator[bytes]:
    """Yield two neighbours in single precision; 0 and 1, which stand everywhere, are no trace of anybody."""
    for order in ("<f4", ">f4"):
        for row in numbers.astype(order):
            yield from (
                row[i : i + 2].tobytes() for i in range(row.size - 1) if not set(row[i : i + 2].tolist()) & {0.0, 1.0}
            )


def _windows(data: bytes) -> set[bytes]:
    return {data[i : i + _PATTERN_BYTES] for i in range(len(data) - _PATTERN_BYTES + 1)}
