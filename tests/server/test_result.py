"""``result.json`` is a promise: its keys are written out here, and a change of them is a new schema version."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from fedward_common.metrics import Interval
from fedward_server.coordinator import dump
from fedward_server.result import (
    Baselines,
    Estimate,
    ModelFile,
    RoundResult,
    RunResult,
    SiteResult,
    SiteRound,
    StudyRef,
    with_late,
)

TOP = {
    "schema_version", "study", "engine", "seed", "status", "reason", "started_at", "seconds", "versions", "privacy",
    "sites", "rounds", "central", "roc", "baselines", "model",
}  # fmt: skip
SITE = {"patients", "weight", "rounds", "steps", "epsilon", "delta", "status", "reason"}
ROUND = {"round", "sites", "missing", "statuses", "seconds", "epsilon", "loss", "central"}
ESTIMATE = {"value", "low", "high"}


def a_result(**changes: Any) -> RunResult:
    estimate = Estimate(value=0.9, low=0.8, high=float("nan"))
    values: dict[str, Any] = {
        "study": StudyRef(name="small", digest="0" * 64),
        "engine": "local",
        "seed": 1,
        "status": "degraded",
        "started_at": "2026-11-23T12:00:00+00:00",
        "seconds": 1.5,
        "versions": {"fedward": "0.1.0"},
        "privacy": {"mechanism": "none"},
        "sites": {
            "north": SiteResult(patients=40, weight=40, rounds=2, epsilon=1.25, delta=1e-4, status="completed"),
            "south": SiteResult(status="excluded", reason="cohort_empty"),
        },
        "rounds": (RoundResult(round=1, sites=("north",), missing={"south": "task_crashed"}, seconds=0.1),),
        "central": {"auroc": estimate, "accuracy": estimate, "accuracy_mean_of_centres": estimate},
        "baselines": Baselines(local={"north": {"auroc": estimate}}, pooled={"auroc": estimate}),
        "model": ModelFile(file="model.safetensors", sha256="1" * 64, parameters=8),
    }
    return RunResult(**(values | changes))


def as_json(result: RunResult) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(dump(result))
    return values


def test_the_keys_are_those_that_scripts_rely_on() -> None:
    values = as_json(a_result())
    assert values["schema_version"] == 1
    assert values.keys() == TOP
    assert {frozenset(site) for site in values["sites"].values()} == {frozenset(SITE)}
    assert values["rounds"][0].keys() == ROUND
    assert values["central"].keys() >= {"auroc", "accuracy", "accuracy_mean_of_centres"}
    assert {frozenset(estimate) for estimate in values["central"].values()} == {frozenset(ESTIMATE)}
    assert values["study"].keys() == {"name", "digest", "description"}
    assert values["baselines"].keys() == {"local", "pooled"}
    assert values["baselines"]["pooled"]["auroc"].keys() == ESTIMATE
    assert values["baselines"]["local"]["north"]["auroc"].keys() == ESTIMATE
    assert values["model"].keys() == {"file", "sha256", "parameters"}


@pytest.mark.parametrize("nothing", [float("nan"), float("inf"), float("-inf"), None])
def test_what_has_no_value_is_null(nothing: float | None) -> None:
    result = a_result(
        central={"auroc": Estimate(value=nothing, low=nothing, high=nothing)},
        sites={"north": SiteResult(status="completed", epsilon=nothing)},
        rounds=(RoundResult(round=1, sites=(), seconds=0, epsilon=nothing, central={"auroc": nothing}),),
    )
    text = dump(result).decode()
    assert "NaN" not in text
    assert "Infinity" not in text
    values = as_json(result)
    assert values["central"]["auroc"] == {"value": None, "low": None, "high": None}
    assert values["sites"]["north"]["epsilon"] is None
    assert values["rounds"][0]["central"] == {"auroc": None}


def test_an_interval_is_stored_as_it_is() -> None:
    assert Estimate.of(Interval(0.5, 0.25, 0.75)).model_dump() == {"value": 0.5, "low": 0.25, "high": 0.75}


def test_what_was_written_reads_back_equal() -> None:
    result = a_result()
    assert RunResult.model_validate_json(dump(result)) == result
    assert dump(result).endswith(b"}\n")


@pytest.mark.parametrize(
    "change", [{"status": "perfect"}, {"schema_version": 2}, {"sites": {"north": {"status": "lost"}}}, {"extra": 1}]
)
def test_words_outside_the_schema_are_no_result(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_result(**change)


def test_a_result_does_not_change_once_it_is_made() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        a_result().status = "completed"  # type: ignore[misc]


def test_roc_and_baselines_may_be_missing() -> None:
    values = as_json(a_result(roc={}, baselines=Baselines(), model=None, status="failed", reason="no quorum"))
    assert values["roc"] == {}
    assert values["baselines"] == {"local": {}, "pooled": None}
    assert values["model"] is None


# ------------------------------------------------------------------------------------------------------- who did what
def test_a_file_without_statuses_is_read_as_it_always_was() -> None:
    old = as_json(a_result())
    for entry in old["rounds"]:
        del entry["statuses"]
    read = RunResult.model_validate(old)
    assert (read.rounds[0].sites, read.rounds[0].missing) == (("north",), {"south": "task_crashed"})
    assert read.rounds[0].statuses == {}


def test_a_late_reply_marks_its_own_round_and_nothing_else() -> None:
    missed = SiteRound(status="missed", reason="no_reply_before_the_deadline", retried="task_crashed")
    parts = {"north": SiteRound(status="accepted"), "south": missed, "west": SiteRound(status="absent", reason="why")}
    rounds = tuple(RoundResult(round=n, sites=("north",), seconds=1, statuses=parts) for n in (1, 2))
    late = [(2, "south", "reply_after_the_deadline"), (1, "north", "x"), (1, "west", "x"), (7, "south", "x")]
    marked = with_late(rounds, late)
    assert marked[0] is rounds[0]
    told = SiteRound(status="late", reason="reply_after_the_deadline", retried="task_crashed")
    assert marked[1].statuses == parts | {"south": told}
    assert with_late(marked, late) == marked
    assert marked[1].model_copy(update={"statuses": parts}) == rounds[1]
