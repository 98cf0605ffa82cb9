"""A cohort that nobody belongs to: rows and pictures drawn from a declared schema alone, for rehearsals. No I/O."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import StudyError
from fedward_common.schema import CategoricalColumn, CohortSchema, ImageColumn, Label, NumericColumn, Scalar

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Synthetic", "synthetic_cohort"]

_POOL: Final = 256
_MISSING_SHARE: Final = 0.15
_MOST_ROWS: Final = 4
_BYTE: Final = 255
_WORD: Final = 65_535

Cells = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Rows that keep a schema, every cell a text or null, and the PNG files that they name, by place."""

    frame: pd.DataFrame
    images: dict[str, bytes] = field(default_factory=dict)


def synthetic_cohort(schema: CohortSchema, *, patients: int, seed: int) -> Synthetic:
    """Return `patients` patients whom nobody knows: a function of the arguments alone.

    Every declared thing occurs if there are rows enough: both ends of a range, each category, a value beyond an open
    list, missing marks, both outcomes, more rows of a patient than are used, and rows that the schema leaves out. Each
    patient keeps a row.

    Args:
        schema: what the study declares.
        patients: at least 1.
        seed: of NumPy's PCG64.

    Raises:
        StudyError: the schema allows no value of a column.
    """
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    table = _Table(schema, patients, np.random.Generator(np.random.PCG64(seed)))
    cells: dict[str, Cells] = {}
    images: dict[str, bytes] = {}
    for index, (name, column) in enumerate(schema.columns.items()):
        if isinstance(column, ImageColumn):
            drawn = [_picture(name, column, table.draw) for _ in table.owners]
            pictures = {f"synthetic-{index}-{row}.png": content for row, content in enumerate(drawn)}
            images |= pictures
            cells[name] = np.array(list(pictures), dtype=object)
        else:
            cells[name] = table.column(name, column)
    cells[schema.label.column] = table.label(schema.label)
    if schema.patient:
        cells[schema.patient] = np.array([f"synthetic-{owner:06d}" for owner in table.owners], dtype=object)
    return Synthetic(pd.DataFrame(cells, dtype=object), images)


