"""What the first step must have done to the weights, and to nothing else.

In opacus#820 a model was wrapped before it was moved to its device: loss and ε looked right for 45 hours, while the
optimiser trained tensors that the model no longer used. Such a fault is visible after one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from fedward_common.errors import WeightDeltaError

__all__ = ["Snapshot", "snapshot", "verify"]

_REMEDY: Final = "move the model to its device before anything wraps it, and check the versions of torch and peft"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of a model's tensors before a step, by name; `trainable` are the names that the step may change."""

    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    trainable: frozenset[str]


def snapshot(model: nn.Module) -> Snapshot:
    """Return copies of all parameters and buffers of `model`; it costs the model's memory once more until dropped."""
    return Snapshot(
        {name: parameter.detach().clone() for name, parameter in model.named_parameters()},
        {name: buffer.detach().clone() for name, buffer in model.named_buffers()},
        frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad),
    )


def verify(
    before: Snapshot, model: nn.Module, gradients: Sequence[torch.Tensor], *, learning_rate: float | None = None
) -> None:
    """Return if one optimiser step on `gradients` changed exactly the trainable parameters of `model`.

    The same parameters are trainable; types, shapes and devices are as before; frozen parameters and buffers are equal
    bit for bit; each trainable parameter is finite and has changed if its gradient has a value other than zero.

    Args:
        before: taken of `model` just before the step.
        model: after the step.
        gradients: what the optimiser was given, for each trainable parameter in the order of ``model.parameters()``.
        learning_rate: for SGD, whose step is then checked value by value: weight − rate · gradient up to rounding. With
            momentum this holds for the first step. None for other optimisers.

    Raises:
        WeightDeltaError: otherwise; the message names the parameter, and no value.
    """
    now = dict(model.named_parameters())
    _same_names("parameters", before.parameters, now)
    _same_names("trainable parameters", before.trainable, [name for name, p in now.items() if p.requires_grad])
    buffers = dict(model.named_buffers())
    _same_names("buffers", before.buffers, buffers)
    for name, buffer in buffers.items():
        _unchanged(f"buffer {name}", before.buffers[name], buffer)
    trained = [name for name in now if name in before.trainable]
    if len(trained) != len(gradients):
        msg = f"{len(trained)} parameters are trainable, but the step has {len(gradients)} gradients"
        raise WeightDeltaError(msg, remedy=_REMEDY)
    for name in [name for name in now if name not in before.trainable]:
        _unchanged(f"frozen parameter {name}", before.parameters[name], now[name].detach())
    for name, gradient in zip(trained, gradients, strict=True):
        _stepped(name, before.parameters[name], now[name].detach(), gradient.detach(), learning_rate)


def _fail(what: str, reason: str) -> None:
    msg = f"after the step, {what} {reason}"
    raise WeightDeltaError(msg, remedy=_REMEDY)


def _same_names(what: str, before: Iterable[str], after: Iterable[str]) -> None:
    odd = sorted(set(before) ^ set(after))
    if odd:
        _fail(f"the {what}", f"are not what they were: {', '.join(odd[:5])}")


def _alike(what: str, before: torch.Tensor, after: torch.Tensor) -> None:
    if (before.shape, before.dtype, before.device) != (after.shape, after.dtype, after.device):
        _fail(what, "has another shape, type or device")


def _unchanged(what: str, before: torch.Tensor, after: torch.Tensor) -> None:
    _alike(what, before, after)
    if not torch.equal(_bits(before), _bits(after)):
        _fail(what, "has changed")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _stepped(
    name: str, before: torch.Tensor, after: torch.Tensor, gradient: torch.Tensor, learning_rate: float | None
) -> None:
    what = f"parameter {name}"
    _alike(what, before, after)
    if gradient.shape != before.shape:
        _fail(what, "does not have its gradient's shape")
    if not torch.isfinite(after).all():
        _fail(what, "is not finite")
    if gradient.any() and torch.equal(before, after):
        _fail(what, "has not changed, though its gradient is not zero")
    if learning_rate is None:
        return
    step = learning_rate * gradient.to(torch.float64)
    slack = 4 * torch.finfo(before.dtype).eps * (before.to(torch.float64).abs() + step.abs())
    if ((after.to(torch.float64) - before.to(torch.float64) + step).abs() > slack).any():
        _fail(what, "is not its old value less the learning rate times its gradient")
