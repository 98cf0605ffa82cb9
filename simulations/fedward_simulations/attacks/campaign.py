"""Every attack at full length, without privacy and with it, as figures.

One figure is one key: attack, setting, privacy. Intervals are of 95 %; the bounds beside them are those that
differential privacy sets for any attack at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from fedward_client.trainer import train_round
from fedward_common.study import Study
from fedward_simulations.attacks.audit import findings, judged, one_run_epsilon
from fedward_simulations.attacks.canaries import Scores, canary_scores, canary_study
from fedward_simulations.attacks.data import DIGIT_SHAPE, Pool, digit_pool, digits, tumours
from fedward_simulations.attacks.inversion import (
    CANDIDATES,
    Attack,
    Identification,
    Invert,
    divided,
    identify,
    imprint_weights,
    imprinted,
    matched,
)
from fedward_simulations.attacks.membership import FALSE_ALARMS, Membership, attack_model, attack_update
from fedward_simulations.attacks.statistics import Estimate, binomial_interval, gdp_of_epsilon, identification_bound
from fedward_simulations.attacks.target import NO_PRIVACY, Train, attack_study, dp_sgd

__all__ = ["ARMS", "DELTA", "ONE_STEP", "OVERFITTED", "Figure", "audits", "inversions", "memberships"]

DELTA: Final = 1e-5
ARMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "no privacy": NO_PRIVACY,
    "ε = 8": dp_sgd(8.0, DELTA),
    "ε = 1": dp_sgd(1.0, DELTA),
}
OVERFITTED: Final[Mapping[str, Any]] = {
    "rounds": 2, "local_steps": 20, "sampling_rate": 1.0, "optimizer": "adam", "learning_rate": 0.01,
}  # fmt: skip
"""Training that learns 15 patients at each of two sites by heart where no privacy keeps it from that."""
ONE_STEP: Final[Mapping[str, Any]] = {"rounds": 1, "local_steps": 1, "sampling_rate": 1.0, "learning_rate": 0.1}
_HEADLINE: Final = 10_240
_PUBLIC: Final = 400
_INVERSIONS: Final[tuple[tuple[str, Invert, int, Mapping[str, Any], int], ...]] = (
    ("division, 1 patient", divided, 1, {"name": "mlp", "hidden": [32]}, 400),
    ("division, 8 patients", divided, 8, {"name": "mlp", "hidden": [256]}, 400),
    ("imprint, 32 patients", imprinted, 32, {"name": "mlp", "hidden": [256]}, 400),
    ("matching, 1 patient", matched, 1, {"name": "mlp", "hidden": [64], "activation": "tanh"}, 40),
    ("matching, 2 patients", matched, 2, {"name": "mlp", "hidden": [64], "activation": "tanh"}, 40),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        name: attack, setting and privacy.
        values: numbers by their names.
        line: the same for a person.
    """

    name: str
    values: dict[str, float]
    line: str


def audits(train: Train = train_round) -> Iterator[Figure]:
    """Yield the GDP and the one-run audit of a claim of 8 and of 2, at one full step and at sampled training."""
    sampled: Mapping[str, Any] = {"sampling_rate": 0.1, "local_steps": 100, "rounds": 2}
    settings: tuple[tuple[str, Mapping[str, Any], int], ...] = (
        ("q = 1, 1 step", {}, 400),
        ("q = .1, 200 steps", sampled, 40),
    )
    for setting, training, runs in settings:
        for epsilon in (8.0, 2.0):
            study = canary_study(epsilon, DELTA, training=training)
            yield _audit(f"audit, {setting}, ε = {epsilon:g}", study, canary_scores(study, train, runs=runs))


def _audit(name: str, study: Study, scores: Scores) -> Figure:
    audit = judged(study, scores)
    wrong = len(findings(study, audit))
    half = _HEADLINE // 2
    one_run = one_run_epsilon(Scores(scores.inside[:half], scores.outside[:half]), DELTA)
    values: dict[str, float] = {
        "claim": audit.claim,
        "canaries": audit.canaries,
        "epsilon_lower": audit.epsilon_lower,
        "epsilon_estimate": audit.epsilon_estimate,
        "spread": audit.spread,
        "one_run_epsilon": one_run,
        "findings": wrong,
    }
    line = (
        f"{name}: {audit.canaries} canaries, ε ≥ {audit.epsilon_lower:.2f} (1 - 1e-7), estimate "
        f"{audit.epsilon_estimate:.2f}, one run of {_HEADLINE} ≥ {one_run:.2f} (95 %), findings {wrong}"
    )
    return Figure(name, values, line)


