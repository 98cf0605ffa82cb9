"""Tables become numbers by the declared schema alone; what breaks it is counted and never shown."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.contract import validated
from fedward_common.errors import LocalDataError, SchemaMismatchError
from fedward_common.schema import CohortSchema
from fedward_common.tables import complete_rows, encode, feature_names, identifier_text, read_table
from tests.builders import contract, table

BASE = contract()["cohort"]


def schema(**changes: Any) -> CohortSchema:
    columns = BASE["columns"] | changes.pop("columns", {})
    return validated(CohortSchema, BASE | {"columns": columns} | changes)


def feature(frame: pd.DataFrame, declared: CohortSchema, name: str) -> list[float]:
    values: list[float] = encode(frame, declared).features[:, feature_names(declared).index(name)].tolist()
    return values


def broken(frame: pd.DataFrame, declared: CohortSchema) -> SchemaMismatchError:
    with pytest.raises(SchemaMismatchError) as caught:
        encode(frame, declared)
    return caught.value


@pytest.mark.parametrize(
    ("column", "cells", "rule"),
    [
        pytest.param("age", ["17371"], "age: above 100 years", id="wrong unit, too large"),
        pytest.param("age", ["17.371"], "age: below 18 years", id="wrong unit, too small"),
        pytest.param("age", ["17371", "47371"], "age: above 100 years", id="counted"),
        pytest.param("age", ["forty-seven"], "age: not a number", id="not a number"),
        pytest.param("age", ["47,371"], "age: not a number", id="decimal comma"),
        pytest.param("age", ["inf"], "age: above 100 years", id="infinite"),
        pytest.param("age", ["nan"], "age: not a number", id="nan as text"),
        pytest.param("age", ["NA", "?", ""], "age: missing", id="missing where not allowed"),
        pytest.param("pressure", ["17.371"], "pressure: below 60 mmHg", id="beside missing ones"),
        pytest.param("sex", ["divers"], "sex: not one of the categories", id="unknown category"),
        pytest.param("sex", ["F"], "sex: not one of the categories", id="another case"),
        pytest.param("sex", [""], "sex: missing", id="missing category"),
        pytest.param("stage", ["47371"], "stage: not one of the categories", id="unknown number"),
        pytest.param("stage", ["fourth"], "stage: not a number", id="word for a number"),
        pytest.param("outcome", ["perhaps"], "outcome: not in the label's vocabulary", id="unseen label"),
        pytest.param("outcome", [""], "outcome: missing", id="missing label"),
    ],
)
def test_broken_rows_are_counted_for_each_rule_and_no_value_is_shown(column: str, cells: list[str], rule: str) -> None:
    frame = table(30)
    frame.loc[: len(cells) - 1, column] = cells
    error = broken(frame, schema())
    assert error.counts == {rule: len(cells)}
    assert rule in error.message
    for cell in cells:
        assert len(cell) < 3 or cell not in error.diagnostics()


def test_all_broken_rules_come_at_once() -> None:
    frame = table(30)
    frame.loc[0, "age"], frame.loc[1, "age"], frame.loc[2, "sex"] = "4711", "", "divers"
    error = broken(frame, schema())
    expected = {"age: above 100 years": 1, "age: missing": 1, "sex: not one of the categories": 1}
    assert error.counts == expected
    assert "3 rules" in error.message


def test_number_that_is_not_whole_is_counted() -> None:
    frame = table(10)
    frame.loc[0, "age"] = "47.371"
    whole = schema(columns={"age": BASE["columns"]["age"] | {"integer": True}})
    assert broken(frame, whole).counts == {"age: not a whole number": 1}
    assert encode(frame, schema()).features.shape == (10, 7)


def test_missing_column_names_the_one_that_is_meant() -> None:
    error = broken(table(10).rename(columns={"age": "Age", "outcome": "result"}), schema())
    assert "column 'age' is missing (is it 'Age'?)" in error.message
    assert error.counts["column 'outcome' is missing"] == 10


def test_column_that_stands_there_twice_is_refused() -> None:
    frame = table(10)
    error = broken(pd.concat([frame, frame[["age"]]], axis=1), schema())
    assert error.counts == {"column 'age' stands there more than once": 10}


def test_missing_patient_identifier_is_counted() -> None:
    frame = table(10, patients=4)
    frame.loc[[2, 5], "patient"] = ["", "NA"]
    assert broken(frame, schema(patient="patient")).counts == {"patient: missing": 2}


def test_schema_without_its_patient_column_is_refused() -> None:
    assert "'patient' is missing" in broken(table(10), schema(patient="patient")).message


@pytest.mark.parametrize("mark", ["", "NA", "?", " NA ", "0", "0.0", "0e0"])
def test_missing_marks_of_schema_and_column_are_imputed_and_flagged(mark: str) -> None:
    frame = table(3)
    frame["pressure"] = ["120", mark, "150"]
    assert feature(frame, schema(), "pressure missing") == [0, 1, 0]
    scaled = feature(frame, schema(), "pressure")
    assert scaled[1] == scaled[0] == np.float32((2 * 120 - 60 - 240) / 180)


def test_column_s_own_mark_means_missing_in_that_column_only() -> None:
    frame = table(3)
    frame["pressure"], frame["stage"] = ["0", "100", "100"], ["1", "2", "0"]
    assert broken(frame, schema()).counts == {"stage: not one of the categories": 1}


def test_missing_category_has_no_feature_but_its_flag() -> None:
    frame = table(3)
    frame["stage"] = ["1", "", "3"]
    declared = schema(columns={"stage": BASE["columns"]["stage"] | {"missing": True}})
    assert [feature(frame, declared, f"stage={value}")[1] for value in (1, 2, 3)] == [0, 0, 0]
    assert feature(frame, declared, "stage missing") == [0, 1, 0]


def test_two_categories_give_one_feature_and_three_give_three() -> None:
    frame = table(3)
    frame["sex"], frame["stage"] = ["m", "f", "m"], ["1", "2", "3.0"]
    assert feature(frame, schema(), "sex=m") == [1, 0, 1]
    assert [feature(frame, schema(), f"stage={v}") for v in (1, 2, 3)] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_group_gives_one_feature() -> None:
    frame = table(3)
    frame["stage"] = ["1", "2", "3"]
    declared = schema(columns={"stage": BASE["columns"]["stage"] | {"group": [1, 3]}})
    assert feature(frame, declared, "stage=1|3") == [1, 0, 1]


def test_open_list_has_no_feature_for_a_value_that_is_not_listed() -> None:
    frame = table(3)
    frame["sex"] = ["m", "f", "x"]
    declared = schema(columns={"sex": BASE["columns"]["sex"] | {"other": True}})
    assert [feature(frame, declared, f"sex={value}") for value in "fm"] == [[0, 1, 0], [1, 0, 0]]


def test_positive_labels_are_one_and_the_rest_of_the_vocabulary_zero() -> None:
    frame = table(4)
    frame["outcome"] = ["0", "3", "1.0", "2"]
    label = {"column": "outcome", "vocabulary": [0, 1, 2, 3], "positive": [1, 3]}
    assert encode(frame, schema(label=label)).labels.tolist() == [0, 1, 1, 0]


def incomplete() -> pd.DataFrame:
    frame = table(6)
    frame["pressure"] = ["100", "0", "", "100", "100", "100"]
    frame.loc[3, "outcome"] = "?"
    return frame


def test_incomplete_rows_are_dropped_and_counted() -> None:
    rows = encode(incomplete(), schema(incomplete_rows="drop"))
    assert (len(rows.features), rows.dropped) == (4, 2)


def test_incomplete_rows_are_rejected_where_the_column_may_not_be_missing() -> None:
    assert broken(incomplete(), schema()).counts == {"outcome: missing": 1}


def test_rows_without_a_label_are_dropped_alone() -> None:
    rows = encode(incomplete(), schema(incomplete_rows="drop_unlabelled"))
    assert (len(rows.features), rows.dropped) == (5, 1)
    assert len(complete_rows(incomplete(), schema(incomplete_rows="drop_unlabelled"))) == 5


def test_rows_of_a_patient_share_one_code_in_any_order() -> None:
    frame = table(5)
    frame["patient"] = ["b", "a", "b", "c", "a"]
    rows = encode(frame, schema(patient="patient"))
    assert rows.patients.tolist() == [1, 0, 1, 2, 0]
    assert rows.identifiers == ("a", "b", "c")
    assert rows.patient_count == 3


def test_each_row_is_a_patient_without_identifiers() -> None:
    rows = encode(table(5), schema())
    assert rows.patients.tolist() == [0, 1, 2, 3, 4]
    assert rows.identifiers is None


@pytest.mark.parametrize("incomplete_rows", ["reject", "drop", "drop_unlabelled"])
def test_empty_table_gives_no_rows(incomplete_rows: str) -> None:
    rows = encode(table(0), schema(incomplete_rows=incomplete_rows))
    assert rows.features.shape == (0, 7)
    assert rows.patient_count == 0
    assert encode(table(1).iloc[:0], schema()).features.shape == (0, 7)


def test_columns_that_the_schema_does_not_name_are_ignored() -> None:
    frame = table(10)
    wide = frame.assign(diary="Mrs Canary", number="x")
    assert (encode(wide, schema()).features == encode(frame, schema()).features).all()


@settings(max_examples=50)
@given(st.floats(-1e15, 1e15), st.floats(1e-9, 1e6), st.data())
def test_every_feature_lies_within_minus_one_and_one(minimum: float, span: float, data: st.DataObject) -> None:
    maximum = min(minimum + span, 1e15)
    if not minimum < maximum:
        return
    value = data.draw(st.floats(minimum, maximum))
    declared = validated(
        CohortSchema,
        {
            "columns": {"x": {"kind": "numeric", "unit": "1", "minimum": minimum, "maximum": maximum}},
            "label": BASE["label"],
        },
    )
    frame = pd.DataFrame({"x": [repr(value), repr(minimum), repr(maximum)], "outcome": ["yes", "no", "no"]})
    features = encode(frame, declared).features.ravel()
    assert (np.abs(features) <= 1).all()
    assert features[1:].tolist() == pytest.approx([-1, 1], abs=1e-6) or abs(minimum) / span > 1e9


def test_encoding_learns_nothing_from_the_rows() -> None:
    """A row's numbers are the same whoever else is in the table."""
    frame = table(40)
    together = encode(frame, schema()).features
    for row in range(0, 40, 7):
        assert (encode(frame.iloc[[row]].reset_index(drop=True), schema()).features[0] == together[row]).all()


