"""From a table to a matrix by a declared schema alone: the same arithmetic at every site and at the centre.

Nothing here learns from rows: scaling, categories and imputation are the schema's. A table that breaks the
schema is rejected whole, with the number of broken rows for each rule and never a value.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from fedward_common.contract import nearest
from fedward_common.errors import LocalDataError, SchemaMismatchError
from fedward_common.schema import CategoricalColumn, CohortSchema, ImageColumn, NumericColumn, Scalar

if TYPE_CHECKING:
    import pandas as pd

    from fedward_common.images import ImageFolder

__all__ = [
    "Rows",
    "complete_rows",
    "encode",
    "feature_count",
    "feature_names",
    "feature_widths",
    "identifier_text",
    "read_table",
    "refuse_repeated",
]

_READERS: Final = {".csv": "csv", ".data": "csv", ".gz": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_NOT_A_NUMBER: Final = ": not a number"
_WRITTEN_AS_FLOAT: Final = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows.

    Attributes:
        features: float32, shape (rows, features), every entry within [-1, 1].
        labels: int64 0/1, shape (rows,).
        patients: int64 codes 0..n-1, shape (rows,): rows of one patient share a code.
        identifiers: the patients' identifiers by code, or None where each row is a patient; never leaves the site.
        dropped: rows left out as incomplete, where the schema allows that.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.int64]
    identifiers: tuple[str, ...] | None
    dropped: int

    @property
    def patient_count(self) -> int:
        """Number of distinct patients."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0


def feature_names(schema: CohortSchema) -> tuple[str, ...]:
    """Return the names of the encoded features, in order; one name is one input of the model.

    A pixel is ``scan[row,column]``, in colour ``scan[row,column,channel]``, each counted from 0.
    """
    names: list[str] = []
    for name, column in schema.columns.items():
        if isinstance(column, ImageColumn):
            names.extend(f"{name}[{place}]" for place in _pixels(column))
            continue
        if isinstance(column, NumericColumn):
            names.append(name)
        else:
            names.extend(f"{name}={'|'.join(map(str, values))}" for values in column.indicators)
        if column.missing:
            names.append(f"{name} missing")
    return tuple(names)


def feature_count(schema: CohortSchema) -> int:
    """Return the number of encoded features: of the model's inputs."""
    return sum(width for _, width in feature_widths(schema))


def feature_widths(schema: CohortSchema) -> Iterator[tuple[str, int]]:
    """Yield each column's name and how many features encode it, in the order in which they stand in a record."""
    for name, column in schema.columns.items():
        yield name, _width(column)


def _width(column: NumericColumn | CategoricalColumn | ImageColumn) -> int:
    if isinstance(column, ImageColumn):
        return column.size
    return (len(column.indicators) if isinstance(column, CategoricalColumn) else 1) + column.missing


def _pixels(column: ImageColumn) -> list[str]:
    channels = [f",{channel}" for channel in range(column.channels)] if column.channels > 1 else [""]
    places = itertools.product(range(column.height), range(column.width), channels)
    return [f"{row},{across}{channel}" for row, across, channel in places]


