"""Membership inference: was this patient in a hospital's cohort? From the released model, and from one site's update.

The test is LiRA, online, with one variance for all patients (Carlini et al. 2022, "Membership inference attacks from
first principles", algorithm 1 and section VI.C): many models are released, each from a coin-flipped half of the pool;
most are the attacker's shadow models, the others are attacked. What is observed of a patient is one number:

- of a released model, `confidence`: the loss's logit, which only needs the model's answers;
- of an update, `participation`: how much of the patient's own gradient the update holds, which needs the round's
  messages and is far stronger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.models import build_model, initial_weights, load_weights
from fedward_common.study import DpSgd, Study
from fedward_simulations.attacks.data import Pool
from fedward_simulations.attacks.statistics import Estimate, area_under_roc
from fedward_simulations.attacks.target import NO_PRIVACY, SITES, Floats, Packed, Train, cohort_of, released_model

__all__ = ["FALSE_ALARMS", "Membership", "attack_model", "attack_update", "lira"]

FALSE_ALARMS: Final = (0.01, 0.001)
"""False positive rates at which the true positive rate is given."""


@dataclass(frozen=True, slots=True)
class Membership:
    """How well members are told from others.

    Attributes:
        auc: area under the ROC curve, the mean over the attacked models; 0.5 is chance.
        tpr: true positive rate by false positive rate, the mean over the attacked models at one threshold for all.
    """

    auc: Estimate
    tpr: dict[float, Estimate]


Observe = Callable[[npt.NDArray[np.bool_]], Floats]
"""From who is in, shape (patients,), to what the attacker sees of each patient after the release, shape (patients,)."""


def attack_model(study: Study, pool: Pool, train: Train, *, shadows: int, targets: int, seed: int = 0) -> Membership:
    """Return LiRA against the global model that two sites release after all rounds.

    Args:
        study: what is trained; the first half of the pool is at one site, the second at the other.
        pool: everybody.
        train: the sites' release.
        shadows: models that the attacker trains, at least 8.
        targets: models that are attacked, at least 2.
        seed: of the coins that decide who is in.
    """
    half = np.arange(len(pool.rows)) < len(pool.rows) // 2

    def observe(member: npt.NDArray[np.bool_]) -> Floats:
        cohorts = {
            site: cohort_of(pool.rows[member & at], pool.labels[member & at])
            for site, at in zip(SITES, (half, ~half), strict=True)
        }
        return confidence(study, released_model(study, cohorts, train), pool)

    return lira(observe, pool, shadows=shadows, targets=targets, seed=seed)


def attack_update(study: Study, pool: Pool, train: Train, *, shadows: int, targets: int, seed: int = 0) -> Membership:
    """Return LiRA against one site's update of the first round, by whoever sees it; arguments as `attack_model`."""
    weights = initial_weights(study)
    decoder = participation(study, _gradients(study, pool, train, weights))

    def observe(member: npt.NDArray[np.bool_]) -> Floats:
        patients = cohort_of(pool.rows[member], pool.labels[member])
        change, _ = train(study, patients, weights, site=SITES[0], round_=1)
        return np.asarray(decoder @ (-change.astype(np.float64) * len(patients)), dtype=np.float64)

    return lira(observe, pool, shadows=shadows, targets=targets, seed=seed)


def confidence(study: Study, weights: Packed, pool: Pool) -> Floats:
    """Return log(p / (1 - p)) for the probability p that the model gives each patient's own label."""
    import torch  # noqa: PLC0415  (the package is imported without it)

    model = build_model(study)
    load_weights(model, weights)
    with torch.no_grad():
        logits = model(torch.from_numpy(pool.rows)).squeeze(-1).to(torch.float64).numpy()
    return np.asarray(logits * (2 * pool.labels - 1), dtype=np.float64)


