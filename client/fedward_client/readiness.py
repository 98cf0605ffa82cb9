"""Whether a table is fit for a study: shown to the hospital's own staff, before anything is sent anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedward_client.cohorts import TableEntry
from fedward_common.errors import LocalDataError, SchemaMismatchError
from fedward_common.schema import CohortSchema
from fedward_common.tables import encode, feature_names, read_table

if TYPE_CHECKING:
    from fedward_common.tables import Rows

__all__ = ["Check", "Readiness", "assess"]

_FEW_PATIENTS = 50
_RARE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Check:
    """One fact about the table: `level` is ``ok``, ``warn`` or ``fail``; a fact that is not ok has a remedy."""

    level: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """All facts about one table; for the eyes of the hospital alone, since it holds exact counts."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing failed."""
        return all(check.level != "fail" for check in self.checks)


def assess(entry: TableEntry, schema: CohortSchema, home: Path) -> Readiness:
    """Return rows, patients, label balance, missingness and broken rules of a registered table."""
    try:
        rows = encode(read_table(home / entry.table, names=entry.names), schema)
    except SchemaMismatchError as error:
        broken = [Check("fail", f"{rule}: {count} rows", error.remedy) for rule, count in error.counts.items()]
        return Readiness(tuple(broken))
    except LocalDataError as error:
        return Readiness((Check("fail", error.message, error.remedy),))
    return Readiness((*_sizes(rows), _balance(rows), *_missing(rows, schema)))


def _sizes(rows: Rows) -> list[Check]:
    patients = rows.patient_count
    checks = [Check("ok", f"{len(rows.labels)} rows of {patients} patients")]
    if not patients:
        checks.append(Check("fail", "no row can be used", "check the export, and which rows lack a value"))
    elif patients < _FEW_PATIENTS:
        checks.append(Check("warn", f"fewer than {_FEW_PATIENTS} patients", "with privacy, noise will drown so few"))
    if rows.dropped:
        checks.append(Check("warn", f"{rows.dropped} incomplete rows are left out", "complete them at the source"))
    return checks


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


def _missing(rows: Rows, schema: CohortSchema) -> list[Check]:
    names = feature_names(schema)
    checks = []
    for index, name in enumerate(names):
        if name.endswith(" missing") and name.removesuffix(" missing") in schema.columns and len(rows.labels):
            share = float(np.mean(rows.features[:, index]))
            level = "warn" if share > 0.5 else "ok"  # noqa: PLR2004  (more often missing than there)
            remedy = "more than half is imputed: ask whether the column is exported" if level == "warn" else ""
            checks.append(Check(level, f"{name.removesuffix(' missing')}: {share:.1%} missing", remedy))
    return checks
