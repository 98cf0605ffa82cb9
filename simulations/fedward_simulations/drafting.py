"""From tables to the draft of a study: two files for a person to review, which run as they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedward_common.contract import nearest, validated
from fedward_common.errors import LocalDataError, StudyError
from fedward_common.schema import Label, Scalar
from fedward_common.study import NAME, SITE_NAME
from fedward_common.tables import read_table
from fedward_conf.compose import options
from fedward_simulations.column_guess import KNOWN_MARKS, MOST_CATEGORIES, SMALLEST_GROUP, Cells, Column, guess

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draft_study"]

_ENDINGS: Final = re.compile(r"(\.csv|\.tsv|\.data|\.parquet|\.pq)?(\.gz)?$", re.IGNORECASE)
_YES_NO: Final = {frozenset({"no", "yes"}): "yes", frozenset({"false", "true"}): "true", frozenset({"n", "y"}): "y"}
_LEFT_OUT: Final = {"--ignore": "ignored", "--time": "a date or time"}


@dataclass(frozen=True, slots=True)
class _Roles:
    """What the author says of the columns."""

    label: str
    positive: tuple[str, ...]
    patient: str | None
    site: str | None
    time: tuple[str, ...]
    ignore: tuple[str, ...]

    def named(self) -> dict[str, str]:
        """Return the option that names each column."""
        single = {"--label": self.label, "--patient": self.patient, "--site": self.site}
        return {
            **{column: option for option, column in single.items() if column is not None},
            **dict.fromkeys(self.time, "--time"),
            **dict.fromkeys(self.ignore, "--ignore"),
        }


@dataclass
class _Draft:
    """What will be written."""

    label: Label
    label_note: str
    columns: dict[str, tuple[Column, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    marks: tuple[Scalar, ...] = ()
    unlabelled: bool = False


def draft_study(  # noqa: PLR0913  (each is an option of `fedward study new`)
    name: str,
    tables: Sequence[Path],
    *,
    label: str,
    positive: str | Sequence[str] | None = None,
    patient: str | None = None,
    ignore: Sequence[str] = (),
    time: Sequence[str] = (),
    site_column: str | None = None,
    missing: Sequence[str] = (),
    folder: Path,
) -> list[Path]:
    """Write ``folder/cohort/name.yaml`` and ``folder/study/name.yaml``; return both paths.

    Both are complete: ``fedward simulate --config-dir folder study=name`` runs, from any directory. Rows of `tables`
    keep the drafted schema, except rows with a label value that is too rare to be written.

    Args:
        name: of the study and its cohort.
        tables: one for each hospital; or any number with a `site_column`.
        label: column of the outcome.
        positive: its values that count as the outcome; None if that is plain: 1 of 0 and 1, yes of no and yes.
        patient: column that identifies the patient; None: each row is one.
        ignore: columns to leave out.
        time: columns of dates or times; left out.
        site_column: column that names the hospital of a row.
        missing: marks that mean missing, beside `KNOWN_MARKS`.
        folder: the author's folder of Hydra groups, made if not there.

    Raises:
        StudyError: a name that is taken, a column that is not there, an outcome that is not plain, a file that is
            there already; nothing is written.
        LocalDataError: a table cannot be read or used.
    """
    targets = [folder / group / f"{name}.yaml" for group in ("cohort", "study")]
    _refuse_name(name, targets)
    values = (positive,) if isinstance(positive, str) else tuple(positive or ())
    roles = _Roles(label, values, patient, site_column, tuple(time), tuple(ignore))
    sites = _site_names(tables, roles)
    frames = [read_table(path) for path in tables]
    marks = _all_marks(missing)
    _require_columns(frames, tables, roles, marks)
    draft = _examined(frames, roles, marks)
    texts = [_cohort_text(draft, roles, sites), _study_text(name, roles.label)]
    for path, text in zip(targets, texts, strict=True):
        _write_new(path, text)
    return targets


def _write_new(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        msg = f"{path} cannot be written ({type(error).__name__})"
        raise StudyError(msg, remedy="choose a --folder that is yours to write") from error


# ---------------------------------------------------------------------------------------------- what the author said


def _refuse_name(name: str, targets: Iterable[Path]) -> None:
    if not re.fullmatch(NAME, name):
        msg = f"{name!r} cannot name a study: a name is lower-case letters, digits and _, and begins with a letter"
        raise StudyError(msg, remedy="for example icu_mortality")
    for group in ("study", "cohort"):
        if name in options(group):
            msg = f"{name!r} is the name of a packaged {group}, which would win in silence"
            raise StudyError(msg, remedy=f"choose another name, for example my_{name}")
    for path in targets:
        if path.exists():
            msg = f"{path} is there already; a draft overwrites nothing"
            raise StudyError(msg, remedy="choose another name or --folder, or remove the old draft")


def _site_names(tables: Sequence[Path], roles: _Roles) -> dict[str, Path]:
    """Return the absolute path of each hospital's table, by a name made from the file's."""
    if len(tables) < 2 and roles.site is None:  # noqa: PLR2004  (a federation)
        msg = "one table is one hospital, and a federation needs two"
        raise StudyError(msg, remedy="give --table once for each hospital, or --site COLUMN that names the hospital")
    found: dict[str, Path] = {}
    for path in tables:
        absolute = path.resolve()
        site = re.sub(r"[^A-Za-z0-9_.-]", "_", _ENDINGS.sub("", absolute.name))[:63]
        if site in found or not re.fullmatch(SITE_NAME, site):
            msg = f"{path} gives no name for a hospital that is its own"
            raise StudyError(msg, remedy="rename the file after its hospital: letters, digits, '_', '.' and '-'")
        _refuse_interpolation(str(absolute), "the table's path")
        found[site] = absolute
    return found


def _all_marks(missing: Sequence[str]) -> list[Scalar]:
    """Return the known marks and the author's; one of the author's that is a whole number is taken as one."""
    own = [int(mark) if re.fullmatch(r"-?\d+", mark) else mark for mark in missing]
    for mark in own:
        _refuse_interpolation(str(mark), "the mark in --missing")
    return list(dict.fromkeys([*KNOWN_MARKS, *own]))


def _require_columns(
    frames: Sequence[pd.DataFrame], tables: Sequence[Path], roles: _Roles, marks: Sequence[Scalar]
) -> None:
    """Refuse a column that a table has not, that has two roles, or that may not have gaps and has."""
    named = roles.named()
    asked = [roles.label, roles.patient, roles.site, *roles.time, *roles.ignore]
    twice = {column for column in asked if column is not None and asked.count(column) > 1}
    if twice:
        msg = f"the column {min(twice)!r} is named in two options"
        raise StudyError(msg, remedy="a column is one of label, patient, site, time and ignored")
    for path, frame in zip(tables, frames, strict=True):
        present = [str(column) for column in frame.columns]
        for column, option in named.items():
            _refuse_interpolation(column, f"the name in {option}")
            if column in present:
                continue
            guess = nearest(column, present)
            hint = f" (is it {guess!r}?)" if guess else ""
            msg = f"{path.name} has no column {column!r}, which {option} names{hint}"
            one = len(present) == 1 and ";" in present[0]
            remedy = "its cells are set apart by ';': save it with ','" if one else f"it has: {', '.join(present)}"
            raise StudyError(msg, remedy=remedy)
        for option, key in (("--patient", roles.patient), ("--site", roles.site)):
            if key is not None and (blank := _blank(frame[key], marks)):
                msg = f"{path.name}: {blank} rows have nothing in {key!r}, which {option} names"
                raise LocalDataError(msg, remedy="complete these rows or take them out")


def _refuse_interpolation(text: str, what: str) -> None:
    if "${" in text:
        msg = f"{what} holds '${{', which the configuration would fill in"
        raise StudyError(msg, remedy="rename it")


def _blank(series: pd.Series[Any], marks: Sequence[Scalar]) -> int:
    rows = series.reset_index(drop=True).index.to_series()
    return len(series) - len(Cells.of(series.reset_index(drop=True), rows, rows, marks).text)


# --------------------------------------------------------------------------------------------- what the columns are


def _examined(frames: Sequence[pd.DataFrame], roles: _Roles, marks: Sequence[Scalar]) -> _Draft:
    import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

    whole = pd.concat(frames, ignore_index=True)
    tables = pd.Series(np.repeat(np.arange(len(frames)), [len(frame) for frame in frames]))
    people = tables.index.to_series() if roles.patient is None else whole[roles.patient].astype(str).str.strip()
    outcome = Cells.of(whole[roles.label], people, tables, marks)
    draft = _Draft(*_label(outcome, roles), unlabelled=outcome.gaps)
    used = set(outcome.marks)
    for name in map(str, whole.columns):
        role = roles.named().get(name)
        if role is not None:
            if role in _LEFT_OUT:
                draft.left_out[name] = _LEFT_OUT[role]
        elif any(name not in frame.columns for frame in frames):
            draft.left_out[name] = "not in every table"
        else:
            cells = Cells.of(whole[name], people, tables, marks)
            found = guess(cells)
            if isinstance(found, str):
                draft.left_out[name] = found
            else:
                draft.columns[name] = found
                used.update(cells.marks)
    if not draft.columns:
        listing = "; ".join(f"{name}: {reason}" for name, reason in draft.left_out.items())
        msg = f"no column is left that a model could learn from ({listing})"
        raise LocalDataError(msg, remedy="give more rows, or correct the columns")
    draft.marks = tuple(mark for mark in marks if mark in used)
    return draft


def _label(cells: Cells, roles: _Roles) -> tuple[Label, str]:
    """Return the label, and what is to be reviewed about it."""
    name = roles.label
    values = cells.values()
    if len(values) > MOST_CATEGORIES or (cells.numeric and not cells.whole):
        msg = f"--label {name!r} has too many different values for an outcome"
        raise StudyError(msg, remedy="make a column that says yes or no, and name that one")
    common = cells.common()
    positive = [_chosen(text, values, common, name) for text in roles.positive]
    vocabulary = [value for value in values if value in common or value in positive]
    if len(vocabulary) < 2:  # noqa: PLR2004  (an outcome and its absence)
        msg = f"--label {name!r} has fewer than two values that {SMALLEST_GROUP} patients or more share"
        raise LocalDataError(msg, remedy="give more rows, or correct the label")
    for value in vocabulary:
        _refuse_interpolation(str(value), f"a value of {name!r}")
    if not positive:
        positive = _plainly_positive(vocabulary)
    if not positive:
        msg = f"the label {name!r} has the values {_listed(vocabulary)}; which one is the outcome?"
        raise StudyError(msg, remedy="say it with --positive VALUE; all others count as no outcome")
    rare = "; rarer values were left out: a row with one breaks the schema" if len(vocabulary) < len(values) else ""
    label = validated(Label, {"column": name, "vocabulary": vocabulary, "positive": positive}, where=f"--label {name}")
    return label, f"what is positive{rare}"


def _plainly_positive(vocabulary: Sequence[Scalar]) -> list[Scalar]:
    if list(vocabulary) == [0, 1]:
        return [1]
    outcome = _YES_NO.get(frozenset(str(value).lower() for value in vocabulary))
    return [value for value in vocabulary if str(value).lower() == outcome] if len(vocabulary) == 2 else []  # noqa: PLR2004  (yes and no)


def _chosen(text: str, values: Sequence[Scalar], common: Sequence[Scalar], name: str) -> Scalar:
    """Return the value that the author's `text` means."""
    for value in values:
        if text == str(value) or (not isinstance(value, str) and _same_number(text, value)):
            return value
    guess = nearest(text, map(str, common))
    hint = f" (is it {guess!r}?)" if guess else ""
    msg = f"--positive {text!r} is no value of {name!r}{hint}; common are {_listed(common)}"
    raise StudyError(msg, remedy="write the value as it stands in the table")