# ---------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.CSV"])
def test_csv_reads_as_it_was_written(tmp_path: Path, name: str) -> None:
    frame = table(20)
    frame.to_csv(tmp_path / name, index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / name), frame, check_dtype=False)


def test_parquet_equals_csv(tmp_path: Path) -> None:
    """Parquet keeps types and its own null; CSV keeps text. The numbers are the same."""
    frame = table(30)
    typed = pd.DataFrame({
        "age": frame["age"].astype(float),
        "pressure": pd.to_numeric(frame["pressure"]).replace(0, np.nan),
        "sex": frame["sex"].astype("category"),
        "stage": frame["stage"].astype("Int64"),
        "outcome": frame["outcome"],
    })  # fmt: skip
    typed.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    one, other = (encode(read_table(tmp_path / name), schema()) for name in ("t.parquet", "t.csv"))
    assert (one.features == other.features).all()
    assert (one.labels == other.labels).all()


def test_file_without_header_takes_the_declared_names(tmp_path: Path) -> None:
    frame = table(5)
    frame.to_csv(tmp_path / "t.data", index=False, header=False)
    names = list(frame.columns)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.data", names=names), frame, check_dtype=False)


@pytest.mark.parametrize(
    ("text", "names"),
    [("a,b\n1,2,3\n4,5,6\n", None), ("a,b\n1,2,\n4,5,\n", None), ("1,2,3\n4,5,6\n", ["a", "b"])],
    ids=["cell too many", "separator at the end", "name too few"],
)
def test_rows_wider_than_the_header_are_refused_not_shifted(tmp_path: Path, text: str, names: list[str] | None) -> None:
    """Pandas would take the first column for an index, and every cell would stand under its neighbour's name."""
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(LocalDataError, match="more cells than there are column names"):
        read_table(tmp_path / "t.csv", names=names)


