"""DP-SGD's two operations, with the sensitivity travelling inside the value: clip and sum, then noise.

Per-patient gradients come from Opacus' `GradSampleModule`; the clipping, the treatment of values that are not
finite and the noise are here, because of what a library's defaults let through (a NaN record poisons the sum).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

if TYPE_CHECKING:
    from opacus.grad_sample import GradSampleModule

__all__ = ["ClippedSum", "add_noise", "clipped_sum", "patient_losses"]


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """A sum over patients in which each one contributes at most `l2_bound` in L2 norm over all tensors."""

    tensors: tuple[torch.Tensor, ...]
    l2_bound: float


def patient_losses(model: nn.Module, features: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return each patient's loss, shape (patients,): the mean cross-entropy of that patient's rows.

    Args:
        model: maps (patients, rows, features) to logits (patients, rows, 1).
        features: float32, shape (patients, rows, features).
        labels: 0/1, shape (patients, rows).
        mask: 1 for rows that are there, shape (patients, rows); at least one for each patient.
    """
    losses = binary_cross_entropy_with_logits(model(features).squeeze(-1), labels, reduction="none")
    return (losses * mask).sum(dim=1) / mask.sum(dim=1)


def clipped_sum(
    model: GradSampleModule, features: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, clip_norm: float
) -> ClippedSum:
    """Return the sum of the patients' gradients, each scaled down to at most `clip_norm`.

    ==============================  =================================
    a patient's gradient            contributes
    ==============================  =================================
    norm at most `clip_norm`        itself
    norm above `clip_norm`          itself, scaled to `clip_norm`
    any entry NaN or infinite       zero
    no patient in the batch         (the sum is zero)
    ==============================  =================================
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not len(features):
        return ClippedSum(tuple(torch.zeros_like(p) for p in parameters), clip_norm)
    model.zero_grad(set_to_none=True)
    with warnings.catch_warnings():  # Opacus hooks modules whose inputs need no gradient; torch says so at each step
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        patient_losses(model, features, labels, mask).sum().backward()  # type: ignore[no-untyped-call]
    samples = [p.grad_sample.flatten(start_dim=1).to(torch.float32) for p in parameters]
    norms = torch.stack([s.norm(dim=1) for s in samples]).norm(dim=0)
    finite = torch.isfinite(norms)
    factors = torch.where(finite, (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0), torch.zeros_like(norms))
    sums = tuple(
        (factors @ torch.where(finite[:, None], s, torch.zeros_like(s))).view_as(p)
        for s, p in zip(samples, parameters, strict=True)
    )
    model.zero_grad(set_to_none=True)
    return ClippedSum(sums, clip_norm)


def add_noise(
    total: ClippedSum, noise_multiplier: float, generator: np.random.Generator | None = None
) -> tuple[torch.Tensor, ...]:
    """Return `total` plus independent Gaussian noise of standard deviation ``noise_multiplier * total.l2_bound``.

    Args:
        total: what may leave once noised.
        noise_multiplier: σ.
        generator: for tests only; by default a new one, seeded from the operating system for this release alone.
            NumPy's, because torch's CPU generator keeps 32 bits of any seed: few enough to try them all and take
            the noise off again.
    """
    if generator is None:
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32), "little")))
    scale = noise_multiplier * total.l2_bound
    return tuple(t + torch.from_numpy(generator.normal(0.0, scale, tuple(t.shape))).to(t) for t in total.tensors)
