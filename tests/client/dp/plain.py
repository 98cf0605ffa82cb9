"""What every clipping engine is compared with: one patient at a time, by autograd; and the models it is done for."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fedward_client.dp.sums import PatientLosses, Records, trainable

__all__ = [
    "Lora",
    "Network",
    "Text",
    "apart",
    "biggest",
    "clipped",
    "flattened",
    "kept_apart",
    "per_patient",
    "plain_sums",
]


def flattened(model: nn.Module, records: Records) -> torch.Tensor:
    """Return each patient's mean squared output over the records that the mask names, shape (patients,).

    Args:
        model: called on all records of all patients in one first dimension.
        records: inputs, shape (patients, records, …), and a mask, shape (patients, records).
    """
    inputs, mask = records
    outputs = model(inputs.flatten(0, 1))
    losses = (0.5 * outputs.square() + outputs).flatten(1).mean(dim=1).view(mask.shape)
    found: torch.Tensor = (losses * mask).sum(dim=1) / mask.sum(dim=1)
    return found


def apart(model: nn.Module, records: Records) -> torch.Tensor:
    """Return the same losses for a model that is called on (patients, records, features)."""
    inputs, mask = records
    outputs = model(inputs)
    found: torch.Tensor = ((0.5 * outputs.square() + outputs).mean(dim=2) * mask).sum(dim=1) / mask.sum(dim=1)
    return found


def per_patient(model: nn.Module, records: Records, losses: PatientLosses) -> list[torch.Tensor]:
    """Return the patients' gradients, all parameters in one float64 vector each."""
    rows = []
    for place in range(len(records[0])):
        loss = losses(model, tuple(tensor[place : place + 1] for tensor in records)).sum()
        found = torch.autograd.grad(loss, trainable(model), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten().to(torch.float64) for gradient in found]))
    return rows


def clipped(gradients: list[torch.Tensor], clip_norm: float) -> torch.Tensor:
    """Return the sum of the clipped gradients as one float64 vector: the contract, word for word."""
    total = torch.zeros_like(gradients[0])
    for gradient in gradients:
        norm = gradient.norm()
        if bool(torch.isfinite(gradient).all()) and float(norm) <= 1e12:
            total += gradient * min(1.0, clip_norm / max(float(norm), 1e-12))
    return total


def plain_sums(model: nn.Module, records: Records, losses: PatientLosses, clip_norm: float) -> torch.Tensor:
    """Return the same for a model and a batch."""
    return clipped(per_patient(model, records, losses), clip_norm)


def kept_apart(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return an engine's sums as one float64 vector."""
    return torch.cat([tensor.flatten().to(torch.float64) for tensor in tensors])


def biggest(model: nn.Module, records: Records, losses: PatientLosses) -> float:
    """Return a bound that about half of the patients' gradients exceed."""
    return float(torch.stack([gradient.norm() for gradient in per_patient(model, records, losses)]).median())


class Lora(nn.Module):
    """A frozen linear layer and a trained correction of low rank (Hu et al., 2021)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(requires_grad=False)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(inputs) + 2.0 * self.up(self.down(inputs))
        return result


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        normal = self.first(inputs)
        parts = [
            layer(normal).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        mixed = functional.scaled_dot_product_attention(*parts)
        inputs = inputs + self.out(mixed.transpose(1, 2).flatten(2))
        result: torch.Tensor = inputs + self.narrow(functional.gelu(self.wide(self.second(inputs))))
        return result


class Text(nn.Module):
    """A small pre-norm transformer over tokens, token 0 being padding."""

    def __init__(self, words: int = 20, width: int = 8, heads: int = 2, blocks: int = 2, length: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        hidden = self.blocks(self.words(tokens) + self.places(places))
        result: torch.Tensor = self.head(self.norm(hidden).mean(dim=1))
        return result


class Network(nn.Module):
    """A small residual convolutional network with group normalisation."""

    def __init__(self, channels: int = 8, inputs: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.deep = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.short = nn.Conv2d(channels, 2 * channels, 1, stride=2)
        self.head = nn.Linear(2 * channels, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm(self.stem(images)))
        hidden = functional.relu(self.deep(hidden) + self.short(hidden))
        result: torch.Tensor = self.head(hidden.mean(dim=(2, 3)))
        return result
