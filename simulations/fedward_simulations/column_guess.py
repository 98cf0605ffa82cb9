"""What a table's columns seem to be, said so that no patient can be read off: pure rules over cells.

A guess tells of a column: its kind; which of the known marks occur; a range that `outward` has widened and rounded;
the values of a short list that `SMALLEST_GROUP` patients or more share. No count, mean, order or example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedward_common.schema import CategoricalColumn, NumericColumn, Scalar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KNOWN_MARKS", "MOST_CATEGORIES", "MOST_CODES", "SMALLEST_GROUP", "Cells", "Column", "guess", "outward"]

SMALLEST_GROUP: Final = 5
"""A value that fewer patients share is not told: it could say who one of them is."""
MOST_CATEGORIES: Final = 20
"""A text column with more different values is taken for free text or an identifier."""
MOST_CODES: Final = 6
"""A column of at most so many different whole numbers is taken for codes, one of more for a quantity."""
KNOWN_MARKS: Final[tuple[Scalar, ...]] = ("", "NA", "N/A", "n/a", "?", "NaN", "nan", "null", "NULL", "-")

_LONGEST_CATEGORY: Final = 60
_IDENTIFIER_ROWS: Final = 50
_TOO_LARGE: Final = 1e15
_MOST: Final = 0.9
_DATE: Final = (
    r"\d{4}-\d{1,2}-\d{1,2}(?:[ T].*)?|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}(?: .*)?|\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"
    r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
)
_DECIMAL_COMMA: Final = r"[+-]?\d+,\d+"

Column = NumericColumn | CategoricalColumn


@dataclass(frozen=True, slots=True)
class Cells:
    """One column over all tables, without its missing cells.

    Attributes:
        text: the cells, stripped, by row.
        numbers: the same as numbers, NaN where a cell is none.
        people: a code of the patient of each of these rows.
        tables: the index of the table of each of these rows.
        marks: the marks that stand in the other rows.
        gaps: whether there are other rows.
    """

    text: pd.Series[Any]
    numbers: pd.Series[Any]
    people: pd.Series[Any]
    tables: pd.Series[Any]
    marks: tuple[Scalar, ...]
    gaps: bool

    @classmethod
    def of(
        cls, series: pd.Series[Any], people: pd.Series[Any], tables: pd.Series[Any], marks: Sequence[Scalar]
    ) -> Cells:
        """Return the cells of `series` that hold something.

        A mark that is a number stands for its every spelling; a null of a typed file counts as the mark "", which it
        becomes in CSV.
        """
        import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

        text = series.astype(str).str.strip()
        numbers = pd.to_numeric(text, errors="coerce").astype(float)
        gone, found = series.isna(), []
        for mark in marks:
            hits = text.eq(mark) if isinstance(mark, str) else numbers.eq(float(mark))
            hits = hits.where(~series.isna(), mark == "")
            gone |= hits
            found += [mark] if hits.any() else []
        kept = ~gone
        return cls(text[kept], numbers[kept], people[kept], tables[kept], tuple(found), bool(gone.any()))

    @property
    def numeric(self) -> bool:
        """Whether every cell is a finite number."""
        return bool(np.isfinite(self.numbers).all())

    @property
    def whole(self) -> bool:
        """Whether every cell is a whole number."""
        return self.numeric and bool((self.numbers == self.numbers.round()).all())

    def values(self) -> list[Scalar]:
        """Return the different values in order: whole numbers where all cells are, else texts."""
        if self.whole:
            return [int(value) for value in sorted(self.numbers.unique())]
        return sorted(self.text.unique())

    def common(self) -> list[Scalar]:
        """Return, of `values`, those that `SMALLEST_GROUP` patients or more share."""
        sharing = self.people.groupby(self.numbers if self.whole else self.text).nunique()
        kept = set(sharing.index[sharing >= SMALLEST_GROUP])
        return [value for value in self.values() if value in kept]


def guess(cells: Cells) -> tuple[Column, str] | str:
    """Return the column with what a person should review about it, or why it is left out."""
    if reason := _useless(cells):
        return reason
    coded = cells.whole and cells.numbers.nunique() <= MOST_CODES
    return _categorical(cells) if coded or not cells.numeric else _numeric(cells)


def outward(low: float, high: float) -> tuple[Decimal, Decimal]:
    """Return a range around ``low < high`` that tells either end only to within a quarter of their distance or more.

    With step the smallest of 1, 2 or 5 times a power of ten that is a quarter of ``high - low`` or more, each bound
    is a multiple of the step, at least half a step and at most one and a half steps beyond its end. A bound beyond 0
    becomes 0 where both ends are on its other side: 0 is then no end of the rows but the usual border of a quantity.
    """
    bottom, top = Decimal(repr(float(low))), Decimal(repr(float(high)))
    quarter = (top - bottom) / 4
    power = Decimal(1).scaleb(quarter.adjusted())
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= quarter)
    minimum = ((bottom - step / 2) / step).to_integral_value(ROUND_FLOOR) * step
    maximum = ((top + step / 2) / step).to_integral_value(ROUND_CEILING) * step
    return (Decimal(0) if bottom >= 0 > minimum else minimum, Decimal(0) if top <= 0 < maximum else maximum)


def _useless(cells: Cells) -> str | None:
    """Return why a column is left out, if it is."""

    def share(pattern: str) -> float:
        return float(cells.text.str.fullmatch(pattern).mean())

    different = cells.text.nunique()
    constant = different == 1 or (cells.numeric and cells.numbers.min() == cells.numbers.max())
    many = not cells.numeric and (different > MOST_CATEGORIES or cells.text.str.len().max() > _LONGEST_CATEGORY)
    rules = (
        (cells.people.nunique() < SMALLEST_GROUP, f"fewer than {SMALLEST_GROUP} patients have a value"),
        (constant, "one value only"),
        (share(_DATE) >= _MOST, "a date or time"),
        (cells.numeric and cells.numbers.abs().max() >= _TOO_LARGE, "numbers of more than 15 digits: an identifier"),
        (_counts_rows(cells), "looks like an identifier: a whole number that no two rows share"),
        (many and share(_DECIMAL_COMMA) >= _MOST, "numbers with a decimal comma: save them with a point"),
        (
            many and cells.numbers.notna().mean() >= 0.5,  # noqa: PLR2004  (half)
            "numbers mixed with texts: correct the texts, or say with --missing that they mean missing",
        ),
        (many, f"more than {MOST_CATEGORIES} different texts, or long ones: an identifier or free text"),
    )
    return next((reason for applies, reason in rules if applies), None)


def _counts_rows(cells: Cells) -> bool:
    rows = cells.numbers.groupby(cells.tables)
    return bool(cells.whole and rows.size().max() >= _IDENTIFIER_ROWS and (rows.nunique() == rows.size()).all())


def _categorical(cells: Cells) -> tuple[Column, str] | str:
    categories = cells.common()
    if any("${" in str(value) or value == "???" for value in categories):
        return "a value holds '${' or is '???', which the configuration would fill in"
    if len(categories) < 2:  # noqa: PLR2004  (a difference to learn from)
        return f"fewer than two values that {SMALLEST_GROUP} patients or more share"
    other = len(categories) < len(cells.values())
    column = CategoricalColumn(categories=tuple(categories), other=other, missing=cells.gaps)
    return column, "rarer values were left out; `other` lets them in" if other else ""


def _numeric(cells: Cells) -> tuple[Column, str]:
    minimum, maximum = outward(cells.numbers.min(), cells.numbers.max())
    column = NumericColumn(
        unit="unknown",
        minimum=float(minimum),
        maximum=float(maximum),
        integer=cells.whole,
        missing=cells.gaps,
        impute=float((minimum + maximum) / 2) if cells.gaps else None,
    )
    note = "unit, range" + (" and impute" if cells.gaps else "")
    lowest = cells.numbers == -1
    if cells.people[lowest].nunique() >= SMALLEST_GROUP and (cells.numbers[~lowest] >= 0).all():
        note += "; does -1 mean missing? then --missing -1"
    return column, note
