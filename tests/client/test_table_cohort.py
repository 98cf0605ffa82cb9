"""A hospital's table is checked once, kept privately, and grouped by patient."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedward_client.cohorts import EncodedCohort, Patients, TableEntry, open_cohort
from fedward_client.config import SiteConfig
from fedward_common.canonical import canonical_json
from fedward_common.contract import validated
from fedward_common.errors import LocalDataError, SchemaMismatchError, StudyError
from fedward_common.schema import CohortSchema
from fedward_common.tables import encode
from tests.builders import contract, small_study, table

SCHEMA = small_study().cohort
BY_PATIENT = small_study(cohort={"patient": "patient"}).cohort


def cohort(home: Path, frame: pd.DataFrame, schema: CohortSchema = SCHEMA) -> EncodedCohort:
    frame.to_csv(home / "t.csv", index=False)
    return open_cohort(TableEntry(table="t.csv"), schema, home)


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

    monkeypatch.setattr("fedward_client.cohorts.encoded.encode", never)
    second = source.patients(8)
    assert all((getattr(first, n) == getattr(second, n)).all() for n in Patients.__slots__)


def test_changed_table_is_read_anew(tmp_path: Path) -> None:
    source = cohort(tmp_path, table(9, seed=1))
    before, mark = source.patients(8), source.fingerprint()
    anew = cohort(tmp_path, table(9, seed=2))
    assert anew.fingerprint() != mark
    assert (anew.patients(8).features != before.features).any()


def test_fingerprint_changes_with_schema_names_and_bytes_and_else_not(tmp_path: Path) -> None:
    frame = table(5)
    marks = {
        cohort(tmp_path, frame).fingerprint(),
        cohort(tmp_path, frame, BY_PATIENT).fingerprint(),
        open_cohort(TableEntry(table="t.csv", names=tuple(frame.columns)), SCHEMA, tmp_path).fingerprint(),
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
        open_cohort(TableEntry(table="t.csv"), SCHEMA, tmp_path).patients(8)


def test_file_without_header_is_read_by_its_declared_names(tmp_path: Path) -> None:
    frame = table(5)
    frame.to_csv(tmp_path / "t.data", index=False, header=False)
    entry = TableEntry(table="t.data", names=tuple(frame.columns))
    got = open_cohort(entry, SCHEMA, tmp_path).patients(8)
    assert (got.features[:, 0] == encode(frame, SCHEMA).features).all()


def test_features_are_float32_as_the_model_takes_them(tmp_path: Path) -> None:
    got = cohort(tmp_path, table(5)).patients(contract()["training"]["rounds"])
    assert {getattr(got, name).dtype for name in Patients.__slots__} == {np.dtype(np.float32)}


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive", None], ids=["empty", "cut", "another", "an old one"])
def test_damaged_file_of_the_cache_is_made_again(tmp_path: Path, content: bytes | None) -> None:
    source = cohort(tmp_path, table(9))
    first = source.patients(8)
    (kept,) = (tmp_path / "cache").iterdir()
    if content is None:
        np.savez(kept, features=first.features)
    else:
        kept.write_bytes(content)

    assert (cohort(tmp_path, table(9)).patients(8).features == first.features).all()
    assert len(np.load(kept)["identities"]) == 9


def test_table_that_changes_while_it_is_read_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was approved is the state that was hashed, not the one that came after."""
    source = cohort(tmp_path, table(9, seed=1))

    def late(*arguments: Any, **options: Any) -> Any:
        table(9, seed=2).to_csv(tmp_path / "t.csv", index=False)
        return encode(*arguments, **options)

    monkeypatch.setattr("fedward_client.cohorts.encoded.encode", late)

    with pytest.raises(LocalDataError, match="changed while they were read"):
        source.patients(8)
    assert not (tmp_path / "cache").exists()


def test_what_was_approved_is_read_back_although_the_table_changed_since(tmp_path: Path) -> None:
    """One cohort is one state: the fingerprint that the site compares is that of the rows that are trained on."""
    first = cohort(tmp_path, table(9, seed=1))
    rows = first.patients(8)
    again = open_cohort(TableEntry(table="t.csv"), SCHEMA, tmp_path)
    mark = again.fingerprint()
    table(9, seed=2).to_csv(tmp_path / "t.csv", index=False)

    assert again.fingerprint() == mark
    assert (again.patients(8).features == rows.features).all()


def test_rows_that_a_killed_process_did_not_finish_do_not_stay(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name, age in (("old.part", 7200), ("young.part", 0)):
        (cache / name).write_bytes(b"rows")
        os.utime(cache / name, (time.time() - age,) * 2)

    cohort(tmp_path, table(9)).patients(8)

    names = {path.name for path in cache.iterdir()}
    assert "old.part" not in names
    assert "young.part" in names
    assert len(names) == 2


def test_entry_of_an_older_site_yaml_means_what_it_meant(tmp_path: Path) -> None:
    """An approval from before there were other kinds of cohorts is still one: same entry, same fingerprint."""
    frame = table(5)
    frame.to_csv(tmp_path / "t.csv", index=False)
    config = validated(SiteConfig, {"site": "north", "cohorts": {"c": {"table": "t.csv"}}})
    content = hashlib.sha256((tmp_path / "t.csv").read_bytes()).digest()
    before = hashlib.sha256(content + canonical_json([SCHEMA.model_dump(mode="json"), []])).hexdigest()

    assert config.cohorts["c"] == TableEntry(table="t.csv")
    assert open_cohort(config.cohorts["c"], SCHEMA, tmp_path).fingerprint() == before


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"table": "t.csv", "manifest": "m.csv"}, r"unknown key 'cohorts\.c\.manifest'"),
        ({"images": "f", "manifest": "m.csv"}, r"cohorts\.c\.seal is missing"),
        ({"sql": "SELECT 1"}, r"cohorts\.c\.database is missing"),
        ({"kind": "fhir", "table": "t.csv"}, r"cohorts\.c.*must be one of"),
        ({"kind": "sql", "table": "t.csv"}, r"cohorts\.c\.(sql|database) is missing"),
        ({}, r"cohorts\.c\.table is missing"),
    ],
)
def test_entry_that_is_none_is_named_by_its_key(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        validated(SiteConfig, {"site": "north", "cohorts": {"c": entry}})
