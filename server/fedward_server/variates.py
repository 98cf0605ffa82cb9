"""SCAFFOLD at the centre: the streaming mean, and the mean of the sites' control variates derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.control import variate_change
from fedward_common.study import Scaffold, Study
from fedward_server.server_steps import Scaled, State, kept

__all__ = ["Variates", "sent_control"]

Vector = npt.NDArray[np.float64]

_CONTROL: Final = "control"


class Variates:
    """A `fedward_server.noted.Noting` step that also moves the control variate c.

    It adds |S| / N times the mean change of the variates of the sites S, whose updates count; N sites are named by the
    study. Sites are told which of their updates counted, so c stays the mean of what they keep, whoever misses a round.

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
        self._counted = 0

    def note(self, weights: list[int]) -> None:
        """See `fedward_server.noted.Noting.note`."""
        self._counted = len(weights)

    def __call__(self, mean: Vector) -> Vector:
        """See `Step`."""
        control = self._state.get(_CONTROL, np.zeros_like(mean))
        share = self._counted / len(self._study.sites)
        self._state = {_CONTROL: control + share * variate_change(self._study, mean, control.astype(np.float32))}
        return self._scaled(mean)

    def state(self) -> State:
        """See `Step.state`: the control variate."""
        return dict(self._state)


def sent_control(state: Mapping[str, Vector]) -> npt.NDArray[np.float32] | None:
    """Return the control variate as it is sent; None before the first round, when it is zero, and for other rules."""
    control = state.get(_CONTROL)
    return None if control is None else control.astype(np.float32)
