"""Kills a process at one point after another of a debit, and says what it had been told before it died.

``python -m tests.client.crash_child FOLDER FIRST STEP``: for k = FIRST, FIRST + STEP, … a child works in ``FOLDER/k``
and is killed (SIGKILL) before the k-th line of ledger, log and their files that it would run; the child that lives to
the end is the last one. Each folder's ``told`` holds what had returned by then. Nothing in the code under test knows.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

from fedward_client.budget import Budget
from tests.client.ledger_cases import granted, released, reserved

WATCHED = {"audit.py", "budget.py", "ledger.py", "ledger_file.py", "files.py", "signing.py"}


def work(home: Path, told: int) -> None:
    """Open an account, debit two rounds and let one of them out; note each step once it has returned."""
    budget = Budget(home)
    granted(budget)
    os.write(told, b"granted 0\n")
    for round_ in (1, 2):
        reserved(budget, round_)
        os.write(told, b"reserved %d\n" % round_)
    released(budget, 1)
    os.write(told, b"released 1\n")


def killed_at(point: int, watched: Collection[str] = WATCHED) -> Any:
    """Return a tracer that kills this process before the `point`-th line of Fedward's files with these names."""
    left = point

    def tracer(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        name = frame.f_code.co_filename.rpartition("/")[2]
        if name not in watched or "fedward" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return tracer

    return tracer


def run(folder: Path, point: int) -> bool:
    """Return whether a child that is killed at `point` lived to the end."""
    home = folder / str(point)
    home.mkdir()
    child = os.fork()
    if child == 0:
        told = os.open(home / "told", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        sys.settrace(killed_at(point))
        work(home, told)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"the child at {point} failed by itself")
    return os.WIFEXITED(status)


def main() -> None:
    """Run until a child lives to the end; print how many there were."""
    folder, point, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    (folder / "warm").mkdir()
    work(folder / "warm", os.open(os.devnull, os.O_WRONLY))  # imports, once for all children
    count = 1
    while not run(folder, point):
        point += step
        count += 1
    sys.stdout.write(f"{count}\n")


if __name__ == "__main__":
    main()
