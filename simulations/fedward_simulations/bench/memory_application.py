"""The server application of `server_memory`, one process for each side: Fedward's coordinator, or Flower's FedAvg.

    python -m fedward_simulations.bench.memory_application fedward|flower FOLDER

``FOLDER/task.json`` names the SuperLink's private address, the run and its sites. Only what a server needs is imported.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedward_common.study import Study
from fedward_common.study_file import read_study_file
from fedward_common.tables import Rows
from fedward_server.evaluation import HoldOut
from fedward_server.superlink_client import SuperLinkClient

__all__ = ["main"]

_PATIENCE_S = 7200.0


@dataclass(frozen=True, slots=True)
class _Task:
    folder: Path
    superlink: SuperLinkClient
    run: int
    roster: dict[int, str]
    study: Study

    @classmethod
    def of(cls, folder: Path) -> _Task:
        told: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        superlink = SuperLinkClient(told["address"], bytes.fromhex(told["secret"]))
        roster = {int(node): site for node, site in told["roster"].items()}
        return cls(folder, superlink, told["run"], roster, read_study_file(folder / "study.json").study)


def _fedward(task: _Task) -> None:
    """Run Fedward's coordinator, its central evaluation and journal included."""
    from fedward_server.coordinator import Coordinator  # noqa: PLC0415  (the other side does not pay for it)
    from fedward_server.evaluation import TorchPredictor  # noqa: PLC0415
    from fedward_server.heap import give_back_what_is_freed  # noqa: PLC0415

    with np.load(task.folder / "hold_out.npz") as held:
        rows = Rows(held["features"], held["labels"], held["patients"], None, 0)
    hold_out = HoldOut(rows, np.zeros(len(rows.labels), dtype=np.int64), ("centre",))
    give_back_what_is_freed()  # as `fedward_server.application` does
    folder = task.folder / "run"
    folder.mkdir()
    coordinator = Coordinator(task.study, hold_out, TorchPredictor(task.study, rows.features), folder, "deployed")
    with task.superlink.session(task.run) as (grid, _):
        result = coordinator.run(grid, task.roster)
    if result.status != "completed":
        sys.exit(f"Fedward's run is {result.status}: {result.reason} {dict(result.sites)}")


def _flower(task: _Task) -> None:
    """Run Flower's FedAvg over the same tensors, without an evaluation."""
    from flwr.app import Array, ArrayRecord  # noqa: PLC0415  (see _fedward)
    from flwr.serverapp.strategy import FedAvg  # noqa: PLC0415

    from fedward_common.models import parameter_spec  # noqa: PLC0415
    from fedward_simulations.bench.stock_grid_flower_adapter import stock_grid  # noqa: PLC0415

    spec, sites = parameter_spec(task.study), len(task.roster)
    shapes = zip(spec.names, spec.shapes, strict=True)
    start = ArrayRecord({name: Array(np.zeros(shape, dtype=np.float32)) for name, shape in shapes})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    with task.superlink.session(task.run) as (ours, _), stock_grid(ours) as grid:
        result = strategy.start(
            grid=grid, initial_arrays=start, num_rounds=task.study.training.rounds, timeout=_PATIENCE_S
        )
    if not result.arrays or not all(np.any(array.numpy()) for array in result.arrays.values()):
        sys.exit("Flower made no model of the sites' updates")


def main(side: str, folder: Path) -> None:
    """Be one side's server application until its run is over."""
    task = _Task.of(folder)
    {"fedward": _fedward, "flower": _flower}[side](task)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
