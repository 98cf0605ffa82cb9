"""Bounds and intervals that the attacks are judged by. No formula here is shared with the production accountant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import beta, t

from fedward_simulations.attacks.target import Floats

__all__ = [
    "Estimate",
    "area_under_roc",
    "binomial_interval",
    "epsilon_of_gdp",
    "gdp_of_epsilon",
    "identification_bound",
]

_LARGEST_MU = 60.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over independent attacked models.

    Attributes:
        value: the mean.
        error: its standard error.
        models: how many there were, at least 2.
    """

    value: float
    error: float
    models: int

    @classmethod
    def over(cls, values: Floats) -> Estimate:
        """Return the mean of one figure per model, shape (models,)."""
        return cls(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values))

    def interval(self, alarm: float) -> tuple[float, float]:
        """Return the two-sided interval that misses the true mean with probability `alarm` (Student's t)."""
        half = self.error * float(t.isf(alarm / 2, self.models - 1))
        return self.value - half, self.value + half


def binomial_interval(hits: int, trials: int, alarm: float) -> tuple[float, float]:
    """Return two bounds on a probability, each wrong at most with probability `alarm` (Clopper & Pearson 1934)."""
    low = float(beta.ppf(alarm, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.isf(alarm, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def epsilon_of_gdp(mu: float, delta: float) -> float:
    """Return the ε of a `mu`-GDP mechanism at `delta`; 0 for one that is (0, δ)-DP.

    Dong, Roth & Su 2022, corollary 1: δ(ε) = Φ(-ε/μ + μ/2) - e^ε Φ(-ε/μ - μ/2).
    """

    def excess(epsilon: float) -> float:
        second = math.exp(min(0.0, epsilon + float(log_ndtr(-epsilon / mu - mu / 2))))
        return float(ndtr(-epsilon / mu + mu / 2)) - second - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, mu * mu + 40 * mu, xtol=1e-10))


def gdp_of_epsilon(epsilon: float, delta: float) -> float:
    """Return the largest μ whose Gaussian mechanism keeps (`epsilon`, `delta`): the inverse of `epsilon_of_gdp`."""
    return float(brentq(lambda mu: epsilon_of_gdp(mu, delta) - epsilon, 1e-6, _LARGEST_MU, xtol=1e-10))


def identification_bound(mu: float, candidates: int) -> float:
    """Return the most often that anybody can tell which of so many equally likely records a `mu`-GDP release is of.

    Φ(Φ⁻¹(1/candidates) + μ): Hayes, Mahloujifar & Balle 2023, theorem 2, for the uniform prior. Without the record the
    guess is right once in `candidates`; the trade-off function bounds how much more often it is right with it.
    """
    return float(ndtr(ndtri(1 / candidates) + mu))


def area_under_roc(scores: Floats, member: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a member scores above a non-member; ties count half. Both must be there."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    inside, outside = int(member.sum()), int((~member).sum())
    return float((ranks[member].sum() - inside * (inside + 1) / 2) / (inside * outside))
