"""What changed between two versions of a study: every field, once, with what it means for privacy."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.diff import GROUPS, changes, in_words
from fedward_client.policy import objections
from fedward_common.study import Study
from tests.builders import contract, open_policy, small_study

DP = {"mechanism": "dp_sgd", "epsilon": 4.0, "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 1.0}
WEIGHT = {"kind": "numeric", "unit": "kg", "minimum": 0, "maximum": 300}
BASE = small_study(sites=["north", "south", "east"], privacy=DP)


def changed(path: str, value: Any, base: Study = BASE) -> Study:
    """Return `base` with the field at the dotted path replaced; None takes a column away."""
    content = copy.deepcopy(base.contract())
    here = content
    *way, last = path.split("/")
    for name in way:
        here = here[name]
    if value is None:
        del here[last]
    else:
        here[last] = value
    return Study.of(content)


@pytest.mark.parametrize(
    ("path", "value", "group", "effect"),
    [
        ("cohort/columns/weight", WEIGHT, "data read", "looser"),
        ("cohort/columns/age", None, "data read", "tighter"),
        ("cohort/columns/age/maximum", 120.0, "data read", ""),
        ("cohort/columns/sex/categories", ["f", "m", "x"], "data read", ""),
        ("cohort/patient", "identifier", "data read", "tighter"),
        ("cohort/max_rows_per_patient", 9, "data read", "looser"),
        ("cohort/max_rows_per_patient", 2, "data read", "tighter"),
        ("cohort/label/positive", ["no"], "data read", ""),
        ("training/rounds", 4, "training", "looser"),
        ("training/rounds", 2, "training", "tighter"),
        ("training/local_steps", 3, "training", "looser"),
        ("training/sampling_rate", 0.5, "training", "tighter"),
        ("training/learning_rate", 0.1, "training", ""),
        ("privacy/epsilon", 4.5, "privacy", "looser"),
        ("privacy/epsilon", 3.5, "privacy", "tighter"),
        ("privacy/delta", 1e-3, "privacy", "looser"),
        ("privacy/clip_norm", 2.0, "privacy", "looser"),
        ("privacy/noise_multiplier", 2.0, "privacy", "tighter"),
        ("privacy/noise_multiplier", 0.5, "privacy", "looser"),
        ("aggregation/quorum", 3, "aggregation", "tighter"),
        ("aggregation/update_bound", 1.0, "aggregation", ""),
        ("seed", 7, "other", ""),
        ("description", "another", "other", ""),
        ("name", "other_name", "other", ""),
        ("sites", ["north", "south"], "other", ""),
        ("evaluation/bootstrap", 200, "other", ""),
    ],
)  # fmt: skip
def test_one_changed_field_is_one_change_with_its_group_and_effect(
    path: str, value: Any, group: str, effect: str
) -> None:
    new = changed(path, value)

    (found,) = changes(BASE, new)

    assert (found.key, found.group, found.effect) == (path.replace("/", "."), group, effect)


def test_study_without_a_change_has_none() -> None:
    assert changes(BASE, Study.of(BASE.contract())) == []


def test_privacy_that_is_given_up_is_looser_and_shown_whole() -> None:
    found = changes(BASE, small_study(sites=["north", "south", "east"]))

    assert [(change.key, change.effect) for change in found if change.effect] == [("privacy.mechanism", "looser")]
    assert {change.group for change in found} == {"privacy"}
    assert "privacy.epsilon: gone: 4.0" in [change.sentence() for change in found]


def test_privacy_section_that_is_gone_is_looser() -> None:
    without = Study.of({key: value for key, value in BASE.contract().items() if key != "privacy"})

    (found,) = changes(BASE, without)

    assert (found.key, found.new, found.effect) == ("privacy", None, "looser")


FLOWER = {"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum"}


@pytest.mark.parametrize("rule", [FLOWER, {"rule": "median"}, {"rule": "centred_clipping", "radius": 1.0}])
def test_rule_that_sees_single_updates_is_looser(rule: dict[str, Any]) -> None:
    single = small_study(sites=["north", "south", "east"], privacy=DP, aggregation=rule)

    effects = {change.key: change.effect for change in changes(BASE, single)}

    assert effects["aggregation.rule"] == "looser"
    assert not any(effect for key, effect in effects.items() if key != "aggregation.rule")


def test_change_says_what_the_field_means_in_the_study_s_own_words() -> None:
    by_key = {change.key: change for change in changes(BASE, changed("training/rounds", 4))}

    assert by_key["training.rounds"].sentence() == "training.rounds: 3 → 4  [looser for privacy]"
    assert by_key["training.rounds"].meaning == "rounds of the whole study"
    assert {change.meaning for change in changes(BASE, changed("aggregation/deadline_seconds", 60.0))} == {
        "longest wait for a round, in s"
    }


def test_column_whose_name_has_a_full_stop_is_told_like_any_other() -> None:
    column = {"kind": "categorical", "categories": ["a", "b"]}

    (found,) = changes(BASE, changed("cohort/columns/lab.sodium", column))

    assert found.sentence().startswith("cohort.columns.lab.sodium: new: kind categorical")
    assert found.meaning == ""


def test_numbers_that_python_holds_equal_are_told_apart_as_the_digest_tells_them() -> None:
    whole = changed("cohort/columns/stage/categories", [1, 2, 3])
    fraction = changed("cohort/columns/stage/categories", [1.0, 2.0, 3.0])

    assert whole.digest != fraction.digest
    assert [change.key for change in changes(whole, fraction)] == ["cohort.columns.stage.categories"]


def test_values_read_as_words() -> None:
    assert in_words({"kind": "numeric", "minimum": 0.0, "missing": False, "marks": [], "note": "", "impute": None}) == (
        "kind numeric, minimum 0.0"
    )
    assert in_words([1, "a", True]) == "[1, a, yes]"
    assert in_words("") == "(empty)"


STUDIES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "training": st.fixed_dictionaries(
            {
                "rounds": st.integers(1, 4),
                "local_steps": st.integers(1, 3),
                "sampling_rate": st.sampled_from([0.1, 1.0]),
            }
        ),
        "privacy": st.sampled_from([DP, DP | {"epsilon": 8.0}, DP | {"noise_multiplier": 2.0}, {"mechanism": "none"}]),
        "aggregation": st.sampled_from([{"quorum": 2}, {"quorum": 3}, {"rule": "fedprox", "mu": 0.1}]),
        "model": st.sampled_from([{"name": "linear"}, {"name": "mlp", "hidden": [4]}]),
    }
).map(lambda parts: Study.of(contract(sites=["north", "south", "east"], **parts)))


@given(old=STUDIES, new=STUDIES)
def test_changes_are_complete_without_repetition_and_turn_round(old: Study, new: Study) -> None:
    forth, back = changes(old, new), changes(new, old)

    assert (not forth) == (old.digest == new.digest)
    assert len({change.key for change in forth}) == len(forth)
    turned = {"looser": "tighter", "tighter": "looser", "": ""}
    assert {(c.key, c.new, c.old, turned[c.effect]) for c in map(_hashable, back)} == {
        (c.key, c.old, c.new, c.effect) for c in map(_hashable, forth)
    }
    assert [GROUPS.index(change.group) for change in forth] == sorted(GROUPS.index(change.group) for change in forth)


@given(old=STUDIES, new=STUDIES)
def test_what_only_the_new_version_is_refused_for_is_called_looser(old: Study, new: Study) -> None:
    """A policy that fits the old version exactly: whatever it has against the new one went towards a limit."""
    privacy = old.contract()["privacy"]
    policy = open_policy(
        max_rounds=old.training.rounds,
        max_local_steps=old.training.local_steps,
        max_sampling_rate=old.training.sampling_rate,
        min_sites=old.aggregation.quorum,
        max_epsilon_per_study=privacy.get("epsilon", 100),
        min_noise_multiplier=privacy.get("noise_multiplier", 0.2),
    )
    assert objections(old, "north", policy) == []

    refused = {str(refusal.fields["key"]) for refusal in objections(new, "north", policy)}

    looser = {change.key for change in changes(old, new) if change.effect == "looser"}
    assert refused <= looser


def _hashable(change: Any) -> Any:
    """Return a change whose values can be put into a set."""
    return replace(change, old=in_words(change.old), new=in_words(change.new))
