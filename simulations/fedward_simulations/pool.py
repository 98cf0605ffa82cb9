"""Warm worker processes: forked from a server process that has everything slow imported and nothing computed.

The fork server starts before the simulation has read its configuration, so its imports run beside the main
process's own; the main process never imports torch.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import forkserver
from typing import Any, ParamSpec, Self, TypeVar

__all__ = ["WorkerLostError", "WorkerPool", "prewarm", "prewarm_for"]

P = ParamSpec("P")
T = TypeVar("T")

_Task = tuple[Callable[[], Any], "Future[Any]"]

_PRELOADED = ["fedward_client.app", "fedward_client.trainer"]

WorkerLostError = BrokenProcessPool
"""What a future holds whose worker died."""


def prewarm_for(arguments: Sequence[str]) -> None:
    """Start the fork server for ``fedward simulate ARGUMENTS``, if its engine uses one; a wrong guess costs time."""
    own_processes = {"engine=deployed", "engine=ray", "--help"}
    if not own_processes & set(arguments):
        prewarm()


def prewarm() -> None:
    """Start the fork server, once for this process; returns at once, the imports go on behind."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


class WorkerPool:
    """A few processes that take tasks in order; one that dies costs its own task only and is replaced.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        prewarm()
        self._workers = [_Worker(self._next) for _ in range(workers)]
        self._idle = list(self._workers)
        self._queue: deque[_Task] = deque()
        self._lock = threading.Lock()

    def submit(self, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Return the task's future; it holds `WorkerLostError` if the process dies."""
        future: Future[T] = Future()
        with self._lock:
            self._queue.append((partial(task, *args, **kwargs), future))
            worker = self._idle.pop() if self._idle else None
        if worker is not None:
            self._next(worker)
        return future

    def _next(self, worker: _Worker) -> None:
        """Give a free worker the next task that nobody has cancelled, or let it rest."""
        while True:
            with self._lock:
                if not self._queue:
                    self._idle.append(worker)
                    return
                work, future = self._queue.popleft()
            if future.set_running_or_notify_cancel():
                worker.run(work, future)
                return

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the workers without waiting for tasks that have not begun."""
        with self._lock:
            waiting, self._queue = self._queue, deque()
        for _work, future in waiting:
            future.cancel()
        for worker in self._workers:
            worker.stop()


class _Worker:
    """One process, with an executor of its own: an executor that loses a process fails all that it holds."""

    def __init__(self, free: Callable[[_Worker], None]) -> None:
        self._free = free
        self._executor = _new_executor()

    def run(self, work: Callable[[], Any], future: Future[Any]) -> None:
        """Start one task; once `future` is done the worker is free again."""
        try:
            inner = self._executor.submit(work)
        except BrokenProcessPool:  # it died idle
            self._executor.shutdown(wait=False)
            self._executor = _new_executor()
            inner = self._executor.submit(work)
        inner.add_done_callback(lambda done: self._ended(done, future))

    def _ended(self, inner: Future[Any], future: Future[Any]) -> None:
        error = inner.exception()
        if isinstance(error, BrokenProcessPool):  # this thread may hold the old executor's lock: leave it be
            self._executor = _new_executor()
        try:
            self._free(self)
        finally:
            if error is None:
                future.set_result(inner.result())
            else:
                future.set_exception(error)

    def stop(self) -> None:
        """Let a running task end, then the process."""
        self._executor.shutdown(wait=True)


def _new_executor() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"), initializer=_settle)


def _settle() -> None:
    """Leave Ctrl-C to the main process, which ends the run in order."""
    import signal  # noqa: PLC0415  (runs in the worker)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
