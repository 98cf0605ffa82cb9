"""What a schema may declare, and the features that follow from it alone."""

from __future__ import annotations

from typing import Any

import pytest

from fedward_common.contract import validated
from fedward_common.errors import StudyError
from fedward_common.schema import CohortSchema
from fedward_common.tables import feature_count, feature_names

AGE = {"kind": "numeric", "unit": "years", "minimum": 18, "maximum": 100}
LABEL = {"column": "y", "vocabulary": [0, 1], "positive": [1]}


def schema(columns: dict[str, Any], **rest: Any) -> CohortSchema:
    return validated(CohortSchema, {"columns": columns, "label": LABEL} | rest)


def category(**rest: Any) -> dict[str, Any]:
    return {"kind": "categorical", "categories": ["a", "b", "c"]} | rest


SCAN = {"kind": "image", "unit": "HU", "height": 1, "width": 2, "minimum": -1000, "maximum": 1000}


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (SCAN, ["x[0,0]", "x[0,1]"]),
        (SCAN | {"height": 2, "width": 1, "channels": 3}, [f"x[{r},0,{c}]" for r in range(2) for c in range(3)]),
        (AGE, ["x"]),
        (AGE | {"missing": True, "impute": 50}, ["x", "x missing"]),
        (category(), ["x=a", "x=b", "x=c"]),
        (category(missing=True), ["x=a", "x=b", "x=c", "x missing"]),
        (category(categories=["f", "m"]), ["x=m"]),
        (category(categories=["f", "m"], other=True), ["x=f", "x=m"]),
        (category(group=["a", "c"]), ["x=a|c"]),
        (category(categories=["f", "m"], group=["f"]), ["x=f"]),
    ],
)
def test_features_of_a_column(column: dict[str, Any], names: list[str]) -> None:
    assert feature_names(schema({"x": column})) == tuple(names)
    assert feature_count(schema({"x": column})) == len(names)


def test_features_stand_in_the_order_of_their_names_whatever_the_file_says() -> None:
    forwards = schema({"b": AGE, "a": AGE, "c": AGE})
    assert feature_names(forwards) == ("a", "b", "c")
    assert forwards == schema({"c": AGE, "a": AGE, "b": AGE})


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (AGE | {"minimum": 100, "maximum": 18}, "below"),
        (AGE | {"minimum": 18, "maximum": 18}, "below"),
        (AGE | {"missing": True}, "impute"),
        (AGE | {"impute": 10}, "outside"),
        (AGE | {"unit": ""}, "unit"),
        (AGE | {"maximum": 1e300}, "at most"),
        (AGE | {"minimum": -1e300}, "at least"),
        (category(categories=["a"]), "at least 2"),
        (category(categories=["a", "a"]), "listed twice"),
        (category(categories=[1, 1.0]), "listed twice"),
        (category(categories=[1, "1"]), "listed twice"),
        (category(categories=[1, 10**400]), "numbers end"),
        (category(categories=[True, False]), "in quotes"),
        (category(group=["d"]), "group"),
        (category(group=["a", "b", "c"]), "group"),
        (category(group=[]), "group"),
        ({"kind": "categorical"}, "categories is missing"),
        (SCAN | {"minimum": 1000}, "below"),
        (SCAN | {"height": 0}, "at least 1 pixels"),
        (SCAN | {"width": 1025}, "at most 1024 pixels"),
        (SCAN | {"height": 257, "width": 256}, "65792 pixel values together, at most 65536"),
        (SCAN | {"channels": 2}, "channels"),
        (SCAN | {"unit": ""}, "unit"),
        (SCAN | {"resize": "crop"}, "resize"),
        (SCAN | {"outside": "wrap"}, "outside"),
        (SCAN | {"missing": True}, "unknown key"),
        ({"kind": "picture"}, "must be one of .*image"),
    ],
)
def test_column_that_means_nothing_is_refused(column: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        schema({"x": column})


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (LABEL | {"positive": [2]}, "not in the vocabulary"),
        (LABEL | {"positive": [0, 1]}, "nothing to tell apart"),
        (LABEL | {"positive": []}, "positive"),
        (LABEL | {"vocabulary": [True, False], "positive": [True]}, "in quotes"),
        (LABEL | {"column": "x"}, "also listed as a feature"),
    ],
)
def test_label_that_tells_nothing_apart_is_refused(label: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        schema({"x": AGE}, label=label)


def test_patient_identifier_is_no_feature() -> None:
    with pytest.raises(StudyError, match="patient identifier"):
        schema({"x": AGE}, patient="x")


@pytest.mark.parametrize("columns", [{}, {"": AGE}, {"\ud800": AGE}, {"x" * 201: AGE}])
def test_columns_need_names(columns: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="columns"):
        schema(columns)


def test_pictures_of_one_study_are_bounded_together() -> None:
    half = SCAN | {"height": 128, "width": 256}
    assert len(schema({"a": half, "b": half}).images) == 2
    with pytest.raises(StudyError, match="98304 pixel values together"):
        schema({"a": half, "b": half, "c": half})


def test_a_schema_names_its_pictures() -> None:
    declared = schema({"scan": SCAN, "age": AGE})

    assert list(declared.images) == ["scan"]
    assert declared.images["scan"].size == 2
    assert schema({"age": AGE}).images == {}


def test_a_third_kind_of_column_changes_no_digest_of_a_study_without_it() -> None:
    """What was signed before there were pictures is still what it was."""
    keys = {"description", "columns", "label", "patient", "max_rows_per_patient", "missing_marks", "incomplete_rows"}

    assert set(schema({"x": AGE}).model_dump(mode="json")) == keys
