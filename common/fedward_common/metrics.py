"""How a model is judged on central data: point values and bootstrap intervals, resampled by patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "Interval",
    "auroc",
    "auroc_of_levels",
    "bootstrap",
    "bootstrap_all",
    "roc_points",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the limits of its interval; the limits are NaN where resampling gave nothing."""

    value: float
    low: float
    high: float


def auroc(labels: Ints, scores: Floats) -> float:
    """Return the area under the ROC curve (Hanley & McNeil 1982; ties count half); NaN with one class only."""
    _, levels = np.unique(scores, return_inverse=True)
    return auroc_of_levels(labels, levels.reshape(-1).astype(np.int64))


def auroc_of_levels(labels: Ints, levels: Ints) -> float:
    """Return the AUROC of scores given as their ranks 0, 1, …, equal scores sharing one; for many resamples."""
    size = int(levels.max(initial=0)) + 1
    positives = np.bincount(levels, weights=labels, minlength=size)
    negatives = np.bincount(levels, minlength=size) - positives
    below = np.cumsum(negatives) - negatives / 2
    pairs = positives.sum() * negatives.sum()
    return float(positives @ below / pairs) if pairs else float("nan")


def roc_points(labels: Ints, scores: Floats) -> tuple[Floats, Floats]:
    """Return false and true positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], labels[order] == 1
    last = np.append(np.nonzero(np.diff(sorted_scores))[0], len(scores) - 1)
    true = np.concatenate([[0], np.cumsum(hits)[last]]) / max(1, hits.sum())
    false = np.concatenate([[0], np.cumsum(~hits)[last]]) / max(1, (~hits).sum())
    return false.astype(float), true.astype(float)


def bootstrap(
    statistic: Callable[[Ints], float], patients: Ints, *, resamples: int, confidence: float, seed: int
) -> Interval:
    """Return `bootstrap_all` for a single number."""
    return bootstrap_all(
        lambda rows: np.array([statistic(rows)]), patients, resamples=resamples, confidence=confidence, seed=seed
    )[0]


def bootstrap_all(
    statistics: Callable[[Ints], Floats], patients: Ints, *, resamples: int, confidence: float, seed: int
) -> list[Interval]:
    """Return percentile intervals (Efron & Tibshirani 1993, chapter 13), drawing patients with replacement.

    Args:
        statistics: takes row indices, gives a vector; NaN entries (one class only) are left out, each by itself.
        patients: codes 0..n-1 for each row; rows of a patient are drawn together.
        resamples: number of draws.
        confidence: level, for example 0.95.
        seed: of the draws; equal seeds give equal intervals.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    order = np.argsort(patients, kind="stable")
    starts = np.searchsorted(patients[order], np.arange(patients.max() + 2)) if len(patients) else np.zeros(1, int)
    count = len(starts) - 1
    single = count == len(patients)
    values = []
    for _ in range(resamples if count else 0):
        drawn = generator.integers(0, count, size=count)
        rows = order[drawn] if single else np.concatenate([order[starts[p] : starts[p + 1]] for p in drawn])
        values.append(statistics(rows))
    whole = statistics(np.arange(len(patients)))
    table = np.array(values, dtype=float).reshape(-1, len(whole))
    return [_interval(float(value), table[:, i], confidence) for i, value in enumerate(whole)]


def _interval(value: float, resampled: Floats, confidence: float) -> Interval:
    finite = resampled[np.isfinite(resampled)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (float("nan"), float("nan"))
    return Interval(value, float(low), float(high))
