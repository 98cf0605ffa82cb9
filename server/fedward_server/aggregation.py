"""How updates become the next model: ``start``, ``add`` as they arrive, ``finish``.

Only rules that compare single updates (`robust`, `flower_strategy`) keep a list of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedward_common.errors import StudyError
from fedward_common.fixed_point import decode_mean
from fedward_common.paged import blocks, file_vector, let_go
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
from fedward_server.journal import StoredUpdate
from fedward_server.noted import Normalised, Noted
from fedward_server.robust import Robust
from fedward_server.root import RootTrainer
from fedward_server.server_steps import Adaptive, Scaled, State, Step
from fedward_server.trust import Trust
from fedward_server.variates import Variates

__all__ = ["Aggregator", "Mean", "Streaming", "add_into", "aggregator_for"]

Weights = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_BLOCK: Final = 1 << 18
"""Numbers that are added up at a time: two megabytes of each vector, so that they stay in the processor's cache."""


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


@runtime_checkable
class Streaming(Protocol):
    """A rule that needs no update whole, so that the centre's memory does not grow with the number of sites."""

    def take(self, update: StoredUpdate) -> None:
        """Take one checked update whose values are on the disk, and stay there until `Aggregator.finish`."""


class Mean:
    """The weighted mean, as an exact integer sum: the order of arrival changes nothing.

    Updates that are on the disk are added up when the round is over, some numbers of each at a time: there is no sum of
    the model's length. Those that come in memory (`add`) have one, 8 bytes for each parameter.

    Args:
        step: what the server does with the mean.
        folder: where a large next model is kept (`fedward_common.paged`); None: in memory.
    """

    def __init__(self, step: Step, folder: Path | None = None) -> None:
        self._step, self._folder = step, folder
        self._weights: Weights = np.zeros(0, dtype=np.float32)
        self._total: Integers | None = None
        self._stored: list[StoredUpdate] = []
        self._weight = 0

    def start(self, weights: Weights) -> None:
        """See `Aggregator.start`."""
        self._weights, self._weight = weights, 0
        self._total, self._stored = None, []

    def add(self, update: Update) -> None:
        """See `Aggregator.add`. Addition is modulo 2**64, so masked values add the same way."""
        if self._total is None:
            self._total = np.zeros(self._weights.shape, dtype=np.int64)
        add_into(self._total, update.values)
        self._weight += update.weight

    def take(self, update: StoredUpdate) -> None:
        """See `Streaming.take`."""
        self._stored.append(update)
        self._weight += update.head.weight

    def finish(self) -> Weights:
        """See `Aggregator.finish`. The stored updates are let go.

        Raises:
            ValueError: nothing was added.
        """
        size = len(self._weights)
        new = file_vector(size, self._folder)
        room = _Room(min(size, _BLOCK))
        if isinstance(self._step, Scaled):
            for part in blocks(size, _BLOCK):
                change = self._step(self._mean(part, room, room.mean[: part.stop - part.start]))
                new[part] = np.add(change, self._weights[part], out=change)
                let_go(self._weights)
                let_go(new)
        else:  # it carries whole vectors, so there is one of the mean as well
            mean = np.empty(size, dtype=np.float64)
            for part in blocks(size, _BLOCK):
                self._mean(part, room, mean[part])
            step = self._step(mean)
            for part in blocks(size, _BLOCK):
                new[part] = np.add(step[part], self._weights[part], out=room.mean[: part.stop - part.start])
        self._stored = []
        return new

    def _mean(self, part: slice, room: _Room, out: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        count = part.stop - part.start
        total, values = room.total[:count], room.values[:count]
        total[:] = 0 if self._total is None else self._total[part]
        for update in self._stored:
            update.body.read_into(values, part.start)
            add_into(total, values)
        return decode_mean(total, self._weight, out=out)

    def state(self) -> State:
        """See `Aggregator.state`."""
        return self._step.state()


class _Room:
    """What one block needs, made once: fresh memory for each would cost more than the sums."""

    def __init__(self, size: int) -> None:
        self.total = np.empty(size, dtype=np.int64)
        self.values = np.empty(size, dtype=np.int64)
        self.mean = np.empty(size, dtype=np.float64)


def add_into(total: Integers, values: Integers) -> None:
    """Add `values` to `total`, in place and modulo 2**64.

    Raises:
        ValueError: they have not the same shape.
    """
    if total.shape != values.shape:
        msg = f"{values.shape} numbers do not add to {total.shape}"
        raise ValueError(msg)
    np.add(total, values, out=total)  # integer arrays wrap without a word


def aggregator_for(
    study: Study,
    state: Mapping[str, npt.NDArray[np.float64]] | None = None,
    *,
    after: int = 0,
    root: RootTrainer | None = None,
    folder: Path | None = None,
) -> Aggregator:
    """Return the rule that the study names.

    Args:
        study: the contract.
        state: what `Aggregator.state` returned after a round, to go on from there; None: from the beginning.
        after: that round, 1-based; 0: none.
        root: trains on the centre's root rows; FLTrust asks it, no other rule does.
        folder: see `Mean`.

    Raises:
        StudyError: the rule and the study do not fit.
        CoordinatorError: the state is another rule's.
    """
    rule: Aggregation = study.aggregation
    match rule:
        case FedAdam() | FedYogi() | FedAdagrad():
            return Mean(Adaptive(rule, state), folder)
        case FedAvg() | FedProx() | FedBN():
            return Mean(Scaled(rule.server_learning_rate), folder)
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
