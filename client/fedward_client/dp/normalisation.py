"""Batch statistics taken out of a model: replaced by GroupNorm, or, where they are fixed, folded into constants."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from fedward_common.errors import UnsafeModelError

__all__ = ["FixedAffine", "frozen_batch_norm_folded", "made_private"]

_MOST_GROUPS: Final = 32


class FixedAffine(nn.Module):
    """``x * scale + shift`` for each channel; both are constant buffers.

    Args:
        scale: shape (channels,).
        shift: shape (channels,).
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled and shifted `x`, shape (patients, channels, …)."""
        places = (-1, *(1,) * (x.dim() - 2))
        return x * self.scale.view(places) + self.shift.view(places)


def made_private(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with a GroupNorm (Wu and He, ECCV 2018) in the place of each BatchNorm, frozen or not.

    SyncBatchNorm and materialised lazy ones are among them. A BatchNorm for vectors or sequences becomes one group,
    that is, LayerNorm over channels: in more groups a vector would keep next to nothing. Others get gcd(32, channels).
    Epsilon, affine weights, their ``requires_grad``, mode, type and device are carried over; running statistics are
    dropped, so a trained model computes something else afterwards and has to be trained on. A two-dimensional layer
    behind a global pooling, with one place for each channel, would lose what the few channels of a group do not tell
    apart.

    Raises:
        UnsafeModelError: a lazy module has not seen its input yet; the message names it.
    """
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(is_lazy(tensor) for tensor in own):
            msg = f"{name or 'the model'}: {type(module).__name__} has no channels before a first forward pass"
            raise UnsafeModelError(msg, remedy="call the model once on made-up input, or name the channels")
    return _replaced(model, _group_norm)


def frozen_batch_norm_folded(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with a `FixedAffine` for each BatchNorm that is frozen and in evaluation mode.

    Equal up to rounding, and unlike the BatchNorm it stays so when the model is set to training mode. Its statistics
    must be public, for instance those of published weights. All other modules are as they were.
    """
    return _replaced(model, _folded)


def _replaced(model: nn.Module, replacement: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """Return a copy of `model` with `replacement` of each BatchNorm; one module under two names stays one."""
    made = copy.deepcopy(model)
    if isinstance(made, _BatchNorm):
        return replacement(made)
    done: dict[int, nn.Module] = {}
    for name, module in list(made.named_modules(remove_duplicate=False)):
        if isinstance(module, _BatchNorm):
            parent, _, child = name.rpartition(".")
            if id(module) not in done:
                done[id(module)] = replacement(module)
            setattr(made.get_submodule(parent), child, done[id(module)])
    return made


def _group_norm(module: _BatchNorm) -> nn.Module:
    channels = module.num_features
    groups = 1 if isinstance(module, nn.BatchNorm1d) else math.gcd(_MOST_GROUPS, channels)
    new = nn.GroupNorm(groups, channels, eps=module.eps, affine=module.affine)
    reference = next((t for t in (module.weight, module.running_mean) if t is not None), None)
    if reference is not None:
        new.to(device=reference.device, dtype=reference.dtype)
    for attribute in ("weight", "bias") if module.affine else ():
        old, parameter = getattr(module, attribute), getattr(new, attribute)
        parameter.data.copy_(old.data)
        parameter.requires_grad_(old.requires_grad)
    return new.train(module.training)


def _folded(module: _BatchNorm) -> nn.Module:
    mean, variance = module.running_mean, module.running_var
    trained = any(parameter.requires_grad for parameter in module.parameters())
    if module.training or trained or mean is None or variance is None:
        return module
    wide = torch.float64
    weight = module.weight.detach().to(wide) if module.affine else torch.ones_like(variance, dtype=wide)
    bias = module.bias.detach().to(wide) if module.affine else torch.zeros_like(mean, dtype=wide)
    scale = weight / (variance.to(wide) + module.eps).sqrt()
    shift = bias - mean.to(wide) * scale
    return FixedAffine(scale.to(mean.dtype), shift.to(mean.dtype)).eval()
