"""The issue's list of bad input, each through the whole local path: tables, homes, real workers, coordinator, files.

Every row ends in a clear error, or in an excluded or degraded site with its reason while the others finish.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Message, RecordDict

from fedward_common.errors import SplitOverlapError, StudyError
from fedward_common.study import Study
from fedward_common.study_file import read_study_file
from fedward_server.coordinator import Coordinator
from fedward_server.result import RunResult
from fedward_simulations.engines.local import LocalGrid
from fedward_simulations.federation import assemble, settle
from fedward_simulations.plan import draft_plan
from fedward_simulations.pool import WorkerPool
from fedward_simulations.predictor import PoolPredictor
from tests.builders import contract, open_policy, table
from tests.doubles import with_array, with_header

Change = Callable[[RecordDict], RecordDict]
Frames = Mapping[str, pd.DataFrame]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as workers:
        yield workers


class TamperedGrid(LocalGrid):
    """A local grid on whose way back one site's updates are exchanged."""

    tampered: Mapping[str, Change]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            change = self.tampered.get(self.roster[reply.metadata.src_node_id])
            if change is not None and reply.has_content() and "vector" in reply.content.config_records["fedward"]:
                reply.content = change(reply.content)
        return replies


@dataclass(frozen=True, slots=True)
class Simulation:
    """A simulation over tables of the user's, made anew for each call."""

    folder: Path
    pool: WorkerPool

    def __call__(
        self,
        frames: Frames,
        *,
        tampered: Mapping[str, Change] | None = None,
        asked: Callable[[Study], Study] = lambda study: study,
        source: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> RunResult:
        """Run the study over `frames`; `asked` makes the study that the centre asks of the one that was approved."""
        tables, out = self.folder / "tables", self.folder / "run"
        for folder in (tables, out):
            folder.mkdir()
        for site, frame in frames.items():
            frame.to_csv(tables / f"{site}.csv", index=False)
        values = contract(**changes)
        named = {site: f"{site}.csv" for site in frames if site != "central"}
        origin = {"kind": "tables", "folder": str(tables), "tables": named, **(source or {})}
        values["cohort"] = {"schema": values["cohort"], "source": origin}
        del values["sites"]
        policy = open_policy().model_dump(mode="json")
        plan = draft_plan(values | {"engine": {"name": "local"}, "policy": policy})
        federation = assemble(plan.source, plan.study.cohort, seed=plan.study.seed)
        study = plan.with_sites(federation)
        grid = TamperedGrid(settle(federation, study, plan.policy, self.folder / "homes"), self.pool)
        grid.tampered = tampered or {}
        predictor = PoolPredictor(study, federation.hold_out.rows.features, self.folder, self.pool)
        coordinator = Coordinator(asked(study), federation.hold_out, predictor, out, "local")
        return coordinator.run(grid, grid.roster, poll_seconds=0)

    @property
    def stored(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / "run" / "result.json").read_text(encoding="utf-8"))
        return values

    @property
    def released(self) -> bool:
        return (self.folder / "run" / "model.safetensors").exists()


@pytest.fixture
def simulate(tmp_path: Path, pool: WorkerPool) -> Simulation:
    return Simulation(tmp_path, pool)


def three(**other: pd.DataFrame) -> Frames:
    """Return three hospitals' tables, some of them exchanged."""
    return {"north": table(50, 1), "south": table(40, 2), "west": table(30, 3), **other}


def others_finish(simulate: Simulation, result: RunResult, *, site: str = "south") -> str:
    """Return the reason of the one site that is not part of every round, after checking that all else is well."""
    assert result.status == "degraded"
    assert [site in entry.sites for entry in result.rounds].count(True) < len(result.rounds) == 3
    assert all({"north", "west"} <= set(entry.sites) for entry in result.rounds)
    assert result.central["accuracy"].value is not None
    assert simulate.released
    stored = simulate.stored["sites"]
    assert {name: entry["status"] for name, entry in stored.items() if name != site} == {
        "north": "completed",
        "west": "completed",
    }
    assert stored[site]["status"] in {"excluded", "degraded"}
    reason: str = stored[site]["reason"]
    assert reason == result.sites[site].reason
    return reason


# ----------------------------------------------------------------------------------------------------------- the tables
def test_missing_column(simulate: Simulation) -> None:
    result = simulate(three(south=table(40, 2).rename(columns={"age": "alter"})))
    assert others_finish(simulate, result) == "cohort_mismatch rule_count=1"


def test_wrong_unit(simulate: Simulation) -> None:
    kilopascals = table(40, 2).assign(
        pressure=lambda frame: (frame["pressure"].astype(int) * 0.133).round(1).astype(str)
    )
    result = simulate(three(south=kilopascals))
    assert others_finish(simulate, result).startswith("cohort_mismatch rule_count=")


def test_unseen_label(simulate: Simulation) -> None:
    result = simulate(three(south=table(40, 2).assign(outcome="unknown")))
    assert others_finish(simulate, result) == "cohort_mismatch rule_count=1"


def test_no_value_of_a_rejected_table_leaves_its_site(simulate: Simulation, tmp_path: Path) -> None:
    simulate(three(south=table(40, 2).assign(outcome="HIV positive, Jane Doe")))
    assert b"Jane" not in b"".join(path.read_bytes() for path in (tmp_path / "run").iterdir())


