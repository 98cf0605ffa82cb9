"""The ledger must know a patient again: in another file, another order, another study, under another name."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.cohorts import TableEntry, open_cohort
from fedward_client.cohorts.identity import (
    IDENTITY_BYTES,
    content_digests,
    exact_digests,
    identities_of_content,
    identities_of_names,
)
from fedward_common.errors import LocalDataError
from fedward_common.schema import CohortSchema
from tests.builders import contract, small_study, table

PLAIN = small_study().cohort
BY_PATIENT = small_study(cohort={"patient": "patient"}).cohort
OTHER = small_study(
    cohort={
        "columns": {"stage": contract()["cohort"]["columns"]["stage"]},
        "label": {"column": "sex", "vocabulary": ["f", "m"], "positive": ["m"]},
        "patient": "patient",
    }
).cohort

Identities = npt.NDArray[np.uint8]


def identities(path: Path, frame: pd.DataFrame, schema: CohortSchema = PLAIN, **facts: Any) -> Identities:
    """Return who is in `frame`, written to `path` as its ending says."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return open_cohort(TableEntry(table=path.name, **facts), schema, path.parent).identities()


def as_set(found: Identities) -> set[bytes]:
    return {row.tobytes() for row in found}


def one(value: Any) -> bytes:
    """Return the digest of a row with this one cell beside a fixed one."""
    (digest,) = content_digests(pd.DataFrame({"a": [value], "b": ["x"]}, dtype=object))
    return digest


# ------------------------------------------------------------------------------------------------- with an identifier
def test_identity_is_the_beginning_of_the_identifier_s_sha256_in_the_order_of_the_patients(tmp_path: Path) -> None:
    frame = table(5).assign(patient=["b", "a", "b", "c", "a"])

    found = identities(tmp_path / "t.csv", frame, BY_PATIENT)

    assert found.dtype == np.uint8
    assert [row.tobytes() for row in found] == [hashlib.sha256(name).digest()[:16] for name in (b"a", b"b", b"c")]


def test_another_study_and_another_name_of_the_cohort_know_the_same_people(tmp_path: Path) -> None:
    frame = table(60, patients=25)

    first = identities(tmp_path / "one.csv", frame, BY_PATIENT)
    again = identities(tmp_path / "two.csv", frame.sample(frac=1, random_state=1), OTHER)

    assert (first == again).all()


def test_people_of_two_cohorts_overlap_as_their_identifiers_do(tmp_path: Path) -> None:
    young, old = (table(3, n).assign(patient=names) for n, names in ((1, ["a", "b", "c"]), (2, ["c", "d", "b"])))

    shared = as_set(identities(tmp_path / "one.csv", young, BY_PATIENT)) & as_set(
        identities(tmp_path / "two.csv", old, BY_PATIENT)
    )

    assert shared == as_set(identities_of_names(["b", "c"]))


def test_an_edited_row_with_an_identifier_is_the_same_person(tmp_path: Path) -> None:
    frame = table(8).assign(patient=[f"p{n}" for n in range(8)])
    edited = frame.assign(age="50", stage="1")

    same = identities(tmp_path / "a.csv", frame, BY_PATIENT) == identities(tmp_path / "b.csv", edited, BY_PATIENT)

    assert same.all()


@pytest.mark.parametrize("written", [[7, 12, 7], [7.0, 12.0, 7.0], ["7.0", "12.0", "7"], [" 7", "12 ", "7"]])
def test_a_number_that_a_spreadsheet_wrote_with_a_fraction_is_the_same_identifier(
    tmp_path: Path, written: list[Any]
) -> None:
    expected = identities_of_names(["12", "7"])

    assert (identities(tmp_path / "t.csv", table(3).assign(patient=written), BY_PATIENT) == expected).all()


