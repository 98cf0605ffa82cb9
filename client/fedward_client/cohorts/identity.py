"""Who a patient is, whatever file, column order or study the rows came through.

A privacy budget belongs to people: the ledger must know them again when a table is exported anew, registered under
another name or read by another study. What is kept of them is a digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["IDENTITY_BYTES", "content_digests", "exact_digests", "identities_of_content", "identities_of_names"]

IDENTITY_BYTES: Final = 16

_ABSENT: Final = frozenset(
    [
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "NaT",
        "None",
        "n/a",
        "nan",
        "null",
        "",
    ]
)
"""Texts that pandas.read_csv takes for a missing value, and so writes as one when a table is exported anew."""
_ROW_NUMBER: Final = re.compile(r"(Unnamed: \d+|__index_level_\d+__|)")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?")
_WHOLE: Final = re.compile(r"[+-]?\d{1,30}")
_EXACT: Final = 2**53


def identities_of_names(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return the first 16 bytes of the SHA-256 of each identifier, uint8, shape (names, 16).

    Args:
        names: identifiers as `fedward_common.tables.identifier_text` writes them.
    """
    return _packed([hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in names])


def identities_of_content(frame: pd.DataFrame) -> npt.NDArray[np.uint8]:
    """Return the first 16 bytes of each row's digest (`content_digests`), uint8, shape (rows, 16)."""
    return _packed(content_digests(frame))


def content_digests(frame: pd.DataFrame) -> list[bytes]:
    """Return the SHA-256 of what each row says, independent of how the table is written.

    The same values give the same digest in CSV and in Parquet, in any order of rows and columns: ``45``, ``45.0`` and
    `` 45`` are one number, ``2024-01-31`` and midnight of that day one date, and a cell that is missing counts as no
    cell at all. Columns without a name and a data frame's index, which number the rows, do not count.
    """
    return _digests(frame, _canonical)


def exact_digests(frame: pd.DataFrame) -> list[bytes]:
    """Return the SHA-256 of each row as it is: another text for the same number is another row.

    Independent of the order of the columns alone; only a null is no cell.
    """
    return _digests(frame.map(str, na_action="ignore"), json.dumps)


def _digests(frame: pd.DataFrame, written: Callable[[Any], str]) -> list[bytes]:
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    names = sorted((str(name).strip(), place) for place, name in enumerate(frame.columns))
    columns = []
    for name, place in names:
        if _ROW_NUMBER.fullmatch(name):
            continue
        head = json.dumps(name)
        codes, values = pd.factorize(_cells(frame.iloc[:, place]), use_na_sentinel=True)
        texts = [f"{head}:{text}" if (text := written(value)) else "" for value in values]
        columns.append(np.array([*texts, ""], dtype=object)[codes])  # code -1, a null, takes the last
    if not columns:
        return [hashlib.sha256(b"").digest()] * len(frame)
    rows = zip(*columns, strict=True)
    return [hashlib.sha256("\n".join(cell for cell in row if cell).encode()).digest() for row in rows]


def _cells(series: pd.Series[Any]) -> npt.NDArray[np.object_]:
    """Return a column's cells as they are, each of them something that can be counted."""
    if series.dtype in (np.float32, np.float16):  # their shortest text is the number that was meant: 0.1
        return series.to_numpy().astype(str).astype(object)
    if series.dtype == "str":
        return series.to_numpy(dtype=object)
    cells = np.empty(len(series), dtype=object)
    for place, value in enumerate(series):  # no map: pandas would guess a type for what comes out of it
        cells[place] = _hashable(value)
    return cells


def _packed(digests: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    whole = b"".join(digest[:IDENTITY_BYTES] for digest in digests)
    return np.frombuffer(whole, dtype=np.uint8).reshape(-1, IDENTITY_BYTES)


def _hashable(value: Any) -> Any:
    """Return a cell as something that can be counted: a truth value apart from 1, a nested value of Parquet as text."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return value if getattr(type(value), "__hash__", None) else json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _canonical(value: Any) -> str:
    """Return the one way in which a cell's value is written, as JSON; empty where it means that nothing is there."""
    if isinstance(value, str):
        return _text(value.strip())
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, np.floating):
        value = float(str(value))  # see _cells
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, datetime | date):
        return _moment(value.isoformat())
    if isinstance(value, bytes | bytearray | memoryview):
        return json.dumps(bytes(value).hex())
    return _text(str(value).strip())


def _text(text: str) -> str:
    if text in _ABSENT:
        return ""
    if text.casefold() in {"true", "false"}:
        return text.casefold()
    if _WHOLE.fullmatch(text):
        return str(int(text))
    if _DATE.fullmatch(text):
        return _moment(text)
    try:
        return _number(float(text)) if text[0] in "+-.0123456789" and "_" not in text else json.dumps(text)
    except ValueError:
        return json.dumps(text)


def _number(value: float) -> str:
    if value != value:  # noqa: PLR0124  (not a number)
        return ""
    return str(int(value)) if abs(value) <= _EXACT and value.is_integer() else repr(value)


def _moment(text: str) -> str:
    """Return a date or a time of ISO 8601 without what may be left out: a midnight, seconds and fractions of zero."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return json.dumps(text)
    plain = moment.isoformat()
    return json.dumps(plain.removesuffix("T00:00:00") if moment.tzinfo is None else plain)
