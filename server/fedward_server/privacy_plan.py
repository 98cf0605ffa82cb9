"""What a budget means for each hospital before anybody trains: noise, patients per step, who can do it alone.

Pure: a question determines the plan. Noise is compared with the clipping bound C: the mean of clipped gradients is at
most C long, so that a noise of length 1 × C is as long as the longest signal that a step can have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fedward_common.errors import StudyError
from fedward_common.privacy import Spend, epsilon_of, noise_multiplier_for
from fedward_server.privacy_curve import Curve, Measured

__all__ = ["ALTERNATIVES", "Noise", "Option", "Plan", "Question", "SitePlan", "planned"]

ALTERNATIVES: Final = (1.0, 2.0, 4.0, 8.0)
_SEEDS: Final = 2
_MOST_PATIENTS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Question:
    """What is planned.

    Attributes:
        patients: by hospital, each at least 1.
        epsilon: of the whole study, at each hospital.
        delta: of the same.
        rounds: of the study.
        steps: noised steps of a hospital in a round.
        rate: probability with which a step draws a patient.
        clip: L2 bound on a patient's gradient.
        parameters: of the model.
        weighting: how the centre weighs the hospitals.
        most: noise, in clipping bounds, above which a model is held to be out of reach.
        sigma: the study's own noise multiplier; None: calibrated.
    """

    patients: Mapping[str, int]
    epsilon: float
    delta: float
    rounds: int
    steps: int
    rate: float
    clip: float
    parameters: int
    weighting: Literal["patients", "uniform"] = "patients"
    most: float = 1.0
    sigma: float | None = None

    @property
    def total_steps(self) -> int:
        """Noised steps of a hospital over the whole study."""
        return self.rounds * self.steps


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise on a step's mean gradient: standard deviation of one coordinate, and expected length, both over C."""

    coordinate: float
    length: float


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One hospital. `alone_epsilon` is the ε at which its own noise would be that of the federation.

    Attributes:
        patients: that it has.
        per_step: patients that a step draws, expected.
        noise: of its own mean gradient.
        alone_epsilon: inf where none is.
        alone: its measured metric without federation, at the planned ε; None without a curve that has it.
        reaches: whether it can do alone what the federation does; None where neither can, or nothing is known.
    """

    patients: int
    per_step: float
    noise: Noise
    alone_epsilon: float
    alone: Measured | None
    reaches: bool | None


@dataclass(frozen=True, slots=True)
class Option:
    """Another ε: its noise multiplier, the federation's noise, the measured metric, hospitals out of reach alone."""

    epsilon: float
    sigma: float
    noise: Noise
    expected: Measured | None
    out_of_reach: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. `expected` is the federation's measured metric at the planned ε, None where no curve covers it."""

    question: Question
    sigma: float
    spent: float
    sites: Mapping[str, SitePlan]
    federation: Noise
    expected: Measured | None
    options: tuple[Option, ...]
    sentences: tuple[str, ...]


def planned(question: Question, curve: Curve | None = None) -> Plan:
    """Return the plan.

    A hospital *cannot reach this alone* in one of two cases, and the sentence says in which. With a curve that measured
    the hospital alone and the federation at this ε, over two seeds at least: its metric alone is below the federation's
    by more than both standard deviations together. Without: the expected length of the noise on its own mean gradient
    is above `most` clipping bounds while the federation's is not. Where the federation's is, too, nobody reaches it.
    The second is a rule of thumb about one step, not a theorem: many steps average noise, and few useful directions
    suffer less.

    Raises:
        StudyError: a value out of range, or no noise reaches ε.
    """
    _checked(question)
    sigma = question.sigma or _sigma(question, question.epsilon)
    federation = _federation(question, sigma)
    expected = curve.federation_at(question.epsilon) if curve else None
    sites = {name: _site(question, name, sigma, federation, curve, expected) for name in sorted(question.patients)}
    return Plan(
        question,
        sigma,
        epsilon_of([Spend(sigma, question.rate, question.total_steps)], question.delta),
        sites,
        federation,
        expected,
        tuple(_option(question, epsilon, curve) for epsilon in ALTERNATIVES),
        tuple(_sentences(question, sites, federation, curve)),
    )


