"""The workers: what a task costs when its process dies, and what it does not."""

from __future__ import annotations

import operator
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from fedward_simulations.pool import WorkerLostError, WorkerPool

PATIENCE_S = 60


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as workers:
        yield workers


def outcome(future: Future[Any]) -> Any:
    """Return a future's result, or its error."""
    error = future.exception(timeout=PATIENCE_S)
    return future.result() if error is None else error


def test_tasks_run_elsewhere_and_come_back_in_any_number(pool: WorkerPool) -> None:
    tasks = [pool.submit(pow, 2, n) for n in range(50)]
    assert [outcome(task) for task in tasks] == [2**n for n in range(50)]
    pids = {outcome(pool.submit(os.getpid)) for _ in range(20)}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_keyword_arguments_arrive(pool: WorkerPool) -> None:
    assert outcome(pool.submit(int, "ff", base=16)) == 255


def test_an_error_of_a_task_is_the_tasks_and_the_worker_lives(pool: WorkerPool) -> None:
    assert isinstance(outcome(pool.submit(operator.truediv, 1, 0)), ZeroDivisionError)
    assert outcome(pool.submit(operator.truediv, 1, 2)) == 0.5


def test_a_task_that_cannot_be_sent_is_an_error(pool: WorkerPool) -> None:
    assert outcome(pool.submit(lambda: 1)) is not None  # a lambda has no name in the other process
    assert outcome(pool.submit(abs, -1)) == 1


def test_a_process_that_is_killed_costs_its_own_task_only(pool: WorkerPool) -> None:
    before = [pool.submit(time.sleep, 0.2)]
    killed = pool.submit(signal.raise_signal, signal.SIGKILL)
    after = [pool.submit(abs, n) for n in range(6)]
    assert isinstance(outcome(killed), WorkerLostError)
    assert [outcome(task) for task in before] == [None]
    assert [outcome(task) for task in after] == list(range(6))


def test_every_task_may_kill_its_process_and_the_next_one_still_runs(pool: WorkerPool) -> None:
    deaths = [pool.submit(signal.raise_signal, signal.SIGKILL) for _ in range(4)]
    assert all(isinstance(outcome(task), WorkerLostError) for task in deaths)
    assert outcome(pool.submit(abs, -7)) == 7


def test_a_process_that_dies_idle_is_replaced() -> None:
    with WorkerPool(1) as alone:
        pid = outcome(alone.submit(os.getpid))
        os.kill(pid, signal.SIGKILL)
        found = outcome(alone.submit(os.getpid))
        if isinstance(found, WorkerLostError):  # its death was not noticed yet when the task was given to it
            found = outcome(alone.submit(os.getpid))
        assert found not in {pid, os.getpid()}


def test_ctrl_c_is_left_to_the_main_process(pool: WorkerPool) -> None:
    handler = outcome(pool.submit(signal.getsignal, signal.SIGINT))
    assert handler == signal.SIG_IGN


def test_leaving_waits_for_what_runs_and_cancels_what_has_not_begun() -> None:
    with WorkerPool(1) as alone:
        outcome(alone.submit(abs, 1))
        running = alone.submit(time.sleep, 0.3)
        waiting = [alone.submit(abs, n) for n in range(3)]
    assert running.done()
    assert running.exception() is None
    assert all(task.cancelled() for task in waiting)
    with pytest.raises(CancelledError):
        waiting[0].result()


def test_a_cancelled_task_is_skipped() -> None:
    with WorkerPool(1) as alone:
        alone.submit(time.sleep, 0.3)
        cancelled, last = alone.submit(abs, 1), alone.submit(abs, 2)
        assert cancelled.cancel()
        assert outcome(last) == 2