def test_parquet_and_csv_have_the_same_people(tmp_path: Path) -> None:
    frame = table(12).assign(patient=[100 + n // 2 for n in range(12)])

    csv = identities(tmp_path / "t.csv", frame, BY_PATIENT)

    assert (identities(tmp_path / "t.parquet", frame, BY_PATIENT) == csv).all()


def test_leading_zeros_tell_people_apart(tmp_path: Path) -> None:
    frame = table(3).assign(patient=["007", "7", "07.0"])

    assert len(as_set(identities(tmp_path / "t.csv", frame, BY_PATIENT))) == 3


# ------------------------------------------------------------------------------------- what the hospital alone knows
def test_register_names_the_person_where_the_study_names_nobody(tmp_path: Path) -> None:
    frame = table(20, patients=9)

    known = identities(tmp_path / "t.csv", frame, PLAIN, patient_column="patient")

    assert (known == identities(tmp_path / "u.csv", frame, BY_PATIENT)).all()


def test_rows_of_one_person_are_one_patient_where_the_register_names_the_person(tmp_path: Path) -> None:
    """A study that takes each row for a patient would otherwise count and clip a person's rows apart."""
    frame = table(20, patients=9)
    frame.to_csv(tmp_path / "t.csv", index=False)

    cohort = open_cohort(TableEntry(table="t.csv", patient_column="patient"), PLAIN, tmp_path)

    assert len(cohort.patients(8)) == frame["patient"].nunique() == len(cohort.identities())


def test_register_s_person_comes_before_the_study_s_visit(tmp_path: Path) -> None:
    frame = table(4).assign(patient=["v1", "v2", "v3", "v3"], person=["p1", "p1", "p2", "p2"])

    found = identities(tmp_path / "t.csv", frame, BY_PATIENT, patient_column="person")

    assert (found == identities_of_names(["p1", "p2"])).all()


def test_register_s_column_that_splits_the_study_s_patient_is_refused(tmp_path: Path) -> None:
    """Somebody wrote the column of the visits into site.yaml: the unit of privacy would shrink."""
    frame = table(4).assign(patient=["p1", "p1", "p2", "p2"], visit=["v1", "v2", "v3", "v3"])

    with pytest.raises(LocalDataError, match="1 identifiers in 'patient' belong to several patients in 'visit'"):
        identities(tmp_path / "t.csv", frame, BY_PATIENT, patient_column="visit")


@pytest.mark.parametrize("column", ["age", "outcome"])
def test_register_s_person_as_a_feature_or_label_is_refused(tmp_path: Path, column: str) -> None:
    with pytest.raises(LocalDataError, match="is a feature or the label"):
        identities(tmp_path / "t.csv", table(4), PLAIN, patient_column=column)


def test_register_s_column_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    table(4, patients=2).to_csv(tmp_path / "t.csv", index=False)
    entries = [TableEntry(table="t.csv", patient_column=column) for column in (None, "patient")]

    marks = {open_cohort(entry, PLAIN, tmp_path).fingerprint() for entry in entries}

    assert len(marks) == 2


# ---------------------------------------------------------------------------------------------- without an identifier
def exported(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows as pandas reads them from a CSV file and writes them to Parquet."""
    return pd.DataFrame({
        "age": frame["age"].astype(float),
        "pressure": pd.to_numeric(frame["pressure"], errors="coerce").astype("float32"),
        "sex": frame["sex"].astype("category"),
        "stage": frame["stage"].astype("Int64"),
        "outcome": frame["outcome"],
        "at": pd.to_datetime(frame["at"]),
    })  # fmt: skip


def dated() -> pd.DataFrame:
    frame = table(30).assign(at=[f"2024-01-{n + 1:02d}" for n in range(30)])
    frame["pressure"] = frame["pressure"].replace("0", "NA")
    return frame


def test_a_new_export_as_parquet_has_the_same_people(tmp_path: Path) -> None:
    frame = dated()

    csv = identities(tmp_path / "t.csv", frame)

    assert (identities(tmp_path / "t.parquet", exported(frame)) == csv).all()


def test_another_order_of_rows_and_columns_has_the_same_people(tmp_path: Path) -> None:
    frame = dated()
    turned = frame.iloc[::-1, ::-1]

    assert (identities(tmp_path / "a.csv", frame) == identities(tmp_path / "b.tsv", turned)[::-1]).all()


def test_another_study_without_a_patient_column_knows_the_same_people(tmp_path: Path) -> None:
    frame = table(12)
    narrow = OTHER.model_copy(update={"patient": None})

    assert (identities(tmp_path / "a.csv", frame) == identities(tmp_path / "b.csv", frame, narrow)).all()


def test_rows_left_out_as_incomplete_shift_nobody(tmp_path: Path) -> None:
    frame = table(6)
    frame.loc[2, "outcome"] = "?"
    lenient = small_study(cohort={"incomplete_rows": "drop"}).cohort

    found = identities(tmp_path / "a.csv", frame, lenient)

    assert (found == identities_of_content(frame.drop(index=2))).all()


def test_a_data_frame_s_row_numbers_are_nobody(tmp_path: Path) -> None:
    frame = table(6)
    frame.to_csv(tmp_path / "numbered.csv")
    shuffled = frame.iloc[::-1]
    shuffled.to_csv(tmp_path / "shuffled.csv")

    numbered, other = (
        open_cohort(TableEntry(table=name), PLAIN, tmp_path).identities() for name in ("numbered.csv", "shuffled.csv")
    )

    assert (numbered == identities_of_content(frame)).all()
    assert (numbered == other[::-1]).all()


def test_an_edited_row_is_somebody_else() -> None:
    """What the docstring of `Cohort.identities` says it cannot see."""
    frame = table(6)
    edited = frame.copy()
    edited.loc[[3], "age"] = "17.5"

    same = (identities_of_content(frame) == identities_of_content(edited)).all(axis=1)

    assert same.tolist() == [True, True, True, False, True, True]


def test_rows_that_say_the_same_are_one_identity() -> None:
    frame = pd.concat([table(3), table(3).iloc[[1]]], ignore_index=True)

    assert len(as_set(identities_of_content(frame))) == 3


@pytest.mark.parametrize(
    "values",
    [
        ["45", "45.0", " 45 ", "45.00", "4.5e1", "+45", 45, 45.0, np.int8(45), np.float32(45), Decimal("45.0")],
        ["0.1", 0.1, np.float32(0.1), "1e-1", ".1", Decimal("0.10")],
        ["", None, float("nan"), pd.NA, pd.NaT, "NA", " NaN", "null", "None", "N/A", "<NA>", np.float64("nan")],
        ["true", "True", " TRUE ", True, np.True_],
        ["2024-01-31", "2024-01-31 00:00", "2024-01-31T00:00:00", date(2024, 1, 31), pd.Timestamp("2024-01-31"),
         np.datetime64("2024-01-31")],
        ["2024-01-31T12:30:00", "2024-01-31 12:30", datetime(2024, 1, 31, 12, 30), "2024-01-31 12:30:00.000"],  # noqa: DTZ001  (a table's times have no zone)
        ["2024-01-31T12:30:00Z", "2024-01-31 12:30:00+00:00", datetime(2024, 1, 31, 12, 30, tzinfo=UTC)],
        ["x y", " x y "],
    ],
    ids=["a number", "a fraction", "nothing", "a truth", "a day", "a moment", "a moment with its zone", "a text"],
)  # fmt: skip
def test_one_value_has_one_way_to_be_written(values: list[Any]) -> None:
    assert len({one(value) for value in values}) == 1


def test_values_that_differ_are_told_apart() -> None:
    values = ["1", "0", "true", "false", "", "x", "X", "1.5", "-1", "2024-01-31", "2024-01-31 00:01", "1_0", "10",
              "nan-x", "2024-13-45", 2**60, 2**60 + 1, "1e999", [1, 2], [2, 1], {"a": 1}, b"\x01", "−1"]  # fmt: skip

    assert len({one(value) for value in values}) == len(values)


def test_a_value_in_another_column_is_another_row() -> None:
    frames = [pd.DataFrame({"a": ["1"], "b": [""]}), pd.DataFrame({"a": [""], "b": ["1"]}), pd.DataFrame({"c": ["1"]})]

    assert len({content_digests(frame)[0] for frame in frames}) == 3


def test_no_text_of_a_cell_makes_it_two() -> None:
    """Names and values are quoted: nobody's cell can pretend to be another column."""
    forged = pd.DataFrame({"a": ['1"\n"b":2']})
    honest = pd.DataFrame({"a": ["1"], "b": ["2"]})

    assert content_digests(forged) != content_digests(honest)


@given(st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.booleans()), min_size=1, max_size=8))
def test_order_of_rows_changes_nobody(values: list[Any]) -> None:
    frame = pd.DataFrame({"a": values, "b": "x"}, dtype=object)

    assert content_digests(frame)[::-1] == content_digests(frame.iloc[::-1])
    assert exact_digests(frame)[::-1] == exact_digests(frame.iloc[::-1])


def test_a_table_without_rows_or_columns_has_nobody() -> None:
    assert identities_of_content(table(3).head(0)).shape == (0, IDENTITY_BYTES)
    assert identities_of_names([]).shape == (0, IDENTITY_BYTES)
    assert identities_of_content(pd.DataFrame(index=range(2))).shape == (2, IDENTITY_BYTES)


def test_exact_digests_tell_two_ways_to_write_a_value_apart() -> None:
    values = ["1", "1.0", " 1", "NA", "", None, True, "2024-01-31", "2024-01-31 00:00"]
    rows = exact_digests(pd.DataFrame({"a": values, "b": "x"}, dtype=object))

    assert len(set(rows)) == len(values)


# ----------------------------------------------------------------------------------------------------------- the cache
def test_identities_are_kept_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table(9)
    first = identities(tmp_path / "t.csv", frame)

    def never(*_: object) -> None:
        pytest.fail("the table was parsed again")

    monkeypatch.setattr("fedward_client.cohorts.encoded.encode", never)
    again = open_cohort(TableEntry(table="t.csv"), PLAIN, tmp_path)

    assert (again.identities() == first).all()
    assert len(again.patients(8)) == len(first)
