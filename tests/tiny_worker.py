"""A worker that imports nothing heavy and misbehaves as the study's description says, for the runner and the daemon.

Its fingerprint is no cohort's; a worker that does not misbehave adds the round to the weights. A description reads
``open: WHAT`` or ``train: WHAT ARGUMENTS``; what it may be, `misbehave` and `tests.break_out` say.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_client.worker import Facts, Job, Session, Trained
from fedward_common.errors import LocalDataError, Refusal, RefusalCode, SchemaMismatchError
from tests.break_out import ATTEMPTS

CANARY = "patient-4711-haemoglobin-9.1"
DIARY = "cache/diary.json"
ERRORS: Mapping[str, Exception] = {
    "raise": ValueError(CANARY),
    "refuse": Refusal(RefusalCode.BUDGET_EXCEEDED, CANARY, fields={"limit": 8}),
    "break the schema": SchemaMismatchError(CANARY, counts={"age": 3, "sex": 1}),
    "miss the table": LocalDataError(CANARY),
}


def misbehave(how: str) -> None:
    """Do to this process what `how` says; nothing for any other word."""
    if how in ERRORS:
        raise ERRORS[how]
    match how.split(" "):
        case ["exit"]:
            os._exit(3)
        case ["be", "killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["hang"]:
            time.sleep(600)
        case ["burn" | "stammer"]:
            (burn if how == "burn" else stammer)()
        case ["grow", mib]:
            grow(int(mib))
        case ["reserve", mib]:  # at once, as address space
            bytearray(int(mib) << 20)
        case ["babble"]:
            os.write(1, CANARY.encode())
            os.write(2, CANARY.encode())
        case [attempt, *arguments] if attempt in ATTEMPTS:
            ATTEMPTS[attempt](*arguments)


def stammer() -> None:
    """Die in the middle of an answer."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    (pipe,) = (int(link.name) for link in links if str(link.readlink()).startswith("socket:"))
    os.write(pipe, struct.pack("!i", 37) + b"C")
    os.kill(os.getpid(), signal.SIGKILL)


def burn() -> None:
    """Compute for ever."""
    while True:
        pass


def grow(mib: int) -> None:
    """Take so much memory, slowly and really."""
    held = []
    for _ in range(mib):
        held.append(bytes(range(256)) * 4096)
        time.sleep(0.001)


def diary() -> dict[str, Any]:
    """Return what this process is."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    umask = os.umask(0o077)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "draw": random.getrandbits(60),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "files": [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()],
        "environment": dict(os.environ),
        "umask": umask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": sorted(os.sched_getaffinity(0)),
        "largest_file": resource.getrlimit(resource.RLIMIT_FSIZE),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "status": status,
        "modules": sorted(sys.modules),
    }


class TinyWorker:
    """A `Worker` whose cohort has three patients."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """Note in the home's cache what this process is, and misbehave if told so."""
        when, _, how = job.study.description.partition(": ")
        (job.home / DIARY).write_text(json.dumps(diary()))
        if when == "open":
            misbehave(how)
        yield TinySession(how if when == "train" else "")


class TinySession:
    """A `Session` that does what it was told."""

    def __init__(self, how: str) -> None:
        self._how = how
        self.facts = Facts("f" * 64, np.arange(48, dtype=np.uint8).reshape(3, 16))

    def train(self, round_: int, weights: npt.NDArray[np.float32]) -> Trained:
        """Return the weights plus the round, unless told to do worse."""
        misbehave(self._how)
        if self._how == "boast":
            return Trained(np.zeros(10**6, dtype=np.float32), 0.5)
        if self._how == "shrink":
            return Trained(weights[1:], 0.5)
        return Trained(weights + np.float32(round_), 0.5)
