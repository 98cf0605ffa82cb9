"""The streaming mean for a step that must know what the mean is of: how many updates, of which weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.normalised import accumulated, reference_length
from fedward_common.study import FedNova, Study
from fedward_common.wire import Update
from fedward_server.server_steps import State, Step

if TYPE_CHECKING:
    from fedward_server.aggregation import Aggregator

__all__ = ["Normalised", "Noted", "Noting"]

Vector = npt.NDArray[np.float64]


class Noting(Step, Protocol):
    """A `Step` that is told of a round's updates before it is asked."""

    def note(self, weights: list[int]) -> None:
        """Take the weights of the updates whose mean comes next, in any order."""


class Noted:
    """An `Aggregator`: the mean, whose step is told of the updates' weights.

    Args:
        mean: of the updates, with `step` as its step.
        step: what the mean becomes.
    """

    def __init__(self, mean: Aggregator, step: Noting) -> None:
        self._mean, self._step = mean, step
        self._counts: list[int] = []

    def start(self, weights: npt.NDArray[np.float32]) -> None:
        """See `Aggregator.start`."""
        self._counts = []
        self._mean.start(weights)

    def add(self, update: Update) -> None:
        """See `Aggregator.add`."""
        self._counts.append(update.weight)
        self._mean.add(update)

    def finish(self) -> npt.NDArray[np.float32]:
        """See `Aggregator.finish`."""
        self._step.note(self._counts)
        return self._mean.finish()

    def state(self) -> State:
        """See `Aggregator.state`."""
        return self._mean.state()


class Normalised:
    """FedNova's `Step`: the mean of normalised updates times the mean length that they had, tau_eff.

    Args:
        study: its steps, by a site's weight.
        rule: its aggregation.
    """

    def __init__(self, study: Study, rule: FedNova) -> None:
        self._study, self._rate = study, rule.server_learning_rate
        self._reference = reference_length(study)
        self._effective = 0.0

    def note(self, weights: list[int]) -> None:
        """See `Noting.note`. The sum is rounded once, so the order changes nothing."""
        momentum = self._study.training.momentum
        lengths = (weight * accumulated(self._study.steps_of(weight), momentum) for weight in weights)
        self._effective = math.fsum(lengths) / sum(weights)

    def __call__(self, mean: Vector) -> Vector:
        """See `Step`."""
        return self._rate * self._effective / self._reference * mean

    def state(self) -> State:
        """See `Step.state`: nothing."""
        return {}
