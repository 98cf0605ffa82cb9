"""How updates become the next model: ``start``, ``add`` as they arrive, ``finish``. Never a list of updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.fixed_point import decode_mean
from fedward_common.study import Aggregation, FedAdam, FedAvg, FedProx, FlowerRule, Study
from fedward_common.wire import Update

__all__ = ["Aggregator", "Mean", "aggregator_for"]

Weights = npt.NDArray[np.float32]
State = dict[str, npt.NDArray[np.float64]]


class Aggregator(Protocol):
    """One rule of aggregation, for one run."""

    def start(self, weights: Weights) -> None:
        """Begin a round from the packed global model."""

    def add(self, update: Update) -> None:
        """Take one checked update; its values may be freed afterwards."""

    def finish(self) -> Weights:
        """Return the next global model."""

    def state(self) -> State:
        """Return what the rule carries from round to round, for a checkpoint."""


class _Step(Protocol):
    def __call__(self, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...

    def state(self) -> State: ...


class _Scaled:
    """FedAvg's server step: the mean update times a factor."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self._factor * mean

    def state(self) -> State:
        return {}


class _Adam:
    """Reddi et al. 2021, algorithm 2, option FedAdam: no bias correction, second moment from tau squared."""

    def __init__(self, rule: FedAdam, moments: Mapping[str, npt.NDArray[np.float64]]) -> None:
        self._rule = rule
        self._moments: State = dict(moments)

    def __call__(self, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        rule = self._rule
        first = self._moments.get("first", np.zeros_like(mean))
        second = self._moments.get("second", np.full_like(mean, rule.tau**2))
        first = rule.beta_1 * first + (1 - rule.beta_1) * mean
        second = rule.beta_2 * second + (1 - rule.beta_2) * mean**2
        self._moments = {"first": first, "second": second}
        step: npt.NDArray[np.float64] = rule.server_learning_rate * first / (np.sqrt(second) + rule.tau)
        return step

    def state(self) -> State:
        return dict(self._moments)


class Mean:
    """The weighted mean, as an exact integer sum: the order of arrival changes nothing."""

    def __init__(self, step: _Step) -> None:
        self._step = step
        self._weights: Weights = np.zeros(0, dtype=np.float32)
        self._total = np.zeros(0, dtype=np.int64)
        self._weight = 0

    def start(self, weights: Weights) -> None:
        """See `Aggregator.start`."""
        self._weights, self._weight = weights, 0
        self._total = np.zeros(weights.shape, dtype=np.int64)

    def add(self, update: Update) -> None:
        """See `Aggregator.add`. Addition is modulo 2**64, so masked values add the same way."""
        with np.errstate(over="ignore"):
            self._total += update.values
        self._weight += update.weight

    def finish(self) -> Weights:
        """See `Aggregator.finish`.

        Raises:
            ValueError: nothing was added.
        """
        step = self._step(decode_mean(self._total, self._weight))
        return (self._weights.astype(np.float64) + step).astype(np.float32)

    def state(self) -> State:
        """See `Aggregator.state`."""
        return self._step.state()


def aggregator_for(
    study: Study, state: Mapping[str, npt.NDArray[np.float64]] | None = None, *, after: int = 0
) -> Aggregator:
    """Return the rule that the study names, as it stood when `state` was taken after round `after`."""
    rule: Aggregation = study.aggregation
    match rule:
        case FedAdam():
            return Mean(_Adam(rule, state or {}))
        case FedAvg() | FedProx():
            return Mean(_Scaled(rule.server_learning_rate))
        case FlowerRule():
            from fedward_server.flower_strategy import FlowerStrategy  # noqa: PLC0415  (a second of imports that few studies need)

            return FlowerStrategy(rule, study, after=after)
