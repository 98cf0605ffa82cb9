"""`nn.MultiheadAttention`, which keeps three matrices in one parameter and calls no layer for its output."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from fedward_client.dp.bookkeeping.linear import linear
from fedward_client.dp.bookkeeping.tape import Tape

__all__ = ["Attention"]

Attended = tuple[torch.Tensor, torch.Tensor | None]


class Attention:
    """`nn.MultiheadAttention` with queries, keys and values of one width."""

    parameters = frozenset({"in_proj_weight", "in_proj_bias"})

    @staticmethod
    def refusal(layer: nn.MultiheadAttention) -> str:
        """Return why this layer cannot be booked; empty if it can."""
        if layer.bias_k is not None or layer.add_zero_attn:
            return "bias_k, bias_v or add_zero_attn"
        same = "in_proj_weight" in {name for name, _ in layer.named_parameters(recurse=False)}
        return "" if same else "keys or values of another width than the queries"

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  (torch's interface)
        layer: nn.MultiheadAttention,
        name: str,
        tape: Tape,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002
        is_causal: bool = False,  # noqa: ARG004, FBT001, FBT002  (a hint about `attn_mask`, which is used itself)
    ) -> Attended:
        """Do what the layer does, booking its gradients."""
        if query.dim() != 3:  # noqa: PLR2004  (patients, positions, features)
            msg = f"layer {name}: an input of {query.dim()} dimensions has no batch dimension"
            raise ValueError(msg)
        parts = _projected(layer, name, tape, (query, key, value))
        queries, keys, values = (_heads(part, layer.num_heads) for part in parts)
        mask = _mask(attn_mask, key_padding_mask, queries)
        dropout = layer.dropout if layer.training else 0.0
        weights = None
        if need_weights:
            scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout)
            mixed = weights @ values
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        output = layer.out_proj(mixed.transpose(1, 2).flatten(2))
        return (output if layer.batch_first else output.transpose(0, 1)), weights


def _projected(
    layer: nn.MultiheadAttention, name: str, tape: Tape, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Return queries, keys and values, each of shape (records, positions, features)."""
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    first = inputs if layer.batch_first else tuple(side.transpose(0, 1) for side in inputs)
    if inputs[0] is inputs[1] is inputs[2]:
        return linear(tape, name, first[0], weight, bias).chunk(3, dim=2)
    width = layer.embed_dim
    return tuple(
        linear(tape, name, side, weight, bias, slice(place * width, (place + 1) * width))
        for place, side in enumerate(first)
    )


def _heads(part: torch.Tensor, heads: int) -> torch.Tensor:
    return part.view(*part.shape[:2], heads, -1).transpose(1, 2)


def _mask(attention: torch.Tensor | None, padding: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """Return what is added to the scores, shape broadcast to (records, heads, queries, keys)."""
    parts = []
    if attention is not None:
        added = _additive(attention, query.dtype)
        parts.append(added if added.dim() == 2 else added.view(-1, query.shape[1], *added.shape[1:]))  # noqa: PLR2004  (one for all)
    if padding is not None:
        parts.append(_additive(padding, query.dtype)[:, None, None, :])
    return sum(parts[1:], parts[0]) if parts else None


def _additive(mask: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(kind)
    return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(mask, -math.inf)