def _checked(question: Question) -> None:
    limits = {
        "epsilon": 0 < question.epsilon <= 100,  # noqa: PLR2004  (as in the study)
        "delta": 0 < question.delta < 0.01,  # noqa: PLR2004  (see above)
        "rounds": 1 <= question.rounds <= 10_000,  # noqa: PLR2004  (see above)
        "steps": 1 <= question.steps <= 10_000,  # noqa: PLR2004  (see above)
        "rate": 0 < question.rate <= 1,
        "clip": 0 < question.clip <= 1000,  # noqa: PLR2004  (see above)
        "parameters": question.parameters >= 1,
        "most": question.most > 0,
        "patients": bool(question.patients),
    }
    wrong = [name for name, good in limits.items() if not good]
    wrong += [f"{name}={n}" for name, n in question.patients.items() if not 1 <= n <= _MOST_PATIENTS]
    if wrong:
        msg = f"out of range: {', '.join(wrong)}"
        raise StudyError(msg, remedy="the limits are those of a study: fedward privacy plan --help")


def _sigma(question: Question, epsilon: float) -> float:
    return noise_multiplier_for(epsilon, question.delta, question.rate, question.total_steps)


def _noise(coordinate: float, parameters: int) -> Noise:
    return Noise(coordinate, coordinate * math.sqrt(parameters))


def _alone(question: Question, patients: int, sigma: float) -> Noise:
    return _noise(sigma / (question.rate * patients), question.parameters)


def _federation(question: Question, sigma: float) -> Noise:
    """Return the noise of the weighted mean of the hospitals' mean gradients: their noises are independent."""
    total = sum(question.patients.values())
    square = 0.0
    for patients in question.patients.values():
        weight = patients / total if question.weighting == "patients" else 1 / len(question.patients)
        square += (weight * sigma / (question.rate * patients)) ** 2
    return _noise(math.sqrt(square), question.parameters)


def _site(
    question: Question, name: str, sigma: float, federation: Noise, curve: Curve | None, expected: Measured | None
) -> SitePlan:
    patients = question.patients[name]
    noise = _alone(question, patients, sigma)
    same = federation.coordinate * question.rate * patients
    alone = curve.alone_at(name, question.epsilon) if curve else None
    return SitePlan(
        patients,
        question.rate * patients,
        noise,
        epsilon_of([Spend(same, question.rate, question.total_steps)], question.delta),
        alone,
        _reaches(noise, federation, question.most, alone, expected),
    )


def _reaches(
    noise: Noise, federation: Noise, most: float, alone: Measured | None, expected: Measured | None
) -> bool | None:
    if alone is not None and expected is not None and min(alone.runs, expected.runs) >= _SEEDS:
        return alone.mean >= expected.mean - alone.spread - expected.spread
    return None if federation.length > most else noise.length <= most


def _option(question: Question, epsilon: float, curve: Curve | None) -> Option:
    sigma = _sigma(question, epsilon)
    federation = _federation(question, sigma)
    expected = curve.federation_at(epsilon) if curve else None
    out = 0
    for name, patients in question.patients.items():
        alone = curve.alone_at(name, epsilon) if curve else None
        out += _reaches(_alone(question, patients, sigma), federation, question.most, alone, expected) is not True
    return Option(epsilon, sigma, federation, expected, out)


def _sentences(
    question: Question, sites: Mapping[str, SitePlan], federation: Noise, curve: Curve | None
) -> Sequence[str]:
    found = []
    for name, site in sites.items():
        if site.reaches is False:
            found.append(
                f"{name}: a hospital with {site.patients} patients cannot reach this alone{_why(question, site)}"
            )
    if federation.length > question.most and (curve is None or curve.federation_at(question.epsilon) is None):
        found.append(
            f"nobody reaches this: the federation's noise is {federation.length:.3g} clipping bounds long,"
            f" above {question.most:g}; more patients, fewer parameters or a larger epsilon"
        )
    return found


def _why(question: Question, site: SitePlan) -> str:
    if site.alone is not None and site.alone.runs >= _SEEDS:
        where = " and ".join(f"{epsilon:g}" for epsilon in site.alone.between) or f"{question.epsilon:g}"
        return f": measured alone {site.alone.mean:.3f} {'between' if site.alone.between else 'at'} epsilon {where}"
    need = "no epsilon" if math.isinf(site.alone_epsilon) else f"epsilon {site.alone_epsilon:.3g}"
    return (
        f": its noise is {site.noise.length:.3g} clipping bounds long, above {question.most:g};"
        f" for the federation's noise it would need {need}"
    )
