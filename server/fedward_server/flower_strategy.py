"""Any Flower strategy as an `Aggregator`: it gets single, checked updates and returns the next model.

The strategy sees what our gatekeeper let through, as Flower's own messages, and never the grid.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import (
    Bulyan,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)

from fedward_common.errors import CoordinatorError, StudyError
from fedward_common.fixed_point import decode_mean
from fedward_common.flower_adapter import detached_message
from fedward_common.models import parameter_spec
from fedward_common.study import FlowerRule, Study
from fedward_common.wire import Update
from fedward_server.bare_grid import BareGrid

__all__ = ["FlowerStrategy"]

Weights = npt.NDArray[np.float32]
_FORGETFUL = frozenset({FedAvg, FedProx, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan})
"""Strategies of Flower that carry nothing from one round to the next."""

_LOOKS = 3  # Flower's strategies look twice in a round that can begin


class FlowerStrategy:
    """Aggregation by ``flwr.serverapp.strategy.X``, with tensors under their own names and shapes.

    Args:
        rule: the class and its options.
        study: for the names and shapes.
        after: the round that an earlier process committed last.

    Raises:
        StudyError: no such class, or it does not take these options.
    """

    def __init__(self, rule: FlowerRule, study: Study, *, after: int = 0) -> None:
        self._strategy = _instantiate(rule)
        self._spec = parameter_spec(study)
        self._sites = len(study.sites)
        self._weights: Weights = np.zeros(0, dtype=np.float32)
        self._replies: list[tuple[str, RecordDict]] = []
        self._round = self._resumed = after

    def start(self, weights: Weights) -> None:
        """See `Aggregator.start`.

        Raises:
            CoordinatorError: the strategy waits for more nodes than the study has sites, or an earlier process
                took what it carries from round to round with it.
        """
        if self._resumed and type(self._strategy) not in _FORGETFUL:
            msg = f"{type(self._strategy).__name__} keeps a state between rounds that no checkpoint holds"
            raise CoordinatorError(msg, remedy="FedAdam and FedAvg of Fedward's own can be resumed")
        self._weights, self._replies = weights, []
        self._round += 1
        nodes = _Nodes(self._sites)
        self._strategy.configure_train(self._round, self._record(weights), ConfigRecord(), nodes)

    def add(self, update: Update) -> None:
        """See `Aggregator.add`. Robust rules compare single updates, so each is kept until `finish`."""
        model = self._weights + decode_mean(update.values, update.weight).astype(np.float32)
        content = RecordDict({"arrays": self._record(model), "metrics": MetricRecord({"num-examples": update.weight})})
        self._replies.append((update.site, content))

    def finish(self) -> Weights:
        """See `Aggregator.finish`. The strategy gets the updates in the order of the sites' names, not of arrival.

        Raises:
            CoordinatorError: the strategy gave no model of this shape, for example because it needs more sites.
        """
        replies = [
            detached_message(content, source=number)
            for number, (_, content) in enumerate(sorted(self._replies, key=itemgetter(0)), start=1)
        ]
        self._replies = []
        name = type(self._strategy).__name__
        remedy = "the strategy may need more sites, other options, or metrics that no site sends"
        try:
            record, _ = self._strategy.aggregate_train(self._round, replies)
        except AppExitException as error:
            msg = f"{name} refuses these replies: {error}"
            raise CoordinatorError(msg, remedy=remedy) from error
        if record is None or not set(self._spec.names) <= set(record):
            msg = f"{name} returned no model from these replies"
            raise CoordinatorError(msg, remedy=remedy)
        parts = [record[name].numpy().astype(np.float32).ravel() for name in self._spec.names]
        return np.concatenate(parts)

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        """See `Aggregator.state`. Flower's strategies offer no state to keep."""
        return {}

    def _record(self, weights: Weights) -> ArrayRecord:
        return ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in self._spec.split(weights).items()})


class _Nodes(BareGrid):
    """What a strategy may see of the grid while it prepares a round: how many nodes there are.

    A strategy that asks again and again is waiting for more of them, and would for ever.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._looks = 0

    def get_node_ids(self) -> Iterable[int]:
        self._looks += 1
        if self._looks > _LOOKS:
            msg = f"the strategy waits for more nodes than the study's {self._count} sites"
            raise CoordinatorError(msg, remedy="correct its min_…_nodes and fraction_train in aggregation.options")
        return range(1, self._count + 1)


def _instantiate(rule: FlowerRule) -> Strategy:
    module, _, name = rule.target.rpartition(".")
    kind: Any = getattr(importlib.import_module(module), name, None)
    if not inspect.isclass(kind) or not issubclass(kind, Strategy):
        msg = f"aggregation._target_ = {rule.target} is no strategy of Flower"
        raise StudyError(msg, remedy="for example flwr.serverapp.strategy.FedMedian")
    try:
        strategy: Strategy = kind(**rule.options)
    except (TypeError, ValueError) as error:
        msg = f"aggregation.options do not fit {name}: {error}"
        raise StudyError(msg, remedy=f"its parameters are those of {rule.target}") from error
    return strategy
