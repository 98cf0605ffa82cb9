"""``fedward privacy plan``: what a person reads, what a script reads, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedward_common.errors import StudyError
from fedward_common.models import parameter_spec
from fedward_common.study import DpSgd
from fedward_common.study_file import StudyFile
from fedward_server.privacy_cli import plan
from tests.builders import private_study
from tests.server.earlier_runs import leave_run

RUNNER = CliRunner()
SITES = ("--site", "north=40", "--site", "south=20")
FREE = ("--site", "north=400", "--site", "south=200", "--epsilon", "1", "--parameters", "200")
STUDY = private_study(privacy={"epsilon": 2})


def call(*arguments: str) -> Result:
    return RUNNER.invoke(plan, list(arguments), env={"COLUMNS": "200"})


def told(*arguments: str) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "study.json"
    path.write_bytes(StudyFile(STUDY).dump())
    return str(path)


@pytest.fixture
def runs(tmp_path: Path) -> str:
    for epsilon, value in ((1.0, 0.8), (4.0, 0.9)):
        for seed in (1, 2):
            study = private_study(privacy={"epsilon": epsilon}, seed=seed)
            leave_run(tmp_path / "runs" / f"{epsilon}-{seed}", study, value, alone=value - 0.2)
    return str(tmp_path / "runs")


def test_a_person_reads_noise_patients_alternatives_and_the_sentence() -> None:
    done = call(*FREE)

    assert done.exit_code == 0
    assert "south: a hospital with 200 patients cannot reach this alone" in done.stdout
    assert "north: a hospital" not in done.stdout
    assert "federation" in done.stdout
    assert "no curve; this makes one:" in done.stdout
    assert "fedward simulate study=NAME privacy.epsilon=$e seed=$s" in done.stdout


def test_a_script_reads_the_same_numbers() -> None:
    values = told(*FREE)

    assert values["curve"] is None
    assert values["plan"]["question"]["patients"] == {"north": 400, "south": 200}
    assert values["plan"]["sites"]["south"]["reaches"] is False
    assert [option["epsilon"] for option in values["plan"]["options"]] == [1, 2, 4, 8]
    assert "check" not in values


def test_study_gives_its_own_numbers(file: str) -> None:
    question = told("--study", file, *SITES)["plan"]["question"]

    assert isinstance(STUDY.privacy, DpSgd)
    assert question["epsilon"] == 2
    assert question["sigma"] == STUDY.privacy.noise_multiplier
    assert (question["rounds"], question["steps"], question["parameters"]) == (3, 2, parameter_spec(STUDY).size)


def test_another_budget_is_calibrated_anew(file: str) -> None:
    plan_ = told("--study", file, *SITES, "--epsilon", "1")["plan"]

    assert plan_["question"]["sigma"] is None
    assert 0.98 < plan_["spent"] <= 1
    assert plan_["sigma"] > told("--study", file, *SITES)["plan"]["sigma"]


def test_curve_gives_expected_accuracy_and_the_number_of_patients(file: str, runs: str) -> None:
    values = told("--study", file, "--curve", runs)

    assert values["plan"]["question"]["patients"] == {"north": 40, "south": 40}
    assert values["plan"]["expected"]["mean"] == pytest.approx(0.8 + 0.1 / 3)
    assert values["plan"]["expected"]["between"] == [1, 4]
    assert values["curve"]["federation"]["4"]["mean"] == 0.9
    done = call("--study", file, "--curve", runs)
    assert "auroc expected at ε 2: 0.833" in done.stdout
    assert "cannot reach this alone: measured alone 0.633 between epsilon 1 and 4" in done.stdout


@pytest.mark.parametrize(
    "change", [("--epsilon", "8"), ("--rate", "0.5"), ("--site", "north=40", "--site", "south=4000")]
)
def test_curve_is_not_used_for_what_it_did_not_measure(file: str, runs: str, change: tuple[str, ...]) -> None:
    done = call("--study", file, "--curve", runs, *change)

    assert done.exit_code == 0
    assert "the curve is of another study, or has no ε" in done.stdout
    assert "expected" not in done.stdout
    assert told("--study", file, "--curve", runs, *change)["plan"]["expected"] is None


def test_check_asks_other_accountants(file: str) -> None:
    assert told("--study", file, *SITES, "--check")["check"]["agrees"] is True
    assert "they agree" in call("--study", file, *SITES, "--check").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--parameters", "9"), "no hospital is named"),
        (("--site", "north=400"), "not known: parameters"),
        (("--site", "north", "--parameters", "9"), "not NAME=PATIENTS"),
        (("--site", "a=1", "--site", "a=2", "--parameters", "9"), "named twice"),
        (("--site", "a=0", "--parameters", "9"), "out of range: a=0"),
        (("--site", "a=9", "--parameters", "9", "--curve", "runs"), "--curve needs --study"),
    ],
)
def test_what_is_missing_or_wrong_is_refused_by_name(arguments: tuple[str, ...], message: str) -> None:
    done = call(*arguments)

    assert isinstance(done.exception, StudyError)
    assert message in done.exception.message
    assert done.exception.remedy


def test_hospitals_other_than_the_studys_are_refused(file: str) -> None:
    done = call("--study", file, "--site", "north=4", "--site", "west=3")

    assert isinstance(done.exception, StudyError)
    assert "south, west" in done.exception.message
