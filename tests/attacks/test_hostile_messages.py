"""A hostile coordinator gets refusals and audit entries: each attack by its name, and the campaign, reduced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedward_client import policy, site
from fedward_common.errors import RefusalCode
from fedward_simulations.faults.attack import Case, attempt, besieged
from fedward_simulations.faults.hostile_cases import CASES, ODD, OUTAGES
from fedward_simulations.faults.hostile_messages import Siege, campaign, judge_case, main
from fedward_simulations.faults.mutations import Mutation
from fedward_simulations.faults.target import Target

NEEDED = {
    "foreign_code_in_the_bundle", "replayed_round", "stale_round", "unsigned", "object_of_another_digest",
    "wrong_sender", "more_bytes_than_allowed", "epsilon_above_the_policy", "noise_below_the_policy",
}  # fmt: skip
NO_CHANGE = Mutation(task=True, names=(), on_records=(), on_bytes=())
TOGETHER = sorted(name for name, case in CASES.items() if not case.needs_a_site_of_its_own)
ALONE = sorted(set(CASES) - set(TOGETHER))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One site for all attacks that leave it as it was."""
    with besieged(tmp_path_factory.mktemp("besieged")) as target:
        yield target


def test_every_kind_of_attack_is_among_those_with_a_name() -> None:
    assert set(CASES) >= NEEDED
    assert len(CASES) > 100


@pytest.mark.parametrize("name", TOGETHER)
def test_attack_is_refused_with_its_code_and_one_audit_entry(target: Target, name: str) -> None:
    verdict = attempt(CASES[name], target)

    assert judge_case(name, CASES[name], verdict) == []


@pytest.mark.parametrize("name", ALONE)
def test_attack_on_a_site_of_its_own_is_refused_with_its_code_and_one_audit_entry(name: str, tmp_path: Path) -> None:
    case = CASES[name]

    with besieged(tmp_path, case) as target:
        verdict = attempt(case, target)

    assert judge_case(name, case, verdict) == []


@pytest.mark.parametrize("name", ODD)
def test_odd_announcement_is_answered_once_and_the_site_lives_on(target: Target, name: str) -> None:
    verdict = target.deliver(ODD[name](target))

    assert verdict.faults == ()
    assert verdict.code != RefusalCode.INTERNAL
    assert len(verdict.decisions) == 1


@pytest.mark.parametrize("name", OUTAGES)
def test_answer_that_is_none_does_not_end_the_site(name: str, tmp_path: Path) -> None:
    call, raw = OUTAGES[name]

    with besieged(tmp_path) as target:
        target.superlink.answer_next(call, raw)
        met = target.deliver(target.roll_call())
        after = target.deliver(target.task())

        assert call not in target.superlink.raw
        assert met.code in {None, RefusalCode.BUNDLE_NOT_PINNED, RefusalCode.MESSAGE_INVALID}
        assert after.code in ({None} if met.code is None else {RefusalCode.BUDGET_EXCEEDED})
        assert target.alive


def test_honest_task_is_accepted_and_trained_once(tmp_path: Path) -> None:
    """The control: a site that refuses everything would pass all the others."""
    with Siege(tmp_path) as siege:
        assert siege.judge(NO_CHANGE) == []
        assert siege.target.worker.trained == 1
        assert len(siege.target.debits()) == 1


@pytest.mark.parametrize(
    ("module", "name", "instead", "case"),
    [
        (site, "admit", lambda *_, **__: None, "epsilon_above_the_policy"),
        (policy, "_against_sender", lambda *_, **__: iter(()), "unsigned"),
        (policy, "_against_privacy", lambda *_, **__: iter(()), "noise_below_the_policy"),
    ],
    ids=["no policy", "no signatures", "no privacy"],
)
def test_the_campaign_says_so_when_a_site_checks_nothing(
    module: Any, name: str, instead: Any, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, instead)

    figures = campaign(tmp_path, examples=1, draws=1, cases={case: CASES[case]})

    assert any(failure.startswith(case) for failure in figures.failures)


def test_a_wrong_code_is_a_failure_of_the_campaign(tmp_path: Path) -> None:
    wrong = Case(RefusalCode.STUDY_UNSIGNED, lambda target: target.roll_call(), {"min_patients": 33})

    with besieged(tmp_path, wrong) as target:
        objections = judge_case("wrong", wrong, attempt(wrong, target))

    assert objections == ["wrong is refused as cohort_too_small, not as study_unsigned"]


@pytest.mark.reduced
def test_drawn_messages_are_refused_without_effect(tmp_path: Path) -> None:
    figures = campaign(tmp_path, examples=300, draws=7, cases={})

    assert figures.failures == []
    assert figures.refused == figures.messages > 200


@pytest.mark.campaign
def test_ten_thousand_drawn_messages_are_refused_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--examples", "10000", "--seed", "1", "--json"]) == 0
    assert '"failures": []' in capsys.readouterr().out
