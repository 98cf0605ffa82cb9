"""What the server does with the mean update: a factor, or an adaptive step. None of them sees a single update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.errors import CoordinatorError
from fedward_common.study import FedAdagrad, FedAdam, FedYogi

__all__ = ["Adaptive", "Scaled", "State", "Step", "kept"]

Vector = npt.NDArray[np.float64]
State = dict[str, Vector]


class Step(Protocol):
    """Turns the mean update of a round into the change of the global model."""

    def __call__(self, mean: Vector) -> Vector:
        """Return the change of the model, in the memory of `mean` where the rule needs no other."""

    def state(self) -> State:
        """Return what is carried from round to round."""


class Scaled:
    """FedAvg's server step: the mean update times a factor."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, mean: Vector) -> Vector:
        """See `Step`."""
        return np.multiply(mean, self._factor, out=mean)

    def state(self) -> State:
        """See `Step.state`: nothing."""
        return {}


class Adaptive:
    """Reddi et al. 2021, algorithm 2, all three options: no bias correction, second moment from tau squared.

    No entry of a step is larger than the learning rate times the largest mean update so far, over tau. Two vectors of
    the model's size are carried from round to round.

    Args:
        rule: the option and its constants.
        state: what `state` returned, to go on from there; None: from the beginning.

    Raises:
        CoordinatorError: the state is not this rule's.
    """

    def __init__(self, rule: FedAdam | FedYogi | FedAdagrad, state: Mapping[str, Vector] | None = None) -> None:
        self._rule = rule
        self._moments: State = {} if state is None else kept(state, "first", "second")

    def __call__(self, mean: Vector) -> Vector:
        """See `Step`."""
        rule = self._rule
        first = self._moments.get("first", np.zeros_like(mean))
        second = self._moments.get("second", np.full_like(mean, rule.tau**2))
        first = rule.beta_1 * first + (1 - rule.beta_1) * mean
        second = _second_moment(rule, second, mean**2)
        self._moments = {"first": first, "second": second}
        step: Vector = rule.server_learning_rate * first / (np.sqrt(second) + rule.tau)
        return step

    def state(self) -> State:
        """See `Step.state`: the two moments."""
        return dict(self._moments)


def kept(state: Mapping[str, Vector], *names: str) -> State:
    """Return copies of the named vectors of a checkpoint; empty where a run has closed no round yet.

    Raises:
        CoordinatorError: some are there and others not.
    """
    found = {name: np.array(state[name], dtype=np.float64) for name in names if name in state}
    if found and len(found) < len(names):
        msg = f"the checkpoint holds {', '.join(found)} without {', '.join(set(names) - set(found))}"
        raise CoordinatorError(msg, remedy="it was written by another rule of aggregation; start the run anew")
    return found


def _second_moment(rule: FedAdam | FedYogi | FedAdagrad, second: Vector, square: Vector) -> Vector:
    match rule:
        case FedAdagrad():
            return second + square
        case FedYogi():
            return second - (1 - rule.beta_2) * square * np.sign(second - square)
        case FedAdam():
            return rule.beta_2 * second + (1 - rule.beta_2) * square