def _same_number(text: str, value: float) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def _listed(values: Sequence[Scalar]) -> str:
    return ", ".join(repr(str(value)) for value in values)


# ------------------------------------------------------------------------------------------------- what is written

_HEAD: Final = f"""\
# Drafted by `fedward study new`. Every line with `review` holds a guess: correct it from what is known in medicine,
# and take the word out. A hospital whose rows break this schema takes no part.
#   unit      is not in the tables.
#   range     what is possible. The guess is wider than the rows, rounded so that their extremes cannot be read off.
#   impute    the value where it is missing. The guess is the middle of the range.
#   other     values of fewer than {SMALLEST_GROUP} patients are not listed here; their features are all 0.
"""


def _cohort_text(draft: _Draft, roles: _Roles, sites: Mapping[str, Path]) -> str:
    label = draft.label
    outcome = f"column: {_text(label.column)}, vocabulary: {_list(label.vocabulary)}, positive: {_list(label.positive)}"
    lines = [
        f"{_HEAD}schema:",
        '  description: ""  # review: one sentence for the hospital\'s staff',
        "  columns:",
        *(f"    {_text(name)}: {_mapping(column)}{_review(note)}" for name, (column, note) in draft.columns.items()),
        *(f"    # {_text(name)} left out: {reason}" for name, reason in draft.left_out.items()),
        f"  label: {{{outcome}}}{_review(draft.label_note)}",
        f"  patient: {_text(roles.patient)}" if roles.patient else "  patient: null  # review: each row is one patient",
        f"  missing_marks: {_list(draft.marks)}",
        f"  incomplete_rows: {'drop_unlabelled' if draft.unlabelled else 'reject'}",
    ]
    folder = Path(os.path.commonpath([path.parent for path in sites.values()]))
    lines += [
        "source:",
        "  kind: tables",
        f"  folder: {_text(str(folder))}  # absolute: the study runs from any directory",
        "  tables:",
        *(f"    {_text(site)}: {_text(path.relative_to(folder).as_posix())}" for site, path in sites.items()),
        *([f"  site_column: {_text(roles.site)}"] if roles.site else []),
    ]
    return "\n".join(lines) + "\n"


