"""Seconds for a deployed round: Fedward beside stock Flower, a small job at two sites, both in one run.

    python -m fedward_simulations.bench.round_latency [--json] [--rounds N] [--torch]

Both sides run real processes on loopback and train a linear model of 31 weights for five steps of about half of a
site's 227 or 228 rows. Fedward's round is whole: TLS, node keys and signatures, the policy, the approval, the debit
of a ledger that is synced to the disk, entries of the audit log, a child process, DP-SGD, the gatekeeper, the sum, a
checkpoint and the central evaluation. Flower's has none of these but the evaluation, and takes the faster way wherever
there are two (`stock_flower`). The first round of each side, which meets cold caches, does not count.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from fedward_common.errors import FedwardError
from fedward_common.study import Study
from fedward_common.tables import encode
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_simulations.bench.harness import filesystem, machine, report
from fedward_simulations.bench.stock_flower import run_stock
from fedward_simulations.engines.deployed import Deployed
from fedward_simulations.federation import Federation, settle
from fedward_simulations.plan import Plan
from fedward_simulations.run import compose_plan

__all__ = ["OVERRIDES", "main"]

_LEAST_ROUNDS: Final = 2
_GOAL: Final = 8.0
OVERRIDES: Final = (
    "study=breast_cancer",
    "model=linear",
    "privacy=dp",
    "training.local_steps=5",
    "training.sampling_rate=0.5",
    "training.learning_rate=0.5",
    "cohort.source.hospitals.north=0.5",
    "cohort.source.hospitals.south=0.5",
    "~cohort.source.hospitals.east",
    "~cohort.source.hospitals.west",
)

Composed = tuple[Plan, Federation, Study]


def _fedward(composed: Composed, root: Path) -> list[float]:
    """Return when each round of Fedward's was committed, checkpointed and judged, in monotonic seconds."""
    plan, federation, study = composed
    ends: list[float] = []
    (root / "run").mkdir(parents=True)
    coordinator = Coordinator(
        study,
        federation.hold_out,
        TorchPredictor(study, federation.hold_out.rows.features),
        root / "run",
        "deployed",
        lambda _: ends.append(time.monotonic()),
    )
    homes = settle(federation, study, plan.policy, root / "sites")
    with Deployed(homes, root / "logs") as (grid, context, roster):
        coordinator.server_app(roster)(grid, context)
    result = coordinator.result
    if result is None or result.status != "completed":
        msg = f"Fedward's run is not complete: {result.reason if result else 'no result'}"
        raise RuntimeError(msg)
    return ends


def _flower(composed: Composed, root: Path, *, torch: bool) -> list[float]:
    """Return when each round of stock Flower's was over and judged, in monotonic seconds; the first is the start."""
    _, federation, study = composed
    held = federation.hold_out.rows
    arrays = {"x": held.features, "y": held.labels.astype(np.float32)}
    for site in study.sites:
        rows = encode(federation.tables[site], study.cohort)
        arrays |= {f"x-{site}": rows.features, f"y-{site}": rows.labels.astype(np.float32)}
    root.mkdir()
    with (root / "tables.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    training = study.training
    config: dict[str, str | int | float | bool] = {
        "tables": str(root / "tables.npz"),
        "rounds": training.rounds,
        "steps": training.local_steps,
        "rate": training.sampling_rate,
        "speed": training.learning_rate,
        "torch": torch,
    }
    return run_stock(root, study.sites, config)


def _measure(rounds: int, folder: Path, *, torch: bool) -> dict[str, object]:
    composed = compose_plan([*OVERRIDES, f"training.rounds={rounds}"])
    before = os.getloadavg()[0]
    ours = [end - start for start, end in pairwise(_fedward(composed, folder / "fedward"))]
    between = os.getloadavg()[0]
    theirs = [end - start for start, end in pairwise(_flower(composed, folder / "flower", torch=torch))][1:]
    fedward_s, flower_s = statistics.median(ours), statistics.median(theirs)
    return {
        "fedward_s": round(fedward_s, 4),
        "flower_s": round(flower_s, 4),
        "ratio": round(flower_s / fedward_s, 2),
        "fedward_rounds_s": [round(seconds, 4) for seconds in ours],
        "flower_rounds_s": [round(seconds, 4) for seconds in theirs],
        "rounds": rounds,
        "flower_job": "torch" if torch else "numpy",
        "flower_transport": "HTTP, state in memory",
        "fedward_transport": "HTTPS with node keys, state on disk",
        "filesystem": filesystem(folder),
        "machine": machine(),
        "load_before": [round(before, 2), round(between, 2)],
    }


def _rounds(text: str) -> int:
    number = int(text)
    if number < _LEAST_ROUNDS:
        msg = f"at least {_LEAST_ROUNDS}: the first round does not count"
        raise argparse.ArgumentTypeError(msg)
    return number


def main() -> None:
    """Measure both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument(
        "--rounds", type=_rounds, default=9, help="rounds of each side; the median of all but the first"
    )
    parser.add_argument("--torch", action="store_true", help="Flower's job trains with torch instead of NumPy")
    parser.add_argument("--folder", type=Path, help="where to work; it decides what a sync to the disk costs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything that was started is ended
    with tempfile.TemporaryDirectory(prefix="fedward-bench-", dir=options.folder) as folder:
        try:
            figures = _measure(options.rounds, Path(folder), torch=options.torch)
        except FedwardError as error:
            parser.exit(1, error.diagnostics() + "\n")
    lines = [
        f"a deployed round at two sites, {options.rounds} rounds, median seconds from the second on",
        f"Fedward          {figures['fedward_s']:8.2f}   {figures['fedward_transport']}, {figures['filesystem']}",
        f"Flower, stock    {figures['flower_s']:8.2f}   {figures['flower_transport']}, {figures['flower_job']}",
        f"ratio            {figures['ratio']:8.2f} ×  (goal ≥ {_GOAL:g} ×)",
        "load before each side: " + ", ".join(f"{value}" for value in figures["load_before"]),  # type: ignore[attr-defined]
    ]
    report(figures, lines, as_json=options.json)


if __name__ == "__main__":
    main()
