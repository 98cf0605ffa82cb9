"""From tables to simulated hospitals: FLamby's rows, whole patients on one side, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedward_client.cohorts import open_cohort
from fedward_client.readiness import assess
from fedward_client.site import Site
from fedward_common.errors import LocalDataError, SchemaMismatchError, SplitOverlapError, StudyError
from fedward_common.schema import CohortSchema
from fedward_common.tables import encode
from fedward_common.wire import Task
from fedward_conf.compose import compose_study
from fedward_simulations.federation import Federation, Tables, assemble, data_folder, settle
from fedward_simulations.plan import draft_plan
from tests.builders import contract, open_policy, small_study, table
from tests.pictures import digits_contract, digits_folder

needs_heart_disease = pytest.mark.skipif(
    not (data_folder() / "heart_disease").is_dir(),
    reason="no heart_disease below FEDWARD_DATA or ../shared/data: run `fedward data get heart_disease`",
)


def schema(**changes: Any) -> CohortSchema:
    return small_study(cohort={**contract()["cohort"], **changes}).cohort


def write(folder: Path, **frames: pd.DataFrame) -> Tables:
    """Write one CSV for each site and return the source that names them."""
    folder.mkdir(exist_ok=True)
    for site, frame in frames.items():
        frame.to_csv(folder / f"{site}.csv", index=False)
    return Tables(kind="tables", folder=str(folder), tables={site: f"{site}.csv" for site in frames})


def composed(*overrides: str) -> Federation:
    plan = draft_plan(compose_study(overrides))
    return assemble(plan.source, plan.study.cohort, seed=plan.study.seed)


def sizes(federation: Federation, of: CohortSchema) -> dict[str, tuple[int, int]]:
    """Return for each site its rows for training and those at the centre."""
    centres = federation.hold_out.centres
    held = {name: int((centres == code).sum()) for code, name in enumerate(federation.hold_out.names)}
    return {site: (len(encode(frame, of).labels), held.get(site, 0)) for site, frame in federation.tables.items()}


# -------------------------------------------------------------------------------------------------------- heart_disease
@needs_heart_disease
def test_heart_disease_has_flambys_rows_and_split() -> None:
    plan = draft_plan(compose_study(["study=heart_disease"]))
    federation = assemble(plan.source, plan.study.cohort, seed=1)
    assert sizes(federation, plan.study.cohort) == {
        "cleveland": (199, 104),
        "budapest": (172, 89),
        "zurich_basel": (30, 16),
        "long_beach": (85, 45),
    }
    assert federation.rejected == {}


@needs_heart_disease
def test_flambys_split_is_the_same_for_every_seed() -> None:
    one, other = composed("study=heart_disease"), composed("study=heart_disease", "seed=7")
    np.testing.assert_array_equal(one.hold_out.rows.features, other.hold_out.rows.features)


@needs_heart_disease
def test_zurich_and_basel_keep_their_one_healthy_patient_on_one_side() -> None:
    plan = draft_plan(compose_study(["study=heart_disease"]))
    federation = assemble(plan.source, plan.study.cohort, seed=1)
    code = federation.hold_out.names.index("zurich_basel")
    central = federation.hold_out.rows.labels[federation.hold_out.centres == code]
    local = encode(federation.tables["zurich_basel"], plan.study.cohort).labels
    assert int((central == 0).sum() + (local == 0).sum()) >= 1
    assert len(central) + len(local) == 46


@needs_heart_disease
def test_no_row_of_heart_disease_is_lost_or_doubled() -> None:
    plan = draft_plan(compose_study(["study=heart_disease"]))
    federation = assemble(plan.source, plan.study.cohort, seed=1)
    total = sum(len(frame) for frame in federation.tables.values()) + len(federation.hold_out.centres)
    assert total == 740


def test_missing_data_set_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_DATA", str(tmp_path))
    with pytest.raises(LocalDataError, match="heart_disease is not at") as caught:
        composed("study=heart_disease")
    assert "fedward data get heart_disease" in caught.value.remedy
    assert "FEDWARD_DATA" in caught.value.remedy


def test_the_data_folder_is_the_configured_one_then_the_one_beside_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDWARD_DATA", str(tmp_path / "mine"))
    assert data_folder() == tmp_path / "mine"
    monkeypatch.delenv("FEDWARD_DATA")
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    assert data_folder() == Path.home() / ".fedward" / "data"
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert data_folder().resolve() == (tmp_path / "shared" / "data").resolve()
    assert "FEDWARD_DATA" not in os.environ


# -------------------------------------------------------------------------------------------------------- breast_cancer
def test_breast_cancer_is_dealt_out_by_shares_and_split_by_outcome() -> None:
    plan = draft_plan(compose_study([]))
    federation = assemble(plan.source, plan.study.cohort, seed=1)
    found = sizes(federation, plan.study.cohort)
    assert {site: sum(pair) for site, pair in found.items()} == {"north": 256, "east": 159, "south": 97, "west": 57}
    for site, (_, held) in found.items():
        code = federation.hold_out.names.index(site)
        central = federation.hold_out.rows.labels[federation.hold_out.centres == code]
        local = encode(federation.tables[site], plan.study.cohort).labels
        assert held == pytest.approx(0.2 * sum(found[site]), abs=1)
        assert central.mean() == pytest.approx(local.mean(), abs=0.05)


def test_breast_cancer_depends_on_the_seed_alone() -> None:
    one, again, other = composed(), composed(), composed("seed=2")
    np.testing.assert_array_equal(one.hold_out.rows.features, again.hold_out.rows.features)
    assert not np.array_equal(one.hold_out.rows.features, other.hold_out.rows.features)


def test_no_tumour_is_dealt_out_twice() -> None:
    plan = draft_plan(compose_study([]))
    federation = assemble(plan.source, plan.study.cohort, seed=1)
    rows = [encode(frame, plan.study.cohort).features for frame in federation.tables.values()]
    everything = np.concatenate([*rows, federation.hold_out.rows.features])
    assert everything.shape == (569, 30)
    assert len(np.unique(everything, axis=0)) == 569


def test_shares_that_do_not_sum_to_one_are_an_error_that_names_the_key() -> None:
    with pytest.raises(StudyError, match=r"cohort\.source\.hospitals sum to 1\.05, not to 1"):
        composed("cohort.source.hospitals.west=0.15")


# -------------------------------------------------------------------------------------------------- patients and splits
def patients_of(frame: pd.DataFrame) -> set[str]:
    return set(frame["patient"].astype(str).str.strip())


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_patient_stay_together_even_when_the_patient_is_at_two_sites(tmp_path: Path, seed: int) -> None:
    frames = {"a": table(90, 1, patients=30), "b": table(90, 2, patients=30), "c": table(60, 3, patients=30)}
    source, of = write(tmp_path, **frames), schema(patient="patient")
    federation = assemble(source, of, seed=seed)
    central = set(federation.hold_out.rows.identifiers or ())
    assert central
    for site, frame in federation.tables.items():
        assert not patients_of(frame) & central
        held = patients_of(frames[site]) - patients_of(frame)
        assert held <= central
        assert len(frame) == frames[site]["patient"].isin(patients_of(frame)).sum()


def test_identifiers_with_spaces_around_them_are_one_patient(tmp_path: Path) -> None:
    frame = table(60, 1, patients=20)
    spaced = frame.assign(patient=[f" {p} " if n % 2 else p for n, p in enumerate(frame["patient"])])
    federation = assemble(write(tmp_path, a=spaced, b=table(40, 2, patients=5)), schema(patient="patient"), seed=1)
    central = set(federation.hold_out.rows.identifiers or ())
    assert not patients_of(federation.tables["a"]) & central


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_hold_outs_share_is_kept_in_each_outcome(tmp_path: Path, share: float) -> None:
    source = write(tmp_path, a=table(200, 1)).model_copy(update={"hold_out": share})
    federation = assemble(source, schema(), seed=1)
    whole, central = encode(table(200, 1), schema()).labels, federation.hold_out.rows.labels
    for outcome in (0, 1):
        assert (central == outcome).sum() == round((whole == outcome).sum() * share)


def own_hold_out(source: Tables, folder: Path, central: pd.DataFrame) -> Tables:
    central.to_csv(folder / "central.csv", index=False)
    return source.model_copy(update={"hold_out_table": "central.csv"})


def test_with_a_central_table_the_sites_keep_all_their_rows(tmp_path: Path) -> None:
    source = own_hold_out(write(tmp_path, a=table(40, 1), b=table(30, 2)), tmp_path, table(25, 3))
    federation = assemble(source, schema(), seed=1)
    assert {site: len(frame) for site, frame in federation.tables.items()} == {"a": 40, "b": 30}
    assert federation.hold_out.names == ("central",)
    assert len(federation.hold_out.centres) == len(federation.hold_out.rows.labels) == 25


def test_patient_of_the_central_table_at_a_site_is_refused(tmp_path: Path) -> None:
    frames = {"a": table(40, 1, patients=20), "b": table(40, 2, patients=20)}
    central = table(10, 3, patients=5).assign(patient=[*(["q1"] * 9), " p0003 "])
    source = own_hold_out(write(tmp_path, **frames), tmp_path, central)
    with pytest.raises(SplitOverlapError, match="also at a site") as caught:
        assemble(source, schema(patient="patient"), seed=1)
    assert "p0003" not in caught.value.diagnostics()


@pytest.mark.parametrize("respelt", [False, True])
def test_row_of_the_central_table_at_a_site_is_refused_without_identifiers(tmp_path: Path, *, respelt: bool) -> None:
    frame = table(40, 1)
    copied = frame.iloc[[7]].assign(age=f" {frame['age'][7]}.0") if respelt else frame.iloc[[7]]
    source = own_hold_out(write(tmp_path, a=frame, b=table(30, 2)), tmp_path, pd.concat([table(20, 3), copied]))
    with pytest.raises(SplitOverlapError, match=r"\(a: 1\)"):
        assemble(source, schema(), seed=1)


def test_identifiers_that_differ_in_leading_zeros_are_two_patients(tmp_path: Path) -> None:
    frame, central = table(3, 1).assign(patient=["7", "8", "9"]), table(2, 2).assign(patient=["007", "008"])
    source = own_hold_out(write(tmp_path, a=frame, b=table(3, 3).assign(patient=list("xyz"))), tmp_path, central)
    assert len(assemble(source, schema(patient="patient"), seed=1).hold_out.centres) == 2


def test_incomplete_rows_of_the_central_table_are_dropped_with_their_centre(tmp_path: Path) -> None:
    central = table(20, 3)
    central.loc[3, "age"] = "?"
    source = own_hold_out(write(tmp_path, a=table(40, 1), b=table(30, 2)), tmp_path, central)
    federation = assemble(source, schema(incomplete_rows="drop"), seed=1)
    assert len(federation.hold_out.centres) == len(federation.hold_out.rows.labels) == 19


def test_site_that_is_called_central_is_a_site_like_any_other(tmp_path: Path) -> None:
    frame = pd.concat([table(30, 1)] * 2, ignore_index=True)  # equal rows, as coarse measurements give
    federation = assemble(write(tmp_path, central=frame, b=table(30, 2)), schema(), seed=1)
    assert federation.tables.keys() == {"central", "b"}


# ---------------------------------------------------------------------------------------------------------- site column
def by_column(tmp_path: Path, hospitals: list[str], **changes: Any) -> Federation:
    whole = table(60, 1).assign(hospital=[hospitals[n % len(hospitals)] for n in range(60)])
    source = write(tmp_path, all=whole).model_copy(update={"site_column": "hospital", **changes})
    return assemble(source, schema(), seed=1)


def test_one_table_becomes_a_site_for_each_value_of_a_column(tmp_path: Path) -> None:
    federation = by_column(tmp_path, ["264", "St. Mary's", "Zürich"])
    assert federation.tables.keys() == {"264", "St._Mary_s", "Z_rich"}
    small_study(sites=sorted(federation.tables))  # the names are valid in a study
    assert sum(map(len, federation.tables.values())) + len(federation.hold_out.centres) == 60


def test_two_values_that_give_one_name_are_an_error_and_lose_no_rows(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="two of its values give the site name 'A_B'"):
        by_column(tmp_path, ["A B", "A_B"])


def test_site_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="site_column 'clinic' is no column"):
        by_column(tmp_path, ["a", "b"], site_column="clinic")


# ------------------------------------------------------------------------------------------------ broken and odd tables
BROKEN: Mapping[str, Any] = {
    "missing-column": lambda frame: frame.drop(columns="age"),
    "wrong-unit": lambda frame: frame.assign(pressure="13.5"),  # kPa instead of mmHg
    "unseen-label": lambda frame: frame.assign(outcome="perhaps"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_table_that_breaks_the_schema_is_kept_aside_with_its_counts(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, a=table(40, 1), b=BROKEN[kind](table(33, 2)), c=table(30, 3))
    federation = assemble(source, schema(), seed=1)
    assert federation.rejected.keys() == {"b"}
    assert set(federation.rejected["b"].counts.values()) == {33}
    assert federation.tables.keys() == {"a", "b", "c"}
    assert len(federation.tables["b"]) == 33
    assert federation.hold_out.names == ("a", "c")


def test_empty_hospital_has_no_rows_anywhere(tmp_path: Path) -> None:
    for split in ("patients", "flamby"):
        source = write(tmp_path, a=table(40, 1), b=table(40, 2).iloc[:0], c=table(30, 3))
        federation = assemble(source.model_copy(update={"split": split}), schema(), seed=1)
        assert len(federation.tables["b"]) == 0
        assert federation.hold_out.names == ("a", "c")


@pytest.mark.parametrize("split", ["patients", "flamby"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiny_hospitals_do_not_break_the_split(tmp_path: Path, split: str, rows: int) -> None:
    source = write(tmp_path, a=table(40, 1), b=table(rows, 2)).model_copy(update={"split": split})
    federation = assemble(source, schema(), seed=1)
    assert len(federation.tables["a"]) + len(federation.tables["b"]) + len(federation.hold_out.centres) == 40 + rows


@pytest.mark.parametrize("split", ["patients", "flamby"])
def test_hospital_with_one_class_is_split_like_the_others(tmp_path: Path, split: str) -> None:
    source = write(tmp_path, a=table(40, 1), b=table(40, 2).assign(outcome="yes")).model_copy(update={"split": split})
    federation = assemble(source, schema(), seed=1)
    assert 0 < len(federation.tables["b"]) < 40
    assert "b" in federation.hold_out.names


def test_nothing_left_for_the_centre_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    source = write(tmp_path, a=table(40, 1).drop(columns="age"), b=table(2, 2).iloc[:0])
    with pytest.raises(LocalDataError, match="no row is left for the central hold-out") as caught:
        assemble(source, schema(), seed=1)
    assert caught.value.remedy


def test_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = write(tmp_path, a=table(40, 1)).model_copy(update={"tables": {"a": "a.csv", "b": "gone.csv"}})
    with pytest.raises(LocalDataError, match=r"gone\.csv cannot be read"):
        assemble(source, schema(), seed=1)


# ----------------------------------------------------------------------------------------------------------- settlement
def test_every_site_gets_a_home_with_its_rows_its_policy_and_its_approval(tmp_path: Path) -> None:
    federation = assemble(write(tmp_path, a=table(40, 1), b=table(30, 2)), schema(), seed=1)
    study = small_study(sites=["a", "b"])
    homes = settle(federation, study, open_policy(min_patients=7), tmp_path / "homes")
    assert homes.keys() == {"a", "b"}
    for name, home in homes.items():
        site = Site(home)
        assert (site.config.site, site.config.policy.min_patients) == (name, 7)
        assert home.stat().st_mode & 0o077 == 0
        patients = open_cohort(site.config.cohorts["cohort"], study.cohort, home).patients(8)
        assert len(patients) == len(federation.tables[name])
        assert site.enrol(Task(study, 0, None)).patients == len(patients)


def test_what_was_read_is_what_the_site_reads_again(tmp_path: Path) -> None:
    """Text cells survive the way through the home's CSV: no `007` becomes 7, no `NA` becomes empty."""
    frame = table(30, 1).assign(patient=[f"{n:03d}" for n in range(30)])
    frame.loc[2, "pressure"] = "NA"
    of = schema(patient="patient")
    federation = assemble(write(tmp_path, a=frame, b=table(30, 2, patients=30)), of, seed=1)
    study = small_study(sites=["a", "b"], cohort={**contract()["cohort"], "patient": "patient"})
    home = settle(federation, study, open_policy(), tmp_path / "homes")["a"]
    expected = encode(federation.tables["a"], of)
    patients = open_cohort(Site(home).config.cohorts["cohort"], of, home).patients(8)
    np.testing.assert_array_equal(np.sort(patients.features[:, 0], axis=0), np.sort(expected.features, axis=0))


