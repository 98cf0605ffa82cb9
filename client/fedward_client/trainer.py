"""One site's part of one round: from the global model to the change of its weights."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedward_client.cohorts import Patients
from fedward_client.dp.deltas import snapshot, verify
from fedward_client.dp.plan import PrivacyPlan
from fedward_client.losses import patient_losses
from fedward_common.models import build_model, load_weights, weights_of
from fedward_common.optimizers import Optimizer
from fedward_common.study import Study

__all__ = ["train_round"]

Gradients = tuple[torch.Tensor, ...]


def train_round(
    study: Study,
    patients: Patients,
    weights: npt.NDArray[np.float32],
    *,
    site: str,
    round_: int,
    threads: int = 1,
    correction: npt.NDArray[np.float32] | None = None,
) -> tuple[npt.NDArray[np.float32], float]:
    """Return the change of the packed weights, shape (parameters,), and the mean loss of the steps' patients.

    Every step draws each patient with the study's probability, sums the patients' gradients and divides by the
    expected number drawn, never by the number that were. Without privacy the result is a function of the
    arguments alone; with it, sampling and noise come from the operating system, the loss is noised and paid for or
    NaN, and both are what the ledger was debited for.

    Args:
        study: the contract, its noise calibrated.
        patients: the cohort, at least one patient.
        weights: the global model, packed.
        site: the hospital's name, part of the seed.
        round_: 1-based, part of the seed.
        threads: of the arithmetic; with another number the last bits of the result may differ.
        correction: c - c_i of SCAFFOLD, added to each step's gradient (under privacy to the noised one); None: nothing.

    Raises:
        StudyError: the study's noise is not calibrated.
        UnsafeModelError: under privacy, one patient's gradient would depend on other patients.
        WeightDeltaError: under privacy, the first step did not do to the weights what it was told.
    """
    torch.set_num_threads(threads)
    model = build_model(study)
    load_weights(model, weights)
    plan = PrivacyPlan.of(study)
    steps = plan.open(model, patient_losses, patients) if plan else _PlainSteps(study, model, patients, site, round_)
    optimizer = Optimizer(study, list(model.parameters()))
    corrections = _shaped(correction, model)
    anchor = [p.detach().clone() for p in model.parameters()]
    for step in range(study.steps_of(len(patients))):
        penalties = [
            study.proximal_mu * (p.detach() - start) + more
            for p, start, more in zip(model.parameters(), anchor, corrections, strict=True)
        ]
        gradients = [total + penalty for total, penalty in zip(steps.gradient(), penalties, strict=True)]
        before = snapshot(model) if plan and step == 0 else None
        optimizer.step(gradients)
        if before:
            verify(before, model, gradients, learning_rate=optimizer.plain_rate)
    return weights_of(model) - weights, steps.mean_loss


def _shaped(correction: npt.NDArray[np.float32] | None, model: nn.Module) -> Gradients:
    """Return the packed correction as the model's parameters are shaped; zeros of nothing."""
    parameters = list(model.parameters())
    if correction is None:
        return tuple(torch.zeros_like(p) for p in parameters)
    pieces = torch.split_with_sizes(torch.from_numpy(correction.copy()), [p.numel() for p in parameters])
    return tuple(piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True))


class _PlainSteps:
    """Mean gradients without privacy, and the mean loss; all drawn from the study's seed, the site and the round."""

    def __init__(self, study: Study, model: nn.Module, patients: Patients, site: str, round_: int) -> None:
        self._model = model
        self._rate = study.sampling_rate_of(len(patients))
        self._generator = _generator(study, site, round_)
        self._tensors = [torch.from_numpy(a) for a in (patients.features, patients.labels, patients.mask)]
        self._loss, self._seen = 0.0, 0

    def gradient(self) -> Gradients:
        """Return the next step's gradient: the sum over the patients drawn, over the expected number of them."""
        drawn = torch.from_numpy(self._generator.random(len(self._tensors[0])) < self._rate)
        records = tuple(tensor[drawn] for tensor in self._tensors)
        parameters = list(self._model.parameters())
        if not len(records[0]):
            return tuple(torch.zeros_like(p) for p in parameters)
        total = patient_losses(self._model, records).sum()
        self._loss, self._seen = self._loss + float(total.detach()), self._seen + len(records[0])
        expected = self._rate * len(self._tensors[0])
        return tuple(gradient / expected for gradient in torch.autograd.grad(total, parameters))

    @property
    def mean_loss(self) -> float:
        """The mean loss of the patients drawn so far; NaN if none was."""
        return self._loss / self._seen if self._seen else float("nan")


def _generator(study: Study, site: str, round_: int) -> np.random.Generator:
    """Return the source of the sampling without privacy: one for each seed, site and round."""
    name = int.from_bytes(hashlib.sha256(site.encode("utf-8")).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64([study.seed, name, round_]))