def memberships(train: Train = train_round) -> Iterator[Figure]:
    """Yield LiRA on the released model, on average and on mislabelled patients, and on one site's update."""
    mlp = {"name": "mlp", "hidden": [32]}
    average, worst = digit_pool(60), tumours(60, mislabelled=12)
    for arm, privacy in ARMS.items():
        study = attack_study(DIGIT_SHAPE, mlp, OVERFITTED, privacy)
        yield _membership(f"model, digits, {arm}", attack_model(study, average, train, shadows=64, targets=128))
        study = attack_study((1, worst.rows.shape[1]), mlp, OVERFITTED, privacy)
        yield _membership(
            f"model, mislabelled tumours, {arm}", attack_model(study, worst, train, shadows=64, targets=128)
        )
        yield _update(arm, privacy, average, train)


def _update(arm: str, privacy: Mapping[str, Any], pool: Pool, train: Train) -> Figure:
    study = attack_study(DIGIT_SHAPE, {"name": "mlp", "hidden": [32]}, ONE_STEP, privacy)
    return _membership(f"update, digits, {arm}", attack_update(study, pool, train, shadows=128, targets=256))


def _membership(name: str, found: Membership) -> Figure:
    values: dict[str, float] = {}
    texts: list[str] = []
    figures: dict[str, Estimate] = {"auc": found.auc} | {f"tpr_at_{rate:g}": found.tpr[rate] for rate in FALSE_ALARMS}
    for key, estimate in figures.items():
        low, high = estimate.interval(0.05)
        values |= {key: estimate.value, f"{key}_low": max(low, 0.0), f"{key}_high": min(high, 1.0)}
        texts.append(f"{key} {estimate.value:.4f} ({max(low, 0.0):.4f} to {min(high, 1.0):.4f})")
    return Figure(f"membership, {name}", values, f"membership, {name}: {', '.join(texts)}")


def inversions(train: Train = train_round) -> Iterator[Figure]:
    """Yield every inversion, without privacy and with it."""
    rows, labels = digits()
    pool = Pool(rows[_PUBLIC:], labels[_PUBLIC:], np.arange(len(rows) - _PUBLIC))
    for setting, invert, patients, model, trials in _INVERSIONS:
        for arm, privacy in ARMS.items():
            study = attack_study(DIGIT_SHAPE, model, ONE_STEP, privacy)
            weights = imprint_weights(study, rows[:_PUBLIC]) if invert is imprinted else None
            found = identify(study, train, Attack(invert, patients, weights), pool, trials=trials)
            yield _inversion(f"inversion, {setting}, {arm}", found, float(privacy.get("epsilon", 0.0)))


def _inversion(name: str, found: Identification, epsilon: float) -> Figure:
    low, high = binomial_interval(found.hits, found.trials, 0.025)
    bound = identification_bound(gdp_of_epsilon(epsilon, DELTA), CANDIDATES) if epsilon else 1.0
    values = {
        "identified": found.hits / found.trials,
        "identified_low": low,
        "identified_high": high,
        "bound": bound,
        "median_error": float(np.median(found.errors)),
        "exact": float((found.errors < 0.05).mean()),  # noqa: PLR2004  (within 5 % of the record's norm)
        "error_of_the_mean": float(np.median(found.baseline)),
        "psnr": found.psnr,
    }
    line = (
        f"{name}: identified {values['identified']:.3f} ({low:.3f} to {high:.3f}), bound {bound:.3f}, "
        f"median error {values['median_error']:.3f} (the mean record: {values['error_of_the_mean']:.3f}), "
        f"within 5 %: {values['exact']:.2f}, PSNR {found.psnr:.1f} dB"
    )
    return Figure(name, values, line)
