"""A worker in a forked child for each message: fresh memory, nothing of the daemon's, warmed imports, in a sandbox.

Children are forked from a process that never had the daemon's key or connection (`fedward_client.nursery`). What a
child returns is bytes of fixed meaning and bounded length, never a pickle: what it found, what came of the training,
or a code. The text of an exception stays in the child.

::

    daemon                                child
      order (at the fork) ─────────────▶  sandbox, opens the cohort
      decides, debits  ◀── FACTS or CODE  waits
      round, weights  ─────────────────▶  trains
      encodes, replies ◀── CHANGE or CODE ends

A database's rows are fetched by a child of their own, which may reach that database and trains on nothing; the child
that trains reads them from the site's cache.
"""

from __future__ import annotations

import pickle
import re
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL, SIGSYS
from threading import Event
from typing import Final, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import structlog

from fedward_client.child import LOSS, ROUND, Kind, Order
from fedward_client.limits import GIB, memory_of
from fedward_client.logs import configure_logs
from fedward_client.nursery import Child, Nursery, NurseryLostError
from fedward_client.policy import Resources
from fedward_client.sandbox import EVERY_LAYER, Layer, Reach, Sandbox, needs_fetch, reach_of
from fedward_client.worker import Facts, Job, Session, Trained
from fedward_common.errors import InstallationError, Refusal, RefusalCode

__all__ = ["DEFAULT_WORKER", "WARM", "ChildrenDieError", "Runner", "TaskLimits", "coded", "configure_logs"]

DEFAULT_WORKER: Final = "fedward_client.worker:InProcessWorker"
WARM: Final = "fedward_client.warm"
"""The module that imports everything that training needs."""

_INSTALLED: Final = "fedward_client.sandbox.apply:installed"
_REFERENCE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_CODED: Final = re.compile(r"([a-z_]+)(?: (?:key|limit|asked|round|rule_count)=[\w.+-]{1,64})*", re.ASCII)
_FINGERPRINT_BYTES: Final = 64
_IDENTITY_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_MAX_PATIENTS: Final = 1 << 24
_CODE_BYTES: Final = 1 << 16
_TOO_LONG: Final = "bad message length"  # what `Connection.recv_bytes` raises says no more
_LOOK_S: Final = 0.05
_START_S: Final = 120.0
_TRIES: Final = 3
_KILLS: Final = Path("/proc/vmstat")
_log = structlog.get_logger("fedward.runner")


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What no task may pass, whatever its job's own resources are: `wall_s` seconds from fork to the last answer."""

    wall_s: float = 604_800.0


class ChildrenDieError(InstallationError):
    """Children die before they can say anything; starting the daemon again later may help."""

    code = "children_die"


