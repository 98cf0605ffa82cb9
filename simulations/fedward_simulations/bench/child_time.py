"""Seconds of one round's child, from the fork to its answer: warmed, and from a parent that has imported nothing.

    python -m fedward_simulations.bench.child_time [--json] [--repeats N]

The job is that of `round_latency`: a linear model of 31 weights, five steps of DP-SGD on half of 227 patients. The
child is the production's: forked from the nursery, put into its sandbox, it opens the cohort, trains and answers. The
two kinds take turns; their first child, behind which the nursery starts, does not count.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from fedward_client.cohorts import open_cohort
from fedward_client.runner import WARM, Runner, configure_logs
from fedward_client.site import Site
from fedward_client.worker import Job
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_simulations.bench.harness import machine, report
from fedward_simulations.bench.round_latency import OVERRIDES
from fedward_simulations.federation import COHORT, settle
from fedward_simulations.run import compose_plan

__all__ = ["main", "measure"]

_GOAL_S: Final = 0.1


def measure(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each child by kind, ``warmed_s`` and ``cold_s``, in an empty folder."""
    plan, federation, study = compose_plan([*OVERRIDES, "training.rounds=2"])
    job = _job(settle(federation, study, plan.policy, folder)["north"], study)
    found: dict[str, list[float]] = {"warmed_s": [], "cold_s": []}
    with closing(Runner(preload=WARM)) as warmed, closing(Runner(preload=None)) as cold:
        for number in range(repeats + 1):
            for kind, runner in (("warmed_s", warmed), ("cold_s", cold)):
                seconds = _child(runner, job)
                if number:
                    found[kind].append(seconds)
    return found


def _job(home: Path, study: Study) -> Job:
    entry = Site(home).registered(COHORT)
    return Job(home, "north", entry, study, open_cohort(entry, study.cohort, home).fingerprint())


def _child(runner: Runner, job: Job) -> float:
    weights = initial_weights(job.study)
    began = time.monotonic()
    with runner.open(job) as session:
        session.train(1, weights)
        return time.monotonic() - began


def main() -> None:
    """Measure both kinds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--repeats", type=int, default=20, help="children of each kind; the median counts")
    options = parser.parse_args()
    configure_logs()
    with tempfile.TemporaryDirectory(prefix="fedward-bench-") as folder:
        found = measure(Path(folder), options.repeats)
    medians = {kind: round(statistics.median(seconds), 4) for kind, seconds in found.items()}
    lines = [
        "fork, sandbox, cohort, five steps of DP-SGD, answer; median seconds",
        f"warmed parent   {medians['warmed_s']:6.3f}  (goal ≤ {_GOAL_S:g})",
        f"cold parent     {medians['cold_s']:6.3f}",
    ]
    largest = {f"{kind}_largest": round(max(seconds), 4) for kind, seconds in found.items()}
    report(medians | largest | {"repeats": options.repeats, "machine": machine()}, lines, as_json=options.json)


if __name__ == "__main__":
    main()
