"""SCAFFOLD at the centre: the streaming mean, and the mean of the sites' control variates derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from fedward_common.control import variate_change
from fedward_common.study import Scaffold, Study
from fedward_common.wire import Update
from fedward_server.server_steps import Scaled, State, kept

if TYPE_CHECKING:
    from fedward_server.aggregation import Aggregator

__all__ = ["Controlled", "Variates", "sent_control"]

Vector = npt.NDArray[np.float64]

_CONTROL: Final = "control"


class Variates:
    """A `Step` that also moves the control variate: c += |S| / N * mean of the changes of the sites' variates.

    S are the sites whose updates count, N those that the study names. Sites are told which of their updates counted,
    so c stays the mean of what they keep, whoever misses a round.

    Args:
        study: the contract.
        rule: its aggregation.
        state: what `state` returned, to go on from there; None: from the beginning, where c is zero.

    Raises:
        CoordinatorError: the state is not this rule's.
    """

    def __init__(self, study: Study, rule: Scaffold, state: Mapping[str, Vector] | None = None) -> None:
        self._study = study
        self._scaled = Scaled(rule.server_learning_rate)
        self._state: State = {} if state is None else kept(state, _CONTROL)
        self.counted = 0
        """Updates of the open round."""

    def __call__(self, mean: Vector) -> Vector:
        """See `Step`."""
        control = self._state.get(_CONTROL, np.zeros_like(mean))
        share = self.counted / len(self._study.sites)
        self._state = {_CONTROL: control + share * variate_change(self._study, mean, control.astype(np.float32))}
        return self._scaled(mean)

    def state(self) -> State:
        """See `Step.state`: the control variate."""
        return dict(self._state)


class Controlled:
    """SCAFFOLD as an `Aggregator`: the mean, and the number of updates told to its step.

    Args:
        mean: of the updates, with `variates` as its step.
        variates: the step.
    """

    def __init__(self, mean: Aggregator, variates: Variates) -> None:
        self._mean, self._variates = mean, variates

    def start(self, weights: npt.NDArray[np.float32]) -> None:
        """See `Aggregator.start`."""
        self._variates.counted = 0
        self._mean.start(weights)

    def add(self, update: Update) -> None:
        """See `Aggregator.add`."""
        self._variates.counted += 1
        self._mean.add(update)

    def finish(self) -> npt.NDArray[np.float32]:
        """See `Aggregator.finish`."""
        return self._mean.finish()

    def state(self) -> State:
        """See `Aggregator.state`: the control variate."""
        return self._mean.state()


def sent_control(state: Mapping[str, Vector]) -> npt.NDArray[np.float32] | None:
    """Return the control variate as it is sent; None before the first round, when it is zero, and for other rules."""
    control = state.get(_CONTROL)
    return None if control is None else control.astype(np.float32)