def read_table(path: Path, *, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a CSV, TSV or Parquet file as text cells (CSV) or as stored (Parquet).

    Args:
        path: the file; ``.csv``, ``.csv.gz``, ``.data``, ``.tsv``, ``.parquet``.
        names: the columns of a file without a header line.

    Raises:
        LocalDataError: no such file, an unknown ending, not a table, or two columns of one name.
    """
    import pandas as pd  # noqa: PLC0415  (a second of start-up that training children do not need)

    remedy = "check that the file exists, is complete and is a CSV or Parquet table"
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        msg = f"{path.name}: tables end in {', '.join(sorted(_READERS))}"
        raise LocalDataError(msg, remedy="save the table as CSV or Parquet")
    try:
        if kind == "parquet":
            return pd.read_parquet(path)
        frame = _read_delimited(path, "\t" if kind == "tsv" else ",", names)
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas and pyarrow; the last two: a broken .gz
        msg = f"{path.name} cannot be read as a table ({type(error).__name__})"
        raise LocalDataError(msg, remedy=remedy) from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas would take the first cells for an index: all columns shift
        msg = f"{path.name}: the rows have more cells than there are column names"
        raise LocalDataError(msg, remedy="name every column, and end no row in a separator")
    return frame


def _read_delimited(path: Path, separator: str, names: Sequence[str] | None) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415  (see read_table)

    options: Any = {"sep": separator, "dtype": str, "keep_default_na": False, "skipinitialspace": True}
    head = list(names) if names else pd.read_csv(path, header=None, nrows=1, **options).iloc[0].tolist()
    refuse_repeated(head, path.name)  # pandas would rename the second one without a word
    frame: pd.DataFrame = pd.read_csv(path, header=None if names else 0, names=head if names else None, **options)
    return frame


def refuse_repeated(names: Sequence[str], where: str) -> None:
    """Return if each column has a name of its own; nameless ones do not count, since nothing can ask for them.

    Args:
        names: the columns' names, in order. They are not shown: in a file without a header line they are values.
        where: the file or query to name.

    Raises:
        LocalDataError: with the positions, counted from 1.
    """
    first: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name and first.setdefault(name, place) != place:
            msg = f"{where}: columns {first[name]} and {place} have the same name"
            remedy = "rename one of them at the source; a file without a header line needs names: --columns a,b,c"
            raise LocalDataError(msg, remedy=remedy)


def identifier_text(cell: object) -> str:
    """Return an identifier as it names its patient: ``007`` is not ``7``, but a table's ``7.0`` is.

    Spreadsheets and data frames write whole numbers with a fraction as soon as one cell of the column is empty.
    """
    text = str(cell).strip()
    whole = _WRITTEN_AS_FLOAT.fullmatch(text)
    return whole[1] if whole else text


def encode(frame: pd.DataFrame, schema: CohortSchema, images: ImageFolder | None = None) -> Rows:
    """Return the rows of `frame` as numbers, if every one of them keeps the schema.

    Rows of one patient keep one code, whatever their order. Columns that the schema does not name are ignored.

    Args:
        frame: rows as `read_table` gives them.
        schema: what the study declares.
        images: the folder of the files that the schema's image columns name.

    Raises:
        SchemaMismatchError: a column is missing or rows break a rule; its `counts` name rule and number.
        LocalDataError: the schema has an image column, and there is no folder.
    """
    usable = complete_rows(frame, schema)
    parsed, counts = _parse(usable, schema)
    counts |= _violations(parsed, schema, counts)
    pixels: dict[str, npt.NDArray[np.float32]] = {}
    for name, column in schema.images.items():
        if images is None:
            msg = f"column {name!r} holds pictures, and this cohort is no folder of images"
            raise LocalDataError(msg, remedy="register the folder: fedward client cohort add NAME --images FOLDER")
        pixels[name], broken = images.pixels(list(parsed[name]), column)
        counts |= {f"{name}: {rule}": number for rule, number in broken.items()}
    if counts:
        listing = "; ".join(f"{rule}: {number} rows" for rule, number in counts.items())
        msg = f"{len(counts)} rules of the schema are broken ({listing})"
        raise SchemaMismatchError(
            msg, counts=counts, remedy="correct the rows, or ask the study's author whether a unit or range is wrong"
        )
    codes, identifiers = _patients(parsed, schema)
    positive = _comparable(schema.label.positive, schema.label.vocabulary)
    return Rows(
        features=_matrix(parsed, schema, pixels),
        labels=np.asarray(parsed[schema.label.column].isin(positive), dtype=np.int64),
        patients=codes,
        identifiers=identifiers,
        dropped=len(frame) - len(usable),
    )


def complete_rows(frame: pd.DataFrame, schema: CohortSchema) -> pd.DataFrame:
    """Return the rows of `frame`, unparsed, that ``incomplete_rows`` lets in: under ``reject`` all of them.

    Raises:
        SchemaMismatchError: a column is not there.
    """
    _require_columns(frame, schema)
    if schema.incomplete_rows == "reject":
        return frame
    return frame.loc[_complete(frame, schema)].reset_index(drop=True)


def _require_columns(frame: pd.DataFrame, schema: CohortSchema) -> None:
    wanted = [*schema.columns, schema.label.column, *([schema.patient] if schema.patient else [])]
    present = [str(name) for name in frame.columns]
    counts = {}
    for name in wanted:
        if name not in present:
            guess = nearest(name, present)
            counts[f"column {name!r} is missing" + (f" (is it {guess!r}?)" if guess else "")] = len(frame)
        elif present.count(name) > 1:
            counts[f"column {name!r} stands there more than once"] = len(frame)
    if counts:
        msg = "; ".join(counts)
        raise SchemaMismatchError(msg, counts=counts, remedy="rename the columns as the study declares them")


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _comparable(values: Sequence[Scalar], vocabulary: Sequence[Scalar]) -> list[Any]:
    numeric = all(_is_number(value) for value in vocabulary)
    return [float(value) if numeric else str(value) for value in values]


def _missing(series: pd.Series[Any], marks: Sequence[Scalar]) -> pd.Series[bool]:
    import pandas as pd  # noqa: PLC0415  (see read_table)

    text = series.astype(str).str.strip()
    mask = series.isna() | text.isin([str(mark) for mark in marks])
    numbers = [float(mark) for mark in marks if _is_number(mark)]
    if numbers:
        mask |= pd.to_numeric(text, errors="coerce").isin(numbers)
    return mask


def _parse(frame: pd.DataFrame, schema: CohortSchema) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the named columns as numbers or texts, missing as NaN/None, and the cells that are neither."""
    import pandas as pd  # noqa: PLC0415  (see read_table)

    counts: dict[str, int] = {}
    parsed: dict[str, Any] = {}

    def take(name: str, *, numeric: bool, marks: Sequence[Scalar]) -> None:
        series = frame[name]
        gone = _missing(series, [*schema.missing_marks, *marks])
        text = series.astype(str).str.strip()
        if not numeric:
            parsed[name] = text.astype(object).where(~gone, None)
            return
        numbers = pd.to_numeric(text.where(~gone, "nan"), errors="coerce").astype(float)
        broken = int((numbers.isna() & ~gone).sum())
        if broken:
            counts[name + _NOT_A_NUMBER] = broken
        parsed[name] = numbers

    for name, column in schema.columns.items():
        numeric = isinstance(column, NumericColumn) or (
            isinstance(column, CategoricalColumn) and all(_is_number(value) for value in column.categories)
        )
        take(name, numeric=numeric, marks=() if isinstance(column, ImageColumn) else column.missing_marks)
    take(schema.label.column, numeric=all(_is_number(v) for v in schema.label.vocabulary), marks=())
    if schema.patient:
        take(schema.patient, numeric=False, marks=())
        parsed[schema.patient] = parsed[schema.patient].map(identifier_text, na_action="ignore")
    return pd.DataFrame(parsed), counts


def _complete(frame: pd.DataFrame, schema: CohortSchema) -> npt.NDArray[np.bool_]:
    """Return which rows carry no mark of the schema's in any column that has to be complete.

    These are the label, and under ``drop`` all features; a column's own marks do not count.
    """
    complete = np.ones(len(frame), dtype=bool)
    features = schema.columns if schema.incomplete_rows == "drop" else ()
    for name in (*features, schema.label.column):
        complete &= ~_missing(frame[name], schema.missing_marks).to_numpy(dtype=bool)
    return complete


def _violations(parsed: pd.DataFrame, schema: CohortSchema, unreadable: Mapping[str, int]) -> dict[str, int]:
    """Return the number of broken rows for each rule, as pandera finds them; `unreadable` cells are not missing."""
    import pandera.errors  # noqa: PLC0415  (see read_table)
    import pandera.pandas as pa  # noqa: PLC0415  (see read_table)

    columns = {name: _pandera_column(name, column) for name, column in schema.columns.items()}
    vocabulary = _comparable(schema.label.vocabulary, schema.label.vocabulary)
    label = schema.label.column
    columns[label] = pa.Column(
        None, pa.Check.isin(vocabulary, error=f"{label}: not in the label's vocabulary"), nullable=False
    )
    if schema.patient:
        columns[schema.patient] = pa.Column(None, nullable=False)
    try:
        pa.DataFrameSchema(columns).validate(parsed, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        checks = cases["check"].where(cases["check"] != "not_nullable", cases["column"] + ": missing")
        rules = {str(rule): int(number) for rule, number in checks.value_counts(sort=False).items()}
        for rule, number in unreadable.items():
            gone = rule.replace(_NOT_A_NUMBER, ": missing")
            rules[gone] = rules.get(gone, number) - number
        return {rule: number for rule, number in rules.items() if number}
    return {}


def _pandera_column(name: str, column: NumericColumn | CategoricalColumn | ImageColumn) -> Any:
    import pandera.pandas as pa  # noqa: PLC0415  (see read_table)

    if isinstance(column, ImageColumn):
        return pa.Column(None, nullable=False)
    if isinstance(column, CategoricalColumn):
        allowed = _comparable(column.categories, column.categories)
        listed = pa.Check.isin(allowed, error=f"{name}: not one of the categories")
        return pa.Column(None, None if column.other else listed, nullable=column.missing)
    checks = [
        pa.Check.ge(column.minimum, error=f"{name}: below {column.minimum:g} {column.unit}"),
        pa.Check.le(column.maximum, error=f"{name}: above {column.maximum:g} {column.unit}"),
    ]
    if column.integer:
        checks.append(pa.Check(lambda s: s == s.round(), error=f"{name}: not a whole number"))
    return pa.Column(float, checks, nullable=column.missing)


def _patients(parsed: pd.DataFrame, schema: CohortSchema) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    if schema.patient is None:
        return np.arange(len(parsed), dtype=np.int64), None
    identifiers, codes = np.unique(parsed[schema.patient].to_numpy(dtype=str), return_inverse=True)
    return codes.astype(np.int64).reshape(-1), tuple(str(name) for name in identifiers)


def _matrix(
    parsed: pd.DataFrame, schema: CohortSchema, pixels: Mapping[str, npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    features = np.zeros((len(parsed), feature_count(schema)), dtype=np.float32)
    start = 0
    for name, width in feature_widths(schema):
        column, end = schema.columns[name], start + width
        features[:, start:end] = pixels[name] if isinstance(column, ImageColumn) else _encoded(parsed[name], column)
        start = end
    return features


def _encoded(series: pd.Series[Any], column: NumericColumn | CategoricalColumn) -> npt.NDArray[np.float64]:
    """Return one column's features, shape (rows, features)."""
    features: list[npt.NDArray[Any]] = []
    if isinstance(column, NumericColumn):
        filled = series if column.impute is None else series.fillna(column.impute)
        span = column.maximum - column.minimum
        scaled = (2 * filled.to_numpy(dtype=float) - column.minimum - column.maximum) / span
        features.append(scaled.clip(-1.0, 1.0))  # the last bit's rounding
    else:
        features.extend(
            series.isin(_comparable(values, column.categories)).to_numpy(dtype=float) for values in column.indicators
        )
    if column.missing:
        features.append(np.asarray(series.isna(), dtype=float))
    return np.stack(features, axis=1)
