"""Whole runs over real sites: what is written, what it says, and when nothing is released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedward_client.ledger import Ledger
from fedward_common.models import initial_weights
from fedward_common.study_file import read_study_file
from fedward_server.checkpoint import read_checkpoint
from fedward_server.coordinator import Coordinator, TailMean
from fedward_server.privacy_statement import PrivacyStatement, statement_of
from fedward_server.result import RoundResult, RunResult
from fedward_server.rounds import RoundLoop
from tests.builders import COHORT, open_policy, private_study, small_study, table
from tests.doubles import (
    Outcome,
    Rehearsal,
    Script,
    ScriptedGrid,
    fails,
    from_stranger,
    lost,
    replaced,
    says,
    silent,
    with_header,
)
from tests.server.killings import Killed, Scene

SITES = ("north", "south", "west")
ALL_FILES = {"study.json", "checkpoint.safetensors", "model.safetensors", "privacy.json", "result.json"}
NONSENSE = says(RecordDict())


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    return Rehearsal(small_study(sites=list(SITES)), tmp_path_factory.mktemp("coordinator"))


@pytest.fixture(scope="module")
def completed(rehearsal: Rehearsal) -> Outcome:
    return rehearsal.run()


def stored(outcome: Outcome) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((outcome.folder / "result.json").read_text(encoding="utf-8"))
    return values


# ----------------------------------------------------------------------------------------------------------- completion
def test_a_run_leaves_study_checkpoint_model_and_result_and_nothing_else(completed: Outcome) -> None:
    assert completed.files == ALL_FILES
    assert completed.result.status == "completed"
    assert completed.result.reason is None
    assert RunResult.model_validate_json((completed.folder / "result.json").read_bytes()) == completed.result


def test_the_result_names_study_engine_seed_and_versions(rehearsal: Rehearsal, completed: Outcome) -> None:
    values = stored(completed)
    assert values["study"]["digest"] == rehearsal.study.digest
    assert (values["engine"], values["seed"], values["schema_version"]) == ("rehearsal", 1, 1)
    assert values["versions"].keys() == {"fedward", "flwr", "torch"}
    assert read_study_file(completed.folder / "study.json").study == rehearsal.study


def test_the_same_seed_gives_the_same_model_file_twice(rehearsal: Rehearsal, completed: Outcome) -> None:
    again = rehearsal.run()
    assert again.model == completed.model
    assert again.result.model == completed.result.model


@pytest.mark.parametrize("order", [("west", "south", "north"), ("south", "west", "north")])
def test_the_order_of_arrival_does_not_change_the_model_file(
    rehearsal: Rehearsal, completed: Outcome, order: tuple[str, ...]
) -> None:
    assert rehearsal.run(order=order).model == completed.model


def test_the_roll_is_called_again_by_whoever_comes_after_a_kill_and_only_until_it_is_written_down(
    tmp_path: Path,
) -> None:
    scene, calls = Scene.of(small_study(sites=["north", "south", "west"]), tmp_path), 0

    def roll(loop: RoundLoop) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Killed
        loop.enrol()

    def run(rounds: int) -> RunResult:
        def listen(entry: RoundResult) -> None:
            if entry.round == rounds:
                raise Killed

        coordinator = scene.coordinator()
        coordinator.call_roll, coordinator.listener = roll, listen
        return coordinator.run(scene.grid, scene.roster, poll_seconds=0)

    with pytest.raises(Killed):
        run(3)
    with pytest.raises(Killed):
        run(1)
    assert run(9).status == "completed"
    assert calls == 2


def test_nodes_without_keys_are_taken_at_their_word_in_a_simulation(rehearsal: Rehearsal, completed: Outcome) -> None:
    assert rehearsal.run(anonymous=True).model == completed.model


def test_flowers_server_app_runs_the_same_code(rehearsal: Rehearsal, completed: Outcome, tmp_path: Path) -> None:
    from flwr.app import Context  # noqa: PLC0415  (one test needs it)

    grid = ScriptedGrid(dict(rehearsal.homes))
    coordinator = Coordinator(
        rehearsal.study, rehearsal.central, rehearsal.predictor, tmp_path, "app", clock=grid.clock
    )
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    coordinator.server_app(grid.roster, poll_seconds=0)(grid, context)
    assert coordinator.result is not None
    assert (tmp_path / "model.safetensors").read_bytes() == completed.model


def test_training_makes_the_model_better_than_chance(completed: Outcome) -> None:
    auroc = completed.result.central["auroc"]
    assert auroc.value is not None
    assert auroc.low is not None
    assert auroc.value > 0.8
    assert auroc.low < auroc.value


def test_every_round_is_judged_told_and_on_disk_before_the_next_one(rehearsal: Rehearsal) -> None:
    seen: list[tuple[int, int]] = []
    folders = {path.name for path in rehearsal.root.glob("run-*")}

    def listener(entry: RoundResult) -> None:
        (folder,) = (path for path in rehearsal.root.glob("run-*") if path.name not in folders)
        seen.append((entry.round, read_checkpoint(folder / "checkpoint.safetensors").round))
        assert not (folder / "result.json").exists()
        assert not (folder / "privacy.json").exists()

    outcome = rehearsal.run(listener=listener)
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert [entry.central.keys() for entry in outcome.result.rounds] == [outcome.result.central.keys()] * 3


# ---------------------------------------------------------------------------------------------------------- degradation
def test_site_that_crashes_in_one_round_is_degraded_and_back_in_the_next(rehearsal: Rehearsal) -> None:
    result = rehearsal.run({("south", 2): fails()}).result
    assert result.status == "degraded"
    assert [entry.sites for entry in result.rounds] == [SITES, ("north", "west"), SITES]
    south = result.sites["south"]
    assert (south.status, south.reason, south.rounds) == ("degraded", "task_crashed", 2)


def test_site_that_does_not_enrol_is_excluded_with_its_reason(rehearsal: Rehearsal) -> None:
    result = rehearsal.run({("south", 0): replaced(with_header(site="north"))}).result
    south = result.sites["south"]
    assert result.status == "degraded"
    assert (south.status, south.rounds, south.patients) == ("excluded", 0, None)
    assert south.reason == "enrolment: the node enrols under another site's name"


def test_what_a_node_without_a_place_says_is_in_the_reason_of_the_run(rehearsal: Rehearsal) -> None:
    result = rehearsal.run({("west", 0): replaced(with_header(site="north"))}, anonymous=True).result
    assert result.status == "degraded"
    assert result.reason == "node 4: enrolment: a second node under one name"
    assert (result.sites["north"].status, result.sites["west"].status) == ("completed", "excluded")


def test_forged_replies_of_a_stranger_leave_no_trace(rehearsal: Rehearsal, completed: Outcome) -> None:
    forged = from_stranger(with_header(weight=1))
    outcome = rehearsal.run({(site, 2): forged for site in SITES})
    assert (outcome.result.status, outcome.model) == ("completed", completed.model)


# --------------------------------------------------------------------------------------------------------------- quorum
def test_without_a_quorum_nothing_is_released_and_every_site_has_its_reason(rehearsal: Rehearsal) -> None:
    outcome = rehearsal.run({"south": silent, ("west", 0): replaced(with_header(digest="0" * 64))})
    result = outcome.result
    assert (result.status, result.model, result.central, result.rounds) == ("failed", None, {}, ())
    assert outcome.files == {"study.json", "privacy.json", "result.json"}
    assert result.reason is not None
    assert "1 sites enrolled, the quorum is 2" in result.reason
    assert result.sites["south"].reason == "no_reply_before_the_deadline"
    assert result.sites["west"].reason == "enrolment: not a site of this study"


@pytest.mark.parametrize("others", [silent, fails(), NONSENSE])
def test_one_hospital_never_publishes_alone(rehearsal: Rehearsal, others: Any) -> None:
    outcome = rehearsal.run({(site, round_): others for site in SITES[1:] for round_ in (1, 2, 3)})
    assert outcome.result.status == "failed"
    assert outcome.files == {"study.json", "privacy.json", "result.json"}
    assert outcome.result.rounds == ()
    assert [outcome.result.sites[site].status for site in SITES] == ["completed", "degraded", "degraded"]
    assert all(outcome.result.sites[site].reason for site in SITES[1:])


def test_one_connected_hospital_never_publishes_alone(rehearsal: Rehearsal) -> None:
    outcome = rehearsal.run(without=SITES[1:])
    assert outcome.files == {"study.json", "privacy.json", "result.json"}
    assert outcome.result.sites["south"].reason == "not_connected"


def test_quorum_lost_in_round_two_leaves_the_model_of_round_one_whose_quorum_stood(rehearsal: Rehearsal) -> None:
    outcome = rehearsal.run({("south", 2): fails(), ("west", 2): NONSENSE})
    result = outcome.result
    assert result.status == "failed"
    assert [entry.round for entry in result.rounds] == [1]
    assert result.rounds[0].sites == SITES
    assert result.reason is not None
    assert "1 sites answered in round 2" in result.reason
    assert (result.sites["south"].reason, result.sites["south"].status) == ("task_crashed", "degraded")
    checkpoint = read_checkpoint(outcome.folder / "checkpoint.safetensors")
    assert checkpoint.round == 1
    np.testing.assert_array_equal(outcome.weights, checkpoint.arrays["released"])
    assert not np.array_equal(outcome.weights, initial_weights(rehearsal.study))


def test_flower_strategy_that_gives_no_model_fails_the_run_with_a_result(tmp_path: Path) -> None:
    rule = {"rule": "flower", "_target_": "flwr.serverapp.strategy.QFedAvg", "options": {"client_learning_rate": 0.1}}
    outcome = Rehearsal(small_study(sites=list(SITES), aggregation=rule), tmp_path).run()
    assert outcome.result.status == "failed"
    assert "QFedAvg" in (outcome.result.reason or "")
    assert outcome.files == {"study.json", "privacy.json", "result.json"}


@pytest.mark.parametrize("name", ["FedMedian", "Krum", "FedAvg"])
def test_flower_strategies_train_a_model(tmp_path: Path, name: str) -> None:
    rule = {"rule": "flower", "_target_": f"flwr.serverapp.strategy.{name}"}
    rehearsal = Rehearsal(small_study(sites=list(SITES), aggregation=rule), tmp_path)
    outcome = rehearsal.run()
    assert outcome.result.status == "completed"
    assert (outcome.result.central["auroc"].value or 0) > 0.7
    assert rehearsal.run(order=("west", "south", "north")).model == outcome.model


# ------------------------------------------------------------------------------------------------------------- stopping
@pytest.mark.parametrize("stop", [1, 2])
def test_ctrl_c_ends_with_the_model_of_the_last_committed_round(rehearsal: Rehearsal, stop: int) -> None:
    def listener(entry: RoundResult) -> None:
        if entry.round == stop:
            raise KeyboardInterrupt

    outcome = rehearsal.run(listener=listener)
    result = outcome.result
    assert (result.status, result.reason) == ("interrupted", "stopped by the operator")
    assert [entry.round for entry in result.rounds] == list(range(1, stop + 1))
    assert outcome.files == ALL_FILES
    released = read_checkpoint(outcome.folder / "checkpoint.safetensors").arrays["released"]
    np.testing.assert_array_equal(outcome.weights, released)
    assert result.central["accuracy"].value == result.rounds[-1].central["accuracy"]


def test_ctrl_c_before_the_first_round_releases_nothing(rehearsal: Rehearsal) -> None:
    def interrupt(_: Any) -> Any:
        raise KeyboardInterrupt

    outcome = rehearsal.run({("south", 1): interrupt})
    assert (outcome.result.status, outcome.result.model) == ("interrupted", None)
    assert outcome.files == {"study.json", "privacy.json", "result.json"}


# --------------------------------------------------------------------------------------------------------- tail average
@pytest.mark.parametrize(
    ("average_last", "rounds", "first"),
    [(0.0, 10, 11), (0.3, 10, 8), (0.3, 30, 22), (1.0, 5, 1), (0.5, 4, 3), (0.01, 10, 11)],
)
def test_average_last_is_the_mean_of_the_tail(average_last: float, rounds: int, first: int) -> None:
    study = small_study(training={"rounds": rounds}, aggregation={"average_last": average_last})
    tail = TailMean.of(study)
    models = [np.random.default_rng(n).normal(size=8).astype(np.float32) for n in range(1, rounds + 1)]
    for round_, model in enumerate(models, start=1):
        expected = model if round_ < first else np.mean(np.array(models[first - 1 : round_], dtype=np.float64), axis=0)
        np.testing.assert_allclose(tail.take(round_, model), expected, atol=1e-6)


def test_the_released_model_is_the_mean_of_the_last_rounds_and_training_goes_on_from_the_last(tmp_path: Path) -> None:
    plain = small_study(sites=list(SITES), training={"rounds": 4})
    averaged = small_study(sites=list(SITES), training={"rounds": 4}, aggregation={"average_last": 0.5})
    models: list[Any] = []

    def keep(root: Path) -> Any:
        return lambda _: models.append(read_checkpoint(root / "run-1" / "checkpoint.safetensors").arrays["weights"])

    Rehearsal(plain, tmp_path / "plain").run(listener=keep(tmp_path / "plain"))
    outcome = Rehearsal(averaged, tmp_path / "averaged").run(listener=keep(tmp_path / "averaged"))
    assert [m.tobytes() for m in models[:4]] == [m.tobytes() for m in models[4:]]
    np.testing.assert_allclose(outcome.weights, (models[2] + models[3]) / 2, atol=1e-7)


# -------------------------------------------------------------------------------------------------------------- privacy
@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rehearsal, Outcome]:
    study = private_study(sites=["east", *SITES], privacy={"epsilon": 6.0})
    rehearsal = Rehearsal(study, tmp_path_factory.mktemp("private"))
    script: Script = {("south", 2): lost, ("west", 2): fails(trained=True), ("west", 3): silent}
    return rehearsal, rehearsal.run(script)


def test_epsilon_of_a_site_is_what_its_own_ledger_says(private: tuple[Rehearsal, Outcome]) -> None:
    rehearsal, outcome = private
    for site in ("north", "south"):
        (entry,) = Ledger(rehearsal.homes[site] / "ledger.sqlite").entries(COHORT)
        told = outcome.result.sites[site]
        assert entry.rounds == 3
        assert told.epsilon == pytest.approx(entry.epsilon, abs=1e-9)
        assert told.delta == entry.delta == 1e-4


def test_rounds_that_were_lost_on_the_way_count_as_spent(private: tuple[Rehearsal, Outcome]) -> None:
    rehearsal, outcome = private
    sites = outcome.result.sites
    assert (sites["south"].rounds, sites["west"].rounds) == (2, 1)
    assert sites["south"].epsilon == sites["west"].epsilon == sites["north"].epsilon
    (entry,) = Ledger(rehearsal.homes["west"] / "ledger.sqlite").entries(COHORT)
    assert entry.rounds == 2  # the third was asked and never reached it: counted, since the centre cannot know
    assert (sites["west"].epsilon or 0) >= entry.epsilon


def test_epsilon_grows_by_round_to_at_most_what_the_study_promises(private: tuple[Rehearsal, Outcome]) -> None:
    _, outcome = private
    curve = [entry.epsilon or 0 for entry in outcome.result.rounds]
    assert curve == sorted(curve)
    assert curve[0] > 0
    assert curve[-1] == pytest.approx(outcome.result.sites["north"].epsilon, abs=0.05)
    assert curve[-1] <= 6.0


def test_a_second_run_of_the_same_study_releases_nothing_more(private: tuple[Rehearsal, Outcome]) -> None:
    rehearsal, _ = private
    before = [Ledger(home / "ledger.sqlite").entries(COHORT) for home in rehearsal.homes.values()]
    outcome = rehearsal.run()
    assert outcome.result.status == "failed"
    assert {site.reason for site in outcome.result.sites.values()} <= {
        "round_replayed round=1",
        "budget_exceeded round=1",
    }
    assert "model.safetensors" not in outcome.files
    assert [Ledger(home / "ledger.sqlite").entries(COHORT) for home in rehearsal.homes.values()] == before


def test_without_privacy_there_is_no_epsilon(completed: Outcome) -> None:
    assert all(site.steps is site.epsilon is site.delta is None for site in completed.result.sites.values())
    assert completed.result.privacy == {"mechanism": "none"}


def statement_beside(outcome: Outcome) -> PrivacyStatement:
    return PrivacyStatement.model_validate_json((outcome.folder / "privacy.json").read_bytes())


def test_the_privacy_statement_is_that_of_the_result_beside_it(private: tuple[Rehearsal, Outcome]) -> None:
    rehearsal, outcome = private
    statement = statement_beside(outcome)
    assert statement == statement_of(rehearsal.study, outcome.result)
    assert statement.model == outcome.result.model
    assert statement.guarantee is not None
    assert statement.versions["dp-accounting"] == statement.guarantee.account.cross_check_version


def test_the_privacy_statement_counts_every_step_that_a_ledger_holds(private: tuple[Rehearsal, Outcome]) -> None:
    rehearsal, outcome = private
    guarantee = statement_beside(outcome).guarantee
    assert guarantee is not None
    for site in ("north", "south", "west"):
        (entry,) = Ledger(rehearsal.homes[site] / "ledger.sqlite").entries(COHORT)
        assert guarantee.spent.sites[site].steps == 3 * entry.steps // entry.rounds  # all three rounds were asked for


def test_a_failed_run_leaves_a_statement_without_a_model(rehearsal: Rehearsal) -> None:
    statement = statement_beside(rehearsal.run(dict.fromkeys(SITES, silent)))
    assert (statement.status, statement.model) == ("failed", None)
    assert statement.summary.endswith("No model was released.")


def test_without_privacy_the_statement_says_so(completed: Outcome) -> None:
    statement = statement_beside(completed)
    assert (statement.differential_privacy, statement.guarantee) == (False, None)


def test_site_whose_policy_requires_privacy_refuses_and_the_others_go_on(tmp_path: Path) -> None:
    study = small_study(sites=list(SITES))
    rehearsal = Rehearsal(study, tmp_path)
    strict = Rehearsal(study, tmp_path / "strict", {"south": table(40)}, open_policy(require_privacy=True))
    rehearsal.homes |= strict.homes
    result = rehearsal.run().result
    assert (result.status, result.sites["south"].reason) == ("degraded", "privacy_required")


def test_study_without_a_privacy_section_is_refused_by_everybody(tmp_path: Path) -> None:
    result = Rehearsal(small_study(sites=list(SITES), privacy=None), tmp_path).run().result
    assert result.status == "failed"
    assert {site.reason for site in result.sites.values()} == {"no_privacy_section"}
