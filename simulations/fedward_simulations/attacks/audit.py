"""Privacy audits: how much a worst-case patient's participation shows in what the site releases, beside the claim.

audit = gdp_audit(study, train_round, runs=200)
audit.epsilon_lower <= audit.claim        # else the claim is false, whatever the noise did this time
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binom

from fedward_common.study import DpSgd, Study
from fedward_simulations.attacks.canaries import Scores, canary_scores
from fedward_simulations.attacks.statistics import binomial_interval, epsilon_of_gdp
from fedward_simulations.attacks.target import Train

__all__ = [
    "ALARM",
    "Audit",
    "Band",
    "findings",
    "gdp_audit",
    "ideal_bands",
    "judged",
    "one_run_epsilon",
    "one_run_p_value",
]

ALARM: Final = 1e-7
"""How often an audit may call a correct release wrong."""
_THRESHOLDS: Final = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Fixed before any score is seen, in units of an honest canary's expected score, so that none is picked by chance."""
_GUESSES: Final = (0.005, 0.02, 0.08, 0.3)
"""Parts of the canaries that a one-run audit guesses in, and as many out; fixed for the same reason."""
_BAND_RUNS: Final = 200
_BAND_WIDTH: Final = 6.5
_BAND_CANARIES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Audit:
    """What canaries show of a release.

    Attributes:
        claim: ε of the study.
        delta: of the claim and of all figures.
        canaries: how many coins were thrown.
        alarm: probability with which `epsilon_lower` exceeds what the release really is, at most.
        mu: estimated distance of the two score distributions in standard deviations: for a Gaussian mechanism, its μ.
        epsilon_lower: the lower bound on ε, for a mechanism with a Gaussian trade-off.
        epsilon_estimate: the ε of `mu`, without allowance for chance.
        spread: variance of the scores inside over that outside: above 1 where patients are sampled.
    """

    claim: float
    delta: float
    canaries: int
    alarm: float
    mu: float
    epsilon_lower: float
    epsilon_estimate: float
    spread: float


