"""A hospital's table is checked once, kept privately, and grouped by patient."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedward_client.cohorts import Patients, TableCohort, TableEntry
from fedward_common.errors import LocalDataError, SchemaMismatchError
from fedward_common.schema import CohortSchema
from fedward_common.tables import encode
from tests.builders import contract, small_study, table

SCHEMA = small_study().cohort
BY_PATIENT = small_study(cohort={"patient": "patient"}).cohort


def cohort(home: Path, frame: pd.DataFrame, schema: CohortSchema = SCHEMA) -> TableCohort:
    frame.to_csv(home / "t.csv", index=False)
    return TableCohort(TableEntry(table="t.csv"), schema, home)


def test_rows_without_identifier_are_one_patient_each(tmp_path: Path) -> None:
    frame = table(12)
    got = cohort(tmp_path, frame).patients(8)
    rows = encode(frame, SCHEMA)
    assert got.features.shape == (12, 1, 7)
    assert (got.features[:, 0] == rows.features).all()
    assert (got.labels[:, 0] == rows.labels).all()
    assert (got.mask == 1).all()


def test_rows_are_grouped_by_patient_in_the_table_s_order_and_padded(tmp_path: Path) -> None:
    frame = table(6)
    frame["patient"] = ["b", "a", "b", "b", "c", "a"]
    got, rows = cohort(tmp_path, frame, BY_PATIENT).patients(8), encode(frame, BY_PATIENT)
    assert got.mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert (got.features[1] == rows.features[[0, 2, 3]]).all()
    assert (got.labels[0, :2] == rows.labels[[1, 5]]).all()
    assert not got.features[2, 1:].any()


def test_at_most_the_limit_of_a_patient_s_rows_is_used_the_first_ones(tmp_path: Path) -> None:
    frame = table(6)
    frame["patient"] = ["b", "a", "b", "b", "c", "a"]
    source = cohort(tmp_path, frame, BY_PATIENT)
    rows = encode(frame, BY_PATIENT)
    two, one = source.patients(2), source.patients(1)
    assert two.mask.sum(axis=1).tolist() == [2, 2, 1]
    assert (two.features[1] == rows.features[[0, 2]]).all()
    assert one.features.shape == (3, 1, 7)
    assert len(one) == 3


def test_no_patient_is_lost_and_none_is_mixed(tmp_path: Path) -> None:
    frame = table(200, patients=60)
    got, rows = cohort(tmp_path, frame, BY_PATIENT).patients(1024), encode(frame, BY_PATIENT)
    assert got.mask.sum() == 200
    assert len(got) == rows.patient_count
    for code in range(len(got)):
        real = got.mask[code] == 1
        assert (got.features[code][real] == rows.features[rows.patients == code]).all()
        assert (got.labels[code][real] == rows.labels[rows.patients == code]).all()


def test_empty_table_gives_no_patients(tmp_path: Path) -> None:
    got = cohort(tmp_path, table(0)).patients(8)
    assert len(got) == 0
    assert got.features.shape == (0, 0, 7)


def test_encoded_rows_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        cohort(tmp_path, table(5)).patients(8)
    finally:
        os.umask(old)
    (kept,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_second_reading_gives_the_same_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cohort(tmp_path, table(9))
    first = source.patients(8)

    def never(*_: object, **__: object) -> None:
        pytest.fail("the table was parsed again")

    monkeypatch.setattr("fedward_client.cohorts.table.encode", never)
    second = source.patients(8)
    assert all((getattr(first, n) == getattr(second, n)).all() for n in Patients.__slots__)


def test_changed_table_is_read_anew(tmp_path: Path) -> None:
    source = cohort(tmp_path, table(9, seed=1))
    before, mark = source.patients(8), source.fingerprint()
    table(9, seed=2).to_csv(tmp_path / "t.csv", index=False)
    assert source.fingerprint() != mark
    assert (source.patients(8).features != before.features).any()


def test_fingerprint_changes_with_schema_names_and_bytes_and_else_not(tmp_path: Path) -> None:
    frame = table(5)
    marks = {
        cohort(tmp_path, frame).fingerprint(),
        cohort(tmp_path, frame, BY_PATIENT).fingerprint(),
        TableCohort(TableEntry(table="t.csv", names=tuple(frame.columns)), SCHEMA, tmp_path).fingerprint(),
    }
    assert len(marks) == 3
    assert cohort(tmp_path, frame).fingerprint() in marks


def test_table_that_breaks_the_schema_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    frame = table(5)
    frame.loc[0, "age"] = "470"
    with pytest.raises(SchemaMismatchError):
        cohort(tmp_path, frame).patients(8)
    assert not (tmp_path / "cache").exists()


def test_missing_table_names_the_file_and_not_its_folder(tmp_path: Path) -> None:
    with pytest.raises(LocalDataError, match=r"^t\.csv cannot be read \(FileNotFoundError\)$"):
        TableCohort(TableEntry(table="t.csv"), SCHEMA, tmp_path).patients(8)


def test_file_without_header_is_read_by_its_declared_names(tmp_path: Path) -> None:
    frame = table(5)
    frame.to_csv(tmp_path / "t.data", index=False, header=False)
    entry = TableEntry(table="t.data", names=tuple(frame.columns))
    got = TableCohort(entry, SCHEMA, tmp_path).patients(8)
    assert (got.features[:, 0] == encode(frame, SCHEMA).features).all()


def test_features_are_float32_as_the_model_takes_them(tmp_path: Path) -> None:
    got = cohort(tmp_path, table(5)).patients(contract()["training"]["rounds"])
    assert {getattr(got, name).dtype for name in Patients.__slots__} == {np.dtype(np.float32)}
