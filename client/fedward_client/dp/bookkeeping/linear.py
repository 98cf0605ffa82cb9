"""Linear layers: ghost norms (Li et al., ICLR 2022) or instantiated gradients, whichever books less."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from fedward_client.dp.bookkeeping.tape import Finish, Tape, Weights, wide

__all__ = ["GhostError", "Linear", "book_pairs", "cast_for_autocast", "ghost_squares", "linear"]

_UNIT: Final = 2.0**-24  # half an ulp of 1 in float32
_TINY: Final = 2.0**-126  # below it, a product may be lost altogether
_GRAM_NUMBERS: Final = 1 << 20
_CHUNK_NUMBERS: Final = 1 << 20


class Linear:
    """`nn.Linear` on inputs of 2 to any number of dimensions; the last is the features."""

    parameters = frozenset({"weight", "bias"})

    @staticmethod
    def refusal(_: nn.Linear) -> str:
        """Return why this layer cannot be booked; empty if it can."""
        return ""

    @staticmethod
    def forward(layer: nn.Linear, name: str, tape: Tape, inputs: torch.Tensor) -> torch.Tensor:
        """Do what the layer does, booking its gradients."""
        return linear(tape, name, inputs, layer.weight, layer.bias)


def linear(
    tape: Tape,
    name: str,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: slice = slice(None),
) -> torch.Tensor:
    """Return ``inputs @ weight[rows].T + bias[rows]``; the gradients of both are booked."""
    output: torch.Tensor = _Linear.apply(inputs, weight, bias, rows, name, tape)  # type: ignore[no-untyped-call]
    return output


def cast_for_autocast(inputs: torch.Tensor) -> torch.Tensor:
    """Return `inputs` in the type in which autocast, if it is on, would multiply them."""
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind) and inputs.is_floating_point():
        return inputs.to(torch.get_autocast_dtype(kind))
    return inputs


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: slice,
        name: str,
        tape: Tape,
    ) -> torch.Tensor:
        used = cast_for_autocast(inputs)
        ctx.save_for_backward(used if weight.requires_grad else None, weight)
        ctx.bias, ctx.rows, ctx.name, ctx.tape, ctx.type = bias, rows, name, tape, inputs.dtype
        part = None if bias is None else bias[rows].to(used.dtype)
        return functional.linear(used, weight[rows].to(used.dtype), part)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        tape: Tape = ctx.tape
        if tape.check(ctx.name, gradient):
            outputs = gradient.reshape(tape.patients, -1, gradient.shape[-1])
            if ctx.bias is not None and ctx.bias.requires_grad:
                tape.keep(ctx.name, ctx.bias, wide(outputs.sum(dim=1, dtype=_sum_type(outputs))), ctx.rows)
            if inputs is not None:
                book_pairs(tape, ctx.name, weight, inputs.reshape(*outputs.shape[:2], -1), outputs, ctx.rows)
        back = None
        if ctx.needs_input_grad[0]:
            back = (gradient @ weight[ctx.rows].to(gradient.dtype)).to(ctx.type)
        return back, None, None, None, None, None


def _sum_type(values: torch.Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def book_pairs(
    tape: Tape,
    name: str,
    weight: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    rows: slice = slice(None),
) -> None:
    """Book the gradient ``Σ_t outputs_t inputs_tᵀ`` of a matrix.

    ========================================  ======================================================
    one position                              the norm is a product of two norms; the pair is booked
    the gradient holds no more than the pair  it is computed, for each patient, and booked
    else                                      the norm is from two Gram matrices; the pair is booked
    ========================================  ======================================================

    The second and the third line also are the cheaper ones of the two where they apply: p·d numbers at most T·(p+d),
    and otherwise T²·(p+d) operations below T·p·d.

    Args:
        tape: where.
        name: the layer's.
        weight: the parameter; shape (p, d) in its `rows`.
        inputs: shape (patients, T, d).
        outputs: gradients of the outputs, shape (patients, T, p).
        rows: see `Tape.book`.
    """
    positions, out, into = outputs.shape[1], outputs.shape[2], inputs.shape[2]
    if positions == 1:
        norms = [torch.linalg.vector_norm(side, dim=(1, 2), dtype=torch.float64) for side in (inputs, outputs)]
        tape.book(name, weight, (norms[0] * norms[1]).square(), _product(inputs, outputs), rows)
    elif out * into <= positions * (out + into):
        tape.keep(name, weight, torch.bmm(wide(outputs).transpose(1, 2), wide(inputs)), rows)
    else:
        tape.book(name, weight, ghost_squares(inputs, outputs), _product(inputs, outputs), rows)


def _product(inputs: torch.Tensor, outputs: torch.Tensor) -> Finish:
    """Return what multiplies the pair, some patients at a time; the factors go to the narrower side."""

    def finish(weights: Weights) -> torch.Tensor:
        total = torch.zeros(outputs.shape[2], inputs.shape[2], dtype=_sum_type(outputs), device=outputs.device)
        swap = inputs.shape[2] < outputs.shape[2]
        narrow, other = (inputs, outputs) if swap else (outputs, inputs)
        step = max(1, _CHUNK_NUMBERS // narrow[0].numel())
        for start in range(0, len(inputs), step):
            some = slice(start, start + step)
            scaled = weights.scaled(narrow[some], some).flatten(0, 1).to(total.dtype)
            masked = weights.masked(wide(other[some]), some).flatten(0, 1).to(total.dtype)
            left, right = (masked, scaled) if swap else (scaled, masked)
            total.addmm_(left.t(), right)
        return total

    return finish


class GhostError:
    """How far a float32 ghost norm may be below the true one.

    A squared norm from Gram matrices is a sum of T² products that may cancel down to nothing, while its rounding error
    stays in proportion to the square of S = Σ_t ‖a_t‖ ‖b_t‖. An inner product of n terms errs by at most n·u, and, with
    all but vanishing probability, by 8·√n·u (Higham and Mary, 2019), u = 2⁻²⁴. The pairwise sum of the T² products adds
    less than 64·u.
    """

    @staticmethod
    def share(into: int, out: int) -> float:
        """Return the error's bound as a share of S²."""
        return _UNIT * (64 + min(into + out, 8 * (math.sqrt(into) + math.sqrt(out))))


def ghost_squares(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return upper bounds on ‖Σ_t outputs_t inputs_tᵀ‖² of each patient, float64, shape (patients,).

    The computed value plus `GhostError`: where tokens cancel, a patient is clipped to less than the bound rather than
    to more. Without cancellation the bound is high by about one part in ten thousand.

    Args:
        inputs: shape (patients, T, d).
        outputs: shape (patients, T, p).
    """
    positions, into, out = inputs.shape[1], inputs.shape[2], outputs.shape[2]
    step = max(1, _GRAM_NUMBERS // positions**2)
    share = GhostError.share(into, out)
    parts = []
    for start in range(0, len(inputs), step):
        a, b = wide(inputs[start : start + step]), wide(outputs[start : start + step])
        left, right = torch.bmm(a, a.transpose(1, 2)), torch.bmm(b, b.transpose(1, 2))
        sides = [gram.diagonal(dim1=1, dim2=2).to(torch.float64).sum(dim=1) for gram in (left, right)]
        lengths = [gram.diagonal(dim1=1, dim2=2).to(torch.float64) for gram in (left, right)]
        reach = (lengths[0] * lengths[1]).sqrt().sum(dim=1).square()
        lost = _TINY * positions * (sides[0] * out + sides[1] * into)
        parts.append(left.mul_(right).sum(dim=(1, 2)).to(torch.float64) + share * reach + lost)
    return torch.cat(parts)