@dataclass(frozen=True, slots=True)
class Band:
    """Where a figure of a correct release lies."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def gdp_audit(study: Study, train: Train, *, runs: int, records: int = 1, alarm: float = ALARM, seed: int = 0) -> Audit:
    """Return the audit of a release by Dirac canaries, `canaries.canary_scores` judged by `judged`.

    At sampling rate 1 the release is a Gaussian mechanism and all figures are exact statements about it; below 1 they
    are to be compared with `ideal_bands`.

    Args:
        study: from `canaries.canary_study`; its ε over all rounds is the claim.
        train: the release, ``fedward_client.trainer.train_round``.
        runs: cohorts of canaries; 200 of 1024 settle ε to a few per cent.
        records: equal records of each canary.
        alarm: see `Audit`.
        seed: of the auditor's coins.
    """
    return judged(study, canary_scores(study, train, runs=runs, records=records, seed=seed), alarm)


def judged(study: Study, scores: Scores, alarm: float = ALARM) -> Audit:
    """Return what `scores` of `study` show.

    The lower bound is that of Nasr et al. 2023, section 5: from Clopper-Pearson bounds on both error rates at a
    threshold, μ ≥ Φ⁻¹(1 - FPR) - Φ⁻¹(FNR), the best over fixed thresholds with `alarm` shared among them.

    Raises:
        TypeError: the study claims no ε.
    """
    if not isinstance(study.privacy, DpSgd):
        msg = "an audit needs a claim: the study trains without privacy"
        raise TypeError(msg)
    delta = study.privacy.delta
    unit = study.training.sampling_rate * study.total_steps
    lower = max(_mu_lower(scores, part * unit, alarm / len(_THRESHOLDS)) for part in _THRESHOLDS)
    mu, spread = _moments(scores)
    return Audit(
        claim=study.privacy.epsilon,
        delta=delta,
        canaries=len(scores),
        alarm=alarm,
        mu=mu,
        epsilon_lower=epsilon_of_gdp(lower, delta),
        epsilon_estimate=epsilon_of_gdp(mu, delta),
        spread=spread,
    )


def _mu_lower(scores: Scores, threshold: float, alarm: float) -> float:
    missed = int((scores.inside <= threshold).sum())
    false = int((scores.outside > threshold).sum())
    _, most_missed = binomial_interval(missed, len(scores.inside), alarm / 2)
    _, most_false = binomial_interval(false, len(scores.outside), alarm / 2)
    return float(-ndtri(most_false) - ndtri(most_missed)) if max(most_false, most_missed) < 1 else 0.0


def _moments(scores: Scores) -> tuple[float, float]:
    """Return the distance of the means in pooled standard deviations, and the ratio of the variances."""
    inside, outside = float(scores.inside.var(ddof=1)), float(scores.outside.var(ddof=1))
    return float(scores.inside.mean() - scores.outside.mean()) / math.sqrt((inside + outside) / 2), inside / outside


def ideal_bands(study: Study, canaries: int, *, seed: int = 0) -> dict[str, Band]:
    """Return where ``epsilon_estimate`` and ``spread`` of a correct release lie, from simulated ideal scores.

    Ideal scores are Binomial(steps, rate) + √steps · σ · N inside and √steps · σ · N outside, σ the study's own. Each
    band is the mean ± 6.5 standard deviations of 200 simulated audits, of at most 40,000 canaries; for more, the
    deviation is scaled by the root of their number. The figures are smooth functions of means over thousands of
    canaries, so nearly normal; with the deviation known to 5 % and the mean to a quarter of it, a correct release
    leaves a band with probability below 1e-8.

    Args:
        study: as for `gdp_audit`.
        canaries: how many the audit had; about half are inside.
        seed: of the simulation.

    Raises:
        TypeError: the study claims no ε.
    """
    if not isinstance(study.privacy, DpSgd) or study.privacy.noise_multiplier is None:
        msg = "a band needs a claim: the study has no calibrated privacy"
        raise TypeError(msg)
    generator, steps = np.random.default_rng(seed), study.total_steps
    scale, half = math.sqrt(steps) * study.privacy.noise_multiplier, min(canaries // 2, _BAND_CANARIES)
    figures: dict[str, list[float]] = {"epsilon_estimate": [], "spread": []}
    for _ in range(_BAND_RUNS):
        drawn = generator.binomial(steps, study.training.sampling_rate, half)
        scores = Scores(drawn + generator.normal(0.0, scale, half), generator.normal(0.0, scale, half))
        mu, spread = _moments(scores)
        figures["epsilon_estimate"].append(epsilon_of_gdp(mu, study.privacy.delta))
        figures["spread"].append(spread)
    return {name: _band(values, math.sqrt(2 * half / canaries)) for name, values in figures.items()}


def findings(study: Study, audit: Audit, *, seed: int = 0) -> tuple[str, ...]:
    """Return what is wrong with a release that was audited, one sentence each; nothing for a correct one.

    A correct release is called wrong with probability below `audit.alarm` + 2e-8. Two-sided: too much noise, which
    costs accuracy for nothing, is a finding too.

    Args:
        study: that was audited.
        audit: what `gdp_audit` found.
        seed: of the simulated bands.
    """
    bands = ideal_bands(study, audit.canaries, seed=seed)
    found = []
    if audit.epsilon_lower > audit.claim:
        found.append(f"the release spends ε ≥ {audit.epsilon_lower:.3f}, more than the {audit.claim:g} claimed")
    for name, value in (("epsilon_estimate", audit.epsilon_estimate), ("spread", audit.spread)):
        if value not in bands[name]:
            found.append(f"{name} is {value:.3f}, not within {bands[name].low:.3f} to {bands[name].high:.3f}")
    if study.training.sampling_rate == 1 and audit.claim not in bands["epsilon_estimate"]:
        found.append(f"the study's noise is not that of the ε claimed, {audit.claim:g}")
    return tuple(found)


def _band(values: Sequence[float], scale: float) -> Band:
    half = _BAND_WIDTH * scale * float(np.std(values, ddof=1))
    return Band(float(np.mean(values)) - half, float(np.mean(values)) + half)


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return a bound on how often an (ε, δ)-DP release lets so many guesses of fair coins be `correct`.

    Steinke, Nasr & Jagielski 2023, theorem 5.2: with W ~ Binomial(guesses, e^ε / (1 + e^ε)), P[W ≥ v] plus
    2 m δ · max over i of P[v - i ≤ W < v] / i.

    Args:
        canaries: m, coins thrown.
        guesses: r, coins guessed; the others were abstained from.
        correct: v, guesses that were right.
        epsilon: of the hypothesis.
        delta: of the hypothesis.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
    slope = float((below / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, float(binom.sf(correct - 1, guesses, chance)) + 2 * canaries * delta * slope)


def one_run_epsilon(scores: Scores, delta: float, *, alarm: float = 0.05) -> float:
    """Return the lower bound on ε that one run gives, valid for any (ε, δ)-DP mechanism, with confidence 1 - `alarm`.

    Steinke et al. 2023, algorithm 1: the highest scores are guessed in, as many of the lowest out. How many is one of
    four fixed numbers, with `alarm` shared among them.
    """
    values = np.concatenate([scores.inside, scores.outside])
    member = np.arange(len(values)) < len(scores.inside)
    member = member[np.argsort(values)]
    best = 0.0
    for part in _GUESSES:
        side = max(1, int(part * len(values)))
        correct = int(member[-side:].sum() + (~member[:side]).sum())
        best = max(best, _largest_refuted(len(values), 2 * side, correct, delta, alarm / len(_GUESSES)))
    return best


def _largest_refuted(canaries: int, guesses: int, correct: int, delta: float, alarm: float) -> float:
    def excess(epsilon: float) -> float:
        return one_run_p_value(canaries, guesses, correct, epsilon, delta) - alarm

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, 40.0, xtol=1e-6)) if excess(40.0) > 0 else 40.0