def _study_text(name: str, label: str) -> str:
    return f"""\
# @package _global_
# Drafted by `fedward study new`; the cohort is in ../cohort/{name}.yaml. Try other options on the command line, for
# example model=mlp privacy=none, and write here what you settle for.
defaults:
  - override /cohort: {name}
  - override /model: linear
  - override /training: full_batch
  - override /privacy: dp_tight_clip
  - override /aggregation: fedavg

name: {name}
description: {_text(f"Prediction of {label}.")}  # review: one paragraph for an ethics board
aggregation:
  average_last: 0.3
"""


def _mapping(column: Column) -> str:
    """Return a column as a flow mapping, without the keys that hold their defaults."""
    values = column.model_dump(exclude_defaults=True)
    parts = [f"kind: {column.kind}", *(f"{key}: {_value(value)}" for key, value in values.items() if key != "kind")]
    return "{" + ", ".join(parts) + "}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _list(value) if isinstance(value, tuple) else _scalar(value)


def _list(values: Sequence[Scalar]) -> str:
    return "[" + ", ".join(map(_scalar, values)) + "]"


def _scalar(value: Scalar) -> str:
    if isinstance(value, str):
        return value if re.fullmatch(r"unknown", value) else _text(value)
    return format(Decimal(repr(value)).normalize(), "f")


def _text(text: str) -> str:
    """Return a text in double quotes, which no YAML loader takes for a number, a truth value or a comment."""
    import yaml  # noqa: PLC0415  (with libyaml it loads slowly, and only a draft needs it)

    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1 << 30)
    return dumped.strip()


def _review(note: str) -> str:
    return f"  # review: {note}" if note else ""
