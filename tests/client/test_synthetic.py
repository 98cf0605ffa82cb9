"""Synthetic cohorts keep every schema, hold every declared thing, and come of schema and seed alone."""

from __future__ import annotations

import builtins
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client.synthetic import Synthetic, synthetic_cohort
from fedward_common.errors import StudyError
from fedward_common.images import ImageFolder
from fedward_common.schema import CohortSchema
from fedward_common.tables import Rows, encode
from tests.builders import small_study

SMALL = small_study().cohort


def schema(**changes: Any) -> CohortSchema:
    return CohortSchema.model_validate(SMALL.model_dump(mode="json") | changes)


def with_column(column: dict[str, Any], **changes: Any) -> CohortSchema:
    return schema(columns={"x": column}, **changes)


def encoded(made: Synthetic, declared: CohortSchema, folder: Path | None = None) -> Rows:
    images = None
    if folder is not None:
        for place, content in made.images.items():
            (folder / place).write_bytes(content)
        images = ImageFolder(folder)
    return encode(made.frame, declared, images)


NUMBERS = st.builds(
    lambda low, width, whole, missing, marks: {
        "kind": "numeric",
        "unit": "1",
        "minimum": low,
        "maximum": low + width,
        "integer": whole,
        "missing": missing,
        "missing_marks": marks,
        "impute": low if missing else None,
    },
    st.integers(-1000, 1000),
    st.sampled_from([1, 7, 100, 100_000]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([[], [-1], [0, "unknown"], [9999]]),
)
CATEGORIES = st.builds(
    lambda values, other, missing, marks: {
        "kind": "categorical",
        "categories": values,
        "other": other,
        "missing": missing,
        "missing_marks": marks,
    },
    st.sampled_from([["f", "m"], [0, 1], [1, 2, 3], ["a", 1], ["x,y", 'say "no"', "line\nbreak"], [0.5, 1.5]]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([[], ["unknown"], [-9], ["m"]]),
)
LABELS = st.sampled_from(
    [
        {"column": "outcome", "vocabulary": ["no", "yes"], "positive": ["yes"]},
        {"column": "outcome", "vocabulary": [0, 1, 2, 3], "positive": [1, 2, 3]},
        {"column": "outcome", "vocabulary": ["alive", "dead", "unknown"], "positive": ["dead"]},
    ]
)
SCHEMAS = st.builds(
    lambda columns, label, patient, cap, rows, marks: CohortSchema.model_validate(
        {
            "columns": columns,
            "label": label,
            "patient": patient,
            "max_rows_per_patient": cap,
            "incomplete_rows": rows,
            "missing_marks": marks,
        }
    ),
    st.dictionaries(st.sampled_from(["age", "a.b", "sex", "x y", "é"]), NUMBERS | CATEGORIES, min_size=1, max_size=4),
    LABELS,
    st.sampled_from([None, "patient"]),
    st.sampled_from([1, 3, 8]),
    st.sampled_from(["reject", "drop", "drop_unlabelled"]),
    st.sampled_from([["", "NA", "?"], [], [-99], ["NA", 0.25]]),
)


@given(declared=SCHEMAS, patients=st.sampled_from([1, 2, 30]), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_rows_keep_every_schema_and_no_patient_is_lost(declared: CohortSchema, patients: int, seed: int) -> None:
    made = synthetic_cohort(declared, patients=patients, seed=seed)

    rows = encoded(made, declared)

    assert rows.patient_count == patients
    assert np.isfinite(rows.features).all()


@given(declared=SCHEMAS, seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_rows_are_a_function_of_schema_and_seed(declared: CohortSchema, seed: int) -> None:
    one, two = (synthetic_cohort(declared, patients=20, seed=seed) for _ in range(2))

    assert one.frame.equals(two.frame)
    assert one.images == two.images
    assert not one.frame.equals(synthetic_cohort(declared, patients=20, seed=seed + 1).frame)


def test_both_ends_of_a_range_occur_and_nothing_beyond() -> None:
    found = synthetic_cohort(SMALL, patients=300, seed=1).frame["age"].astype(float)

    assert (found.min(), found.max()) == (18, 100)


def test_whole_numbers_stay_whole() -> None:
    declared = with_column({"kind": "numeric", "unit": "1", "minimum": 0.5, "maximum": 3.5, "integer": True})

    found = set(synthetic_cohort(declared, patients=50, seed=1).frame["x"])

    assert found == {"1", "2", "3"}


def test_every_category_occurs_and_a_value_beyond_an_open_list() -> None:
    declared = with_column({"kind": "categorical", "categories": ["a", "b", "c"], "other": True})

    found = set(synthetic_cohort(declared, patients=50, seed=1).frame["x"])

    assert {"a", "b", "c"} < found
    assert len(found) == 4


def test_both_outcomes_occur_even_with_two_patients() -> None:
    assert set(synthetic_cohort(SMALL, patients=2, seed=1).frame["outcome"]) == {"no", "yes"}


@pytest.mark.parametrize(
    ("own", "common", "expected"), [([0], [], {"0", None}), ([0], ["NA"], {"0", "NA"}), ([], [], {None})]
)
def test_missing_marks_occur_where_a_value_may_be_missing(
    own: list[Any], common: list[str], expected: set[str | None]
) -> None:
    column = {"kind": "numeric", "unit": "1", "minimum": 1, "maximum": 9, "missing": True, "missing_marks": own}
    declared = with_column({**column, "impute": 5}, missing_marks=common)

    made = synthetic_cohort(declared, patients=200, seed=1)

    marked = {value for value in made.frame["x"] if value is None or value in {"0", "NA"}}
    share = float(encoded(made, declared).features[:, 1].mean())
    assert marked == expected
    assert 0.05 < share < 0.3


def test_a_value_that_is_also_a_mark_is_not_drawn_where_nothing_may_be_missing() -> None:
    column = {"kind": "numeric", "unit": "1", "minimum": 0, "maximum": 4, "integer": True, "missing_marks": [0, 2]}

    found = set(synthetic_cohort(with_column(column), patients=60, seed=1).frame["x"])

    assert found == {"1", "3", "4"}


def test_patients_have_several_rows_one_more_than_are_used() -> None:
    declared = schema(patient="patient", max_rows_per_patient=2)

    counts = synthetic_cohort(declared, patients=40, seed=1).frame["patient"].value_counts()

    assert len(counts) == 40
    assert counts.min() == 1
    assert counts.max() > 2


def test_rows_that_the_schema_leaves_out_occur() -> None:
    declared = schema(patient="patient", incomplete_rows="drop")

    rows = encoded(synthetic_cohort(declared, patients=60, seed=1), declared)

    assert rows.dropped > 0
    assert rows.patient_count == 60


@pytest.mark.parametrize(
    "column",
    [
        {"kind": "numeric", "unit": "1", "minimum": 0.2, "maximum": 0.8, "integer": True},
        {"kind": "categorical", "categories": ["NA", "?"]},
        {"kind": "image", "unit": "HU", "height": 2, "width": 2, "minimum": -1000, "maximum": -1},
    ],
)
def test_schema_that_allows_no_value_is_its_author_s_to_correct(column: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="x: "):
        synthetic_cohort(with_column(column), patients=3, seed=1)


@pytest.mark.parametrize(
    "image",
    [
        {"minimum": 0, "maximum": 255},
        {"minimum": 100, "maximum": 4095},
        {"minimum": -1000, "maximum": 2000},
        {"minimum": -1000, "maximum": -1, "outside": "clip"},
        {"minimum": 0, "maximum": 255, "channels": 3},
        {"minimum": 0, "maximum": 255, "resize": "fit"},
        {"minimum": 0.2, "maximum": 0.8, "outside": "clip", "resize": "stretch"},
    ],
)
def test_pictures_keep_what_the_schema_declares(tmp_path: Path, image: dict[str, Any]) -> None:
    declared = with_column({"kind": "image", "unit": "grey level", "height": 5, "width": 4} | image)
    made = synthetic_cohort(declared, patients=6, seed=1)

    rows = encoded(made, declared, tmp_path)

    assert rows.features.shape == (6, 5 * 4 * image.get("channels", 1))
    assert len(set(made.images.values())) == 6
    assert np.abs(rows.features).max() <= 1


def test_generator_has_nothing_to_read_patients_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file nor a socket is opened, whatever the schema."""
    declared = with_column({"kind": "image", "unit": "1", "height": 2, "width": 2, "minimum": 0, "maximum": 255})
    synthetic_cohort(declared, patients=1, seed=1)  # libraries are loaded now

    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("the generator opens something")

    for owner, name in ((builtins, "open"), (os, "open"), (socket, "socket")):
        monkeypatch.setattr(owner, name, forbidden)

    assert len(synthetic_cohort(declared, patients=9, seed=2).frame) == 9