class Runner:
    """A `Worker` that computes in a child of its own for each session.

    Args:
        worker: ``module:attribute`` of an installed class that makes the `Worker` inside the child; never taken from
            a message.
        limits: what a task may use besides what its job allows it.
        stop: once set, running children are killed.
        preload: the module that is imported once for all children; none is for measuring what that saves.
        layers: of the sandbox, to try; fewer than all are for tests and for measuring.
    """

    def __init__(
        self,
        worker: str = DEFAULT_WORKER,
        limits: TaskLimits | None = None,
        stop: Event | None = None,
        *,
        preload: str | None = WARM,
        layers: Collection[Layer] = EVERY_LAYER,
    ) -> None:
        module = worker.partition(":")[0]
        if not _REFERENCE.fullmatch(worker):
            msg = f"{worker!r} does not name an installed worker"
            raise InstallationError(msg, remedy="write it as module:attribute")
        self._worker = worker
        self._limits = limits or TaskLimits()
        self._stop = stop or Event()
        self._layers = frozenset(layers)
        self._sandbox: Sandbox | None = None
        self.peak = 0
        """The most memory that any child was seen to hold for itself, in bytes."""
        modules = (preload, "fedward_client.child", module, _INSTALLED) if preload else ()
        self._nursery = Nursery(modules, "fedward_client.child:main")

    @property
    def sandbox(self) -> Sandbox:
        """Which layers of the sandbox hold on this computer; starts the runner if nobody has."""
        if self._sandbox is None:
            self.start()
        return self._sandbox or Sandbox()

    def start(self) -> None:
        """Start and warm the nursery, and see that a child of it finds the worker and what its sandbox holds.

        A child that dies on the way, killed or for want of memory, says nothing of the installation: another is tried.

        Raises:
            ChildrenDieError: `_TRIES` children in a row have died, or could not be forked.
            InstallationError: a child does not find the worker.
        """
        started = time.monotonic()
        answer = self._probe(_TRIES)
        if answer[:1] != Kind.SANDBOX:
            msg = f"the task process does not start: {answer[1:].decode('utf-8', 'replace')}"
            raise InstallationError(msg, remedy=f"python -c 'import {self._worker.partition(':')[0]}' shows the cause")
        self._sandbox = Sandbox.model_validate_json(answer[1:])
        seconds = round(time.monotonic() - started, 2)
        _log.info("runner_started", seconds=seconds, worker=self._worker, sandbox=self._sandbox.describe())
        if not self._sandbox.by_kernel:
            remedy = "a kernel with Landlock and seccomp, or a container that does not forbid them"
            _log.warning("sandbox_weak", sandbox=self._sandbox.describe(), remedy=remedy)

    def _probe(self, tries: int) -> bytes:
        """Return what the first child says that lives long enough to."""
        with tempfile.TemporaryDirectory(prefix="fedward-probe-") as folder:
            order = Order("probe", self._worker, Reach(Path(folder), write=(Path(folder),)), self._layers)
            try:
                with self._task(order, _START_S) as task:
                    return task.receive(_CODE_BYTES)
            except (Refusal, NurseryLostError) as error:
                cause = str(error)
        if tries == 1 or self._stop.is_set():
            msg = f"the task process does not start: {cause}"
            raise ChildrenDieError(msg, remedy="is memory short, or does somebody kill it? it is tried again")
        _log.warning("runner_not_started", cause=cause, remedy="it is tried again")
        return self._probe(tries - 1)

    def close(self) -> None:
        """End all children and what they are forked from; another session starts it again."""
        self._nursery.close()

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """Fork a child that opens the job's cohort; it is killed when the context ends. See `Worker.open`.

        Raises:
            LocalDataError: the job's entry names one of the site's own files.
            Refusal: what the child says, or ``task_crashed``, ``task_timed_out``, ``task_out_of_memory``,
                ``task_denied`` (it tried what its sandbox forbids), ``update_out_of_bounds`` (an answer of the wrong
                length); the same for `Session.train`.
        """
        if needs_fetch(job.entry):
            job = replace(job, fetched=self._fetched(job))
        reach = reach_of(job.entry, job.home, gpu=job.resources.gpu_memory_share > 0)
        with self._at_work("serve", job, reach) as task:
            facts = _read_facts(task.receive(1 + _FINGERPRINT_BYTES + _IDENTITY_BYTES * _MAX_PATIENTS))
            yield _ForkedSession(task, facts)

    def _fetched(self, job: Job) -> bytes:
        with self._at_work("fetch", job, reach_of(job.entry, job.home, fetch=True)) as task:
            digest = _body(task.receive(_CODE_BYTES), Kind.SOURCE)
        if len(digest) != _DIGEST_BYTES:
            raise Refusal(RefusalCode.TASK_CRASHED, "the task process: no digest")
        return digest

    @contextmanager
    def _at_work(self, do: Literal["fetch", "serve"], job: Job, reach: Reach) -> Iterator[_Task]:
        order = Order(do, self._worker, reach, frozenset(self.sandbox.holds), job.resources, job)
        try:
            with self._task(order, min(self._limits.wall_s, job.resources.wall_s)) as task:
                yield task
        except NurseryLostError as error:
            raise Refusal(RefusalCode.TASK_CRASHED, str(error)) from None

    @contextmanager
    def _task(self, order: Order, wall_s: float) -> Iterator[_Task]:
        started = time.monotonic()
        child = self._nursery.fork()
        task = _Task(child, self._stop, started + wall_s, order.resources)
        try:
            task.send(pickle.dumps(order))
            yield task
        finally:
            task.close()
            self.peak = max(self.peak, task.peak)
            seconds = round(time.monotonic() - started, 3)
            _log.info("task_done", do=order.do, ending=task.ending, seconds=seconds, peak_mib=task.peak >> 20)


