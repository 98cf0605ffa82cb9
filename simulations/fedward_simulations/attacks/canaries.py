"""Dirac canaries: patients each of whom owns one coordinate of the gradient, the worst case that clipping allows.

Nasr et al. 2023 (USENIX Security, "Tight auditing of differentially private machine learning"), section 4, gradient
canaries; here they are patients of a cohort, so that sampling, clipping, noise and the optimiser
are all passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fedward_client.cohorts import Patients
from fedward_common.models import initial_weights
from fedward_common.study import DpSgd, Study
from fedward_simulations.attacks.target import SITES, Floats, Train, attack_study, cohort_of, dp_sgd

__all__ = ["Scores", "canary_scores", "canary_study"]

_SIZE: Final = 1000.0
"""A canary's only feature. At zero weights its gradient is ½ · (1000, 1): clipped to any bound up to 500, all but one
millionth of its squared norm is in its own coordinate, the rest in the bias."""
_LEARNING_RATE: Final = 1e-4
"""So small that no canary's logit leaves ±1 over the steps of an audit: every gradient stays above the clip."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the release says of each canary: its coordinate of the summed gradients, in units of the clip.

    In expectation sampling rate × steps for a canary that took part, 0 for one that did not; each with the noise.

    Attributes:
        inside: of those that took part.
        outside: of those that did not.
    """

    inside: Floats
    outside: Floats

    def __len__(self) -> int:
        """Return the number of canaries."""
        return len(self.inside) + len(self.outside)


def canary_study(
    epsilon: float,
    delta: float,
    *,
    canaries: int = 1024,
    training: Mapping[str, Any] | None = None,
    privacy: Mapping[str, Any] | None = None,
) -> Study:
    """Return the linear study that canaries are planted in: by default one step that takes every patient.

    Args:
        epsilon: the claim.
        delta: of the claim.
        canaries: features, at most 1024.
        training: changes to its ``training`` section, for instance sampled steps.
        privacy: changes to its ``privacy`` section, for instance another ``noise``.
    """
    steps = {"rounds": 1, "local_steps": 1, "sampling_rate": 1.0, "learning_rate": _LEARNING_RATE}
    section = dp_sgd(epsilon, delta, **(privacy or {}))
    return attack_study((1, canaries), {"name": "linear"}, steps | dict(training or {}), section)


def canary_scores(study: Study, train: Train, *, runs: int, records: int = 1, seed: int = 0) -> Scores:
    """Return the scores of `runs` independent cohorts, in each of which every canary takes part by a fair coin.

    The runs are disjoint cohorts, so together they are one mechanism with the privacy of one (parallel composition).

    Args:
        study: from `canary_study`.
        train: the release.
        runs: cohorts, each trained for all rounds.
        records: equal records of each canary: more than one shows a clip that is per record.
        seed: of the auditor's coins; the noise is the release's own.
    """
    generator = np.random.default_rng(seed)
    inside, outside = [], []
    for _ in range(runs):
        scores, member = _run(study, train, records, generator)
        inside.append(scores[member])
        outside.append(scores[~member])
    return Scores(np.concatenate(inside), np.concatenate(outside))


def _run(study: Study, train: Train, records: int, generator: np.random.Generator) -> tuple[Floats, Any]:
    """Return one cohort's scores and who took part, each of shape (canaries,)."""
    start = initial_weights(study)
    count = len(start) - 1  # the last parameter is the bias, which all share
    member, labels = generator.integers(0, 2, count) == 1, generator.integers(0, 2, count)
    patients = cohort_of(np.eye(count, dtype=np.float32)[member] * _SIZE, labels[member], records=records)
    weights = start
    for round_ in range(1, study.training.rounds + 1):
        change, _ = train(study, patients, weights, site=SITES[0], round_=round_)
        weights = weights + change
    signs = 1 - 2 * labels  # of a canary's gradient, (½ - label) · feature
    return signs * _summed(study, patients, (start - weights)[:count].astype(np.float64)), member


def _summed(study: Study, patients: Patients, descent: Floats) -> Floats:
    """Return the sums, in clips, behind mean gradients times the learning rate; the number of patients is public."""
    if not isinstance(study.privacy, DpSgd):
        msg = "an audit needs a claim: the study trains without privacy"
        raise TypeError(msg)
    expected = study.training.sampling_rate * len(patients)
    return descent * expected / (study.training.learning_rate * study.privacy.clip_norm)
