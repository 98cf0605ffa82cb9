"""Whether a data set is fit for a study: shown to the hospital's own staff, before anything is sent anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedward_client.cohorts import CohortEntry, EncodedCohort, ImageSource, OptOuts, source_of
from fedward_client.cohorts.identity import content_digests
from fedward_common.errors import LocalDataError, SchemaMismatchError
from fedward_common.schema import CohortSchema
from fedward_common.tables import feature_names

if TYPE_CHECKING:
    import pandas as pd

    from fedward_client.cohorts import Source
    from fedward_client.cohorts.encoded import Loaded
    from fedward_common.tables import Rows

__all__ = ["Check", "Readiness", "assess", "opened"]

_FEW_PATIENTS: Final = 50
_RARE_SHARE: Final = 0.05
_OFTEN_MISSING: Final = 0.5
_MOST_KINDS: Final = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One fact about the data: `level` is ``ok``, ``warn`` or ``fail``; a fact that is not ok has a remedy."""

    level: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """All facts about one data set; for the eyes of the hospital alone, since it holds exact counts.

    No value of a cell and no name of a file is in it.
    """

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing failed."""
        return all(check.level != "fail" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"ready": self.ready, "checks": [asdict(check) for check in self.checks]}


def assess(entry: CohortEntry, schema: CohortSchema | None, home: Path) -> Readiness:
    """Return what can be said of a registered data set: under a study's `schema`, or without one that it opens."""
    return Readiness(tuple({check.what: check for check in _facts(entry, schema, home)}.values()))


def _facts(entry: CohortEntry, schema: CohortSchema | None, home: Path) -> Iterator[Check]:
    source = source_of(entry, home)
    try:
        frame = source.frame()
        yield Check("ok", f"{len(frame)} rows in {len(frame.columns)} columns")
        if isinstance(source, ImageSource):
            yield from _pictures(source)
        if schema is None:
            yield from _unread(frame, entry, home)
        else:
            yield from _under(schema, EncodedCohort(source, entry, schema, home), source)
    except SchemaMismatchError as error:
        yield from (Check("fail", f"{rule}: {count} rows", error.remedy) for rule, count in error.counts.items())
    except LocalDataError as error:
        yield Check("fail", error.message, error.remedy)


def _unread(frame: pd.DataFrame, entry: CohortEntry, home: Path) -> Iterator[Check]:
    """Say what can be said without a study."""
    if not len(frame):
        yield Check("fail", "there is no row", "check the export")
    column = entry.patient_column
    if column is None:
        return
    if column not in frame.columns:
        yield Check("fail", f"there is no column {column!r}", "correct patient_column of the cohort in site.yaml")
        return
    opt_outs = OptOuts(home)
    yield Check("ok", f"{frame[column].nunique()} patients in {column!r}, {opt_outs.matched(frame[column])} opted out")


def _under(schema: CohortSchema, cohort: EncodedCohort, source: Source) -> Iterator[Check]:
    loaded = cohort.load()
    yield from _sizes(loaded)
    yield from _repeated(loaded, schema, source)
    yield _balance(loaded.rows)
    yield from _missing(loaded.rows, schema)


def _sizes(loaded: Loaded) -> Iterator[Check]:
    rows, patients = loaded.rows, loaded.rows.patient_count
    yield Check("ok", f"{len(rows.labels)} rows of {patients} patients")
    if loaded.opted_out:
        yield Check("ok", f"{loaded.opted_out} rows of patients who opted out are left out")
    if not patients:
        yield Check("fail", "no row can be used", "check the export, and which rows lack a value")
    elif patients < _FEW_PATIENTS:
        yield Check("warn", f"fewer than {_FEW_PATIENTS} patients", "with privacy, noise will drown so few")
    if rows.dropped:
        yield Check("warn", f"{rows.dropped} incomplete rows are left out", "complete them at the source")


def _repeated(loaded: Loaded, schema: CohortSchema, source: Source) -> Iterator[Check]:
    """Say which rows stand there twice, and whose rows are too many."""
    digests = Counter(content_digests(source.content(loaded.frame)))
    twice = sum(number - 1 for number in digests.values())
    if twice:
        remedy = "take repeated rows out at the source: each counts as often as it is there"
        yield Check("warn", f"{twice} rows say the same as another", remedy)
    rows = np.bincount(loaded.rows.patients) if len(loaded.rows.patients) else np.zeros(0, dtype=np.int64)
    above = int((rows > schema.max_rows_per_patient).sum())
    if above:
        limit = schema.max_rows_per_patient
        remedy = "the first ones in the table's order are: sort it so that these are the right ones"
        yield Check("warn", f"{above} patients have more than {limit} rows, of which {limit} are used", remedy)


def _balance(rows: Rows) -> Check:
    if not len(rows.labels):
        return Check("ok", "no label")
    share = float(rows.labels.mean())
    text = f"{share:.1%} of the rows have the outcome"
    if share in {0.0, 1.0}:
        return Check("warn", f"{text}: one class only", "such a cohort helps a joint model, but cannot be judged alone")
    if min(share, 1 - share) < _RARE_SHARE:
        return Check("warn", text, "accuracy says little about a rare outcome; look at the AUROC")
    return Check("ok", text)


def _missing(rows: Rows, schema: CohortSchema) -> Iterator[Check]:
    if not len(rows.labels) or not any(getattr(column, "missing", False) for column in schema.columns.values()):
        return
    for index, name in enumerate(feature_names(schema)):
        if name.endswith(" missing") and name.removesuffix(" missing") in schema.columns:
            share = float(np.mean(rows.features[:, index]))
            often = share > _OFTEN_MISSING
            remedy = "more than half is imputed: ask whether the column is exported" if often else ""
            yield Check("warn" if often else "ok", f"{name.removesuffix(' missing')}: {share:.1%} missing", remedy)


def _pictures(source: ImageSource) -> Iterator[Check]:
    """Say what kinds of pictures there are, and whether they are those that were registered."""
    kinds, broken, unnamed = source.survey()
    common = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    for kind, number in common[:_MOST_KINDS]:
        yield Check("ok", f"{number} pictures are {kind}")
    if len(common) > _MOST_KINDS:
        rest = sum(number for _, number in common[_MOST_KINDS:])
        yield Check("ok", f"{rest} pictures are of {len(common) - _MOST_KINDS} other kinds")
    for rule, number in broken.items():
        yield Check("fail", f"{rule}: {number} rows", "correct the manifest or the files; such a row cannot be used")
    shared = source.shared()
    if shared:
        yield Check("warn", f"{shared} rows show a picture that another row shows too", "take repeated rows out")
    if unnamed:
        yield Check("warn", f"{unnamed} pictures in the folder are not in the manifest", "they are not used")
    found = source.differences()
    again = "if that is as it should be: fedward client cohort seal NAME, then approve the studies again"
    for number, what in ((found.changed, "changed"), (found.missing, "missing"), (found.added, "new")):
        if number:
            level = "warn" if what == "new" else "fail"
            yield Check(level, f"{number} pictures are {what} since the folder was registered", again)


def opened(entry: CohortEntry, home: Path) -> tuple[int, int]:
    """Return the rows and columns of a data set that is about to be registered.

    Raises:
        LocalDataError: it cannot be opened, or the patient's column is not there.
    """
    frame = source_of(entry, home).frame()
    if entry.patient_column is not None and entry.patient_column not in frame.columns:
        msg = f"there is no column {entry.patient_column!r}"
        raise LocalDataError(msg, remedy="name the column that identifies the patient as the data do")
    return len(frame), len(frame.columns)