@pytest.mark.parametrize(
    ("name", "text", "names", "places"),
    [
        ("t.csv", "age,sex,age\n1,f,2\n", None, (1, 3)),
        ("t.csv", "age, age\n1,2\n", None, (1, 2)),
        ("t.csv", "\ufeffage,sex,stage,sex,age\n1,f,2,m,3\n", None, (2, 4)),
        ("t.csv", '"a","a"\n1,2\n', None, (1, 2)),
        ("t.tsv", "sex\tage\tage\n1\t2\t3\n", None, (2, 3)),
        ("t.data", "1,2,3\n", ["a", "b", "a"], (1, 3)),
    ],
)
def test_two_columns_of_one_name_are_refused_by_their_places(
    tmp_path: Path, name: str, text: str, names: list[str] | None, places: tuple[int, int]
) -> None:
    """Pandas would rename the second one without a word, and nobody would know which of the two was trained on."""
    (tmp_path / name).write_text(text, encoding="utf-8")

    with pytest.raises(LocalDataError) as caught:
        read_table(tmp_path / name, names=names)

    assert caught.value.message == f"{name}: columns {places[0]} and {places[1]} have the same name"
    assert "rename one of them" in caught.value.remedy


def test_first_row_of_a_file_without_header_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("47371,47371,f\n47372,1,m\n", encoding="utf-8")

    with pytest.raises(LocalDataError) as caught:
        read_table(tmp_path / "t.csv")

    assert "47371" not in caught.value.diagnostics()
    assert "--columns" in caught.value.remedy


