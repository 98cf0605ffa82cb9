"""A hospital's limits refuse; they never trim a study to fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.policy import (
    Policy,
    admit,
    admit_cohort,
    admit_use,
    metrics_that_leave,
    objections,
)
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.study import Study
from tests.builders import contract, open_policy, private_study, small_study

AT_LIMITS = Policy(
    require_signature=False,
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


@pytest.mark.parametrize("policy", [Policy(require_signature=False), open_policy()])
def test_study_without_privacy_section_is_refused_whatever_the_policy(policy: Policy) -> None:
    study = Study.of({key: value for key, value in contract().items() if key != "privacy"})
    assert refusal(study, policy).reason == RefusalCode.NO_PRIVACY_SECTION


def test_privacy_none_is_refused_by_the_default_policy() -> None:
    assert refusal(small_study(), Policy(require_signature=False)).reason == RefusalCode.PRIVACY_REQUIRED


def test_privacy_none_is_admitted_by_a_policy_that_says_so() -> None:
    admit(small_study(), "north", Policy(require_privacy=False, require_signature=False))


def test_default_policy_admits_an_ordinary_private_study() -> None:
    admit(private_study(), "north", Policy(require_signature=False))


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


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        (
            {"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum"},
            "flwr.serverapp.strategy.Krum",
        ),
        ({"rule": "median"}, "median"),
        ({"rule": "trimmed_mean", "poisoned": 0.2}, "trimmed_mean"),
        ({"rule": "multi_krum", "poisoned": 0.2}, "multi_krum"),
        ({"rule": "centred_clipping", "radius": 1.0}, "centred_clipping"),
    ],
)
def test_a_rule_that_sees_single_updates_needs_the_hospitals_consent(rule: dict[str, Any], asked: str) -> None:
    study = small_study(sites=["north", "b", "c", "d", "e"], aggregation=rule)

    with pytest.raises(Refusal) as refused:
        admit(study, "north", open_policy(allow_single_updates=False))

    assert refused.value.reason is RefusalCode.POLICY_LIMIT
    assert refused.value.crossing() == f"policy_limit asked={asked} key=aggregation.rule"
    admit(study, "north", open_policy())


@pytest.mark.parametrize("rule", ["fedavg", "fedadam", "fedyogi", "fedadagrad"])
def test_a_rule_on_the_streaming_mean_needs_no_such_consent(rule: str) -> None:
    admit(small_study(aggregation={"rule": rule}), "north", open_policy(allow_single_updates=False))
    assert not Policy().allow_single_updates


# ------------------------------------------------------------------------------------------- properties of all limits


@dataclass(frozen=True)
class Limit:
    """A number that a study asks for and the key of the policy that bounds it; `sign` is 1 for an upper bound."""

    key: str
    policy: str
    sign: int
    values: tuple[float, ...]


LIMITS = (
    Limit("training.rounds", "max_rounds", 1, (1, 3, 10, 1000)),
    Limit("training.local_steps", "max_local_steps", 1, (1, 2, 50)),
    Limit("training.sampling_rate", "max_sampling_rate", 1, (0.01, 0.5, 1.0)),
    Limit("aggregation.quorum", "min_sites", -1, (2, 3, 4)),
    Limit("privacy.epsilon", "max_epsilon_per_study", 1, (0.5, 8.0, 8.5, 50.0)),
    Limit("privacy.delta", "max_delta", 1, (1e-6, 1e-4, 5e-3)),
    Limit("privacy.clip_norm", "max_clip_norm", 1, (0.1, 1.0, 20.0)),
    Limit("privacy.noise_multiplier", "min_noise_multiplier", -1, (0.3, 1.0, 4.0)),
)
PRIVATE_ONLY = {limit.key for limit in LIMITS if limit.key.startswith("privacy")} | {"training.sampling_rate"}
FOUR = ("north", "south", "east", "west")


def ask_for(numbers: Mapping[str, float], *, private: bool = True) -> Study:
    """Return a study that asks for these numbers, by key."""
    parts: dict[str, dict[str, Any]] = {"training": {}, "aggregation": {}, "privacy": {"mechanism": "dp_sgd"}}
    for key, value in numbers.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    if not private:
        parts["privacy"] = {"mechanism": "none"}
    return small_study(sites=list(FOUR), **parts)


def broken(numbers: Mapping[str, float], policy: Policy, *, private: bool) -> set[str]:
    """Return the keys that pass a limit, worked out without the code under test."""
    return {
        limit.key
        for limit in LIMITS
        if (private or limit.key not in PRIVATE_ONLY)
        and limit.sign * numbers[limit.key] > limit.sign * getattr(policy, limit.policy)
    }


@st.composite
def numbers_and_policies(draw: st.DrawFn) -> tuple[dict[str, float], Policy]:
    numbers = {limit.key: draw(st.sampled_from(limit.values)) for limit in LIMITS}
    bounds = {limit.policy: draw(st.sampled_from(limit.values)) for limit in LIMITS}
    return numbers, open_policy(**bounds)


@given(drawn=numbers_and_policies(), private=st.booleans())
def test_a_study_is_admitted_exactly_if_every_limit_holds(
    drawn: tuple[dict[str, float], Policy], *, private: bool
) -> None:
    numbers, policy = drawn
    study = ask_for(numbers, private=private)
    expected = broken(numbers, policy, private=private)

    found = objections(study, "north", policy)

    assert {refusal.fields["key"] for refusal in found} == expected
    assert all(refusal.reason is RefusalCode.POLICY_LIMIT for refusal in found)
    if expected:
        assert refusal(study, policy).fields["key"] in expected
    else:
        admit(study, "north", policy)


@given(
    limit=st.sampled_from(LIMITS),
    places=st.tuples(*(st.integers(0, len(limit.values) - 2) for limit in LIMITS)),
)
def test_loosening_one_field_beyond_its_limit_is_refused_with_its_key(limit: Limit, places: tuple[int, ...]) -> None:
    """Every field stands at its limit; then one goes a step further."""
    ordered = {each.key: sorted(each.values, key=lambda v: each.sign * v) for each in LIMITS}
    numbers = {each.key: ordered[each.key][place] for each, place in zip(LIMITS, places, strict=True)}
    policy = open_policy(**{each.policy: numbers[each.key] for each in LIMITS})
    admit(ask_for(numbers), "north", policy)
    looser = ordered[limit.key][ordered[limit.key].index(numbers[limit.key]) + 1]

    found = refusal(ask_for(numbers | {limit.key: looser}), policy)

    assert found.reason is RefusalCode.POLICY_LIMIT
    assert found.fields == {"key": limit.key, "asked": looser, "limit": numbers[limit.key]}


@given(drawn=numbers_and_policies(), limit=st.sampled_from(LIMITS), data=st.data())
def test_a_stricter_policy_admits_nothing_that_a_looser_one_refuses(
    drawn: tuple[dict[str, float], Policy], limit: Limit, data: st.DataObject
) -> None:
    numbers, policy = drawn
    at = getattr(policy, limit.policy)
    stricter = data.draw(st.sampled_from([v for v in limit.values if limit.sign * v <= limit.sign * at]))
    study = ask_for(numbers)

    before = {str(r.fields["key"]) for r in objections(study, "north", policy)}
    after = {
        str(r.fields["key"]) for r in objections(study, "north", policy.model_copy(update={limit.policy: stricter}))
    }

    assert before <= after <= before | {limit.key}


# ------------------------------------------------------------------------------------------------- who asks for what


def test_study_that_is_not_listed_is_refused_by_name_and_by_digest() -> None:
    study = small_study()

    for listed in ((study.name,), (study.digest,), ("other", study.digest)):
        admit(study, "north", open_policy(studies=listed))
    for listed in (("other",), (small_study(seed=2).digest,), ("a" + study.digest[:11],)):
        assert refusal(study, open_policy(studies=listed)).reason is RefusalCode.STUDY_NOT_ALLOWED


def test_digest_in_the_list_does_not_admit_the_next_version() -> None:
    policy = open_policy(studies=(small_study().digest,))

    assert refusal(small_study(description="another"), policy).reason is RefusalCode.STUDY_NOT_ALLOWED


def test_cohort_takes_only_the_studies_that_are_listed_for_it() -> None:
    study = small_study()
    policy = open_policy(cohort_studies={"chart": (study.name,), "biobank": ("other",), "closed": ()})

    admit_use(study, "chart", policy)
    admit_use(study, "not_listed", policy)
    for cohort in ("biobank", "closed"):
        with pytest.raises(Refusal) as caught:
            admit_use(study, cohort, policy)
        assert caught.value.reason is RefusalCode.COHORT_NOT_ALLOWED
        assert f"policy.cohort_studies.{cohort}" in caught.value.remedy


def test_site_that_requires_secure_aggregation_refuses_every_study() -> None:
    found = refusal(private_study(), open_policy(require_secure_aggregation=True))

    assert found.reason is RefusalCode.SECURE_AGGREGATION_REQUIRED


def test_model_of_more_parameters_than_allowed_is_refused_before_it_is_built() -> None:
    study = small_study(model={"name": "mlp", "hidden": [4096] * 8})

    found = refusal(study, open_policy(max_parameters=1000))

    assert found.fields["key"] == "model.parameters"
    assert found.fields["limit"] == 1000


@pytest.mark.parametrize(
    ("patterns", "admitted"),
    [
        (("*",), True),
        (("0.*",), True),
        (("0.weight", "0.bias"), True),
        (("0.weight",), False),
        (("encoder.*",), False),
        ((), False),
        (("0.WEIGHT", "0.bias"), False),
    ],
)
def test_only_tensors_whose_names_are_allowed_may_be_trained(patterns: tuple[str, ...], *, admitted: bool) -> None:
    policy = open_policy(allowed_tensors=patterns)

    if admitted:
        admit(small_study(), "north", policy)
    else:
        found = refusal(small_study(), policy)
        assert found.reason is RefusalCode.POLICY_LIMIT
        assert found.fields["key"] == "model"


@pytest.mark.parametrize(
    ("study", "allowed", "leaving"),
    [
        (small_study(), ("loss",), {"loss": 0.5}),
        (small_study(), (), {}),
        (small_study(), ("auroc",), {}),
        (private_study(), ("loss",), {}),
        (private_study(privacy={"loss": "noised"}), ("loss",), {"loss": 0.5}),
    ],
)
def test_metric_leaves_only_if_it_is_allowed_and_under_privacy_paid_for(
    study: Study, allowed: tuple[str, ...], leaving: dict[str, float]
) -> None:
    assert metrics_that_leave(study, open_policy(allowed_metrics=allowed), {"loss": 0.5}) == leaving


def test_all_objections_are_told_to_the_staff_and_the_first_one_leaves() -> None:
    study = asking(privacy={"epsilon": 50, "delta": 5e-3}, training={"rounds": 4})

    found = objections(study, "north", AT_LIMITS)

    assert [refusal.fields["key"] for refusal in found] == ["training.rounds", "privacy.epsilon", "privacy.delta"]
    assert refusal(study, AT_LIMITS).crossing() == found[0].crossing()


def test_every_objection_names_the_policy_s_key_for_the_staff() -> None:
    for limit in LIMITS:
        worst = sorted(limit.values, key=lambda value: limit.sign * value)
        numbers = {each.key: each.values[0 if each.sign > 0 else -1] for each in LIMITS} | {limit.key: worst[-1]}

        found = refusal(ask_for(numbers), open_policy(**{limit.policy: worst[0]}))

        assert f"policy.{limit.policy}" in found.message


def test_a_loss_that_the_policy_does_not_allow_is_refused_though_it_is_noised() -> None:
    study = private_study(privacy={"loss": "noised"})

    admit(study, "north", open_policy())
    assert refusal(study, open_policy(allowed_metrics=())).fields["key"] == "privacy.loss"
