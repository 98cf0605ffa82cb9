"""What a forked child does: put its sandbox on, open the cohort, tell what was found, train if told to.

All that it says is bytes of a fixed meaning (`Kind`), never a pickle. What it is told is a pickle, from the daemon
alone. Text that a library prints goes nowhere, and the text of an exception stays here: both may quote a patient.
"""

from __future__ import annotations

import errno
import importlib
import os
import pickle
import random
import signal
import struct
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Literal, TextIO, cast

import numpy as np
import structlog

from fedward_client.limits import hold_to, out_of_memory, share_gpu
from fedward_client.logs import configure_logs, where
from fedward_client.policy import Resources
from fedward_client.sandbox import EVERY_LAYER, Layer, Reach, enter
from fedward_client.sandbox.linux import PR_SET_PDEATHSIG, prctl
from fedward_client.worker import Job, Worker, fetch
from fedward_common.errors import FedwardError, RefusalCode, refusal_of

__all__ = ["LOSS", "ROUND", "Kind", "Order", "load_worker", "main"]

ROUND: Final = struct.Struct("<q")
LOSS: Final = struct.Struct("<d")
_FORBIDDEN: Final = frozenset({errno.EPERM, errno.EACCES, errno.EROFS, errno.EXDEV, errno.ENETUNREACH, errno.ENETDOWN})
_log = structlog.get_logger("fedward.child")


class Kind(bytes, Enum):
    """The first byte of what a child says."""

    SANDBOX = b"S"
    BROKEN = b"B"
    SOURCE = b"D"
    FACTS = b"F"
    CHANGE = b"C"
    CODE = b"R"


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is told to do.

    Attributes:
        do: ``probe`` the sandbox and the worker, ``fetch`` a database's rows into the cache, or ``serve`` a job.
        worker: ``module:attribute`` of the worker's class.
        reach: what it may touch.
        layers: of the sandbox; each must hold, but for a probe, which finds out.
        resources: what it may use.
        job: for ``fetch`` and ``serve``.
    """

    do: Literal["probe", "fetch", "serve"]
    worker: str
    reach: Reach
    layers: frozenset[Layer] = EVERY_LAYER
    resources: Resources = field(default_factory=Resources)
    job: Job | None = None


def main(handle: int) -> None:
    """Do what the order on the pipe with this descriptor says; the child's whole life."""
    parent = os.getppid()
    with Connection(handle) as pipe:
        try:
            order = cast("Order", pickle.loads(pipe.recv_bytes()))  # noqa: S301  (from the daemon that forked us)
        except EOFError:
            return
        _settle(order)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return  # the nursery ended meanwhile
        match order:
            case Order(do="probe"):
                _probe(pipe, order)
            case Order(job=Job() as job):
                _work(pipe, order, job)


def load_worker(reference: str) -> Worker:
    """Return a new worker of the class that ``module:attribute`` names.

    Raises:
        ImportError: there is no such module.
        AttributeError: it has no such attribute.
        TypeError: that makes no worker.
    """
    module, _, attribute = reference.partition(":")
    made: Worker = getattr(importlib.import_module(module), attribute)()
    if not callable(getattr(made, "open", None)):
        msg = f"{reference} makes no worker"
        raise TypeError(msg)
    return made


def _probe(pipe: Connection, order: Order) -> None:
    try:
        load_worker(order.worker)
        answer = Kind.SANDBOX + enter(order.reach, order.layers, strict=False).model_dump_json().encode()
    except (ImportError, AttributeError, TypeError, OSError) as error:
        answer = Kind.BROKEN + f"{type(error).__name__}: {error}".encode()
    pipe.send_bytes(answer)


def _work(pipe: Connection, order: Order, job: Job) -> None:
    try:
        worker = load_worker(order.worker)
        enter(order.reach, order.layers, strict=True)
        if order.do == "fetch":
            pipe.send_bytes(Kind.SOURCE + fetch(job))
        else:
            share_gpu(order.resources.gpu_memory_share)
            _serve(pipe, worker, job)
    except EOFError:
        return  # the site decided against training
    except FedwardError as error:
        refusal = refusal_of(error)
        _log.warning("task_refused", code=refusal.reason.value, cause=refusal.message, remedy=refusal.remedy)
        pipe.send_bytes(Kind.CODE + refusal.crossing().encode())
    except Exception as error:  # noqa: BLE001  (an error of any kind becomes a code; its text stays in this process)
        code = _code_of(error)
        _log.error("task_failed", code=code.value, **where(error))
        pipe.send_bytes(Kind.CODE + code.value.encode())


def _serve(pipe: Connection, worker: Worker, job: Job) -> None:
    with worker.open(job) as session:
        facts = session.facts
        pipe.send_bytes(Kind.FACTS + facts.fingerprint.encode("ascii") + facts.identities.tobytes())
        order = pipe.recv_bytes()
        weights = np.frombuffer(order, dtype=np.float32, offset=ROUND.size)
        trained = session.train(ROUND.unpack_from(order)[0], weights)
    pipe.send_bytes(Kind.CHANGE + LOSS.pack(trained.loss) + trained.change.astype(np.float32).tobytes())


def _code_of(error: Exception) -> RefusalCode:
    if out_of_memory(error):
        return RefusalCode.TASK_OUT_OF_MEMORY
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in _FORBIDDEN):
        return RefusalCode.TASK_DENIED
    return RefusalCode.INTERNAL


def _settle(order: Order) -> None:
    """Make the fork its own: silent, bounded, the first to go when memory runs out, its random state its own."""
    configure_logs(_mute())
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(b"1000")
    hold_to(order.resources)
    os.environ.update(order.reach.variables)
    if order.reach.write:
        os.environ["TMPDIR"] = tempfile.tempdir = str(order.reach.write[0])
    random.seed(os.urandom(16))
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4)))
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8)) >> 1)


def _mute() -> TextIO:
    """Turn standard error to nowhere, as standard output is already, and return the stream that our log goes to."""
    log = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return log
