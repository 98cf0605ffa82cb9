"""The study: one digest for one contract, and no way for code or a path into it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.canonical import canonical_json
from fedward_common.errors import StudyError
from fedward_common.models import parameter_spec
from fedward_common.study import FlowerRule, Study
from fedward_common.tables import encode, feature_names
from tests.builders import contract, private_study, small_study, table


def again(study: Study) -> Study:
    return Study.of(json.loads(study.canonical()))


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        keys = order.sample(sorted(value), len(value))
        return {key: shuffled(value[key], order) for key in keys}
    return value


@pytest.mark.parametrize("study", [small_study(), private_study(), small_study(model={"name": "mlp", "hidden": [3]})])
def test_study_read_back_from_its_bytes_is_the_same_study(study: Study) -> None:
    assert again(study) == study
    assert again(study).digest == study.digest


@given(st.randoms(use_true_random=False))
def test_key_order_changes_neither_digest_nor_features(order: random.Random) -> None:
    study = small_study()
    other = Study.of(shuffled(study.contract(), order))
    assert other.digest == study.digest
    assert feature_names(other.cohort) == feature_names(study.cohort)


def test_study_read_back_encodes_the_same_features_in_the_same_order() -> None:
    """Canonical JSON sorts its keys: a study declared in another order once trained on shuffled columns."""
    columns = contract()["cohort"]["columns"]
    declared = {name: columns[name] for name in ("stage", "sex", "pressure", "age")}
    study, frame = small_study(cohort={"columns": declared}), table(30)
    assert feature_names(again(study).cohort) == feature_names(study.cohort)
    assert (encode(frame, again(study).cohort).features == encode(frame, study.cohort).features).all()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def with_leaf(values: dict[str, Any], path: tuple[Any, ...], new: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(values))
    at: Any = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = new
    return copy


def test_digest_changes_with_any_field() -> None:
    """Each leaf of the contract is given another valid value: never the same digest."""
    study = private_study(aggregation={"rule": "fedadam"}, evaluation={"threshold": 0.4}, description="x", seed=3)
    values, changed, same = study.contract(), set(), []
    for path in leaves(values):
        for new in (1, 2, 0.3, 50, "another", "uniform", "adam", "drop", [1], ["m"], ["yes"], True):
            try:
                other = Study.of(with_leaf(values, path, new))
            except StudyError:
                continue
            if other != study:
                changed.add(path[-1])
                same += [path] if other.digest == study.digest else []
    assert not same
    assert len(changed) >= 30
    for name in ("seed", "sampling_rate", "epsilon", "noise_multiplier", "clip_norm", "max_weight", "impute", "group"):
        assert name in changed


def test_defaults_are_part_of_the_digest_and_written_out() -> None:
    study = small_study()
    assert study.contract()["aggregation"]["quorum"] == 2
    assert small_study(aggregation={"quorum": 2}).digest == study.digest
    assert small_study(sites=["north", "south", "west"], aggregation={"quorum": 3}).digest != study.digest


def test_a_quorum_stands_with_so_many_sites_and_each_required_one() -> None:
    names = ["north", "south", "west"]
    rule = small_study(sites=names, aggregation={"quorum": 2, "required_sites": ["west"]}).aggregation
    standing = [set(s) for n in range(4) for s in combinations(names, n) if rule.stands(s)]
    assert standing == [{"north", "west"}, {"south", "west"}, set(names)]
    assert small_study().digest == small_study(aggregation={"required_sites": []}).digest


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "flwr.serverapp.strategy",
        "flwr.serverapp.strategy.",
        "flwr.serverapp.strategy.krum",
        "flwr.serverapp.strategy.Krum.__init__",
        "flwr.serverapp.strategy.x.Krum",
        "flwr.serverapp.strategy_evil.Krum",
        "flwr_serverapp.strategy.Krum",
        " flwr.serverapp.strategy.Krum",
        "flwr.serverapp.strategy.Krum\n",
        "flwr.serverapp.strategy.Krum\nos.system",
        "FLWR.serverapp.strategy.Krum",
        "",
    ],
)
def test_target_outside_flowers_strategies_is_refused(target: str) -> None:
    with pytest.raises(StudyError, match="_target_"):
        small_study(aggregation={"rule": "flower", "_target_": target})


def test_target_inside_flowers_strategies_is_kept_under_its_alias() -> None:
    study = small_study(aggregation={"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum", "options": {"m": 2}})
    assert isinstance(study.aggregation, FlowerRule)
    assert study.aggregation.target == "flwr.serverapp.strategy.Krum"
    assert again(study) == study


@pytest.mark.parametrize("options", [{"f": {"_target_": "os.system"}}, {"f": [1]}, {"f": None}])
def test_strategy_options_are_plain_values(options: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="options"):
        small_study(aggregation={"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum", "options": options})


@pytest.mark.parametrize("name", ["../x", "a/b", "", "Ä", "a" * 64, "-a", "a b"])
def test_site_name_is_no_path(name: str) -> None:
    with pytest.raises(StudyError, match="sites"):
        small_study(sites=[name, "south"])


@pytest.mark.parametrize("name", ["A", "a b", "1a", "../a", "", "a\n"])
def test_study_name_is_no_path(name: str) -> None:
    with pytest.raises(StudyError, match="name"):
        small_study(name=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": ["a", "a"]}, "listed twice"),
        ({"aggregation": {"quorum": 3}}, "names 2"),
        ({"aggregation": {"quorum": 1}}, "quorum"),
        ({"aggregation": {"required_sites": ["north", "east"]}}, "required_sites: the study does not name east"),
        ({"training": {"optimizer": "adam", "momentum": 0.5}}, "momentum belongs to"),
        ({"sites": []}, "sites"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        small_study(**changes)


@pytest.mark.parametrize("key", ["description", "name"])
def test_text_that_has_no_bytes_is_refused(key: str) -> None:
    with pytest.raises(StudyError):
        small_study(**{key: "\ud800"})


def test_category_that_has_no_bytes_is_refused() -> None:
    """Else the study would validate and fail where its digest is first needed."""
    with pytest.raises(StudyError, match="UTF-8"):
        small_study(cohort={"columns": {"a": {"kind": "categorical", "categories": ["x", "\ud800"]}}})


def test_study_without_privacy_section_is_valid_and_says_so() -> None:
    study = Study.of({key: value for key, value in contract().items() if key != "privacy"})
    assert study.privacy is None
    assert study.contract()["privacy"] is None


def test_total_steps_and_proximal_weight() -> None:
    assert small_study(training={"rounds": 7, "local_steps": 3}).total_steps == 21
    assert small_study().proximal_mu == 0
    assert small_study(aggregation={"rule": "fedprox", "mu": 0.5}).proximal_mu == 0.5


def test_canonical_bytes_are_canonical() -> None:
    study = private_study()
    assert study.canonical() == canonical_json(json.loads(study.canonical()))
    assert parameter_spec(again(study)).digest == parameter_spec(study).digest