# ------------------------------------------------------------------------------------------------------------- pictures
PICTURES = small_study(cohort=digits_contract(), sites=["a", "b"])


def pictured(folder: Path) -> Tables:
    """Write a hundred digits into one folder and return a source that gives them to two sites."""
    whole = digits_folder(folder, 100)
    whole.head(60).to_csv(folder / "a.csv", index=False)
    whole.tail(40).to_csv(folder / "b.csv", index=False)
    return Tables(kind="tables", folder=str(folder), tables={"a": "a.csv", "b": "b.csv"})


def test_sites_of_pictures_get_a_folder_of_their_own_with_theirs_alone(tmp_path: Path) -> None:
    federation = assemble(pictured(tmp_path / "digits"), PICTURES.cohort, seed=1)
    homes = settle(federation, PICTURES, open_policy(), tmp_path / "homes")

    for name, home in homes.items():
        theirs = {path.relative_to(home / "images").as_posix() for path in (home / "images").rglob("*.png")}
        assert theirs == set(federation.tables[name]["file"])
        found = Site(home).config.cohorts["cohort"]
        cohort = open_cohort(found, PICTURES.cohort, home)
        assert len(cohort.patients(8)) == len(federation.tables[name])
        assert Site(home).enrol(Task(PICTURES, 0, None)).patients == len(cohort.identities())
        assert assess(found, PICTURES.cohort, home).ready
    assert len(federation.hold_out.centres) == 20
    assert federation.hold_out.rows.features.shape[1] == 65


