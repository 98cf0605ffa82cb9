"""The states of a hospital's data in which the canary campaign looks for leaks: whole, and spoilt as exports are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from fedward_client.cohorts import CohortEntry, SqlEntry, TableEntry
from fedward_common.study import Study
from fedward_simulations.faults.canary_traces import canary_name, canary_number, planted_table

__all__ = ["RECORDS", "ROUNDS", "SCENARIOS", "SITE", "TABLE", "Scenario", "canary_study"]

SITE: Final = "north"
RECORDS: Final = 40
ROUNDS: Final = 2
_ONE_RULE: Final = "cohort_mismatch rule_count=1"
_DP: Final = {
    "mechanism": "dp_sgd", "epsilon": 4.0, "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 8.0,
}  # fmt: skip


TABLE: Final[dict[str, Any]] = {
    "columns": {
        "age": {"kind": "numeric", "unit": "years", "minimum": 18, "maximum": 120},
        "pressure": {"kind": "numeric", "unit": "mmHg", "minimum": 50, "maximum": 250},
        "stage": {"kind": "categorical", "categories": ["first", "second", "third"]},
    },
    "label": {"column": "outcome", "vocabulary": ["no", "yes"], "positive": ["yes"]},
    "patient": "patient",
}
"""The schema of what `planted_table` makes, as a study declares it."""


def canary_study(name: str, *, cohort: dict[str, Any] | None = None, private: bool = True) -> Study:
    """Return a study of cohorts with this schema (`TABLE` by default)."""
    return Study.of({
        "name": name,
        "sites": [SITE, "south"],
        "cohort": cohort or TABLE,
        "model": {"name": "linear"},
        "training": {"rounds": ROUNDS, "local_steps": 2, "sampling_rate": 0.1, "learning_rate": 0.5},
        "privacy": _DP if private else {"mechanism": "none"},
        "aggregation": {"rule": "fedavg"},
    })  # fmt: skip


def _nothing(_: Path) -> None:
    """Leave the data as they are."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One state of a hospital's data.

    Attributes:
        name: also the study's name.
        plant: writes the data below a folder and returns what the register says of them.
        spoil: what then happens to the data.
        refused: the code that the roll call is refused with; None: it is accepted, and rounds follow.
        private: whether the study trains under differential privacy.
        cohort: the schema that the study declares; None: `TABLE`.
        late: whether the data are spoilt after the hospital's staff approved them, not before.
    """

    name: str
    plant: Callable[[Path], CohortEntry]
    spoil: Callable[[Path], None] = _nothing
    refused: str | None = None
    private: bool = True
    cohort: dict[str, Any] | None = None
    late: bool = False


def _csv(folder: Path, table: pd.DataFrame | None = None, **options: Any) -> CohortEntry:
    path = folder / "ward.csv"
    (planted_table(RECORDS) if table is None else table).to_csv(path, index=False, **options)
    return TableEntry(table=str(path))


def _parquet(folder: Path) -> CohortEntry:
    planted_table(RECORDS).to_parquet(folder / "ward.parquet")
    return TableEntry(table=str(folder / "ward.parquet"))


def _sqlite(folder: Path) -> CohortEntry:
    path = folder / "ward.db"
    with sqlite3.connect(path) as database:
        planted_table(RECORDS).to_sql("ward", database, index=False)
    database.close()
    return SqlEntry(sql="SELECT * FROM ward ORDER BY patient", database=f"sqlite:///{path}")


def _set(column: str, value: Callable[[int], str | float]) -> Callable[[Path], None]:
    """Return what writes another value into every field of a column."""

    def spoil(folder: Path) -> None:
        table = planted_table(RECORDS)
        table[column] = [value(record) for record in range(RECORDS)]
        _csv(folder, table)

    return spoil


def _rewritten(change: Callable[[str], str], encoding: str = "utf-8") -> Callable[[Path], None]:
    """Return what changes the file's text."""

    def spoil(folder: Path) -> None:
        path = folder / "ward.csv"
        path.write_text(change(path.read_text(encoding="utf-8")), encoding=encoding)

    return spoil


def _spoilt_database(folder: Path) -> None:
    with sqlite3.connect(folder / "ward.db") as database:
        database.execute("UPDATE ward SET age = name")
    database.close()


def _planted(column: str) -> Callable[[int], str]:
    return lambda record: canary_name(record, column)


SCENARIOS: Final = (
    Scenario("whole_csv", _csv),
    Scenario("whole_csv_without_privacy", _csv, private=False),
    Scenario("whole_parquet", _parquet),
    Scenario("whole_sqlite", _sqlite),
    Scenario("text_among_numbers", _csv, _set("age", _planted("age")), _ONE_RULE),
    Scenario("number_out_of_range", _csv, _set("age", lambda record: canary_number(record, 1, 9000)), _ONE_RULE),
    Scenario("unknown_category", _csv, _set("stage", _planted("stage")), _ONE_RULE),
    Scenario("unknown_outcome", _csv, _set("outcome", _planted("outcome")), _ONE_RULE),
    Scenario("no_header_line", _csv, _rewritten(lambda text: text.partition("\n")[2]), "cohort_mismatch rule_count=5"),
    Scenario(
        "a_field_too_many", _csv, _rewritten(lambda text: text + text.splitlines()[-1] + ",a,b,c\n"), "cohort_missing"
    ),
    Scenario(
        "an_open_quote",
        _csv,
        _rewritten(lambda text: text + '"' + text.splitlines()[-1]),
        "cohort_mismatch rule_count=4",
    ),
    Scenario(
        "another_encoding", _csv, _rewritten(lambda text: text.replace("ward", "wärd"), "utf_16"), "cohort_missing"
    ),
    Scenario("a_null_byte", _csv, _rewritten(lambda text: text.replace("ward", "wa\0rd"))),
    Scenario("a_spoilt_database", _sqlite, _spoilt_database, _ONE_RULE),
    Scenario("changed_after_approval", _csv, _set("name", _planted("other")), "awaiting_approval", late=True),
)
"""The campaign's own; `refused` is what the roll call is answered with."""
