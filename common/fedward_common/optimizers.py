"""The local optimiser: what a step of a study's training does to the weights, at a site and at the centre."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedward_common.study import Study

__all__ = ["Optimizer"]


class Optimizer:
    """torch's own SGD and Adam, without `torch.optim.Optimizer`: building one imports the compiler, a second."""

    def __init__(self, study: Study, parameters: list[nn.Parameter]) -> None:
        self._training = study.training
        self._parameters: list[torch.Tensor] = list(parameters)
        self._momenta: list[torch.Tensor | None] = [None] * len(parameters)
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._steps = [torch.tensor(0.0) for _ in parameters]

    @property
    def plain_rate(self) -> float | None:
        """What a first step multiplies a gradient by and does nothing else; None where it does."""
        plain = self._training.optimizer == "sgd" and not self._training.weight_decay
        return self._training.learning_rate if plain else None

    @torch.no_grad()
    def step(self, gradients: list[torch.Tensor]) -> None:
        """Change the parameters in place."""
        rates: dict[str, Any] = {
            "lr": self._training.learning_rate,
            "weight_decay": self._training.weight_decay,
            "maximize": False,
            "foreach": False,
            "fused": False,
        }
        if self._training.optimizer == "adam":
            moments = (self._first, self._second)
            adam(
                self._parameters, gradients, *moments, [], self._steps,
                amsgrad=False, beta1=0.9, beta2=0.999, eps=1e-8, **rates,
            )  # fmt: skip
        else:
            momentum = self._training.momentum
            sgd(self._parameters, gradients, self._momenta, momentum=momentum, dampening=0.0, nesterov=False, **rates)
