"""The global model, judged on central data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedward_common.metrics import Interval, auroc_of_levels, bootstrap_all, roc_points
from fedward_common.study import Study
from fedward_common.tables import Rows

__all__ = ["HoldOut", "Predictor", "TorchPredictor", "final_metrics", "point_metrics", "roc_curve"]

Weights = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Predictor = Callable[[Weights], Scores]
"""Takes packed weights, returns the probability of the outcome for each row of the hold-out."""


@dataclass(frozen=True, slots=True)
class HoldOut:
    """Central rows that no site trains on.

    Attributes:
        rows: encoded by the study's schema.
        centres: code of the centre that a row comes from, shape (rows,); all 0 when that is not known.
        names: the centres' names, by code.
    """

    rows: Rows
    centres: npt.NDArray[np.int64]
    names: tuple[str, ...]


class TorchPredictor:
    """A `Predictor` in this process. Under FedBN the normalisation is as the model began: the centre has none."""

    def __init__(self, study: Study, features: npt.NDArray[np.float32]) -> None:
        import torch  # noqa: PLC0415  (a simulation's coordinator leaves torch to its workers)

        from fedward_common.models import build_model  # noqa: PLC0415  (see above)

        torch.set_num_threads(1)
        self._study = study
        self._model = build_model(study).eval()
        self._features = torch.from_numpy(features)

    def __call__(self, weights: Weights) -> Scores:
        """Return the probabilities, shape (rows,)."""
        import torch  # noqa: PLC0415  (see __init__)

        from fedward_common.models import load_weights, whole  # noqa: PLC0415  (see __init__)

        load_weights(self._model, whole(self._study, weights))
        with torch.no_grad():
            logits: torch.Tensor = self._model(self._features)
        return torch.sigmoid(logits.squeeze(-1).double()).numpy()


def point_metrics(study: Study, hold_out: HoldOut, scores: Scores) -> dict[str, float]:
    """Return each metric's value without an interval; NaN where it has none."""
    names, statistics = _statistics(study, hold_out, scores)
    return dict(zip(names, map(float, statistics(np.arange(len(scores)))), strict=True))


def final_metrics(study: Study, hold_out: HoldOut, scores: Scores) -> dict[str, Interval]:
    """Return each metric with its bootstrap interval, the patients of the hold-out resampled."""
    names, statistics = _statistics(study, hold_out, scores)
    intervals = bootstrap_all(
        statistics,
        hold_out.rows.patients,
        resamples=study.evaluation.bootstrap,
        confidence=study.evaluation.confidence,
        seed=study.seed,
    )
    return dict(zip(names, intervals, strict=True))


def roc_curve(hold_out: HoldOut, scores: Scores) -> tuple[Scores, Scores]:
    """Return false and true positive rates over the whole hold-out."""
    return roc_points(hold_out.rows.labels, scores)


def _statistics(
    study: Study, hold_out: HoldOut, scores: Scores
) -> tuple[list[str], Callable[[npt.NDArray[np.int64]], Scores]]:
    """Return the metrics' names and one function from row indices to all their values."""
    labels, centres = hold_out.rows.labels, hold_out.centres
    levels = np.unique(scores, return_inverse=True)[1].reshape(-1).astype(np.int64)
    right = ((scores >= study.evaluation.threshold) == (labels == 1)).astype(float)
    count = len(hold_out.names)

    def statistics(rows: npt.NDArray[np.int64]) -> Scores:
        sizes = np.bincount(centres[rows], minlength=count)
        hits = np.bincount(centres[rows], weights=right[rows], minlength=count)
        by_centre = np.divide(hits, sizes, out=np.full(count, np.nan), where=sizes > 0)
        overall = hits.sum() / len(rows) if len(rows) else np.nan
        mean = by_centre[sizes > 0].mean() if len(rows) else np.nan
        area = auroc_of_levels(labels[rows], levels[rows])
        return np.array([area, overall, mean, *(by_centre if count > 1 else ())])

    names = ["auroc", "accuracy", "accuracy_mean_of_centres"]
    return [*names, *(f"accuracy.{name}" for name in hold_out.names)] if count > 1 else names, statistics
