"""One plan couples the privacy unit, sampling, clipping, noise and accounting; nothing else builds any of them.

A plan is made of a study's public numbers alone. It is opened on a model and a cohort for one round, and then gives as
many noised gradients as the ledger was debited for (`PrivacyPlan.spend`) and not one more.

The noise that is paid for, σ, is that of a step. Where a step releases the mean loss beside the gradient, both are one
Gaussian mechanism: a patient moves gradient / (σ_g · clip) and loss / (σ_l · bound) together by at most
√(1/σ_g² + 1/σ_l²) = 1/σ, with σ_g = σ / √(1 - share) and σ_l = σ / √share. So one event is accounted for, σ at q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import nn

from fedward_client.cohorts import Patients
from fedward_client.dp.choose import choose
from fedward_client.dp.noise import noised
from fedward_client.dp.safety import checked
from fedward_client.dp.sampling import PatientSampler, Picture, pictures_of
from fedward_client.dp.sums import ClippedSum, PatientLosses, clipped_sum
from fedward_common.privacy import Spend, round_spend
from fedward_common.study import DpSgd, Study

__all__ = ["PrivacyPlan", "PrivateSteps"]

_FLOATS_AT_ONCE: Final = 1 << 23
_PATIENTS_AT_ONCE: Final = 4096


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """What one study's steps do to a patient, and what they cost.

    Attributes:
        spend: what a round costs: σ, sampling rate and steps.
        unit: whose participation is hidden.
        clip_norm: bound on the L2 norm of a patient's gradient.
        gradient_noise: standard deviation of the gradient's noise over `clip_norm`; at least σ.
        loss_noise: standard deviation of the loss's noise over `loss_bound`; infinite where the loss is withheld.
        loss_bound: bound on a patient's loss.
        tier: which noise.
        records: most records of a patient that a step averages; None: all.
        views: views of each record.
        pictures: what a view changes.
        engine: which clipping engine.
    """

    spend: Spend
    unit: Literal["patient"]
    clip_norm: float
    gradient_noise: float
    loss_noise: float
    loss_bound: float
    tier: Literal["gaussian", "discrete_gaussian"]
    records: int | None
    views: int
    pictures: tuple[Picture, ...]
    engine: Literal["auto", "bookkeeping", "ghost", "hooks"]

    @classmethod
    def of(cls, study: Study) -> PrivacyPlan | None:
        """Return the plan of a study; None for one that writes out that it trains without privacy.

        Raises:
            StudyError: its noise is not calibrated.
        """
        privacy, spend = study.privacy, round_spend(study)
        if spend is None or not isinstance(privacy, DpSgd):
            return None
        share = privacy.loss_share if privacy.loss == "noised" else 0.0
        return cls(
            spend=spend,
            unit=privacy.unit,
            clip_norm=privacy.clip_norm,
            gradient_noise=spend.noise_multiplier / math.sqrt(1.0 - share),
            loss_noise=spend.noise_multiplier / math.sqrt(share) if share else math.inf,
            loss_bound=privacy.loss_bound,
            tier=privacy.noise,
            records=study.training.records_per_patient,
            views=study.training.views,
            pictures=tuple(pictures_of(study.cohort)),
            engine=privacy.engine,
        )

    def open(self, model: nn.Module, losses: PatientLosses, patients: Patients) -> PrivateSteps:
        """Return one round's steps for `model`, whose parameters the caller changes in between.

        Raises:
            UnsafeModelError: one patient's gradient would depend on other patients.
            StudyError: the engine that the study names cannot train the model; the message names the layer.
        """
        return PrivateSteps(self, model, losses, patients)


class PrivateSteps:
    """One round's noised gradients; made by `PrivacyPlan.open` alone.

    Args:
        plan: what is done and paid for.
        model: whose gradients.
        losses: the patients' losses.
        patients: the cohort.
    """

    def __init__(self, plan: PrivacyPlan, model: nn.Module, losses: PatientLosses, patients: Patients) -> None:
        self._plan, self._model = plan, checked(model)
        self._engine = choose(model, losses, plan.engine)
        self._sampler = PatientSampler(
            patients, plan.spend.sampling_rate, records=plan.records, views=plan.views, pictures=plan.pictures
        )
        rows = patients.features[:1].size * plan.views
        self._micro_batch = max(1, min(_PATIENTS_AT_ONCE, _FLOATS_AT_ONCE // max(1, rows)))
        self._left = plan.spend.steps
        self._loss = 0.0

    @property
    def engine(self) -> str:
        """The name of the clipping engine that was chosen."""
        return self._engine.name

    def gradient(self) -> tuple[torch.Tensor, ...]:
        """Return the next step's noised mean gradient: the noised sum over the expected number of patients.

        Raises:
            RuntimeError: the round's steps are used up: no further one was debited.
        """
        if self._left == 0:
            msg = f"the {self._plan.spend.steps} noised steps that were debited are used up"
            raise RuntimeError(msg)
        self._left -= 1
        plan, records = self._plan, self._sampler.draw()
        sums = clipped_sum(self._engine, self._model, records, plan.clip_norm, micro_batch=self._micro_batch)
        if math.isfinite(plan.loss_noise):
            self._loss += self._noised_loss(sums.losses)
        total = noised(sums.gradient, plan.gradient_noise, plan.tier)
        return tuple(tensor / self._sampler.expected for tensor in total)

    @property
    def mean_loss(self) -> float:
        """The noised mean loss of a patient over the steps so far, in [0, bound]; NaN where the loss is withheld."""
        steps = self._plan.spend.steps - self._left
        if not math.isfinite(self._plan.loss_noise) or not steps:
            return math.nan
        return min(max(self._loss / (steps * self._sampler.expected), 0.0), self._plan.loss_bound)

    def _noised_loss(self, losses: torch.Tensor) -> float:
        bound = self._plan.loss_bound
        counted = torch.nan_to_num(losses.to(torch.float64), nan=0.0, posinf=bound, neginf=0.0).clamp(0.0, bound)
        total = ClippedSum((counted.sum().to(torch.float32).reshape(1),), bound)
        return float(noised(total, self._plan.loss_noise, self._plan.tier)[0])
