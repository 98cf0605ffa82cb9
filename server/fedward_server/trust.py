"""FLTrust (Cao, Fang, Liu and Gong, NDSS 2021): an update counts as far as it points where the centre's own points.

It needs no majority of honest sites, but rows of the centre's own that are like theirs. It looks at single updates, so
each hospital must allow it. None is kept: a few vectors of one model's size are held, whatever the number of sites.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import CoordinatorError, QuorumLostError
from fedward_common.fixed_point import decode_mean
from fedward_common.study import FLTrust
from fedward_common.wire import Update
from fedward_server.root import RootTrainer
from fedward_server.server_steps import State

__all__ = ["Trust"]

Weights = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

_BITS: Final = 50  # 2**12 sites of at most 2**50 each stay below 2**63


class Trust:
    """The rule as an `Aggregator`.

    A site's trust is the cosine between its update and the root's, nothing below zero. Its update is scaled to the
    length of the root's, so that none counts for being long. The next model is the old one plus
    ``server_learning_rate`` times the mean of these, weighed by trust: no step is longer than that times the root's.
    Where fewer sites than the quorum are trusted, or the root's update is nothing, the model stays as it is: no
    model is made of one hospital's update. Sums are of integers, so the order of arrival changes nothing.

    Args:
        rule: the study's aggregation.
        root: trains on the root rows; asked once in a round, when the first update has come.
    """

    def __init__(self, rule: FLTrust, root: RootTrainer) -> None:
        self._rule, self._train = rule, root
        self._weights: Weights = np.zeros(0, dtype=np.float32)
        self._root: Vector | None = None
        self._length = 0.0
        self._total = np.zeros(0, dtype=np.int64)
        self._trust = self._trusted = self._count = 0

    def start(self, weights: Weights) -> None:
        """See `Aggregator.start`."""
        self._weights, self._root = weights, None
        self._total = np.zeros(weights.shape, dtype=np.int64)
        self._trust = self._trusted = self._count = 0

    def add(self, update: Update) -> None:
        """See `Aggregator.add`.

        Raises:
            CoordinatorError: the root's update is not finite.
        """
        root = self._root_update()
        change = decode_mean(update.values, update.weight)
        self._count += 1
        length = _length(change)
        if not length or not self._length:
            return
        cosine = min(1.0, float((change * root).sum()) / (length * self._length))
        trust = round(max(0.0, cosine) * 2**_BITS)
        if trust:
            scaled = change * (cosine * self._length / length)
            self._total += np.rint(np.ldexp(scaled, self._shift)).astype(np.int64)
            self._trust += trust
            self._trusted += 1

    def finish(self) -> Weights:
        """See `Aggregator.finish`.

        Raises:
            QuorumLostError: fewer updates than the quorum.
        """
        if self._count < self._rule.quorum:
            msg = f"{self._count} updates, but the quorum is {self._rule.quorum}"
            raise QuorumLostError(msg, remedy="a longer deadline, or a lower quorum")
        if self._trusted < self._rule.quorum:
            return self._weights
        trust = self._trust / 2**_BITS
        step = self._rule.server_learning_rate * np.ldexp(self._total.astype(np.float64), -self._shift) / trust
        new: Weights = (self._weights.astype(np.float64) + step).astype(np.float32)
        return new

    def state(self) -> State:
        """See `Aggregator.state`: nothing."""
        return {}

    @property
    def _shift(self) -> int:
        """The binary places that sums of vectors no longer than the root's have: no entry passes 2**50."""
        return _BITS - math.frexp(self._length)[1]

    def _root_update(self) -> Vector:
        if self._root is None:
            root = self._train(self._weights).astype(np.float64)
            self._length = _length(root)
            if root.shape != self._weights.shape or not math.isfinite(self._length):
                msg = "training on the root rows gave no finite update of the model"
                raise CoordinatorError(msg, remedy="a smaller training.learning_rate")
            self._root = root
        return self._root


def _length(vector: Vector) -> float:
    return math.sqrt(float(np.square(vector).sum()))
