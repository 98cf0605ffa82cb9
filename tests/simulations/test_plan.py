"""From composed values to a simulation: everything has its place, and what has none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedward_common.errors import StudyError, UnknownKeyError
from fedward_common.study import DpSgd, NoPrivacy
from fedward_conf.compose import compose_study
from fedward_simulations.federation import Bundled, Tables, assemble
from fedward_simulations.plan import Plan, draft_plan
from tests.builders import contract, table


def plan(*overrides: str) -> Plan:
    return draft_plan(compose_study(overrides))


def test_the_default_is_breast_cancer_with_privacy_on_the_local_engine() -> None:
    found = plan()
    assert (found.study.name, found.engine.name, found.study.seed) == ("breast_cancer", "local", 1)
    assert isinstance(found.source, Bundled)
    assert isinstance(found.study.privacy, DpSgd)


def test_every_group_lands_in_its_part() -> None:
    found = plan("study=heart_disease", "privacy=none", "engine=deployed", "aggregation=fedadam", "seed=7")
    assert isinstance(found.source, Tables)
    assert isinstance(found.study.privacy, NoPrivacy)
    assert (found.engine.name, found.study.aggregation.rule, found.study.seed) == ("deployed", "fedadam", 7)


def test_the_sites_of_the_study_are_those_of_the_tables_and_its_noise_is_calibrated() -> None:
    found = plan("training.rounds=2")
    study = found.with_sites(assemble(found.source, found.study.cohort, seed=1))
    assert study.sites == ("east", "north", "south", "west")
    assert isinstance(study.privacy, DpSgd)
    assert study.privacy.noise_multiplier is not None
    assert study.digest != found.study.digest


def test_where_the_tables_are_is_no_part_of_the_contract() -> None:
    assert "source" not in str(plan().study.contract())
    assert plan().study.digest == plan("engine.workers=7", "policy.min_patients=3").study.digest


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("engine.workres=3", "workers"),
        ("+engine.workres=3", "workers"),
        ("policy.min_patient=3", "min_patients"),
        ("cohort.source.hold_ot=0.3", "hold_out"),
        ("training.round=3", "training.rounds"),
        ("+trainin.rounds=3", "training"),
        ("cohort.schem.patient=id", "schem"),
    ],
)
def test_misspelt_key_anywhere_is_an_error_that_names_the_right_one(override: str, key: str) -> None:
    with pytest.raises(UnknownKeyError, match=key):
        plan(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.workers=0", "engine.workers = 0 processes must be at least 1 processes"),
        ("cohort.source.hold_out=1", "hold_out = 1 .*must be less than 1"),
        ("policy.max_delta=0.5", "max_delta = 0.5 .*must be less than 0.01"),
        ("aggregation.quorum=1", "quorum = 1 sites must be at least 2 sites"),
    ],
)
def test_value_out_of_range_names_key_unit_and_limit(override: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        plan(override)


def test_cohort_without_a_source_is_an_error_with_a_remedy() -> None:
    values: dict[str, Any] = contract()
    values["cohort"] = {"schema": values["cohort"]}
    values.pop("sites")
    with pytest.raises(StudyError, match=r"cohort\.source is missing") as caught:
        draft_plan(values)
    assert caught.value.remedy


def test_quorum_above_the_number_of_sites_that_there_are_is_an_error(tmp_path: Path) -> None:
    for name in "ab":
        table(30, 1).to_csv(tmp_path / f"{name}.csv", index=False)
    values = contract(aggregation={"quorum": 2})
    values["cohort"] = {
        "schema": values["cohort"],
        "source": {"kind": "tables", "folder": str(tmp_path), "tables": {"a": "a.csv", "b": "b.csv"}},
    }
    values |= {"engine": {"name": "local"}, "policy": {}, "sites": ["a", "b"]}
    found = draft_plan(values)
    federation = assemble(found.source, found.study.cohort, seed=1)
    assert found.with_sites(federation).sites == ("a", "b")
    values["aggregation"]["quorum"] = 3
    with pytest.raises(StudyError, match=r"aggregation\.quorum = 3 sites, but the study names 2"):
        draft_plan(values).with_sites(federation)
    values["aggregation"] |= {"quorum": 2, "required_sites": ["b"]}
    assert draft_plan(values).with_sites(federation).aggregation.required_sites == ("b",)
    values["aggregation"]["required_sites"] = ["b", "c"]
    with pytest.raises(StudyError, match=r"aggregation\.required_sites: the study does not name c"):
        draft_plan(values).with_sites(federation)
