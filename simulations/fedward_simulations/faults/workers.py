"""Workers that a campaign gives to a site: the production's own, in a computer that is slow, or short of memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_client.worker import Facts, InProcessWorker, Job, Session, Trained

__all__ = ["HungryWorker", "LateWorker", "PausingWorker", "SlowWorker"]

FACTOR: Final = 20
PAUSE_S: Final = 2.0
LATE_S: Final = 8.0
HUNGRY_ROUND: Final = 2
_PIECE: Final = 1 << 24


class _Handicapped:
    """A session that trains as the production does, and `handicap`s it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def facts(self) -> Facts:
        """See `Session.facts`."""
        return self._session.facts

    def train(self, round_: int, weights: npt.NDArray[np.float32]) -> Trained:
        """See `Session.train`."""
        began = time.monotonic()
        trained = self._session.train(round_, weights)
        self.handicap(round_, time.monotonic() - began)
        return trained

    def handicap(self, round_: int, seconds: float) -> None:
        """Lose time or memory after a training that took `seconds`."""
        raise NotImplementedError


class _Slow(_Handicapped):
    def handicap(self, _: int, seconds: float) -> None:
        time.sleep((FACTOR - 1) * seconds)


class _Pausing(_Handicapped):
    def handicap(self, _: int, seconds: float) -> None:
        time.sleep(max(0.0, PAUSE_S - seconds))


class _Late(_Handicapped):
    def handicap(self, _: int, seconds: float) -> None:
        time.sleep(max(0.0, LATE_S - seconds))


class _Hungry(_Handicapped):
    def handicap(self, round_: int, _: float) -> None:
        held: list[npt.NDArray[np.uint8]] = []
        while round_ == HUNGRY_ROUND:
            held.append(np.ones(_PIECE, dtype=np.uint8))


class SlowWorker(InProcessWorker):
    """Takes `FACTOR` times as long to train."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """See `Worker.open`."""
        with super().open(job) as session:
            yield _Slow(session)


class PausingWorker(InProcessWorker):
    """Takes `PAUSE_S` seconds to train, so that something can happen meanwhile."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """See `Worker.open`."""
        with super().open(job) as session:
            yield _Pausing(session)


class LateWorker(InProcessWorker):
    """Takes `LATE_S` seconds to train: twenty times what a round of the others takes."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """See `Worker.open`."""
        with super().open(job) as session:
            yield _Late(session)


class HungryWorker(InProcessWorker):
    """Takes memory without end in round `HUNGRY_ROUND`."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """See `Worker.open`."""
        with super().open(job) as session:
            yield _Hungry(session)
