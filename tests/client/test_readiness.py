"""What a hospital's staff is told of its own table before anything leaves."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedward_client.cohorts import ImagesEntry, ImageSource, OptOuts, SqlEntry, TableEntry
from fedward_client.readiness import Check, Readiness, assess, opened
from fedward_common.errors import LocalDataError
from tests.builders import small_study, table
from tests.pictures import CANARY, dicom, digits_contract, digits_folder, encoded

SCHEMA = small_study().cohort
BY_PATIENT = small_study(cohort={"patient": "patient"}).cohort
PICTURES = small_study(cohort=digits_contract()).cohort


def _assess(folder: Path, frame: pd.DataFrame) -> Readiness:
    frame.to_csv(folder / "chart.csv", index=False)
    return assess(TableEntry(table="chart.csv"), SCHEMA, folder)


def _text(readiness: Readiness) -> str:
    return json.dumps(readiness.as_json(), ensure_ascii=False)


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
    assert _levels(readiness, "age: above 100 years: 60 rows") == ["fail"]
    assert "987654" not in _text(readiness)


def test_a_missing_file_is_told_with_a_remedy(tmp_path: Path) -> None:
    readiness = assess(TableEntry(table="nowhere.csv"), SCHEMA, tmp_path)

    assert not readiness.ready
    assert readiness.checks[0].remedy


def test_every_fact_that_is_not_ok_has_a_remedy(tmp_path: Path) -> None:
    frame = table(20, seed=1).assign(pressure="0", outcome="no")
    frame.loc[3] = frame.loc[2]

    checks = _assess(tmp_path, frame).checks

    assert {check.level for check in checks} == {"ok", "warn"}
    assert all(check.remedy for check in checks if check.level != "ok")


def test_rows_that_say_the_same_are_counted(tmp_path: Path) -> None:
    frame = pd.concat([table(60, seed=1), table(60, seed=1).head(3)], ignore_index=True)

    assert _levels(_assess(tmp_path, frame), "3 rows say the same as another") == ["warn"]
    assert not _levels(_assess(tmp_path, table(60, seed=1)), "say the same")


def test_patients_with_more_rows_than_are_used_are_counted(tmp_path: Path) -> None:
    frame = table(60, seed=1).assign(patient=["often"] * 9 + ["seldom"] * 8 + [f"p{n}" for n in range(43)])
    frame.to_csv(tmp_path / "chart.csv", index=False)

    readiness = assess(TableEntry(table="chart.csv"), BY_PATIENT, tmp_path)

    assert _levels(readiness, "1 patients have more than 8 rows, of which 8 are used") == ["warn"]
    assert "often" not in _text(readiness)


def test_incomplete_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    frame = table(60, seed=1)
    frame.loc[:4, "outcome"] = ""
    frame.to_csv(tmp_path / "chart.csv", index=False)
    lenient = small_study(cohort={"incomplete_rows": "drop_unlabelled"}).cohort

    readiness = assess(TableEntry(table="chart.csv"), lenient, tmp_path)

    assert _levels(readiness, "5 incomplete rows are left out") == ["warn"]


def test_who_opted_out_is_counted_and_not_named(tmp_path: Path) -> None:
    frame = table(60, seed=1).assign(patient=[f"p{n // 2:02d}" for n in range(60)])
    frame.to_csv(tmp_path / "chart.csv", index=False)
    OptOuts(tmp_path).add(["p03", "p04", "stranger"])
    entry = TableEntry(table="chart.csv", patient_column="patient")

    under, without = assess(entry, SCHEMA, tmp_path), assess(entry, None, tmp_path)

    assert _levels(under, "4 rows of patients who opted out are left out") == ["ok"]
    assert _levels(under, "56 rows of 28 patients") == ["ok"]
    assert _levels(without, "30 patients in 'patient', 2 opted out") == ["ok"]
    assert "p03" not in _text(under) + _text(without)


def test_an_opt_out_list_that_nobody_can_apply_fails(tmp_path: Path) -> None:
    OptOuts(tmp_path).add(["p03"])

    readiness = _assess(tmp_path, table(60, seed=1))

    assert not readiness.ready
    assert _levels(readiness, "no column says which rows belong to whom") == ["fail"]


def test_without_a_study_rows_are_counted_and_no_schema_is_asked(tmp_path: Path) -> None:
    table(7, seed=1).to_csv(tmp_path / "chart.csv", index=False)

    readiness = assess(TableEntry(table="chart.csv"), None, tmp_path)

    assert readiness.ready
    assert readiness.checks == (Check("ok", "7 rows in 5 columns"),)


@pytest.mark.parametrize(
    ("rows", "column", "words"), [(0, None, "there is no row"), (7, "mrn", "there is no column 'mrn'")]
)
def test_without_a_study_what_cannot_work_fails(tmp_path: Path, rows: int, column: str | None, words: str) -> None:
    table(7, seed=1).head(rows).to_csv(tmp_path / "chart.csv", index=False)

    readiness = assess(TableEntry(table="chart.csv", patient_column=column), None, tmp_path)

    assert not readiness.ready
    assert _levels(readiness, words) == ["fail"]


def test_a_select_is_judged_like_a_table(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "c.db")
    table(80, seed=1).assign(age="987654").to_sql("visits", connection, index=False)
    connection.close()
    entry = SqlEntry(sql="SELECT * FROM visits", database=f"sqlite:///{tmp_path}/c.db")

    readiness = assess(entry, SCHEMA, tmp_path)

    assert _levels(readiness, "80 rows in 5 columns") == ["ok"]
    assert _levels(readiness, "age: above 100 years: 80 rows") == ["fail"]
    assert "987654" not in _text(readiness)


def test_nothing_of_a_check_is_kept(tmp_path: Path) -> None:
    _assess(tmp_path, table(60, seed=1))

    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------------------- pictures
def _pictures(home: Path, count: int = 60) -> ImagesEntry:
    folder = home / "Miller"
    digits_folder(folder, count)
    entry = ImagesEntry(images=str(folder), manifest=str(folder / "manifest.csv"), seal="seals/d.json")
    ImageSource(entry, home).seal()
    for path in folder.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    return entry


def test_kinds_of_pictures_are_counted(tmp_path: Path) -> None:
    entry = _pictures(tmp_path)
    folder = tmp_path / "Miller"
    (folder / "part0" / "digit0000.png").write_bytes(dicom(np.zeros((8, 8), dtype=np.uint8)))
    (folder / "part0" / "digit0002.png").write_bytes(encoded(np.zeros((9, 7, 3), dtype=np.uint8)))
    ImageSource(entry, tmp_path).seal()

    readiness = assess(entry, None, tmp_path)

    assert [check.what for check in readiness.checks[1:4]] == [
        "58 pictures are PNG 8 x 8 grey", "1 pictures are DICOM CT 8 x 8 grey", "1 pictures are PNG 9 x 7 colour",
    ]  # fmt: skip
    assert CANARY not in _text(readiness)


def test_many_kinds_are_summed_up(tmp_path: Path) -> None:
    entry = _pictures(tmp_path, 12)
    for place, path in enumerate(sorted((tmp_path / "Miller").rglob("*.png"))):
        path.write_bytes(encoded(np.zeros((8, 8 + place), dtype=np.uint8)))
    ImageSource(entry, tmp_path).seal()

    assert _levels(assess(entry, None, tmp_path), "4 pictures are of 4 other kinds") == ["ok"]


def test_pictures_that_are_ready_are_ready(tmp_path: Path) -> None:
    readiness = assess(_pictures(tmp_path), PICTURES, tmp_path)

    assert readiness.ready
    assert _levels(readiness, "60 rows of 60 patients") == ["ok"]


def test_changed_missing_and_new_pictures_are_counted_with_what_to_do(tmp_path: Path) -> None:
    entry = _pictures(tmp_path)
    folder = tmp_path / "Miller"
    black = encoded(np.zeros((8, 8), dtype=np.uint8))
    (folder / "part0" / "digit0000.png").write_bytes(black)
    (folder / "part1" / "digit0001.png").unlink()
    (folder / "new.png").write_bytes(black)

    readiness = assess(entry, PICTURES, tmp_path)

    assert not readiness.ready
    assert _levels(readiness, "1 pictures are changed since the folder was registered") == ["fail"]
    assert _levels(readiness, "1 pictures are missing since the folder was registered") == ["fail"]
    assert _levels(readiness, "1 pictures are new since the folder was registered") == ["warn"]
    assert _levels(readiness, "1 pictures in the folder are not in the manifest") == ["warn"]
    assert _levels(readiness, "file: no such file in the folder: 1 rows") == ["fail"]
    assert any("cohort seal" in check.remedy for check in readiness.checks)
    assert "digit0" not in _text(readiness)
    assert "Miller" not in _text(readiness)


def test_one_picture_under_two_rows_is_told(tmp_path: Path) -> None:
    entry = _pictures(tmp_path)
    folder = tmp_path / "Miller"
    twin = (folder / "part0" / "digit0000.png").read_bytes()
    (folder / "part1" / "digit0001.png").write_bytes(twin)
    ImageSource(entry, tmp_path).seal()

    assert _levels(assess(entry, PICTURES, tmp_path), "1 rows show a picture that another row shows too") == ["warn"]


def test_pictures_outside_the_study_s_size_or_range_are_counted(tmp_path: Path) -> None:
    entry = _pictures(tmp_path)
    (tmp_path / "Miller" / "part0" / "digit0000.png").write_bytes(encoded(np.zeros((9, 9), dtype=np.uint8)))
    ImageSource(entry, tmp_path).seal()
    narrow = PICTURES.columns["file"].model_copy(update={"maximum": 200.0})
    schema = PICTURES.model_copy(update={"columns": {**PICTURES.columns, "file": narrow}})

    readiness = assess(entry, schema, tmp_path)

    assert _levels(readiness, "file: not 8 x 8 pixels: 1 rows") == ["fail"]
    assert _levels(readiness, "file: above 200 grey level: 59 rows") == ["fail"]


def test_paths_that_lead_out_are_counted_and_not_followed(tmp_path: Path) -> None:
    entry = _pictures(tmp_path)
    manifest = tmp_path / "Miller" / "manifest.csv"
    text = manifest.read_text(encoding="utf-8").replace("part0/digit0000.png", "../../../etc/passwd")
    manifest.write_text(text, encoding="utf-8")

    readiness = assess(entry, None, tmp_path)

    assert not readiness.ready
    assert _levels(readiness, "file: not a place inside the folder") == ["fail"]
    assert "passwd" not in _text(readiness)


# ---------------------------------------------------------------------------------------------------- before it is kept
def test_what_is_about_to_be_registered_is_opened_once(tmp_path: Path) -> None:
    table(7, seed=1).to_csv(tmp_path / "chart.csv", index=False)

    assert opened(TableEntry(table="chart.csv", patient_column="age"), tmp_path) == (7, 5)
    with pytest.raises(LocalDataError, match="no column 'mrn'"):
        opened(TableEntry(table="chart.csv", patient_column="mrn"), tmp_path)
    with pytest.raises(LocalDataError, match=r"gone\.csv cannot be read"):
        opened(TableEntry(table="gone.csv"), tmp_path)
