"""A draft tells the shape of a table and no patient; it runs as it is; it overwrites nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import FedwardError, LocalDataError, SchemaMismatchError, StudyError
from fedward_common.schema import CategoricalColumn, CohortSchema, NumericColumn
from fedward_common.tables import encode, feature_names, read_table
from fedward_conf.compose import compose_study
from fedward_simulations.column_guess import MOST_CATEGORIES, SMALLEST_GROUP, Cells, guess, outward
from fedward_simulations.drafting import _text, draft_study
from fedward_simulations.federation import assemble
from fedward_simulations.plan import draft_plan
from fedward_simulations.run import run

CANARIES = ("Wilhelmina", "Ottokar", "bronze lung", "2003-04-05", "P-0", "allergic", "Theodora")


def hospital(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    """Return rows that hold everything a draft must not tell, beside what it may."""
    draw = np.random.default_rng(seed)
    age, pressure = draw.integers(20, 90, rows), draw.normal(120, 15, rows).round(1)
    frame = pd.DataFrame({
        "age": age.astype(str),
        "pressure": np.where(draw.random(rows) < 0.2, "NA", pressure.astype(str)),
        "sex": draw.choice(["f", "m"], rows),
        "stage": draw.choice([1, 2, 3], rows).astype(str),
        "smoker": draw.choice(["never", "former", "current", ""], rows),
        "nurse": draw.choice(["Wilhelmina", "Ottokar"], rows, p=[0.02, 0.98]),
        "note": [f"patient {seed}{i} seen, allergic to cats" for i in range(rows)],
        "admitted": [f"2003-0{1 + i % 9}-05" for i in range(rows)],
        "seen": [f"{i % 24:02d}:15" for i in range(rows)],
        "record": [str(100_000 * (1 + seed) + i) for i in range(rows)],
        "ward": "13",
        "patient": [f"P-{seed}{i // 2}" for i in range(rows)],
        "outcome": np.where(age + pressure / 4 + draw.normal(0, 5, rows) > 85, "dead", "alive"),
    }).astype(str)  # fmt: skip
    frame.loc[:2, "nurse"] = ["Wilhelmina", "Ottokar", "Wilhelmina"]
    frame.loc[3:, "nurse"] = "Theodora"
    frame.loc[:1, "smoker"] = "bronze lung"
    return frame


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "data" / f"{name}.csv" for name in ("north", "south")]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        hospital(seed=seed).to_csv(path, index=False)
    return paths


def drafted(tables: list[Path], folder: Path, **changes: Any) -> list[Path]:
    options = {"label": "outcome", "positive": "dead", "patient": "patient"} | changes
    return draft_study("mine", tables, folder=folder, **options)


def schema_of(folder: Path, name: str = "mine") -> CohortSchema:
    values = compose_study([f"study={name}"], config_dir=folder)
    return draft_plan(values).study.cohort


def cells(values: list[str], people: list[int] | None = None, marks: tuple[str, ...] = ("", "NA")) -> Cells:
    series = pd.Series(values, dtype=str)
    persons = pd.Series(people if people is not None else range(len(values)))
    return Cells.of(series, persons, pd.Series(np.zeros(len(values), dtype=int)), marks)


# ---------------------------------------------------------------------------------------------------- what it tells


def test_a_draft_holds_no_cell_but_values_that_enough_patients_share(tables: list[Path], tmp_path: Path) -> None:
    text = " ".join(path.read_text(encoding="utf-8") for path in drafted(tables, tmp_path / "mine"))
    assert not [canary for canary in CANARIES if canary in text]
    columns = schema_of(tmp_path / "mine").columns.values()
    numbers = [c for c in columns if isinstance(c, NumericColumn)]
    bounds = {f"{bound:g}" for c in numbers for bound in (c.minimum, c.maximum, c.impute or 0)}
    words = set(re.findall(r"[\w.:@-]+", text)) - bounds - {"1", "2", "3", str(MOST_CATEGORIES)}
    frame = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in tables])
    for name in frame.columns:
        patients = frame.groupby(name)["patient"].nunique()
        assert not set(patients.index[patients < SMALLEST_GROUP]) & words, name


def test_a_draft_says_nothing_of_how_many_rows_there_are(tables: list[Path], tmp_path: Path) -> None:
    once = [path.read_text(encoding="utf-8") for path in drafted(tables, tmp_path / "once")]
    for path in tables:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        doubled = pd.concat([frame, frame.sample(frac=1, random_state=1)])
        doubled["record"] = [str(500_000 + i) for i in range(len(doubled))]
        doubled.to_csv(path, index=False)
    assert [path.read_text(encoding="utf-8") for path in drafted(tables, tmp_path / "twice")] == once


def test_a_value_of_one_patient_in_many_rows_is_still_rare() -> None:
    values = ["common", "usual"] * 10 + ["peculiar"] * 10
    assert guess(cells(values)) == (CategoricalColumn(categories=("common", "peculiar", "usual")), "")
    rarer = CategoricalColumn(categories=("common", "usual"), other=True)
    note = "rarer values were left out; `other` lets them in"
    assert guess(cells(values, people=[*range(20), *[20] * 10])) == (rarer, note)


@given(
    low=st.floats(-1e9, 1e9, allow_subnormal=False),
    width=st.floats(1e-3, 1e9, allow_subnormal=False),
)
def test_a_range_covers_the_rows_and_is_not_their_extremes(low: float, width: float) -> None:
    high = low + width
    minimum, maximum = map(float, outward(low, high))
    margin = (high - low) / 8
    assert minimum <= low - margin * 0.99 or minimum == 0 <= low
    assert maximum >= high + margin * 0.99 or maximum == 0 >= high
    assert maximum - minimum <= 9 * (high - low)


@pytest.mark.parametrize(("low", "high"), [(20.0, 90.0), (-3.0, 4.0), (103.0, 170.0), (6.95, 7.63), (1e-4, 3e-4)])
def test_many_extremes_give_one_range(low: float, high: float) -> None:
    width = high - low
    ranges = {outward(low + shift * width, high) for shift in np.linspace(0, 0.25, 200)}
    assert len(ranges) <= 4


def test_a_bound_of_zero_tells_no_extreme() -> None:
    assert {outward(low, 10.0)[0] for low in (0.0, 0.5, 1.0, 2.5)} == {0}
    assert {outward(-10.0, high)[1] for high in (0.0, -0.5, -1.0, -2.5)} == {0}


# ------------------------------------------------------------------------------------------------------ what it guesses


def test_columns_become_what_they_are(tables: list[Path], tmp_path: Path) -> None:
    drafted(tables, tmp_path / "mine")
    schema = schema_of(tmp_path / "mine")
    age, pressure = schema.columns["age"], schema.columns["pressure"]
    assert isinstance(age, NumericColumn)
    assert (age.integer, age.missing, age.unit) == (True, False, "unknown")
    assert isinstance(pressure, NumericColumn)
    assert pressure.missing
    assert pressure.impute == (pressure.minimum + pressure.maximum) / 2
    assert schema.columns["sex"] == CategoricalColumn(categories=("f", "m"))
    assert schema.columns["stage"] == CategoricalColumn(categories=(1, 2, 3))
    smoker = CategoricalColumn(categories=("current", "former", "never"), other=True, missing=True)
    assert schema.columns["smoker"] == smoker
    assert set(schema.columns) == {"age", "pressure", "sex", "stage", "smoker"}
    assert schema.missing_marks == ("", "NA")
    assert schema.patient == "patient"
    assert (schema.label.vocabulary, schema.label.positive) == (("alive", "dead"), ("dead",))


def test_what_is_left_out_is_named_with_its_reason(tables: list[Path], tmp_path: Path) -> None:
    text = drafted(tables, tmp_path / "mine", ignore=("sex",), time=("stage",))[0].read_text(encoding="utf-8")
    reasons = dict(re.findall(r'# "(\w+)" left out: (.*)', text))
    assert reasons == {
        "nurse": "fewer than two values that 5 patients or more share",
        "note": "more than 20 different texts, or long ones: an identifier or free text",
        "admitted": "a date or time",
        "seen": "a date or time",
        "record": "looks like an identifier: a whole number that no two rows share",
        "ward": "one value only",
        "sex": "ignored",
        "stage": "a date or time",
    }


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([f"{i},5" for i in range(30)], "decimal comma"),
        ([*map(str, range(30)), "> 89"], "numbers mixed with texts"),
        ([*map(str, range(30)), "inf"], "numbers mixed with texts"),
        ([str(10**16 + i % 9) for i in range(40)], "more than 15 digits"),
        (["20030405"] * 20 + ["20030406"] * 20, "date or time"),
        (["1.0"] * 10 + ["1"] * 10, "one value only"),
        (["1", "2", "3"] + [""] * 20, "fewer than 5 patients"),
        ([""] * 20, "fewer than 5 patients"),
        (["${oc.env:HOME}", "b"] * 9, "configuration"),
        (["???", "b"] * 9, "configuration"),
        (["x" * 61, "y"] * 9, "free text"),
        ([f"name {i}" for i in range(MOST_CATEGORIES)], "fewer than two values"),
    ],
)
def test_a_column_that_no_model_should_see_is_left_out(values: list[str], reason: str) -> None:
    found = guess(cells(values))
    assert isinstance(found, str)
    assert reason in found


def test_a_suspicious_minus_one_is_pointed_out_and_never_decided() -> None:
    found = guess(cells([*map(str, range(40)), *["-1"] * 6]))
    assert not isinstance(found, str)
    column, note = found
    assert isinstance(column, NumericColumn)
    assert column.minimum < -1
    assert "--missing -1" in note


def test_a_mark_of_the_authors_own_is_declared_and_keeps_out_of_the_range(tables: list[Path], tmp_path: Path) -> None:
    for path in tables:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame.loc[5:12, "age"] = "-1.0"
        frame.to_csv(path, index=False)
    drafted(tables, tmp_path / "mine", missing=("-1",))
    schema = schema_of(tmp_path / "mine")
    age = schema.columns["age"]
    assert isinstance(age, NumericColumn)
    assert (age.minimum, age.missing, age.integer) == (0, True, True)
    assert schema.missing_marks == ("", "NA", -1)
    assert encode(read_table(tables[0]), schema).features.shape[0] == 120


def test_parquet_gives_the_same_draft_as_csv(tables: list[Path], tmp_path: Path) -> None:
    typed = []
    for path in tables:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame["age"] = frame["age"].astype(int)
        frame["pressure"] = pd.to_numeric(frame["pressure"], errors="coerce")
        frame["admitted"] = pd.to_datetime(frame["admitted"])
        typed.append(path.with_suffix(".parquet"))
        frame.to_parquet(typed[-1])
    ours, theirs = (tmp_path / kind for kind in ("csv", "parquet"))
    drafted(tables, ours)
    drafted(typed, theirs)
    assert schema_of(theirs).columns == schema_of(ours).columns


def test_every_row_keeps_the_drafted_schema(tables: list[Path], tmp_path: Path) -> None:
    drafted(tables, tmp_path / "mine")
    schema = schema_of(tmp_path / "mine")
    for path in tables:
        rows = encode(read_table(path), schema)
        assert (len(rows.labels), rows.dropped) == (120, 0)
        assert np.abs(rows.features).max() <= 1


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_comes_back_from_yaml_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"{{key: {_text(text)}, {_text('k' + text)}: 1}}") == {"key": text, "k" + text: 1}


@pytest.mark.parametrize("odd", ["yes", "1e3", "0x10", "None", "a: b", "# no", "[x]", "é 😀", "'", '"', "~", "1_000"])
def test_odd_names_and_values_mean_themselves(odd: str, tmp_path: Path) -> None:
    frames = [pd.DataFrame({f"c {odd}": [odd, "plain"] * 20, "y": ["0", "1", "1", "0"] * 10}) for _ in range(2)]
    paths = []
    for index, frame in enumerate(frames):
        paths.append(tmp_path / f"t{index}.parquet")
        frame.to_parquet(paths[-1])
    draft_study("odd", paths, label="y", folder=tmp_path / "mine")
    column = schema_of(tmp_path / "mine", "odd").columns[f"c {odd}"]
    assert isinstance(column, CategoricalColumn)
    assert set(column.categories) == {odd, "plain"}
    assert encode(read_table(paths[0]), schema_of(tmp_path / "mine", "odd")).features.shape == (40, 1)


# ----------------------------------------------------------------------------------------------------- what it refuses


def test_a_file_that_is_there_is_not_overwritten(tables: list[Path], tmp_path: Path) -> None:
    for group in ("cohort", "study"):
        mine = tmp_path / group / group / "mine.yaml"
        mine.parent.mkdir(parents=True)
        mine.write_text("mine", encoding="utf-8")
        with pytest.raises(StudyError, match="overwrites nothing") as caught:
            drafted(tables, tmp_path / group)
        assert caught.value.remedy
        assert mine.read_text(encoding="utf-8") == "mine"
        assert len([path for path in (tmp_path / group).rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("name", ["breast_cancer", "heart_disease"])
def test_a_packaged_name_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=f"packaged.*|my_{name}"):
        draft_study(name, [Path("no such table.csv")], label="y", folder=tmp_path)


@pytest.mark.parametrize("name", ["Mine", "1st", "a-b", "../up", "", "a" * 64])
def test_a_name_that_no_study_may_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot name a study"):
        draft_study(name, [Path("a.csv"), Path("b.csv")], label="y", folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "outcom"}, r"no column 'outcom', which --label names \(is it 'outcome'\?\)"),
        ({"patient": "patent"}, r"which --patient names \(is it 'patient'\?\)"),
        ({"site_column": "wrd"}, r"which --site names \(is it 'ward'\?\)"),
        ({"time": ("admited",)}, r"which --time names \(is it 'admitted'\?\)"),
        ({"ignore": ("xyz",)}, "no column 'xyz', which --ignore names$"),
        ({"ignore": ("outcome",)}, "'outcome' is named in two options"),
        ({"positive": "ded"}, r"'ded' is no value of 'outcome' \(is it 'dead'\?\); common are 'alive', 'dead'"),
        ({"positive": ["alive", "dead"]}, "every value is positive"),
        ({"positive": None}, "the values 'alive', 'dead'; which one is the outcome"),
        ({"label": "age"}, "too many different values"),
        ({"label": "ward", "positive": None}, "fewer than two values"),
    ],
)
def test_a_column_or_an_outcome_that_is_not_plain_is_refused(
    changes: dict[str, Any], message: str, tables: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(FedwardError, match=message) as caught:
        drafted(tables, tmp_path / "mine", **changes)
    assert caught.value.remedy or "positive" in message
    assert not (tmp_path / "mine").exists()


def test_several_outcomes_need_the_authors_word(tables: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="'1', '2', '3'; which one") as caught:
        drafted(tables, tmp_path / "mine", label="stage", positive=None)
    assert "--positive VALUE" in caught.value.remedy
    drafted(tables, tmp_path / "mine", label="stage", positive=["2", "3"])
    label = schema_of(tmp_path / "mine").label
    assert (label.vocabulary, label.positive) == ((1, 2, 3), (2, 3))


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("no", "yes"), ("False", "True"), ("N", "Y")])
def test_a_plain_outcome_needs_no_word(no: str, yes: str, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.csv", "b.csv")]
    for path in paths:
        pd.DataFrame({"x": ["1.5", "2.5"] * 10, "y": [no, yes] * 10}).to_csv(path, index=False)
    draft_study("mine", paths, label="y", folder=tmp_path)
    assert [str(value) for value in schema_of(tmp_path).label.positive] == [yes]


def test_a_rare_label_value_is_not_written_and_breaks_the_schema(tables: list[Path], tmp_path: Path) -> None:
    frame = pd.read_csv(tables[0], dtype=str, keep_default_na=False)
    frame.loc[0, "outcome"] = "ded"
    frame.to_csv(tables[0], index=False)
    text = drafted(tables, tmp_path / "mine")[0].read_text(encoding="utf-8")
    assert "rarer values were left out" in text
    assert not re.search(r"\bded\b", text)
    with pytest.raises(SchemaMismatchError) as caught:
        encode(frame, schema_of(tmp_path / "mine"))
    assert caught.value.counts == {"outcome: not in the label's vocabulary": 1}


@pytest.mark.parametrize("role", ["patient", "site_column"])
def test_a_row_without_its_patient_or_hospital_is_refused(role: str, tables: list[Path], tmp_path: Path) -> None:
    frame = pd.read_csv(tables[0], dtype=str, keep_default_na=False)
    frame.loc[3:4, "patient"] = ""
    frame.to_csv(tables[0], index=False)
    with pytest.raises(LocalDataError, match=r"north\.csv: 2 rows have nothing in 'patient'"):
        drafted(tables, tmp_path / "mine", **({"patient": None} | {role: "patient"}))


def test_tables_that_are_no_federation_are_refused(tables: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="a federation needs two") as caught:
        drafted(tables[:1], tmp_path / "mine")
    assert "--site COLUMN" in caught.value.remedy
    with pytest.raises(StudyError, match="gives no name for a hospital that is its own"):
        drafted([tables[0], tables[0]], tmp_path / "mine")


def test_a_table_with_semicolons_is_recognised(tables: list[Path], tmp_path: Path) -> None:
    for path in tables:
        path.write_text(path.read_text(encoding="utf-8").replace(",", ";"), encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        drafted(tables, tmp_path / "mine")
    assert "';'" in caught.value.remedy


def test_what_the_configuration_would_fill_in_is_refused(tables: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / "${oc.env:HOME}"
    odd.mkdir()
    moved = [path.rename(odd / path.name) for path in tables]
    with pytest.raises(StudyError, match="the table's path holds"):
        drafted(moved, tmp_path / "mine")


# -------------------------------------------------------------------------------------------- what becomes of a draft


def test_a_study_runs_from_any_directory(tables: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tables[0].parent)
    drafted([Path(path.name) for path in tables], tmp_path / "mine")
    monkeypatch.chdir("/")
    plan = draft_plan(compose_study(["study=mine"], config_dir=tmp_path / "mine"))
    assert set(assemble(plan.source, plan.study.cohort, seed=1).tables) == {"north", "south"}


@pytest.mark.parametrize("privacy", ["none", "dp_tight_clip"])
def test_a_drafted_study_trains_as_it_stands(privacy: str, tables: list[Path], tmp_path: Path) -> None:
    drafted(tables, tmp_path / "mine")
    finished = run(
        ["study=mine", f"privacy={privacy}", "training.rounds=6", "engine.baselines=false", "evaluation.bootstrap=100"],
        config_dir=tmp_path / "mine",
        out=tmp_path / "runs",
    )
    assert (finished.result.status, finished.result.reason) == ("completed", None)
    assert sorted(finished.result.sites) == ["north", "south"]
    assert len(finished.result.rounds) == 6
    if privacy == "none":
        auroc = finished.result.central["auroc"].value
        assert auroc is not None
        assert auroc > 0.85


def test_one_site_for_each_value_of_a_column(tmp_path: Path) -> None:
    whole = pd.concat([hospital(seed=seed).assign(ward=f"w{seed}") for seed in range(6)])
    whole.to_csv(tmp_path / "all.csv", index=False)
    drafted([tmp_path / "all.csv"], tmp_path / "mine", site_column="ward")
    plan = draft_plan(compose_study(["study=mine"], config_dir=tmp_path / "mine"))
    assert sorted(assemble(plan.source, plan.study.cohort, seed=1).tables) == [f"w{seed}" for seed in range(6)]


# ------------------------------------------------------------------------------- what the schema says that drafts need


def schema(**changes: Any) -> CohortSchema:
    return CohortSchema.model_validate(
        {
            "columns": {
                "x": {"kind": "numeric", "unit": "1", "minimum": 0, "maximum": 10, "missing": True, "impute": 5}
            },
            "label": {"column": "y", "vocabulary": ["no", "yes"], "positive": ["yes"]},
        }
        | changes
    )


def test_drop_unlabelled_leaves_out_rows_without_a_label_and_no_others() -> None:
    frame = pd.DataFrame({"x": ["1", "", "3", "?"], "y": ["no", "yes", "", "NA"]})
    rows = encode(frame, schema(incomplete_rows="drop_unlabelled"))
    assert rows.dropped == 2
    assert rows.labels.tolist() == [0, 1]
    assert rows.features[:, 1].tolist() == [0, 1]
    assert encode(frame, schema(incomplete_rows="drop")).dropped == 3
    with pytest.raises(SchemaMismatchError):
        encode(frame, schema(incomplete_rows="reject"))


def test_drop_unlabelled_still_rejects_a_gap_where_none_may_be() -> None:
    column = {"kind": "numeric", "unit": "1", "minimum": 0, "maximum": 10}
    frame = pd.DataFrame({"x": ["1", "", "3"], "y": ["no", "yes", ""]})
    with pytest.raises(SchemaMismatchError) as caught:
        encode(frame, schema(columns={"x": column}, incomplete_rows="drop_unlabelled"))
    assert caught.value.counts == {"x: missing": 1}


def test_values_outside_an_open_list_have_no_feature() -> None:
    column = {"kind": "categorical", "categories": ["a", "b"], "other": True, "missing": True}
    declared = schema(columns={"x": column})
    assert feature_names(declared) == ("x=a", "x=b", "x missing")
    frame = pd.DataFrame({"x": ["a", "b", "rare", ""], "y": ["no"] * 4})
    assert encode(frame, declared).features.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert encode(frame, declared).features[2].any() == np.False_


def test_codes_outside_an_open_list_have_no_feature_and_texts_are_broken() -> None:
    declared = schema(columns={"x": {"kind": "categorical", "categories": [1, 2, 3], "other": True}})
    frame = pd.DataFrame({"x": ["1", "3.0", "7"], "y": ["no"] * 3})
    assert encode(frame, declared).features.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    with pytest.raises(SchemaMismatchError) as caught:
        encode(frame.assign(x=["1", "2", "seven"]), declared)
    assert "x: not a number" in caught.value.counts


def test_an_open_list_may_have_a_group() -> None:
    column = {"kind": "categorical", "categories": ["a", "b"], "group": ["b"], "other": True}
    frame = pd.DataFrame({"x": ["a", "b", "rare"], "y": ["no"] * 3})
    assert encode(frame, schema(columns={"x": column})).features.tolist() == [[0], [1], [0]]
