"""Accuracy of the packaged studies over seeds, without privacy and at several ε, beside what is published.

    python -m fedward_simulations.bench.accuracy [heart_disease|breast_cancer] [--json] [--seeds N]

heart_disease: FLamby's rows and split; its published figures are means over five seeds of the mean of the four
centres and of the pooled test set. Hyper-parameters were chosen by cross-validation on the training rows alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedward_simulations.bench.harness import report
from fedward_simulations.run import run

__all__ = ["main"]

_ARMS = {
    "none": ("privacy=none",),
    "eps8": ("privacy.epsilon=8",),
    "eps4": ("privacy.epsilon=4",),
    "eps1": ("privacy.epsilon=1",),
}
_EXTRA = {("breast_cancer", "none"): ("training=minibatch",)}
_PUBLISHED = {
    "heart_disease": "FLamby: FedAvg .685 / .748, best federated .731 / .779, pooled .735 / .795; nominal ε 10 .70"
}


def _arm(study: str, arm: str, seeds: Sequence[int]) -> dict[str, float]:
    """Return mean and standard deviation over the seeds, and the largest ε that a site spent."""
    centres, pooled, spent = [], [], [0.0]
    for seed in seeds:
        overrides = [
            f"study={study}",
            *_ARMS[arm],
            *_EXTRA.get((study, arm), ()),
            f"seed={seed}",
            "engine.baselines=false",
        ]
        with tempfile.TemporaryDirectory(prefix="fedward-bench-") as folder:
            result = run(overrides, out=Path(folder)).result
        centres.append(result.central["accuracy_mean_of_centres"].value or 0.0)
        pooled.append(result.central["accuracy"].value or 0.0)
        spent += [site.epsilon for site in result.sites.values() if site.epsilon is not None]
    return {
        f"{arm}_mean_of_centres": statistics.mean(centres),
        f"{arm}_mean_of_centres_sd": statistics.stdev(centres),
        f"{arm}_pooled_test": statistics.mean(pooled),
        f"{arm}_pooled_test_sd": statistics.stdev(pooled),
        f"{arm}_epsilon_spent": max(spent),
    }


def main() -> None:
    """Run every arm and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default="heart_disease", choices=("heart_disease", "breast_cancer"))
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N, at least 2")
    options = parser.parse_args()
    seeds = range(1, max(2, options.seeds) + 1)
    figures: dict[str, float] = {}
    lines = [f"{options.study}, {len(seeds)} seeds: mean of centres / pooled test (standard deviation)"]
    for arm in _ARMS:
        found = _arm(options.study, arm, seeds)
        figures |= found
        lines.append(
            f"{arm:5s} {found[f'{arm}_mean_of_centres']:.3f} / {found[f'{arm}_pooled_test']:.3f}"
            f"  ({found[f'{arm}_mean_of_centres_sd']:.3f} / {found[f'{arm}_pooled_test_sd']:.3f})"
            f"  ε spent {found[f'{arm}_epsilon_spent']:.3f}"
        )
    report(figures, [*lines, _PUBLISHED.get(options.study, "")], as_json=options.json)


if __name__ == "__main__":
    main()
