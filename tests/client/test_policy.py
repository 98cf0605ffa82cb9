"""A hospital's limits refuse; they never trim a study to fit."""

from __future__ import annotations

from typing import Any

import pytest

from fedward_client.policy import Policy, admit, admit_cohort
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.study import Study
from tests.builders import contract, open_policy, private_study, small_study

AT_LIMITS = Policy(
    max_epsilon_per_study=8,
    max_delta=1e-4,
    max_clip_norm=1,
    max_sampling_rate=0.5,
    min_noise_multiplier=1,
    min_sites=2,
    max_rounds=3,
    max_local_steps=2,
)


def asking(**changes: Any) -> Study:
    """Return a study that asks for exactly what `AT_LIMITS` gives, changed."""
    training = {"sampling_rate": 0.5} | changes.pop("training", {})
    privacy = {"mechanism": "dp_sgd", "epsilon": 8, "delta": 1e-4, "clip_norm": 1, "noise_multiplier": 1}
    return small_study(training=training, privacy=privacy | changes.pop("privacy", {}), **changes)


def refusal(study: Study, policy: Policy, site: str = "north") -> Refusal:
    with pytest.raises(Refusal) as caught:
        admit(study, site, policy)
    return caught.value


def test_study_at_every_limit_is_admitted() -> None:
    admit(asking(), "north", AT_LIMITS)


@pytest.mark.parametrize(
    ("changes", "key", "asked", "limit"),
    [
        ({"privacy": {"epsilon": 8.001}}, "privacy.epsilon", 8.001, 8),
        ({"privacy": {"delta": 1.001e-4}}, "privacy.delta", 1.001e-4, 1e-4),
        ({"privacy": {"clip_norm": 1.001}}, "privacy.clip_norm", 1.001, 1),
        ({"privacy": {"noise_multiplier": 0.999}}, "privacy.noise_multiplier", 0.999, 1),
        ({"privacy": {"noise_multiplier": None}}, "privacy.noise_multiplier", 0, 1),
        ({"training": {"sampling_rate": 0.501}}, "training.sampling_rate", 0.501, 0.5),
        ({"training": {"rounds": 4}}, "training.rounds", 4, 3),
        ({"training": {"local_steps": 3}}, "training.local_steps", 3, 2),
    ],
)
def test_looser_request_is_refused_with_key_limit_and_what_was_asked(
    changes: dict[str, Any], key: str, asked: float, limit: float
) -> None:
    found = refusal(asking(**changes), AT_LIMITS)
    assert found.reason == RefusalCode.POLICY_LIMIT
    assert found.fields == {"key": key, "asked": asked, "limit": limit}


def test_quorum_below_the_site_s_minimum_is_refused() -> None:
    found = refusal(small_study(), open_policy(min_sites=3))
    assert found.fields == {"key": "aggregation.quorum", "asked": 2, "limit": 3}


def test_refused_study_is_left_as_it_was() -> None:
    study = asking(privacy={"epsilon": 50})
    before = study.digest
    refusal(study, AT_LIMITS)
    assert study.digest == before


@pytest.mark.parametrize("policy", [Policy(), open_policy()])
def test_study_without_privacy_section_is_refused_whatever_the_policy(policy: Policy) -> None:
    study = Study.of({key: value for key, value in contract().items() if key != "privacy"})
    assert refusal(study, policy).reason == RefusalCode.NO_PRIVACY_SECTION


def test_privacy_none_is_refused_by_the_default_policy() -> None:
    assert refusal(small_study(), Policy()).reason == RefusalCode.PRIVACY_REQUIRED


def test_privacy_none_is_admitted_by_a_policy_that_says_so() -> None:
    admit(small_study(), "north", Policy(require_privacy=False))


def test_default_policy_admits_an_ordinary_private_study() -> None:
    admit(private_study(), "north", Policy())


def test_site_that_is_not_named_is_refused_first() -> None:
    assert refusal(asking(privacy={"epsilon": 50}), AT_LIMITS, site="west").reason == RefusalCode.SITE_NOT_NAMED


def test_limits_hold_for_a_study_without_privacy_too() -> None:
    assert refusal(small_study(), open_policy(max_rounds=2)).fields["key"] == "training.rounds"


@pytest.mark.parametrize(
    ("patients", "code"),
    [(0, RefusalCode.COHORT_EMPTY), (1, RefusalCode.COHORT_TOO_SMALL), (19, RefusalCode.COHORT_TOO_SMALL)],
)
def test_cohort_below_the_minimum_is_refused(patients: int, code: RefusalCode) -> None:
    with pytest.raises(Refusal) as caught:
        admit_cohort(patients, Policy())
    assert caught.value.reason == code


def test_refusal_of_a_small_cohort_tells_the_limit_and_not_the_size() -> None:
    with pytest.raises(Refusal) as caught:
        admit_cohort(7, Policy())
    assert caught.value.crossing() == "cohort_too_small limit=20"


def test_cohort_at_the_minimum_is_admitted() -> None:
    admit_cohort(20, Policy())


def test_a_rule_that_sees_single_updates_needs_the_hospitals_consent() -> None:
    study = small_study(aggregation={"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum"})

    with pytest.raises(Refusal) as refused:
        admit(study, "north", open_policy(allow_single_updates=False))

    assert refused.value.reason is RefusalCode.POLICY_LIMIT
    admit(study, "north", open_policy())
    assert not Policy().allow_single_updates
