"""Composition loses no key: each override arrives at the contract, which knows all of them, or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedward_conf.compose
from fedward_common.errors import StudyError, UnknownKeyError
from fedward_common.privacy import calibrated
from fedward_common.study import DpSgd, FlowerRule
from fedward_conf.compose import GROUPS, compose_study, options
from fedward_simulations.plan import Plan, draft_plan

PACKAGE = Path(fedward_conf.compose.__file__).parent


def plan(*overrides: str, config_dir: Path | None = None) -> Plan:
    return draft_plan(compose_study(overrides, config_dir=config_dir))


def refusal(*overrides: str, config_dir: Path | None = None) -> StudyError:
    with pytest.raises(StudyError) as caught:
        plan(*overrides, config_dir=config_dir)
    return caught.value


def own(folder: Path, group: str, name: str, content: dict[str, Any], head: str = "") -> None:
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(head + yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.parametrize("study", options("study"))
def test_each_packaged_study_composes_validates_and_calibrates(study: str) -> None:
    found = plan(f"study={study}").study
    assert found.name == study
    assert found.description
    ready = calibrated(found)
    assert isinstance(ready.privacy, DpSgd)
    assert ready.privacy.noise_multiplier is not None


COMPANIONS = {"fednova": ("training=passes", "privacy=none"), "passes": ("privacy=none",), "fedbn": ("model=mlp_norm",)}
"""What an option does not go without."""


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in GROUPS if g != "study" for n in options(g)])
def test_each_packaged_option_instantiates(group: str, name: str) -> None:
    composed = compose_study([f"{group}={name}", *COMPANIONS.get(name, ())])
    found = draft_plan(composed)
    if group == "cohort":
        assert set(found.study.cohort.columns) == set(composed[group]["schema"]["columns"])
    else:
        part = getattr(found if group in {"engine", "policy"} else found.study, group)
        assert composed[group].items() <= part.model_dump(mode="json", by_alias=True).items()


def test_every_group_has_an_option_and_every_folder_is_a_group() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/*.yaml")}
    assert folders == set(GROUPS)


def test_defaults_are_the_breast_cancer_study_with_privacy() -> None:
    found = plan()
    assert found.study.name == "breast_cancer"
    assert isinstance(found.study.privacy, DpSgd)


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_leading_signs_change_nothing(sign: str) -> None:
    overrides = ["training.rounds=7", "aggregation.max_weight=7", "seed=7", "model=linear", "policy.min_patients=7"]
    found = plan(*(sign + override for override in overrides))
    study = found.study
    assert (study.training.rounds, study.aggregation.max_weight, study.seed, study.model.name) == (7, 7, 7, "linear")
    assert found.policy.min_patients == 7


IN_THE_STUDY = [
    ("training.rouns=3", "training.rouns", "training.rounds"),
    ("trainin.rounds=3", "trainin", "training"),
    ("sead=3", "sead", "seed"),
    ("privacy.epsilom=3", "privacy.epsilom", "privacy.epsilon"),
    ("model.hiden=[3]", "model.hiden", "model.hidden"),
    ("aggregation.quorom=3", "aggregation.quorom", "aggregation.quorum"),
    ("evaluation.treshold=0.3", "evaluation.treshold", "evaluation.threshold"),
    ("cohort.schema.pacient=id", "cohort.pacient", "cohort.patient"),
    ("modell=mlp", "modell", "model"),
]
BESIDE_IT = [
    ("cohort.source.holdout=0.3", "cohort.source.holdout", "cohort.source.hold_out"),
    ("engine.worker=3", "engine.worker", "engine.workers"),
    ("policy.min_patient=3", "policy.min_patient", "policy.min_patients"),
]


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize("misspelt", [IN_THE_STUDY, BESIDE_IT], ids=["study", "beside"])
def test_misspelt_keys_are_refused_each_with_the_nearest_valid_one(
    sign: str, misspelt: list[tuple[str, str, str]]
) -> None:
    """Hydra drops a key that has a plus and no place; here it reaches the contract."""
    error = refusal(*(sign + override for override, _, _ in misspelt))
    assert isinstance(error, UnknownKeyError)
    for _, unknown, meant in misspelt:
        assert f"unknown key '{unknown}'; did you mean '{meant}'?" in error.message


def test_key_beside_schema_and_source_is_refused() -> None:
    assert "cohort.shema" in refusal("+cohort.shema.description=x").message


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("training=full_bach", "training=full_batch"),
        ("study=hart_disease", "study=heart_disease"),
        ("privacy=none_", "privacy=none"),
    ],
)
def test_unknown_option_names_the_nearest(sign: str, override: str, meant: str) -> None:
    error = refusal(sign + override)
    assert f"did you mean {meant}?" in error.message
    assert "There are: " in error.message


def test_tilde_takes_a_group_away() -> None:
    assert "privacy" not in compose_study(["~privacy"])
    assert plan("~privacy").study.privacy is None


def test_tilde_takes_a_key_away() -> None:
    assert "tau" not in compose_study(["aggregation=fedadam", "~aggregation.tau"])["aggregation"]


def test_tilde_of_a_key_that_is_not_there_is_refused() -> None:
    assert "training.rouns" in refusal("~training.rouns").message


@pytest.mark.parametrize(
    "text", ["", "training.rounds", "=3", "a b=3", "training.rounds 3", "+", "seed==", "x=[1", "x={"]
)
def test_text_that_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(StudyError):
        plan(text)


@pytest.mark.parametrize("value", ["${oc.env:NO_SUCH_VARIABLE_AT_ALL}", "${nowhere}", "???"])
def test_value_that_has_none_is_refused(value: str) -> None:
    with pytest.raises(StudyError):
        plan(f"description={value}")


def test_strategy_of_flower_composes_under_its_target() -> None:
    found = plan("aggregation=flower", "aggregation._target_=flwr.serverapp.strategy.Krum").study.aggregation
    assert isinstance(found, FlowerRule)
    assert found.target == "flwr.serverapp.strategy.Krum"


def test_target_elsewhere_is_refused_and_nothing_is_imported() -> None:
    assert "_target_" in refusal("aggregation=flower", "aggregation._target_=os.system").message


def test_option_of_another_kind_leaves_no_key_of_the_packaged_one_behind() -> None:
    assert plan("privacy=none").study.privacy is not None
    assert compose_study(["privacy=none"])["privacy"] == {"mechanism": "none"}
    assert compose_study(["model=linear"])["model"] == {"name": "linear"}


def test_composition_leaves_no_state_behind() -> None:
    before = compose_study([])
    compose_study(["study=heart_disease", "seed=9"])
    assert compose_study([]) == before


# -------------------------------------------------------------------------------------------------- the user's folder


def test_own_folder_works_for_every_group(tmp_path: Path) -> None:
    chosen = {group: options(group)[-1] for group in GROUPS if group != "study"}
    for group, name in chosen.items():
        (tmp_path / group).mkdir()
        shutil.copy(PACKAGE / group / f"{name}.yaml", tmp_path / group / "mine.yaml")
        assert "mine" in options(group, tmp_path)
    mine = compose_study([f"{group}=mine" for group in chosen], config_dir=tmp_path)
    assert mine == compose_study([f"{group}={name}" for group, name in chosen.items()])


def test_own_study_may_build_on_packaged_and_own_groups(tmp_path: Path) -> None:
    own(
        tmp_path, "training", "short", yaml.safe_load((PACKAGE / "training/minibatch.yaml").read_text()) | {"rounds": 2}
    )
    content = {
        "defaults": [{"override /training": "short"}, {"override /privacy": "none"}, {"override /model": "linear"}],
        "name": "mine",
        "aggregation": {"average_last": 0.5},
    }
    own(tmp_path, "study", "mine", content, "# @package _global_\n")
    found = plan("study=mine", config_dir=tmp_path).study
    assert (found.name, found.training.rounds, found.model.name) == ("mine", 2, "linear")
    assert found.aggregation.average_last == 0.5


def test_override_wins_over_own_study(tmp_path: Path) -> None:
    own(tmp_path, "study", "mine", {"name": "mine", "seed": 5}, "# @package _global_\n")
    assert plan("study=mine", "seed=6", config_dir=tmp_path).study.seed == 6
    assert plan("study=mine", config_dir=tmp_path).study.seed == 5


def test_misspelt_key_in_an_own_file_is_refused(tmp_path: Path) -> None:
    own(tmp_path, "study", "mine", {"name": "mine", "trainin": {"rounds": 3}}, "# @package _global_\n")
    assert "did you mean 'training'?" in refusal("study=mine", config_dir=tmp_path).message


@pytest.mark.parametrize("group", GROUPS)
def test_clash_with_a_packaged_name_is_an_error(tmp_path: Path, group: str) -> None:
    """Hydra would take the packaged file and say nothing."""
    name = options(group)[0]
    own(tmp_path, group, name, {})
    error = refusal(config_dir=tmp_path)
    assert f"{group}/{name}.yaml has the name of a packaged file" in error.message
    assert f"my_{name}" in error.remedy


@pytest.mark.parametrize("folder", ["a b,é=[c]'d", 'a"b\\c'])
def test_own_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    own(tmp_path / folder, "study", "mine", {"name": "mine"}, "# @package _global_\n")
    assert plan("study=mine", config_dir=tmp_path / folder).study.name == "mine"


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "is no folder" in refusal(config_dir=tmp_path / "nowhere").message


@pytest.mark.parametrize(
    "text", ["name: [", "name: mine\n  x: 1\n", "- 1\n- 2\n", "\x00", "defaults:\n  - nowhere: x\n"]
)
def test_own_file_that_is_broken_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    with pytest.raises(StudyError):
        plan("study=mine", config_dir=tmp_path)
