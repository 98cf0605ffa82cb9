"""Convolutions: each patient's gradient from the library's own kernel, or ghost norms where those are cheaper."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from fedward_client.dp.bookkeeping.linear import cast_for_autocast, ghost_squares
from fedward_client.dp.bookkeeping.tape import Finish, Tape, Weights, squares_of, wide

__all__ = ["Conv"]

_UNIT: Final = 2.0**-24
_KEEP: Final = 2  # a kept gradient may be as large as this many times the input and output that booking would hold
_CHUNK_NUMBERS: Final = 1 << 20
_OPERATIONS: Final = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}

AnyConv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Conv:
    """`nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` with zero padding: any stride, dilation and groups."""

    parameters = frozenset({"weight", "bias"})

    @staticmethod
    def refusal(layer: AnyConv) -> str:
        """Return why this layer cannot be booked; empty if it can."""
        if layer.padding_mode != "zeros":
            return f"padding_mode {layer.padding_mode}; only zeros"
        if layer.padding == "same" and any(
            d * (k - 1) % 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ):
            return "padding 'same' that is not symmetric"
        return ""

    @staticmethod
    def forward(layer: AnyConv, name: str, tape: Tape, inputs: torch.Tensor) -> torch.Tensor:
        """Do what the layer does, booking its gradients."""
        output: torch.Tensor = _Conv.apply(inputs, layer.weight, layer.bias, layer, name, tape)  # type: ignore[no-untyped-call]
        return output


def _padding(layer: AnyConv) -> list[int]:
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size)
    if layer.padding == "same":
        return [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [int(width) for width in layer.padding]


def _backward(
    layer: AnyConv, outputs: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, *, of_input: bool
) -> torch.Tensor:
    """Return the gradient of the inputs, or that of the weight."""
    padding, none = _padding(layer), [0] * len(layer.kernel_size)
    result = torch.ops.aten.convolution_backward(
        outputs, inputs, weight, None, list(layer.stride), padding, list(layer.dilation),
        False, none, layer.groups, [of_input, not of_input, False],  # noqa: FBT003  (not transposed; torch's interface)
    )  # fmt: skip
    found: torch.Tensor = result[0 if of_input else 1]
    return found


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layer: AnyConv,
        name: str,
        tape: Tape,
    ) -> torch.Tensor:
        if inputs.dim() != weight.dim():
            msg = f"layer {name}: an input of {inputs.dim()} dimensions has no batch dimension"
            raise ValueError(msg)
        used = cast_for_autocast(inputs)
        ctx.save_for_backward(used if weight.requires_grad else None, weight)
        ctx.shape, ctx.type = used.shape, inputs.dtype
        ctx.bias, ctx.layer, ctx.name, ctx.tape = bias, layer, name, tape
        operation = _OPERATIONS[len(layer.kernel_size)]
        part = None if bias is None else bias.to(used.dtype)
        return operation(used, weight.to(used.dtype), part, layer.stride, _padding(layer), layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (outputs,) = gradients
        inputs, weight = ctx.saved_tensors
        tape: Tape = ctx.tape
        if tape.check(ctx.name, outputs):
            if ctx.bias is not None and ctx.bias.requires_grad:
                by_patient = wide(outputs.flatten(2)).sum(dim=2).view(tape.patients, -1, outputs.shape[1])
                tape.keep(ctx.name, ctx.bias, by_patient.sum(dim=1))
            if inputs is not None:
                _book(tape, ctx.name, ctx.layer, inputs, outputs)
        back = None
        if ctx.needs_input_grad[0]:
            like = outputs.new_empty(1).expand(ctx.shape) if inputs is None else inputs
            back = _backward(ctx.layer, outputs, like, weight.to(outputs.dtype), of_input=True).to(ctx.type)
        return back, None, None, None, None, None


def _book(tape: Tape, name: str, layer: AnyConv, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Book the weight's gradient: kept, or from ghost norms, or computed for its norm and again for the sum."""
    weight, patients = layer.weight, tape.patients
    booked = (inputs.numel() + outputs.numel()) // patients
    positions = outputs[:, 0].numel() // patients
    columns = weight[0].numel()
    if weight.numel() <= _KEEP * booked:
        tape.keep(name, weight, _per_patient(layer, inputs, outputs, patients))
    elif layer.groups == 1 and inputs.dim() == 4 and positions * (len(weight) + columns) < weight.numel():  # noqa: PLR2004  (images)
        tape.book(name, weight, _ghost(layer, inputs, outputs, patients), _again(layer, inputs, outputs, patients))
    else:
        squares = torch.cat(
            [
                _bounded(layer, i, o)
                for i, o in zip(inputs.tensor_split(patients), outputs.tensor_split(patients), strict=True)
            ]
        )
        tape.book(name, weight, squares, _again(layer, inputs, outputs, patients))


