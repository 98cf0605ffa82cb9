"""One site's part of one round: from the global model to the change of its weights."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedward_client.clipping import add_noise, clipped_sum, patient_losses
from fedward_client.cohorts import Patients
from fedward_common.models import build_model, load_weights, weights_of
from fedward_common.study import DpSgd, Study

__all__ = ["train_round"]

Gradients = tuple[torch.Tensor, ...]


def train_round(
    study: Study, patients: Patients, weights: npt.NDArray[np.float32], *, site: str, round_: int, threads: int = 1
) -> tuple[npt.NDArray[np.float32], float]:
    """Return the change of the packed weights, shape (parameters,), and the mean loss of the steps' patients.

    Every step draws each patient with the study's probability, sums the patients' gradients and divides by the
    expected number drawn, never by the number that were. Without privacy the result is a function of the
    arguments alone; with it, sampling and noise come from the operating system, the loss is NaN, and the change
    of the weights is what the ledger was debited for.

    Args:
        study: the contract, its noise calibrated.
        patients: the cohort, at least one patient.
        weights: the global model, packed.
        site: the hospital's name, part of the seed.
        round_: 1-based, part of the seed.
        threads: of the arithmetic; with another number the last bits of the result may differ.
    """
    torch.set_num_threads(threads)
    model = build_model(study)
    load_weights(model, weights)
    private = study.privacy if isinstance(study.privacy, DpSgd) else None
    gradients = _PrivateGradients(model, private) if private else _PlainGradients(model)
    optimizer = _Optimizer(study, list(model.parameters()))
    anchor = [p.detach().clone() for p in model.parameters()]
    generator = _generator(study, site, round_, private=private is not None)
    tensors = [torch.from_numpy(a) for a in (patients.features, patients.labels, patients.mask)]
    expected = study.training.sampling_rate * len(patients)
    for _ in range(study.training.local_steps):
        drawn = torch.from_numpy(generator.random(len(patients)) < study.training.sampling_rate)
        sums = gradients(*[t[drawn] for t in tensors])
        penalties = [
            study.proximal_mu * (p.detach() - start) for p, start in zip(model.parameters(), anchor, strict=True)
        ]
        optimizer.step([total / expected + penalty for total, penalty in zip(sums, penalties, strict=True)])
    return weights_of(model) - weights, gradients.mean_loss


class _PlainGradients:
    """Sums of the patients' gradients, as they are; keeps the running mean of the loss."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._loss, self._seen = 0.0, 0

    def __call__(self, features: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> Gradients:
        parameters = list(self._model.parameters())
        if not len(features):
            return tuple(torch.zeros_like(p) for p in parameters)
        total = patient_losses(self._model, features, labels, mask).sum()
        self._loss, self._seen = self._loss + float(total.detach()), self._seen + len(features)
        return torch.autograd.grad(total, parameters)

    @property
    def mean_loss(self) -> float:
        return self._loss / self._seen if self._seen else float("nan")


class _PrivateGradients:
    """Clipped and noised sums; no loss, since none was paid for."""

    mean_loss = float("nan")

    def __init__(self, model: nn.Module, privacy: DpSgd) -> None:
        from opacus.grad_sample import GradSampleModule  # noqa: PLC0415  (three seconds that a study without privacy saves)

        if privacy.noise_multiplier is None:
            msg = "the study's noise is not calibrated"
            raise ValueError(msg)
        self._model = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
        self._clip, self._sigma = privacy.clip_norm, privacy.noise_multiplier

    def __call__(self, features: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> Gradients:
        return add_noise(clipped_sum(self._model, features, labels, mask, self._clip), self._sigma)


class _Optimizer:
    """torch's own SGD and Adam, without `torch.optim.Optimizer`: building one imports the compiler, a second."""

    def __init__(self, study: Study, parameters: list[nn.Parameter]) -> None:
        self._training = study.training
        self._parameters: list[torch.Tensor] = list(parameters)
        self._momenta: list[torch.Tensor | None] = [None] * len(parameters)
        self._first = [torch.zeros_like(p) for p in parameters]
        self._second = [torch.zeros_like(p) for p in parameters]
        self._steps = [torch.tensor(0.0) for _ in parameters]

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


def _generator(study: Study, site: str, round_: int, *, private: bool) -> np.random.Generator:
    """Return the source of the sampling: the operating system's under privacy, else one for each site and round."""
    if private:
        return np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32), "little")))
    name = int.from_bytes(hashlib.sha256(site.encode("utf-8")).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64([study.seed, name, round_]))
