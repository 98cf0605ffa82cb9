"""A site admits, debits, trains and answers, in that order; of a no only a code leaves."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import RecordDict

from fedward_client.approvals import Approvals
from fedward_client.config import SiteConfig, write_site
from fedward_client.decisions import Decision
from fedward_client.ledger import Ledger
from fedward_client.policy import Policy
from fedward_client.site import Site, approve
from fedward_common.errors import FedwardError, LocalDataError, Refusal, RefusalCode
from fedward_common.fixed_point import SCALE
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.privacy import epsilon_of, round_spend
from fedward_common.study import Study
from fedward_common.wire import PROTOCOL, Update, read_enrolment, read_refusal, read_update, write_roll_call, write_task
from tests.builders import COHORT, open_policy, private_study, site_home, small_study, table

STUDY = small_study()
PRIVATE = private_study()


def roll_call(home: Path, study: Study) -> RecordDict:
    return Site(home).answer(write_roll_call(study))


def train(home: Path, study: Study, round_: int = 1, *, moved: float = 0.0) -> RecordDict:
    return Site(home).answer(write_task(study, round_, initial_weights(study) + np.float32(moved)))


def trained(home: Path, study: Study, round_: int = 1) -> Update:
    return read_update(train(home, study, round_), size=parameter_spec(study).size)


def spent_rounds(home: Path) -> int:
    return sum(entry.rounds for entry in Ledger(home / "ledger.sqlite").entries(COHORT))


def test_approved_study_is_enrolled_and_trained(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    enrolment = read_enrolment(roll_call(home, STUDY))
    assert (enrolment.site, enrolment.digest, enrolment.patients) == ("north", STUDY.digest, 40)
    got = trained(home, STUDY, 2)
    assert (got.site, got.digest, got.round, got.weight) == ("north", STUDY.digest, 2, 40)
    assert np.any(got.values)


def test_update_is_weight_times_the_change_in_fixed_point(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    got = trained(home, STUDY)
    assert not np.mod(got.values, 40).any()
    assert np.abs(got.values).max() <= 40 * SCALE * STUDY.aggregation.update_bound


@pytest.mark.parametrize(("aggregation", "weight"), [({}, 40), ({"max_weight": 10}, 10), ({"weighting": "uniform"}, 1)])
def test_weight_is_the_study_s_rule(tmp_path: Path, aggregation: dict[str, Any], weight: int) -> None:
    study = small_study(aggregation=aggregation)
    assert trained(site_home(tmp_path, study), study).weight == weight


# ------------------------------------------------------------------------------------------------------------- no


def test_study_that_nobody_approved_is_refused_before_any_data_is_opened(tmp_path: Path) -> None:
    home = site_home(tmp_path)
    (home / f"{COHORT}.csv").unlink()
    assert read_refusal(roll_call(home, STUDY)) == "awaiting_approval"
    assert read_refusal(train(home, STUDY)) == "awaiting_approval"
    assert not (home / "cache").exists()


def test_study_beyond_policy_is_refused_before_approval_and_data_are_looked_at(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY, policy=Policy(require_signature=False))
    (home / f"{COHORT}.csv").unlink()
    (home / "approvals.json").write_text("not read", encoding="utf-8")
    assert read_refusal(roll_call(home, STUDY)) == "privacy_required"


def test_study_changed_in_one_byte_needs_a_new_approval(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    assert read_refusal(roll_call(home, STUDY)) is None
    changed = Study.of(json.loads(STUDY.canonical().replace(b'"rounds":3', b'"rounds":4')))
    assert read_refusal(roll_call(home, changed)) == "awaiting_approval"
    assert read_refusal(train(home, changed)) == "awaiting_approval"


def test_approval_is_for_one_study_and_keeps_the_others(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    other = small_study(seed=2)
    approve(home, other, COHORT)
    assert read_refusal(roll_call(home, STUDY)) is None
    assert read_refusal(roll_call(home, other)) is None


def test_approval_taken_back_stops_the_next_round(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    trained(home, STUDY)
    (home / "approvals.json").write_text("{}", encoding="utf-8")
    assert read_refusal(train(home, STUDY, 2)) == "awaiting_approval"


def test_policy_tightened_during_a_study_stops_the_next_round(tmp_path: Path) -> None:
    home = site_home(tmp_path, PRIVATE)
    read_enrolment(roll_call(home, PRIVATE))
    trained(home, PRIVATE)
    site_home(tmp_path, PRIVATE, policy=open_policy(max_epsilon_per_study=1))
    assert read_refusal(train(home, PRIVATE, 2)) == "policy_limit asked=8.0 key=privacy.epsilon limit=1.0"
    assert spent_rounds(home) == 1


def test_site_that_the_study_does_not_name_refuses(tmp_path: Path) -> None:
    assert read_refusal(roll_call(site_home(tmp_path, STUDY, name="west"), STUDY)) == "site_not_named"


def test_cohort_that_is_not_registered_is_missing(tmp_path: Path) -> None:
    home = site_home(tmp_path)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    Approvals(home).decide(STUDY, Decision("approved", "ann", at, "another", "0" * 64))
    assert read_refusal(roll_call(home, STUDY)) == "cohort_missing"


def test_table_that_is_gone_is_missing(tmp_path: Path) -> None:
    home = site_home(tmp_path, STUDY)
    (home / f"{COHORT}.csv").unlink()
    assert read_refusal(roll_call(home, STUDY)) == "cohort_missing"


@pytest.mark.parametrize(
    ("rows", "answer"),
    [(0, "cohort_empty"), (7, "cohort_too_small limit=20"), (20, None)],
    ids=["empty", "small", "at"],
)
def test_cohort_below_the_site_s_minimum_is_refused(tmp_path: Path, rows: int, answer: str | None) -> None:
    home = site_home(tmp_path, STUDY, frame=table(rows), policy=open_policy(min_patients=20))
    assert read_refusal(roll_call(home, STUDY)) == answer
    assert read_refusal(train(home, STUDY)) == answer


def test_table_that_breaks_the_schema_crosses_as_the_number_of_rules(tmp_path: Path) -> None:
    frame = table()
    frame.loc[:4, "age"], frame.loc[7, "sex"] = "4711", "Mrs Canary"
    home = site_home(tmp_path, STUDY, frame=frame)
    assert read_refusal(roll_call(home, STUDY)) == "cohort_mismatch rule_count=2"


def test_change_beyond_the_bound_is_refused_not_clipped(tmp_path: Path) -> None:
    study = small_study(aggregation={"update_bound": 1e-6})
    assert read_refusal(train(site_home(tmp_path, study), study)) == "update_out_of_bounds limit=1e-06"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_change_that_is_not_finite_is_refused(tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    size = parameter_spec(STUDY).size
    spoiled = np.full(size, value, dtype=np.float32)
    monkeypatch.setattr("fedward_client.trainer.train_round", lambda *_, **__: (spoiled, float("nan")))
    assert read_refusal(train(site_home(tmp_path, STUDY), STUDY)) == "update_not_finite"


def test_message_that_is_none_is_refused(tmp_path: Path) -> None:
    assert read_refusal(Site(site_home(tmp_path, STUDY)).answer(RecordDict())) == "message_invalid"


# ------------------------------------------------------------------------------------------------------- privacy


def test_enrolment_opens_the_account_and_each_round_debits_it(tmp_path: Path) -> None:
    home = site_home(tmp_path, PRIVATE)
    read_enrolment(roll_call(home, PRIVATE))
    assert spent_rounds(home) == 0
    steps = [trained(home, PRIVATE, round_).steps for round_ in (1, 2, 3)]
    assert steps == [2, 4, 6]
    spend = round_spend(PRIVATE)
    assert spend is not None
    (entry,) = Ledger(home / "ledger.sqlite").entries(COHORT)
    assert entry.epsilon == epsilon_of([spend] * 3, 1e-4) <= 8


def test_round_without_an_account_is_refused(tmp_path: Path) -> None:
    assert read_refusal(train(site_home(tmp_path, PRIVATE), PRIVATE)) == "budget_exceeded round=1"


def test_replayed_round_is_refused(tmp_path: Path) -> None:
    home = site_home(tmp_path, PRIVATE)
    roll_call(home, PRIVATE)
    trained(home, PRIVATE)
    assert read_refusal(train(home, PRIVATE, moved=0.5)) == "round_replayed round=1"
    assert spent_rounds(home) == 1


def test_budget_is_debited_before_training_and_never_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = site_home(tmp_path, PRIVATE)
    roll_call(home, PRIVATE)
    seen = []

    def crash(*_: object, **__: object) -> None:
        seen.append(spent_rounds(home))
        raise RuntimeError

    monkeypatch.setattr("fedward_client.trainer.train_round", crash)
    with pytest.raises(RuntimeError):
        train(home, PRIVATE)
    assert seen == [1]
    monkeypatch.undo()
    assert spent_rounds(home) == 1
    assert read_refusal(train(home, PRIVATE)) == "round_replayed round=1"


def test_lifetime_budget_holds_over_two_studies(tmp_path: Path) -> None:
    other = private_study(seed=2)
    policy = open_policy(max_epsilon_lifetime=10, max_delta=1e-3)
    home = site_home(tmp_path, PRIVATE, policy=policy)
    approve(home, other, COHORT)
    assert read_refusal(roll_call(home, PRIVATE)) is None
    assert read_refusal(roll_call(home, other)) == "budget_exceeded limit=10.0"
    assert read_refusal(train(home, other)) == "budget_exceeded round=1"


def test_second_roll_call_changes_nothing(tmp_path: Path) -> None:
    home = site_home(tmp_path, PRIVATE)
    roll_call(home, PRIVATE)
    trained(home, PRIVATE)
    assert read_refusal(roll_call(home, PRIVATE)) is None
    assert spent_rounds(home) == 1


def test_noise_written_out_that_breaks_the_study_s_promise_is_refused_at_the_site(tmp_path: Path) -> None:
    """A coordinator that lies about ε: the site counts for itself."""
    privacy = {"mechanism": "dp_sgd", "epsilon": 1.0, "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 1.0}
    study = small_study(privacy=privacy)
    home = site_home(tmp_path, study)
    assert read_refusal(roll_call(home, study)) == "budget_exceeded limit=1.0"


def test_no_metric_leaves_under_privacy_and_the_loss_does_without(tmp_path: Path) -> None:
    private, plain = site_home(tmp_path / "p", PRIVATE), site_home(tmp_path / "n", STUDY)
    roll_call(private, PRIVATE)
    assert trained(private, PRIVATE).metrics == {}
    assert set(trained(plain, STUDY).metrics) == {"loss"}
    assert trained(plain, STUDY).steps == 0


# ---------------------------------------------------------------------------------------------------------- the folder


def test_home_is_its_owner_s_only(tmp_path: Path) -> None:
    home = site_home(tmp_path)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_site_file_is_read_back_as_written(tmp_path: Path) -> None:
    config = SiteConfig(site="north", policy=open_policy(min_patients=7))
    write_site(tmp_path / "north", config)
    assert Site(tmp_path / "north").config == config


def test_site_without_its_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LocalDataError, match=r"site\.yaml") as caught:
        Site(tmp_path)
    assert "without a policy nothing is admitted" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "site is missing"),
        ("- 1", "site is missing"),
        ("site: north\npolicy: {max_epsilom: 3}", "unknown key 'policy.max_epsilom'"),
        ("site: north\npolicy: {min_patients: 0}", "at least 1 patients"),
        ("site: ../north", "site"),
        ("site: north\ncohorts: {../x: {table: t.csv}}", "cohorts"),
        ("site: [", "cannot be read"),
        ("site: !!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_site_file_that_is_wrong_is_a_clear_error_and_nothing_is_admitted(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "site.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(FedwardError) as caught:
        Site(tmp_path)
    assert words in caught.value.message
    assert "site.yaml" in caught.value.message


def test_site_whose_file_has_no_policy_does_not_start(tmp_path: Path) -> None:
    write_site(tmp_path / "north", SiteConfig(site="north"))
    (tmp_path / "north" / "site.yaml").write_text("site: north\n", encoding="utf-8")
    with pytest.raises(LocalDataError, match="policy"):
        Site(tmp_path / "north")


def test_every_refusal_says_only_what_is_allowed(tmp_path: Path) -> None:
    """Whatever goes wrong with a table full of canaries, no byte of it is in the reply."""
    frame = pd.DataFrame({name: [f"CANARY-{name}-{row}" for row in range(30)] for name in table(1).columns})
    for study, name in ((STUDY, "a"), (PRIVATE, "b")):
        home = site_home(tmp_path / name, study, frame=frame)
        for reply in (roll_call(home, study), train(home, study)):
            assert "CANARY" not in repr(reply)
            assert dict(reply.config_records["fedward"]) == {
                "protocol": PROTOCOL,
                "site": "north",
                "refusal": "cohort_mismatch rule_count=5",
            }
            assert set(reply) == {"fedward"}


def test_refusal_raised_deep_inside_leaves_as_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Refusal(RefusalCode.INTERNAL, "CANARY", remedy="CANARY")

    monkeypatch.setattr("fedward_client.trainer.train_round", refuse)
    reply = train(site_home(tmp_path, STUDY), STUDY)
    assert "CANARY" not in repr(reply)
    assert read_refusal(reply) == "internal_error"
