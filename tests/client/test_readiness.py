"""What a hospital's staff is told of its own table before anything leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedward_client.cohorts import TableEntry
from fedward_client.readiness import Readiness, assess
from tests.builders import small_study, table

SCHEMA = small_study().cohort


def _assess(folder: Path, frame: object) -> Readiness:
    frame.to_csv(folder / "chart.csv", index=False)  # type: ignore[attr-defined]
    return assess(TableEntry(table="chart.csv"), SCHEMA, folder)


def _levels(readiness: Readiness, words: str) -> list[str]:
    return [check.level for check in readiness.checks if words in check.what]


def test_a_large_balanced_table_is_ready(tmp_path: Path) -> None:
    readiness = _assess(tmp_path, table(120, seed=1))

    assert readiness.ready
    assert _levels(readiness, "120 rows of 120 patients") == ["ok"]
    assert _levels(readiness, "have the outcome") == ["ok"]


def test_missingness_is_told_by_column(tmp_path: Path) -> None:
    frame = table(120, seed=1)
    frame["pressure"] = "0"

    readiness = _assess(tmp_path, frame)

    assert readiness.ready
    assert _levels(readiness, "pressure: 100.0% missing") == ["warn"]


def test_few_patients_are_a_warning(tmp_path: Path) -> None:
    readiness = _assess(tmp_path, table(20, seed=1))

    assert readiness.ready
    assert _levels(readiness, "fewer than 50 patients") == ["warn"]


@pytest.mark.parametrize("label", ["no", "yes"])
def test_one_class_is_a_warning_and_not_a_failure(tmp_path: Path, label: str) -> None:
    readiness = _assess(tmp_path, table(60, seed=1).assign(outcome=label))

    assert readiness.ready
    assert _levels(readiness, "one class only") == ["warn"]


def test_an_empty_table_is_not_ready(tmp_path: Path) -> None:
    readiness = _assess(tmp_path, table(1, seed=1).head(0))

    assert not readiness.ready
    assert _levels(readiness, "no row can be used") == ["fail"]


def test_a_broken_rule_is_told_with_its_count_and_no_value(tmp_path: Path) -> None:
    readiness = _assess(tmp_path, table(60, seed=1).assign(age="987654"))

    assert not readiness.ready
    assert [check.level for check in readiness.checks] == ["fail"]
    assert "60 rows" in readiness.checks[0].what
    assert "987654" not in readiness.checks[0].what


def test_a_missing_file_is_told_with_a_remedy(tmp_path: Path) -> None:
    readiness = assess(TableEntry(table="nowhere.csv"), SCHEMA, tmp_path)

    assert not readiness.ready
    assert readiness.checks[0].remedy
