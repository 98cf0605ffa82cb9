"""What a schema may declare, and the features that follow from it alone."""

from __future__ import annotations

from typing import Any

import pytest

from fedward_common.contract import validated
from fedward_common.errors import StudyError
from fedward_common.schema import CohortSchema
from fedward_common.tables import feature_names

AGE = {"kind": "numeric", "unit": "years", "minimum": 18, "maximum": 100}
LABEL = {"column": "y", "vocabulary": [0, 1], "positive": [1]}


def schema(columns: dict[str, Any], **rest: Any) -> CohortSchema:
    return validated(CohortSchema, {"columns": columns, "label": LABEL} | rest)


def category(**rest: Any) -> dict[str, Any]:
    return {"kind": "categorical", "categories": ["a", "b", "c"]} | rest


@pytest.mark.parametrize(
    ("column", "names"),
    [
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
