"""How updates become the next model: ``start``, ``add`` as they arrive, ``finish``.

Only rules that compare single updates (`robust`, `flower_strategy`) keep a list of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedward_common.errors import StudyError
from fedward_common.fixed_point import decode_mean
from fedward_common.study import (
    Aggregation,
    CentredClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedBN,
    FedNova,
    FedProx,
    FedYogi,
    FlowerRule,
    FLTrust,
    Median,
    MultiKrum,
    Scaffold,
    Study,
    TrimmedMean,
)
from fedward_common.wire import Update
from fedward_server.noted import Normalised, Noted
from fedward_server.robust import Robust
from fedward_server.root import RootTrainer
from fedward_server.server_steps import Adaptive, Scaled, State, Step
from fedward_server.trust import Trust
from fedward_server.variates import Variates

__all__ = ["Aggregator", "Mean", "aggregator_for"]

Weights = npt.NDArray[np.float32]


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


class Mean:
    """The weighted mean, as an exact integer sum: the order of arrival changes nothing."""

    def __init__(self, step: Step) -> None:
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
    study: Study,
    state: Mapping[str, npt.NDArray[np.float64]] | None = None,
    *,
    after: int = 0,
    root: RootTrainer | None = None,
) -> Aggregator:
    """Return the rule that the study names.

    Args:
        study: the contract.
        state: what `Aggregator.state` returned after a round, to go on from there; None: from the beginning.
        after: that round, 1-based; 0: none.
        root: trains on the centre's root rows; FLTrust asks it, no other rule does.

    Raises:
        StudyError: the rule and the study do not fit.
        CoordinatorError: the state is another rule's.
    """
    rule: Aggregation = study.aggregation
    match rule:
        case FedAdam() | FedYogi() | FedAdagrad():
            return Mean(Adaptive(rule, state))
        case FedAvg() | FedProx() | FedBN():
            return Mean(Scaled(rule.server_learning_rate))
        case Scaffold() | FedNova():
            step = Variates(study, rule, state) if isinstance(rule, Scaffold) else Normalised(study, rule)
            return Noted(Mean(step), step)
        case Median() | TrimmedMean() | MultiKrum() | CentredClipping():
            return Robust(study, rule, state)
        case FLTrust():
            if root is None:
                msg = "aggregation.rule=fltrust trains on central rows, and none were given"
                raise StudyError(msg, remedy="run it with a central hold-out, or choose another rule")
            return Trust(rule, root)
        case FlowerRule():
            from fedward_server.flower_strategy import FlowerStrategy  # noqa: PLC0415  (a second of imports that few studies need)

            return FlowerStrategy(rule, study, after=after)