def test_duplicate_patient_rows_across_splits_with_identifiers(simulate: Simulation) -> None:
    cohort = {**contract()["cohort"], "patient": "patient"}
    frames = {
        "north": table(40, 1, patients=15),
        "south": table(40, 2, patients=15),
        "central": table(20, 3, patients=15),
    }
    with pytest.raises(SplitOverlapError, match="patients of the central hold-out are also at a site") as caught:
        simulate(frames, source={"hold_out_table": "central.csv"}, cohort=cohort)
    assert caught.value.remedy
    assert not simulate.released


def test_duplicate_patient_rows_across_splits_without_identifiers(simulate: Simulation) -> None:
    frames = {**three(), "central": pd.concat([table(20, 4), table(40, 2).iloc[:3]])}
    with pytest.raises(SplitOverlapError, match=r"\(south: 3\)"):
        simulate(frames, source={"hold_out_table": "central.csv"})
    assert not simulate.released


def test_empty_hospital(simulate: Simulation) -> None:
    result = simulate(three(south=table(40, 2).iloc[:0]))
    assert others_finish(simulate, result) == "cohort_empty"


def test_one_class_hospital_takes_part(simulate: Simulation) -> None:
    result = simulate(three(south=table(40, 2).assign(outcome="yes")))
    assert result.status == "completed"
    assert result.sites["south"].rounds == 3
    assert result.central["auroc"].value is not None
    assert result.central["accuracy.south"].value is not None


def test_only_one_class_in_every_hospital_has_no_auroc_and_still_ends(simulate: Simulation) -> None:
    result = simulate({name: frame.assign(outcome="yes") for name, frame in three().items()})
    assert result.status == "completed"
    assert simulate.stored["central"]["auroc"] == {"value": None, "low": None, "high": None}


# ------------------------------------------------------------------------------------------------------- the arithmetic
def balanced(rows: int) -> pd.DataFrame:
    """Return patients in pairs of opposite outcome and equal features: at weights 0 their gradients cancel."""
    half = pd.DataFrame({"age": ["59"], "pressure": ["150"], "sex": ["f"], "stage": ["1"]}, index=range(rows))
    return half.assign(outcome=["yes", "no"] * (rows // 2))


def test_nan_in_a_gradient(simulate: Simulation) -> None:
    """A step and a decay far too large: weights that leave 0 grow past infinity, and a gradient becomes NaN."""
    frames = {"north": balanced(50), "south": table(40, 2), "west": balanced(30)}
    source = {"hold_out_table": "central.csv"}
    training = {"local_steps": 40, "learning_rate": 100.0, "weight_decay": 10.0}
    result = simulate({**frames, "central": table(20, 9)}, source=source, training=training)
    assert others_finish(simulate, result) == "update_not_finite"


def test_update_that_grows_beyond_its_bound(simulate: Simulation) -> None:
    frames = {"north": balanced(50), "south": table(40, 2), "west": balanced(30), "central": table(20, 9)}
    training = {"local_steps": 2, "learning_rate": 100.0, "weight_decay": 10.0}
    result = simulate(frames, source={"hold_out_table": "central.csv"}, training=training)
    assert others_finish(simulate, result) == "update_out_of_bounds limit=64.0"


# ------------------------------------------------------------------------------------------------------------ the study
@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"seed": 99}, {"description": "Approved by the ethics board."}],
    ids=["name", "seed", "description"],
)
def test_tampered_study_is_approved_by_nobody(simulate: Simulation, change: dict[str, Any]) -> None:
    result = simulate(three(), asked=lambda study: study.model_copy(update=change))
    assert result.status == "failed"
    assert {site.reason for site in result.sites.values()} == {"awaiting_approval"}
    assert "the quorum is 2" in (result.reason or "")
    assert not simulate.released


def test_tampered_study_file_is_refused_before_anything_starts(simulate: Simulation, tmp_path: Path) -> None:
    simulate(three())
    path = tmp_path / "run" / "study.json"
    assert read_study_file(path).study.training.learning_rate == 0.5
    path.write_text(path.read_text(encoding="utf-8").replace('"learning_rate": 0.5', '"learning_rate": 5.0'))
    with pytest.raises(StudyError, match="digest"):
        read_study_file(path)


# ---------------------------------------------------------------------------------------------------------- the replies
def test_reply_of_the_wrong_shape(simulate: Simulation) -> None:
    result = simulate(three(), tampered={"south": with_array(lambda values: values[:-1])})
    assert "numbers of type <i8" in others_finish(simulate, result)


def test_nan_reply(simulate: Simulation) -> None:
    nan = with_array(lambda values: np.full(values.shape, np.nan, dtype=np.float32))
    result = simulate(three(), tampered={"south": nan})
    assert "numbers of type <i8" in others_finish(simulate, result)


@pytest.mark.parametrize("weight", [-9, 10**15])
def test_reply_with_an_impossible_weight(simulate: Simulation, weight: int) -> None:
    result = simulate(three(), tampered={"south": with_header(weight=weight)})
    assert others_finish(simulate, result) == f"weight: weight {weight}, the site enrolled with 32"


def test_two_of_three_hostile_sites_leave_no_model(simulate: Simulation) -> None:
    result = simulate(three(), tampered=dict.fromkeys(["south", "west"], with_header(weight=10**15)))
    assert (result.status, result.rounds) == ("failed", ())
    assert "1 sites answered in round 1, the quorum is 2" in (result.reason or "")
    assert not simulate.released


def test_good_input_completes(simulate: Simulation) -> None:
    result = simulate(three())
    assert result.status == "completed"
    assert all(site.rounds == 3 for site in result.sites.values())
