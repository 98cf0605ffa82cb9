"""Embeddings: a patient's gradient has as many rows as that patient has different tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedward_client.dp.bookkeeping.tape import Finish, Tape, Weights, wide

__all__ = ["Embedding"]


class Embedding:
    """`nn.Embedding`, with or without a padding token."""

    parameters = frozenset({"weight"})

    @staticmethod
    def refusal(layer: nn.Embedding) -> str:
        """Return why this layer cannot be booked; empty if it can."""
        if layer.max_norm is not None:
            return "max_norm, which changes the weight in the forward pass"
        if layer.scale_grad_by_freq:
            return "scale_grad_by_freq, which mixes patients"
        return "sparse gradients" if layer.sparse else ""

    @staticmethod
    def forward(layer: nn.Embedding, name: str, tape: Tape, tokens: torch.Tensor) -> torch.Tensor:
        """Do what the layer does, booking its gradient."""
        output: torch.Tensor = _Embedding.apply(tokens, layer.weight, layer.padding_idx, name, tape)  # type: ignore[no-untyped-call]
        return output


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, weight: torch.Tensor, padding: int | None, name: str, tape: Tape
    ) -> torch.Tensor:
        ctx.save_for_backward(tokens, weight)
        ctx.padding, ctx.name, ctx.tape = padding, name, tape
        return functional.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        tokens, weight = ctx.saved_tensors
        tape: Tape = ctx.tape
        if tape.check(ctx.name, gradient):
            names = tokens.reshape(tape.patients, -1)
            rows = wide(gradient).reshape(*names.shape, -1)
            if ctx.padding is not None:
                rows = rows.masked_fill((names == ctx.padding).unsqueeze(2), 0)
            _book(tape, ctx.name, weight, names, rows)
        return None, None, None, None, None


def _book(tape: Tape, name: str, weight: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> None:
    """Add up the rows of equal tokens, patient by patient, and book what is left.

    Args:
        tape: where.
        name: the layer's.
        weight: the parameter.
        tokens: shape (patients, T).
        rows: the gradient of each one's vector, shape (patients, T, width).
    """
    patients, positions = tokens.shape
    sorted_, order = tokens.sort(dim=1)
    rank = torch.zeros_like(order)
    rank[:, 1:] = (sorted_[:, 1:] != sorted_[:, :-1]).cumsum(dim=1)
    place = torch.empty_like(rank).scatter_(1, order, rank)
    place += positions * torch.arange(patients, device=tokens.device).unsqueeze(1)
    sums = torch.zeros(patients * positions, rows.shape[2], dtype=rows.dtype, device=rows.device)
    sums.index_add_(0, place.flatten(), rows.flatten(0, 1))
    named = torch.zeros_like(tokens).scatter_(1, rank, sorted_)
    norms = torch.linalg.vector_norm(sums, dim=1).to(torch.float64)
    squares = norms.square().view(patients, positions).sum(dim=1)
    tape.book(name, weight, squares, _scatter(weight, named, sums.view(patients, positions, -1)))


def _scatter(weight: torch.Tensor, tokens: torch.Tensor, sums: torch.Tensor) -> Finish:
    def finish(weights: Weights) -> torch.Tensor:
        total = torch.zeros(weight.shape, dtype=sums.dtype, device=sums.device)
        return total.index_add_(0, tokens.flatten(), weights.scaled(sums).to(sums.dtype).flatten(0, 1))

    return finish