class _Table:
    """The rows to be filled: whose each is, and which one of each patient is never left out."""

    def __init__(self, schema: CohortSchema, patients: int, draw: np.random.Generator) -> None:
        self.schema, self.draw = schema, draw
        counts = np.ones(patients, dtype=np.int64)
        if schema.patient is not None:
            counts = draw.integers(1, _MOST_ROWS + 1, patients)
            counts[0] = min(schema.max_rows_per_patient + 1, 2 * _MOST_ROWS)
        self.owners = np.repeat(np.arange(patients), counts)
        self.kept = np.concatenate([[True], self.owners[1:] != self.owners[:-1]])

    def column(self, name: str, column: NumericColumn | CategoricalColumn) -> Cells:
        """Return the cells of one feature."""
        marks = [*self.schema.missing_marks, *column.missing_marks]
        if isinstance(column, NumericColumn):
            values = _possible(name, _numbers(column, self.draw), marks)
        else:
            values = _possible(name, _categories(column), marks)
        cells = self._each_of(values)
        harmless, dropping = self._marks(column.missing_marks)
        if column.missing and harmless:
            self._put(cells, harmless, _MISSING_SHARE)
        if dropping:
            self._put(cells, dropping, _MISSING_SHARE / len(self.schema.columns), spare=self.kept)
        return cells

    def label(self, label: Label) -> Cells:
        """Return the cells of the outcome: both classes, and none where the schema leaves such rows out."""
        positive = set(map(str, label.positive))
        classes = [[value for value in label.vocabulary if (str(value) in positive) == is_] for is_ in (False, True)]
        pools = [_possible(label.column, values, self.schema.missing_marks) for values in classes]
        which = self._each_of(["0", "1"])
        cells = np.array([self.draw.choice(pools[int(outcome)]) for outcome in which], dtype=object)
        if self.schema.incomplete_rows != "reject":
            self._put(cells, [None], _MISSING_SHARE, spare=self.kept)
        return cells

    def _marks(self, own: Sequence[Scalar]) -> tuple[list[str | None], list[str | None]]:
        """Return the marks that leave a row in, and those for which it is left out."""
        common: list[str | None] = [str(mark) for mark in self.schema.missing_marks] or [None]
        numbers = {_number(str(mark)) for mark in self.schema.missing_marks} - {None}
        mine: list[str | None] = [str(m) for m in own if str(m) not in common and _number(str(m)) not in numbers]
        return (mine, common) if self.schema.incomplete_rows == "drop" else ([*mine, *common], [])

    def _each_of(self, values: Sequence[str]) -> Cells:
        """Return a cell for each row, in which every value occurs if there are rows enough."""
        places = self.draw.permutation(np.arange(len(self.owners)) % len(values))
        return np.array([values[place] for place in places], dtype=object)

    def _put(
        self,
        cells: Cells,
        marks: Sequence[str | None],
        share: float,
        *,
        spare: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Write marks into some cells, in place."""
        chosen = self.draw.random(len(cells)) < share
        if spare is not None:
            chosen &= ~spare
        places = self.draw.integers(0, len(marks), len(cells))
        cells[chosen] = np.array([marks[place] for place in places], dtype=object)[chosen]


def _numbers(column: NumericColumn, draw: np.random.Generator) -> list[str]:
    low, high = column.minimum, column.maximum
    if column.integer:
        low, high = math.ceil(low), math.floor(high)
        whole = np.rint(np.linspace(low, high, _POOL)) if low <= high else np.zeros(0)
        return [str(int(value)) for value in np.unique(whole)]
    inner = np.clip(draw.uniform(low, high, _POOL), low, high)
    return [repr(float(value)) for value in (low, high, *inner)]


def _categories(column: CategoricalColumn) -> list[Scalar]:
    values = list(column.categories)
    numbers = [value for value in values if isinstance(value, int | float)]
    if column.other:
        values.append(max(numbers) + 1 if len(numbers) == len(values) else "another value")
    return values


def _possible(name: str, values: Sequence[Scalar], marks: Sequence[Scalar]) -> list[str]:
    """Return those of `values` that a cell can hold: no mark, and nothing that is lost when a cell is stripped.

    Raises:
        StudyError: there is none.
    """
    numbers = {float(mark) for mark in marks if isinstance(mark, int | float)}
    texts = [str(value) for value in values]
    found = [t for t in texts if t == t.strip() and t not in map(str, marks) and _number(t) not in numbers]
    if not found:
        msg = f"{name}: the schema allows no value that is not also a mark for a missing one"
        raise StudyError(msg, remedy="the study's author corrects the column's values or its marks")
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _picture(name: str, column: ImageColumn, draw: np.random.Generator) -> bytes:
    """Return a PNG file that keeps the column's declaration: 8 bits a value, or 16 where a grey range needs them."""
    from PIL import Image  # noqa: PLC0415  (studies without pictures do without)

    most = _BYTE if column.channels > 1 or column.maximum <= _BYTE else _WORD
    low, high = 0, most
    if column.outside == "reject":
        low, high = max(0, math.ceil(column.minimum)), min(most, math.floor(column.maximum))
    if low > high:
        msg = f"{name}: no PNG file has pixels within {column.minimum:g} to {column.maximum:g}"
        raise StudyError(msg, remedy="a study whose column says `outside: clip` can be rehearsed")
    scale = 1 if column.resize == "no" else int(draw.integers(1, 3))
    shape = (column.height * scale, column.width * scale, *((3,) if column.channels > 1 else ()))
    pixels = draw.integers(low, high + 1, shape).astype(np.uint8 if most == _BYTE else np.uint16)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