def _per_patient(layer: AnyConv, inputs: torch.Tensor, outputs: torch.Tensor, patients: int) -> torch.Tensor:
    """Return each patient's gradient, at least float32, shape (patients, *weight).

    One call of the library's kernel for each patient costs little more than one for all: unfolding and multiplying
    (Rochette et al., 2019) took twice as long on a CPU, and memory for the unfolded input.
    """
    weight = wide(layer.weight.detach())
    result = torch.empty(patients, *weight.shape, dtype=weight.dtype, device=weight.device)
    pairs = zip(inputs.tensor_split(patients), outputs.tensor_split(patients), strict=True)
    for place, (some, gradient) in enumerate(pairs):
        result[place] = _backward(layer, wide(gradient), wide(some), weight, of_input=False)
    return result


def _bounded(layer: AnyConv, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return an upper bound on one patient's squared norm, shape (1,), for a gradient that is computed again.

    Both computations round, each by at most 8·√T·u of Σ_t ‖a_t‖ ‖b_t‖ (`GhostError`), which is at most the product of
    the norms of all outputs and of all inputs, each of which is in at most as many patches as the kernel has places.
    """
    norm: torch.Tensor = squares_of(_per_patient(layer, inputs, outputs, 1)).sqrt()
    sides = [torch.linalg.vector_norm(wide(side), dtype=torch.float64) for side in (inputs, outputs)]
    share = 16 * _UNIT * math.sqrt(outputs[:, 0].numel() * math.prod(layer.kernel_size))
    bound: torch.Tensor = norm + share * sides[0] * sides[1]
    return bound.square()


def _ghost(layer: AnyConv, inputs: torch.Tensor, outputs: torch.Tensor, patients: int) -> torch.Tensor:
    """Return upper bounds on the squared norms from Gram matrices of unfolded images (Bu et al., NeurIPS 2022)."""
    parts = []
    step = len(outputs) // patients
    for start in range(0, len(outputs), step):
        patches = functional.unfold(
            wide(inputs[start : start + step]),
            layer.kernel_size,
            dilation=layer.dilation,
            padding=tuple(_padding(layer)),
            stride=layer.stride,
        )
        columns = patches.transpose(1, 2).reshape(1, -1, patches.shape[1])
        gradient = outputs[start : start + step].flatten(2).transpose(1, 2).reshape(1, -1, outputs.shape[1])
        parts.append(ghost_squares(columns, gradient))
    return torch.cat(parts)


def _again(layer: AnyConv, inputs: torch.Tensor, outputs: torch.Tensor, patients: int) -> Finish:
    def finish(weights: Weights) -> torch.Tensor:
        weight = wide(layer.weight.detach())
        total = torch.zeros_like(weight)
        records = len(outputs) // patients
        step = max(1, _CHUNK_NUMBERS * patients // outputs.numel())
        for start in range(0, patients, step):
            some = slice(start, start + step)
            parts = [side.reshape(patients, records, *side.shape[1:])[some] for side in (outputs, inputs)]
            scaled = weights.scaled(parts[0], some).flatten(0, 1).to(weight.dtype)
            masked = weights.masked(wide(parts[1]), some).flatten(0, 1)
            total += _backward(layer, scaled, masked, weight, of_input=False)
        return total

    return finish