def test_what_a_site_reads_again_of_its_pictures_is_what_was_kept(tmp_path: Path) -> None:
    federation = assemble(pictured(tmp_path / "digits"), PICTURES.cohort, seed=1)
    home = settle(federation, PICTURES, open_policy(), tmp_path / "homes")["a"]
    cohort = open_cohort(Site(home).config.cohorts["cohort"], PICTURES.cohort, home)
    kept = (cohort.patients(8).features, cohort.identities())

    read = cohort.load()

    np.testing.assert_array_equal(kept[0][:, 0], read.rows.features)
    np.testing.assert_array_equal(kept[1], read.identities)


@pytest.mark.parametrize("patient", [None, "patient"])
def test_identities_in_a_simulation_are_those_of_a_hospital(tmp_path: Path, patient: str | None) -> None:
    """Kept for all sites in one go, or read by each for itself."""
    study = small_study(cohort={"patient": patient}, sites=["a", "b"])
    sources = write(tmp_path / "tables", a=table(40, 1, patients=20), b=table(30, 2, patients=20))
    for name, home in settle(assemble(sources, study.cohort, seed=1), study, open_policy(), tmp_path / "h").items():
        cohort = open_cohort(Site(home).config.cohorts["cohort"], study.cohort, home)
        assert (cohort.identities() == cohort.load().identities).all(), name


def test_site_whose_pictures_are_broken_refuses_for_itself(tmp_path: Path) -> None:
    source = pictured(tmp_path / "digits")
    frame = pd.read_csv(tmp_path / "digits" / "b.csv", dtype=str)
    frame.loc[[0], "file"], frame.loc[[1], "file"] = "../secret.png", "gone.png"
    frame.to_csv(tmp_path / "digits" / "b.csv", index=False)

    federation = assemble(source, PICTURES.cohort, seed=1)
    home = settle(federation, PICTURES, open_policy(), tmp_path / "homes")["b"]

    assert sorted(federation.rejected["b"].counts.values()) == [1, 1]
    with pytest.raises(SchemaMismatchError):
        Site(home).enrol(Task(PICTURES, 0, None))