class _Task:
    """A child at work: a thread kills it when it passes its time or its memory, or when the daemon stops."""

    def __init__(self, child: Child, stop: Event, deadline: float, resources: Resources) -> None:
        self._child, self._stop, self._deadline = child, stop, deadline
        self._memory = int(resources.memory_gib * GIB)
        self._kills = _kernel_kills()
        self._over = Event()
        self._verdict: tuple[str, RefusalCode] | None = None
        self.ending = "answered"
        self.peak = 0
        self._watcher = threading.Thread(target=self._watch, name="fedward-task", daemon=True)
        self._watcher.start()

    def send(self, data: bytes) -> None:
        try:
            self._child.pipe.send_bytes(data)
        except OSError:
            self._fail()

    def receive(self, limit: int) -> bytes:
        """Return the child's next answer of at most `limit` bytes."""
        try:
            answer = self._child.pipe.recv_bytes(limit)
        except EOFError:
            self._fail()
        except OSError as error:  # an answer that is too long; else a child that died in its middle, or unheard
            oversized = str(error) == _TOO_LONG
            self._fail(("oversized", RefusalCode.UPDATE_OUT_OF_BOUNDS) if oversized else None)
        self._look()  # a short task may end between two looks of the watcher
        return answer

    def close(self) -> None:
        """End the child, if it has not ended."""
        self._over.set()
        self._watcher.join()
        self._child.close()

    def _watch(self) -> None:
        while self._verdict is None and not self._over.wait(_LOOK_S):
            used = self._look()
            if self._stop.is_set():
                self._verdict = "stopped", RefusalCode.TASK_CRASHED
            elif time.monotonic() > self._deadline:
                self._verdict = "timeout", RefusalCode.TASK_TIMED_OUT
            elif used > self._memory:
                self._verdict = f"more than {self._memory / GIB:g} GiB", RefusalCode.TASK_OUT_OF_MEMORY
        if self._verdict is not None:
            self._child.kill()

    def _look(self) -> int:
        used = memory_of(self._child.status())
        self.peak = max(self.peak, used)
        return used

    def _fail(self, known: tuple[str, RefusalCode] | None = None) -> NoReturn:
        verdict = known or self._verdict
        if verdict is None:
            self._child.kill()
            verdict = _autopsy(self._child.wait(), by_kernel=_kernel_kills() > self._kills)
        self.ending, code = verdict
        raise Refusal(code, f"the task process: {self.ending}") from None


def _autopsy(exit_code: int | None, *, by_kernel: bool) -> tuple[str, RefusalCode]:
    """Return what a child died of that nobody here killed.

    Args:
        exit_code: as `Child.wait` gives it.
        by_kernel: whether the kernel has killed a process for want of memory since the child was born.
    """
    if exit_code == -SIGKILL and by_kernel:
        return "killed: the computer has no memory left", RefusalCode.TASK_OUT_OF_MEMORY
    if exit_code == -SIGSYS:
        return "killed: a forbidden system call", RefusalCode.TASK_DENIED
    return f"exit {exit_code}", RefusalCode.TASK_CRASHED


def _kernel_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started."""
    try:
        lines = _KILLS.read_bytes().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(b"oom_kill ")), 0)


class _ForkedSession:
    """A `Session` whose cohort is open in a child."""

    def __init__(self, task: _Task, facts: Facts) -> None:
        self._task = task
        self.facts = facts

    def train(self, round_: int, weights: npt.NDArray[np.float32]) -> Trained:
        """See `Session.train`."""
        self._task.send(ROUND.pack(round_) + weights.astype(np.float32).tobytes())
        size = 1 + LOSS.size + weights.size * weights.itemsize
        return _read_trained(self._task.receive(max(size, _CODE_BYTES)), size)


def _read_facts(answer: bytes) -> Facts:
    body = _body(answer, Kind.FACTS)
    fingerprint, identities = body[:_FINGERPRINT_BYTES], body[_FINGERPRINT_BYTES:]
    if len(identities) % _IDENTITY_BYTES:
        raise Refusal(RefusalCode.TASK_CRASHED, "the task process: half an identity")
    return Facts(fingerprint.decode("ascii", "replace"), _rows(identities))


def _rows(identities: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(identities, dtype=np.uint8).reshape(-1, _IDENTITY_BYTES)


def _read_trained(answer: bytes, size: int) -> Trained:
    body = _body(answer, Kind.CHANGE)
    if len(answer) != size:
        raise Refusal(RefusalCode.UPDATE_OUT_OF_BOUNDS, "the task process: a change of another length")
    (loss,) = LOSS.unpack_from(body)
    return Trained(np.frombuffer(body, dtype=np.float32, offset=LOSS.size), loss)


def _body(answer: bytes, kind: Kind) -> bytes:
    """Return what follows the kind of an answer.

    Raises:
        Refusal: the child refuses, or answers something else.
    """
    if answer[:1] == kind:
        return answer[1:]
    text = coded(answer[1:].decode("utf-8", "replace") if answer[:1] == Kind.CODE else "")
    code, *pairs = text.split(" ")
    raise Refusal(RefusalCode(code), fields=dict(pair.split("=", 1) for pair in pairs))


def coded(text: str) -> str:
    """Return `text` if it is a refusal code with allow-listed fields, else the code for an internal error.

    This is the last gate before an error leaves the site: whatever produced `text`, no other words pass.
    """
    match = _CODED.fullmatch(text)
    if match and match[1] in set(RefusalCode):
        return text
    return RefusalCode.INTERNAL.value
