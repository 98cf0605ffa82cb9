"""Accuracy against ε as earlier simulated runs of a study measured it; read between measured points, never beyond.

Pure but for `read_curve`, which reads the folders that `fedward simulate` leaves.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import FedwardError, StudyError
from fedward_common.study import DpSgd, Study
from fedward_common.study_file import read_study_file
from fedward_server.result import Figures, RunResult

__all__ = ["Curve", "Measured", "Run", "curve_of", "read_curve", "same_study"]

_MOST_RUNS: Final = 10_000
_MOST_BYTES: Final = 64 << 20
_TWO: Final = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric's mean over `runs` seeds; `spread` is their standard deviation, 0 where there is one.

    `between` is empty at a measured ε; else the two measured ε between which the value was interpolated, in which case
    mean and spread are interpolated and `runs` is the smaller number.
    """

    mean: float
    spread: float
    runs: int
    between: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured; `epsilon` is the study's promise, None without privacy."""

    epsilon: float | None
    federation: float
    alone: Mapping[str, float] = field(default_factory=dict)
    patients: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points by ε, of the federation and of hospitals alone.

    Attributes:
        metric: its name in ``result.json``.
        federation: measured values by ε.
        alone: the same for each hospital, where the runs had baselines.
        without: the federation without privacy; None where no run was.
        patients: of the hospitals, in the last run that tells.
        skipped: runs of other studies, or that were not completed.
    """

    metric: str
    federation: Mapping[float, Measured]
    alone: Mapping[str, Mapping[float, Measured]]
    without: Measured | None
    patients: Mapping[str, int]
    skipped: int = 0

    def federation_at(self, epsilon: float) -> Measured | None:
        """Return the federation's value at `epsilon`; None outside the measured range."""
        return _at(self.federation, epsilon)

    def alone_at(self, site: str, epsilon: float) -> Measured | None:
        """Return the value of a hospital alone; None where it was not measured."""
        return _at(self.alone.get(site, {}), epsilon)


def _at(points: Mapping[float, Measured], epsilon: float) -> Measured | None:
    if epsilon in points:
        return points[epsilon]
    for low, high in pairwise(sorted(points)):
        if low < epsilon < high:
            a, b, share = points[low], points[high], (epsilon - low) / (high - low)
            mean, spread = (x + share * (y - x) for x, y in ((a.mean, b.mean), (a.spread, b.spread)))
            return Measured(mean, spread, min(a.runs, b.runs), (low, high))
    return None


def curve_of(runs: Iterable[Run], metric: str, *, skipped: int = 0) -> Curve | None:
    """Return the curve through the runs; None without a run."""
    listed = list(runs)
    if not listed:
        return None
    federation: dict[float, list[float]] = {}
    alone: dict[str, dict[float, list[float]]] = {}
    without: list[float] = []
    patients: dict[str, int] = {}
    for run in listed:
        patients |= run.patients
        if run.epsilon is None:
            without.append(run.federation)
            continue
        federation.setdefault(run.epsilon, []).append(run.federation)
        for site, value in run.alone.items():
            alone.setdefault(site, {}).setdefault(run.epsilon, []).append(value)
    return Curve(
        metric,
        {epsilon: _measured(values) for epsilon, values in sorted(federation.items())},
        {site: {epsilon: _measured(v) for epsilon, v in sorted(points.items())} for site, points in alone.items()},
        _measured(without) if without else None,
        patients,
        skipped,
    )


def _measured(values: list[float]) -> Measured:
    spread = statistics.stdev(values) if len(values) >= _TWO else 0.0
    return Measured(statistics.mean(values), spread, len(values))


def same_study(one: Study, other: Study) -> bool:
    """Return whether two studies differ at most in ε, noise and seed, or in that one has no privacy."""
    return _apart_from_budget(one, other) == _apart_from_budget(other, one)


def _apart_from_budget(study: Study, beside: Study) -> dict[str, Any]:
    contract = study.contract()
    del contract["seed"]
    if not (isinstance(study.privacy, DpSgd) and isinstance(beside.privacy, DpSgd)):
        return {key: value for key, value in contract.items() if key != "privacy"}
    contract["privacy"] = {k: v for k, v in contract["privacy"].items() if k not in {"epsilon", "noise_multiplier"}}
    return contract


def read_curve(folder: Path, study: Study, metric: str) -> Curve | None:
    """Return the curve of the runs below `folder` that are of this study; None where there are none.

    A run counts that was completed and whose ``study.json`` is the study apart from ε, noise and seed; others, and
    files that cannot be read, are counted as skipped.

    Raises:
        StudyError: `folder` is no folder, or holds more than 10,000 runs.
    """
    if not folder.is_dir():
        msg = f"{folder} is no folder"
        raise StudyError(msg, remedy="the folder that fedward simulate --out names, for example runs")
    runs, skipped = [], 0
    for count, path in enumerate(sorted(folder.rglob("result.json"))):
        if count == _MOST_RUNS:
            msg = f"{folder} holds more than {_MOST_RUNS} runs"
            raise StudyError(msg, remedy="a folder with the runs of this study alone")
        run = _run(path, study, metric)
        if run is None:
            skipped += 1
        else:
            runs.append(run)
    return curve_of(runs, metric, skipped=skipped)


def _run(path: Path, study: Study, metric: str) -> Run | None:
    contract = path.with_name("study.json")
    try:
        if path.stat().st_size > _MOST_BYTES or not contract.is_file():
            return None
        theirs = read_study_file(contract).study
        result = RunResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError, FedwardError):
        return None
    value = _value(result.central, metric)
    if result.status != "completed" or value is None or not same_study(study, theirs):
        return None
    alone = {site: _value(figures, metric) for site, figures in result.baselines.local.items()}
    return Run(
        theirs.privacy.epsilon if isinstance(theirs.privacy, DpSgd) else None,
        value,
        {site: found for site, found in alone.items() if found is not None},
        {name: site.patients for name, site in result.sites.items() if site.patients is not None},
    )


def _value(figures: Figures, metric: str) -> float | None:
    return figures[metric].value if metric in figures else None
