"""What a patient's loss is: the mean over that patient's records."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["patient_losses"]


def patient_losses(model: nn.Module, records: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return each patient's loss, shape (patients,): the mean cross-entropy of that patient's rows.

    Args:
        model: maps (patients, rows, features) to logits (patients, rows, 1).
        records: features, float32, shape (patients, rows, features); labels, 0/1, shape (patients, rows); mask, 1 for
            rows that are there, shape (patients, rows), at least one for each patient.
    """
    features, labels, mask = records
    losses = binary_cross_entropy_with_logits(model(features).squeeze(-1), labels, reduction="none")
    return (losses * mask).sum(dim=1) / mask.sum(dim=1)
