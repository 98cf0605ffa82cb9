"""The tutorial's join, draft and run on real tables of 186 hospitals; skipped where the eICU demo is not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedward_common.tables import read_table
from fedward_conf.compose import compose_study
from fedward_simulations.drafting import draft_study
from fedward_simulations.federation import assemble, data_folder
from fedward_simulations.plan import draft_plan
from fedward_simulations.run import run
from tests.docs.snippets import blocks

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial-own-data.md"
DATA = data_folder() / "eicu_demo"
HOSPITALS = 186

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "patient.csv.gz").exists(), reason="the eICU demo is not below FEDWARD_DATA"),
]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the study ``icu``, drafted from the table that the tutorial joins."""
    work = tmp_path_factory.mktemp("eicu")
    joins = [block for block in blocks(TUTORIAL.read_text(encoding="utf-8")) if block.language == "python"]
    code = "\n".join(joins[0].lines).replace('"icu.csv"', "table")
    exec(code, {"folder": DATA, "table": work / "icu.csv"})  # noqa: S102  (our own page)
    draft_study(
        "icu",
        [work / "icu.csv"],
        label="hospitaldischargestatus",
        positive="Expired",
        patient="uniquepid",
        site_column="hospitalid",
        missing=["-1"],
        folder=work / "studies",
    )
    return work / "studies"


def test_a_draft_of_real_stays_holds_no_patient(studies: Path) -> None:
    text = (studies / "cohort" / "icu.yaml").read_text(encoding="utf-8")
    table = read_table(studies.parent / "icu.csv")
    for name in ("uniquepid", "patientunitstayid"):
        assert not [value for value in table[name] if value in text]
    schema = draft_plan(compose_study(["study=icu"], config_dir=studies)).study.cohort
    assert schema.incomplete_rows == "drop_unlabelled"
    assert set(schema.missing_marks) == {"", -1}
    assert "patientunitstayid" not in schema.columns


def test_every_hospital_takes_part_and_no_patient_is_on_both_sides(studies: Path) -> None:
    plan = draft_plan(compose_study(["study=icu"], config_dir=studies))
    federation = assemble(plan.source, plan.study.cohort, seed=1)
    assert not federation.rejected
    assert len(federation.tables) == HOSPITALS
    central = set(federation.hold_out.rows.identifiers or ())
    assert central
    for frame in federation.tables.values():
        assert not central & set(frame["uniquepid"])


@pytest.mark.parametrize(("privacy", "auroc"), [("none", 0.75), ("dp_tight_clip", 0.55)])
def test_186_hospitals_train_one_model(privacy: str, auroc: float, studies: Path, tmp_path: Path) -> None:
    finished = run(
        ["study=icu", f"privacy={privacy}", "engine.baselines=false"], config_dir=studies, out=tmp_path / "runs"
    )
    result = finished.result
    assert (result.status, len(result.sites)) == ("completed", HOSPITALS)
    assert all(len(entry.sites) == HOSPITALS for entry in result.rounds)
    measured = result.central["auroc"].value
    assert measured is not None
    assert measured > auroc
    if privacy != "none":
        spent = [site.epsilon for site in result.sites.values()]
        assert np.all(np.asarray(spent, dtype=float) <= 8.0)
