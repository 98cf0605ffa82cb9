"""The contract of every clipping engine: the sum of the patients' clipped gradients, which knows its own sensitivity.

After JAX-Privacy's ``clipped_grad``: a sum, never a mean, since the mean's divisor would be private; invariant to how a
batch is cut into micro-batches; a patient whose gradient is not finite, or larger than any real one, contributes zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import nn

__all__ = [
    "LARGEST_NORM",
    "ClippedSum",
    "Engine",
    "Part",
    "PatientLosses",
    "Records",
    "StepSums",
    "clip_factors",
    "clipped_sum",
    "trainable",
]

Records = tuple[torch.Tensor, ...]
"""A batch: tensors whose first dimension is the patient; a patient's records lie along the second."""

PatientLosses = Callable[[nn.Module, Records], torch.Tensor]
"""From model and batch to each patient's loss, shape (patients,): the mean over that patient's records.

The model may be called on patients and records flattened into one first dimension, patient by patient
(``x.flatten(0, 1)``), so that the first dimension of every layer is a multiple of the number of patients.
"""

LARGEST_NORM: Final = 1e12
"""A gradient whose L2 norm exceeds this is treated like one that is not finite: its square loses float32."""


@dataclass(frozen=True, slots=True)
class ClippedSum:
    """A sum over patients in which each one contributes at most `l2_bound` in L2 norm over all tensors.

    Attributes:
        tensors: float32, one for each trainable parameter, in the order of ``model.parameters()``.
        l2_bound: the sensitivity: how far replacing a patient by nothing moves the sum.
    """

    tensors: tuple[torch.Tensor, ...]
    l2_bound: float


@dataclass(frozen=True, slots=True)
class Part:
    """What an engine makes of one micro-batch.

    Attributes:
        tensors: float32 sums of clipped gradients, one for each trainable parameter, in memory that nobody else uses.
        losses: the patients' losses, detached, shape (patients,). Private: they leave in a noised sum or not at all.
    """

    tensors: tuple[torch.Tensor, ...]
    losses: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepSums:
    """What a step may make public once noised, and the patients' losses, which are private."""

    gradient: ClippedSum
    losses: torch.Tensor


class Engine(Protocol):
    """Computes clipped sums for one model and one loss; all engines give the same sums up to rounding."""

    @property
    def name(self) -> str:
        """The engine's word in a study: ``hooks``, ``ghost`` or ``bookkeeping``."""

    def part(self, records: Records, clip_norm: float) -> Part:
        """Return the sum of clipped gradients of a micro-batch of at least one patient.

        The model's parameters, their ``grad`` fields, ``requires_grad`` flags and mode are as before afterwards.

        Args:
            records: the micro-batch.
            clip_norm: bound on the L2 norm of one patient's gradient over all trainable parameters together.
        """


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained, in the order in which an engine returns their sums."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def clip_factors(squared_norms: torch.Tensor, clip_norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each patient's gradient is multiplied by, and which patients count at all.

    Args:
        squared_norms: squared L2 norms of the gradients, float32 or float64, shape (patients,).
        clip_norm: the bound.

    Returns:
        Factors in [0, 1] of the same type, zero for whoever does not count, and a boolean mask of whoever does. A zero
        factor does not remove a NaN: whoever does not count must be masked out.
    """
    counted = torch.isfinite(squared_norms) & (squared_norms <= LARGEST_NORM**2)
    norms = torch.where(counted, squared_norms, torch.ones_like(squared_norms)).clamp(min=1e-24).sqrt()
    factors = (clip_norm / norms).clamp(max=1.0)
    return torch.where(counted, factors, torch.zeros_like(factors)), counted


def clipped_sum(engine: Engine, model: nn.Module, records: Records, clip_norm: float, *, micro_batch: int) -> StepSums:
    """Return the sum of the patients' gradients, each scaled down to at most `clip_norm`; zeros for an empty batch.

    ==============================================  =================================
    a patient's gradient                            contributes
    ==============================================  =================================
    norm at most `clip_norm`                        itself
    norm above `clip_norm`                          itself, scaled to `clip_norm`
    NaN, infinite, or a norm above `LARGEST_NORM`   zero
    ==============================================  =================================

    The sum is accumulated in float32 whatever the model's type is, and does not depend on `micro_batch` but for
    rounding.

    Args:
        engine: made for `model`.
        model: whose gradients these are.
        records: the batch; its first dimension may be zero.
        clip_norm: see `Engine.part`.
        micro_batch: patients that are computed at once; at least 1. It bounds memory.
    """
    totals: tuple[torch.Tensor, ...] = ()
    losses = [torch.zeros(0, device=records[0].device)]
    for start in range(0, len(records[0]), micro_batch):
        part = engine.part(tuple(tensor[start : start + micro_batch] for tensor in records), clip_norm)
        for total, tensor in zip(totals, part.tensors, strict=bool(totals)):
            total.add_(tensor)
        totals = totals or part.tensors
        losses.append(part.losses.to(torch.float32))
    if not totals:
        totals = tuple(torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in trainable(model))
    return StepSums(ClippedSum(totals, clip_norm), torch.cat(losses))