def test_columns_without_a_name_are_nobody_s_double(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("age,,\n47,1,2\n", encoding="utf-8")

    assert read_table(tmp_path / "t.csv")["age"].tolist() == ["47"]


def test_a_column_that_pandas_would_have_made_is_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("age,age.1\n47,48\n", encoding="utf-8")

    assert list(read_table(tmp_path / "t.csv").columns) == ["age", "age.1"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [(" 7 ", "7"), ("7.0", "7"), (7.0, "7"), (7, "7"), ("-7.00", "-7"), ("007", "007"), ("007.0", "007.0"),
     ("7.5", "7.5"), ("P7.0", "P7.0"), ("7.", "7."), ("0.0", "0")],
)  # fmt: skip
def test_identifier_is_one_text_however_a_table_writes_it(cell: object, text: str) -> None:
    assert identifier_text(cell) == text


def test_rows_of_a_patient_stay_together_however_the_number_is_written() -> None:
    frame = table(3).assign(patient=["7", "7.0", " 8"])

    rows = encode(frame, schema(patient="patient"))

    assert rows.identifiers == ("7", "8")
    assert rows.patients.tolist() == [0, 0, 1]


def test_byte_order_mark_and_spaces_after_the_separator_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfage, sex\r\n47, f\r\n")
    assert read_table(tmp_path / "t.csv").to_dict("list") == {"age": ["47"], "sex": ["f"]}


def test_cells_that_look_missing_to_pandas_stay_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\nNA,null\n", encoding="utf-8")
    assert read_table(tmp_path / "t.csv").to_dict("list") == {"a": ["NA"], "b": ["null"]}


PACKED = gzip.compress(b"age,sex\n47371,f\n" * 500)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b""),
        ("t.csv", b"a,b\n47371,2\n47372,5,6\n"),
        ("t.csv", b'a,b\n"47371,2\n'),
        ("t.csv", b"a,b\n\xe9 47371,2\n"),
        ("t.csv.gz", b"47371"),
        ("t.csv.gz", PACKED[:40]),
        ("t.csv.gz", PACKED[:30] + b"\xff\xff\xff" + PACKED[33:]),
        ("t.parquet", b"PAR1 47371 PAR1"),
        ("t.parquet", b""),
        ("t.xlsx", b"47371"),
        ("t", b"47371"),
    ],
    ids=[
        "empty",
        "ragged",
        "open quote",
        "latin-1",
        "no gzip",
        "cut gzip",
        "bent gzip",
        "bent",
        "zero",
        "xlsx",
        "none",
    ],
)
def test_broken_file_is_a_clear_error_without_a_value(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LocalDataError) as caught:
        read_table(tmp_path / name)
    assert name in caught.value.message
    assert caught.value.remedy
    assert "4737" not in caught.value.diagnostics()


def test_missing_file_and_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(LocalDataError, match="FileNotFoundError"):
        read_table(tmp_path / "nowhere.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(LocalDataError, match=r"folder\.csv"):
        read_table(tmp_path / "folder.csv")