def participation(study: Study, gradients: Floats) -> Floats:
    """Return the least squares estimator of how often each patient's gradient is in an update, times the cohort's size.

    With noise of standard deviation s on each coordinate it is the linear estimate of least mean squared error,
    (G Gᵀ + 4 s² I)⁻¹ G, for coins of variance 1/4; without, s is a thousandth of a gradient, against rounding.

    Args:
        study: for learning rate, steps, clip and noise.
        gradients: G, the patients' clipped gradients, shape (patients, parameters).

    Returns:
        What minus the update, times the number of patients, is multiplied by: shape (patients, parameters).
    """
    steps = study.training.local_steps
    noise = 1e-3 * float(np.linalg.norm(gradients, axis=1).mean())
    if isinstance(study.privacy, DpSgd) and study.privacy.noise_multiplier is not None:
        noise = study.privacy.noise_multiplier * study.privacy.clip_norm / np.sqrt(steps)
    gram = gradients @ gradients.T + 4 * noise**2 * np.eye(len(gradients))
    return np.asarray(np.linalg.solve(gram, gradients), dtype=np.float64) / (study.training.learning_rate * steps)


def _gradients(study: Study, pool: Pool, train: Train, weights: Packed) -> Floats:
    """Return every patient's gradient at `weights`, clipped as the study says, shape (patients, parameters).

    The attacker's own: the change that one step of learning rate 1 makes for a cohort of that patient alone.
    """
    training = study.contract()["training"] | {
        "rounds": 1, "local_steps": 1, "sampling_rate": 1.0, "optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.0,
    }  # fmt: skip
    plain = Study.of(study.contract() | {"training": training, "privacy": dict(NO_PRIVACY)})
    alone = [cohort_of(pool.rows[[i]], pool.labels[[i]]) for i in range(len(pool.rows))]
    changes = [train(plain, patients, weights, site=SITES[0], round_=1)[0] for patients in alone]
    gradients = -np.stack(changes).astype(np.float64)
    if isinstance(study.privacy, DpSgd):
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        gradients *= np.minimum(1.0, study.privacy.clip_norm / np.maximum(norms, 1e-12))
    return gradients


def lira(observe: Observe, pool: Pool, *, shadows: int, targets: int, seed: int = 0) -> Membership:
    """Return how well likelihood ratios, fitted on `shadows` releases, find the members of `targets` others.

    Args:
        observe: makes one release and says what is seen of each patient.
        pool: everybody.
        shadows: see `attack_model`.
        targets: see `attack_model`.
        seed: of the coins.
    """
    generator = np.random.default_rng(seed)
    member = generator.integers(0, 2, (shadows + targets, len(pool.rows))) == 1
    seen = np.stack([observe(row) for row in member])[:, pool.suspects]
    member = member[:, pool.suspects]
    ratios = _log_ratios(seen[shadows:], seen[:shadows], member[:shadows])
    return _judged(ratios, member[shadows:])


def _log_ratios(seen: Floats, shadow: Floats, member: npt.NDArray[np.bool_]) -> Floats:
    """Return log N(seen; in) - log N(seen; out), shape (models, patients), the Gaussians fitted on the shadows."""
    logs = []
    for side in (member, ~member):
        values = np.where(side, shadow, np.nan)
        means = np.nanmean(values, axis=0)
        variance = float(np.nanmean((values - means) ** 2)) + 1e-30
        logs.append(-((seen - means) ** 2) / (2 * variance) - 0.5 * np.log(variance))
    return np.asarray(logs[0] - logs[1], dtype=np.float64)


def _judged(ratios: Floats, member: npt.NDArray[np.bool_]) -> Membership:
    """Return the figures, each the mean of one number for each attacked model, so that its error counts models."""
    both = [(r, m) for r, m in zip(ratios, member, strict=True) if 0 < m.sum() < len(m)]
    auc = Estimate.over(np.array([area_under_roc(r, m) for r, m in both]))
    tpr = {}
    for rate in FALSE_ALARMS:
        threshold = float(np.quantile(ratios[~member], 1 - rate, method="higher"))
        tpr[rate] = Estimate.over(np.array([float((r[m] > threshold).mean()) for r, m in both]))
    return Membership(auc, tpr)
