"""How a model is judged on central data: point values and bootstrap intervals, resampled by patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "accuracy", "auroc", "bootstrap", "mean_of_groups", "roc_points"]

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
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(ranks[inverse.reshape(-1)][labels == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def accuracy(labels: Ints, scores: Floats, threshold: float = 0.5) -> float:
    """Return the share of rows on the right side of `threshold`; NaN without rows."""
    return float(np.mean((scores >= threshold) == (labels == 1))) if len(labels) else float("nan")


def mean_of_groups(labels: Ints, scores: Floats, groups: Ints, threshold: float = 0.5) -> float:
    """Return the unweighted mean of each group's accuracy; NaN without rows."""
    values = [accuracy(labels[groups == g], scores[groups == g], threshold) for g in np.unique(groups)]
    return float(np.mean(values)) if values else float("nan")


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
    """Return a percentile interval (Efron & Tibshirani 1993, chapter 13), drawing patients with replacement.

    Args:
        statistic: takes row indices, gives one number; NaN resamples (one class only) are left out.
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
        values.append(statistic(rows))
    finite = np.array([v for v in values if np.isfinite(v)])
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (float("nan"), float("nan"))
    return Interval(statistic(np.arange(len(patients))), float(low), float(high))
