"""``engine=local`` beside Flower's Ray ``run_simulation``: the same job, whole processes, in one run.

    python -m fedward_simulations.bench.simulation_speed [--json] [--repeats N]

Four sites, 15 rounds, breast_cancer, a network of one hidden layer, no privacy. Both sides train and judge the
model centrally after each round. Fedward's process also checks the tables, keeps the sites' policies, validates
replies, writes a checkpoint in each round and bootstraps intervals; the report, which Flower has not, is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from fedward_common.tables import encode
from fedward_simulations.bench.harness import measure_in_turn, report, run_process
from fedward_simulations.run import compose_plan

__all__ = ["main"]

_OVERRIDES = [
    "study=breast_cancer",
    "training=minibatch",
    "privacy=none",
    "engine=local",
    "engine.baselines=false",
    "engine.report=false",
]


def _flower_arrays(path: Path) -> list[str]:
    """Write the encoded tables for Flower's side and return its arguments."""
    _, federation, study = compose_plan(_OVERRIDES)
    arrays = {"x": federation.hold_out.rows.features, "y": federation.hold_out.rows.labels.astype(np.float32)}
    for index, site in enumerate(study.sites):
        rows = encode(federation.tables[site], study.cohort)
        arrays |= {f"x{index}": rows.features, f"y{index}": rows.labels.astype(np.float32)}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    training = study.training
    numbers = (training.rounds, len(study.sites), training.local_steps, training.sampling_rate, training.learning_rate)
    return [str(path), *map(str, numbers), str(training.momentum)]


def main() -> None:
    """Measure both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; the median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as folder:
        arguments = _flower_arrays(Path(folder) / "tables.npz")
        fedward = [str(Path(sys.executable).with_name("fedward")), "simulate", *_OVERRIDES, "--json", "--out", folder]
        flower = [sys.executable, "-m", "fedward_simulations.bench.flower_job", *arguments]
        seconds = measure_in_turn(
            {"fedward_s": lambda: run_process(fedward), "flower_s": lambda: run_process(flower)},
            repeats=options.repeats,
        )
    ratio = seconds["flower_s"] / seconds["fedward_s"]
    lines = [
        "four sites, 15 rounds, breast_cancer, whole process, median seconds",
        f"fedward simulate engine=local  {seconds['fedward_s']:6.2f}",
        f"flwr run_simulation on Ray     {seconds['flower_s']:6.2f}",
        f"ratio                          {ratio:6.2f} ×",
    ]
    report(seconds | {"ratio": ratio}, lines, as_json=options.json)


if __name__ == "__main__":
    main()
