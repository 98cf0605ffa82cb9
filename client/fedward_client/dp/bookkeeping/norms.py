"""Layer, group, instance and root-mean-square normalisation: per-patient gradients of the scale and the shift."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from fedward_client.dp.bookkeeping.tape import Tape, wide

__all__ = ["GroupNorm", "LayerNorm", "RmsNorm"]

_CACHED: Final = 1 << 19  # numbers


def _keep(tape: Tape, name: str, parameter: torch.Tensor | None, gradients: torch.Tensor | None) -> None:
    """Book per-patient gradients of the scale or the shift, of any shape that has the parameter's numbers."""
    if parameter is not None and parameter.requires_grad and gradients is not None:
        tape.keep(name, parameter, gradients.reshape(tape.patients, *parameter.shape))


def _autocast_float(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.to(torch.float32) if torch.is_autocast_enabled(inputs.device.type) else inputs


class LayerNorm:
    """`nn.LayerNorm` with a scale, with or without a shift."""

    parameters = frozenset({"weight", "bias"})

    @staticmethod
    def refusal(_: nn.LayerNorm) -> str:
        """Return why this layer cannot be booked; empty if it can."""
        return ""

    @staticmethod
    def forward(layer: nn.LayerNorm, name: str, tape: Tape, inputs: torch.Tensor) -> torch.Tensor:
        """Do what the layer does, booking its gradients."""
        shape = list(layer.normalized_shape)
        used = _autocast_float(inputs)
        output: torch.Tensor = _LayerNorm.apply(used, layer.weight, layer.bias, (shape, layer.eps), name, tape)  # type: ignore[no-untyped-call]
        return output


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        how: tuple[list[int], float],
        name: str,
        tape: Tape,
    ) -> torch.Tensor:
        output, mean, scale = torch.native_layer_norm(inputs, how[0], weight, bias, how[1])
        ctx.save_for_backward(inputs, mean, scale, weight)
        ctx.bias, ctx.shape, ctx.name, ctx.tape = bias, how[0], name, tape
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        inputs, mean, scale, weight = ctx.saved_tensors
        tape: Tape = ctx.tape
        if tape.check(ctx.name, gradient):
            size = weight.numel()
            rows = wide(gradient).reshape(tape.patients, -1, size)
            _keep(tape, ctx.name, ctx.bias, rows.sum(dim=1))
            if weight.requires_grad:
                centred = (inputs - mean).mul_(scale)
                _keep(tape, ctx.name, weight, wide(centred).reshape(rows.shape).mul_(rows).sum(dim=1))
        back = None
        if ctx.needs_input_grad[0]:
            back = torch.ops.aten.native_layer_norm_backward(
                gradient.contiguous(), inputs, ctx.shape, mean, scale, weight, ctx.bias, [True, False, False]
            )[0]
        return back, None, None, None, None, None


class GroupNorm:
    """`nn.GroupNorm`, and instance normalisation without running statistics, with scale and shift."""

    parameters = frozenset({"weight", "bias"})

    @staticmethod
    def refusal(layer: nn.Module) -> str:
        """Return why this layer cannot be booked; empty if it can."""
        return "running statistics" if getattr(layer, "track_running_stats", False) else ""

    @staticmethod
    def forward(layer: Any, name: str, tape: Tape, inputs: torch.Tensor) -> torch.Tensor:
        """Do what the layer does, booking its gradients."""
        groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else inputs.shape[1]
        used = _autocast_float(inputs)
        output: torch.Tensor = _GroupNorm.apply(used, layer.weight, layer.bias, (groups, layer.eps), name, tape)  # type: ignore[no-untyped-call]
        return output


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        how: tuple[int, float],
        name: str,
        tape: Tape,
    ) -> torch.Tensor:
        inputs = inputs.contiguous()
        ctx.sizes = (*inputs.shape[:2], inputs[0, 0].numel(), how[0])
        output, mean, scale = torch.native_group_norm(inputs, weight, bias, *ctx.sizes, how[1])  # type: ignore[call-arg]  # mypy counts no starred ones
        ctx.save_for_backward(inputs, mean, scale, weight)
        ctx.bias, ctx.name, ctx.tape = bias, name, tape
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient = gradients[0].contiguous()
        inputs, mean, scale, weight = ctx.saved_tensors
        tape: Tape = ctx.tape
        if tape.check(ctx.name, gradient):
            count, channels, size, groups = ctx.sizes
            rows = wide(gradient).view(count, channels, size)
            shift = rows.sum(dim=2)
            _keep(tape, ctx.name, ctx.bias, shift.view(tape.patients, -1, channels).sum(dim=1))
            if weight.requires_grad:
                product = _dots(rows, inputs.view(rows.shape)).view(count, groups, -1)
                centred = product - wide(mean).view(count, groups, 1) * shift.view(product.shape)
                scaled = centred * wide(scale).view(count, groups, 1)
                _keep(tape, ctx.name, weight, scaled.view(tape.patients, -1, channels).sum(dim=1))
        back = None
        if ctx.needs_input_grad[0]:
            back = torch.ops.aten.native_group_norm_backward(
                gradient, inputs, mean, scale, weight, *ctx.sizes, [True, False, False]
            )[0]
        return back, None, None, None, None, None


def _dots(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the products of two tensors of shape (records, channels, size), summed over the last dimension.

    A few records at a time, so that the products stay in the processor's cache.
    """
    result = torch.empty(left.shape[:2], dtype=left.dtype, device=left.device)
    step = max(1, _CACHED // left[0].numel())
    for start in range(0, len(left), step):
        some = slice(start, start + step)
        torch.sum(left[some] * wide(right[some]), dim=2, out=result[some])
    return result


class RmsNorm:
    """`nn.RMSNorm` with a scale."""

    parameters = frozenset({"weight"})

    @staticmethod
    def refusal(_: nn.RMSNorm) -> str:
        """Return why this layer cannot be booked; empty if it can."""
        return ""

    @staticmethod
    def forward(layer: nn.RMSNorm, name: str, tape: Tape, inputs: torch.Tensor) -> torch.Tensor:
        """Do what the layer does, booking its gradients."""
        eps = torch.finfo(inputs.dtype).eps if layer.eps is None else layer.eps
        output: torch.Tensor = _RmsNorm.apply(_autocast_float(inputs), layer.weight, eps, name, tape)  # type: ignore[no-untyped-call]
        return output


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, eps: float, name: str, tape: Tape
    ) -> torch.Tensor:
        over = tuple(range(-weight.dim(), 0))
        scale = wide(inputs).square().mean(dim=over, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(inputs, scale, weight)
        ctx.over, ctx.name, ctx.tape = over, name, tape
        return (wide(inputs) * scale * wide(weight)).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        inputs, scale, weight = ctx.saved_tensors
        tape: Tape = ctx.tape
        outputs, unit = wide(gradient), wide(inputs) * scale
        if tape.check(ctx.name, gradient):
            _keep(tape, ctx.name, weight, (outputs * unit).reshape(tape.patients, -1, weight.numel()).sum(dim=1))
        back = None
        if ctx.needs_input_grad[0]:
            inner = outputs * wide(weight)
            mean = (inner * unit).mean(dim=ctx.over, keepdim=True)
            back = inner.sub_(unit.mul_(mean)).mul_(scale).to(inputs.dtype)
        return back, None, None, None, None
