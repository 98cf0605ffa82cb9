"""Warm worker processes: forked from a server process that has everything slow imported and nothing computed.

The fork server starts before the simulation has read its configuration, so its imports run beside the main
process's own; the main process never imports torch.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import ParamSpec, Self, TypeVar

__all__ = ["WorkerLostError", "WorkerPool", "prewarm"]

P = ParamSpec("P")
T = TypeVar("T")

_PLAIN = ["fedward_client.app", "fedward_client.trainer"]
_PRIVATE = ["opacus.grad_sample", "dp_accounting.pld.privacy_loss_distribution"]

WorkerLostError = BrokenProcessPool
"""What a future holds whose worker died."""


def prewarm(*, private: bool) -> None:
    """Start the fork server, once for this process; returns at once, the imports go on behind.

    Args:
        private: also import what differential privacy needs (four seconds).
    """
    multiprocessing.set_forkserver_preload([*_PLAIN, *(_PRIVATE if private else [])])
    forkserver.ensure_running()


class WorkerPool:
    """A few processes that take tasks; a process that dies costs its tasks and is replaced.

    Args:
        workers: how many.
        private: see `prewarm`.
    """

    def __init__(self, workers: int, *, private: bool) -> None:
        prewarm(private=private)
        self._workers = workers
        self._executor = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers, mp_context=multiprocessing.get_context("forkserver"), initializer=_settle
        )

    def submit(self, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Return the task's future; it holds `WorkerLostError` if the process dies."""
        try:
            return self._executor.submit(task, *args, **kwargs)
        except BrokenProcessPool:
            self._executor.shutdown(wait=False)
            self._executor = self._new()
            return self._executor.submit(task, *args, **kwargs)

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the workers without waiting for tasks that have not begun."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _settle() -> None:
    """Leave Ctrl-C to the main process, which ends the run in order."""
    import signal  # noqa: PLC0415  (runs in the worker)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
