"""Messages of a contract: every one names the key, its unit and what would be right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest

import fedward_client.config
import fedward_simulations.plan  # noqa: F401  (its contracts are looked at too)
from fedward_common.contract import Contract, nearest, plain, quantity, validated
from fedward_common.errors import StudyError, UnknownKeyError
from fedward_common.study import Study
from tests.builders import contract


def full() -> dict[str, Any]:
    """Return a fresh contract with a part of each kind of union, deep enough to change any key."""
    values = contract(
        model={"name": "mlp", "hidden": [4]},
        privacy={"mechanism": "dp_sgd", "epsilon": 8, "delta": 1e-4, "clip_norm": 1},
        aggregation={"rule": "fedprox", "mu": 0.1},
    )
    copy: dict[str, Any] = json.loads(json.dumps(values))
    return copy


def changed(path: str, value: object) -> dict[str, Any]:
    values = full()
    *parents, last = path.split(".")
    at = values
    for parent in parents:
        at = at[parent]
    at[last] = value
    return values


def message(path: str, value: object) -> str:
    with pytest.raises(StudyError) as caught:
        Study.of(changed(path, value))
    return caught.value.message


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("trainin", "training"),
        ("training.rouns", "training.rounds"),
        ("evaluation.treshold", "evaluation.threshold"),
        ("cohort.colums", "cohort.columns"),
        ("cohort.label.positiv", "cohort.label.positive"),
        ("cohort.columns.age.minimun", "cohort.columns.age.minimum"),
        ("cohort.columns.sex.categorie", "cohort.columns.sex.categories"),
        ("model.hiden", "model.hidden"),
        ("privacy.epsilom", "privacy.epsilon"),
        ("aggregation.quorom", "aggregation.quorum"),
        ("aggregation.muu", "aggregation.mu"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one(path: str, meant: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        Study.of(changed(path, 1))
    assert f"unknown key {path!r}" in caught.value.message
    assert f"did you mean {meant!r}?" in caught.value.message


def test_unknown_key_unlike_any_lists_the_valid_ones() -> None:
    assert "valid keys here: adjacency, clip_norm, delta, engine, epsilon" in message("privacy.zzz", 1)


def test_key_of_another_rule_is_unknown_to_this_one() -> None:
    assert "unknown key 'aggregation.beta_1'" in message("aggregation.beta_1", 0.9)


def test_alias_is_suggested_by_the_name_that_a_person_writes() -> None:
    rule = {"rule": "flower", "_target_": "flwr.serverapp.strategy.Krum"}
    assert "did you mean 'aggregation._target_'" in message("aggregation", rule | {"target_": 1})


def test_every_wrong_key_is_in_one_message() -> None:
    values = changed("training.rouns", 3)
    values["privacy"]["delta"] = 0.5
    with pytest.raises(UnknownKeyError, match=r"training\.rouns.*privacy\.delta"):
        Study.of(values)


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("training.rounds", 0, ["training.rounds = 0 rounds", "at least 1 rounds"]),
        ("training.sampling_rate", 1.5, ["1.5 per patient and step", "at most 1"]),
        ("training.sampling_rate", 0, ["0 per patient and step", "more than 0"]),
        ("aggregation.deadline_seconds", 0, ["0 s", "more than 0.0 s"]),
        ("aggregation.max_weight", 1 << 21, ["2097152 patients", "at most 1048576 patients"]),
        ("cohort.max_rows_per_patient", 0, ["0 rows", "at least 1 rows"]),
        ("privacy.delta", 0.5, ["privacy.delta = 0.5", "less than 0.01"]),
        ("privacy.epsilon", -1, ["privacy.epsilon = -1", "natural log"]),
        ("model.hidden", [0], ["model.hidden.0 = 0 units", "at least 1 units"]),
        ("training.rounds", 2.5, ["training.rounds (rounds)", "integer"]),
        ("cohort.columns.age.minimum", 200, ["200.0 years", "below", "100.0 years"]),
        ("cohort.columns.pressure.impute", 10, ["10.0 mmHg", "outside"]),
    ],
)
def test_range_message_names_key_value_limit_and_unit(path: str, value: object, parts: list[str]) -> None:
    text = message(path, value)
    assert path in text or path.rsplit(".", 1)[0] in text
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("path", ["privacy.epsilon", "training.learning_rate", "cohort.columns.age.maximum"])
def test_number_that_is_not_finite_is_refused(path: str, number: float) -> None:
    assert path in message(path, number)


@pytest.mark.parametrize("path", ["name", "sites", "cohort", "training", "model", "aggregation"])
def test_missing_part_is_named(path: str) -> None:
    values = full()
    del values[path]
    with pytest.raises(StudyError, match=f"{path} is missing"):
        Study.of(values)


@pytest.mark.parametrize(
    ("path", "value", "kinds"),
    [
        ("model.name", "mpl", "'linear', 'mlp'"),
        ("aggregation.rule", "x", "'fedavg'"),
        ("privacy.mechanism", "", "none"),
    ],
)
def test_unknown_kind_lists_the_known_ones(path: str, value: object, kinds: str) -> None:
    text = message(path, value)
    assert path.split(".", maxsplit=1)[0] in text
    assert kinds in text


@pytest.mark.parametrize("data", [[], 3, None, "study", [{}]])
def test_what_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(StudyError):
        Study.of(data)


def test_message_names_the_file() -> None:
    with pytest.raises(StudyError, match=r"^/etc/site\.yaml: "):
        validated(fedward_client.config.SiteConfig, {}, where="/etc/site.yaml")


def test_nearest_is_none_when_nothing_is_like_it() -> None:
    assert nearest("qqqq", ["training", "privacy"]) is None
    assert nearest("trainig", iter(["training", "privacy"])) == "training"


def test_contract_is_frozen() -> None:
    study: Any = Study.of(full())
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        study.seed = 2
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        study.training.rounds = 2


def contracts(of: type[Contract] = Contract) -> Iterator[type[Contract]]:
    for kind in of.__subclasses__():
        if kind.__module__.startswith("fedward_"):
            yield kind
            yield from contracts(kind)


def test_every_field_of_every_contract_has_a_description() -> None:
    """A part that is a contract itself, or one word that tags a union, says it in its class."""
    silent = [
        f"{kind.__module__}.{kind.__name__}.{name}"
        for kind in contracts()
        for name, field in kind.model_fields.items()
        if not field.description and not is_part_or_tag(field.annotation)
    ]
    assert not silent


def is_part_or_tag(annotation: object) -> bool:
    text = str(annotation)
    return "Literal" in text or "fedward_" in text


def test_every_contract_has_a_docstring_and_refuses_unknown_keys() -> None:
    kinds = list(contracts())
    assert len(kinds) > 15
    for kind in kinds:
        assert kind.__doc__ or kind.__name__.startswith("_"), kind
        assert kind.model_config["extra"] == "forbid", kind
        assert kind.model_config["frozen"], kind


def test_unit_of_a_quantity_is_in_its_schema() -> None:
    class Dose(Contract):
        amount: float = quantity("given at once", "mg", ge=0)

    assert Dose.model_json_schema()["properties"]["amount"]["unit"] == "mg"
    with pytest.raises(StudyError, match="amount = -1 mg must be at least 0"):
        validated(Dose, {"amount": -1})


class Inner(Contract):
    """A part that a later release has added a field to."""

    kind: str = "a"
    added: int = quantity("of a later release", "s", default=3, later=True)


class Outer(Contract):
    """A contract with such parts in every place."""

    one: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(), Inner(added=4))
    named: dict[str, Inner] = quantity("by name", default_factory=lambda: {"x": Inner()})
    added: tuple[int, ...] = quantity("of a later release", default_factory=tuple, later=True)
    long_name: str = quantity("under another name", default="n", alias="name")


def test_what_nobody_uses_of_a_later_release_is_not_in_the_contract() -> None:
    assert plain(Outer()) == {
        "one": {"kind": "a"},
        "many": [{"kind": "a"}, {"kind": "a", "added": 4}],
        "named": {"x": {"kind": "a"}},
        "name": "n",
    }


def test_what_is_used_of_a_later_release_is_in_the_contract_and_comes_back() -> None:
    used = Outer(one=Inner(added=0), added=(1,))

    assert plain(used)["one"] == {"kind": "a", "added": 0}
    assert plain(used)["added"] == [1]
    assert validated(Outer, plain(used)) == used
    assert validated(Outer, plain(Outer())) == Outer()


def test_a_later_field_keeps_its_unit() -> None:
    assert Inner.model_fields["added"].json_schema_extra == {"unit": "s", "later": True}
