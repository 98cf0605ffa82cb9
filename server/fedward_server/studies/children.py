"""Processes of the supervisor: each ends when the supervisor does, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

__all__ = ["Child", "Tell", "last_words"]

Tell = Callable[[dict[str, Any]], None]
_TAIL_BYTES: Final = 4096


class Child:
    """A Python module as a process, told to stop when standard input closes (``--stop-on-eof``).

    Args:
        command: the module and its arguments.
        tell: called in a thread with each line of standard output that is a JSON object with an ``event``.
        log: file that gets standard error; None: that of this process.
        keep: file descriptor that the process inherits and never uses: a lock that holds as long as it lives.
    """

    def __init__(self, command: Sequence[str], tell: Tell, *, log: Path | None = None, keep: int | None = None) -> None:
        self._log = log
        self._start = log.stat().st_size if log and log.exists() else 0
        environment: Mapping[str, str] = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"}
        with contextlib.ExitStack() as stack:
            error = stack.enter_context(open(log, "ab", opener=_private)) if log else None
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", *command, "--stop-on-eof"],  # -P: nothing from the working directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error,
                env=environment,
                start_new_session=True,  # Ctrl-C is the supervisor's, which stops its children in order
                pass_fds=() if keep is None else (keep,),
            )
        self._reader = threading.Thread(target=_read, args=(self._process.stdout, tell), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return what it ended with, a signal as a negative number; None while it lives."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send SIGTERM and return at once."""
        self._process.terminate()

    def end(self, patience_s: float) -> int:
        """Wait for its end, which was asked for; kill it and whatever it started after so many seconds."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self.close()
        return self._process.returncode

    def kill(self) -> None:
        """End it, and what it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Let go of the pipes of a process that has ended."""
        self._reader.join(1.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def last_words(self) -> str:
        """Return what it wrote last in plain words on standard error; empty where it has no log of its own."""
        if self._log is None:
            return ""
        with self._log.open("rb") as file:
            file.seek(max(self._start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return last_words(file.read().decode("utf-8", "replace"))


def last_words(text: str) -> str:
    """Return the plain lines that stand last in a log, as one line; lines of JSON are no words for a person."""
    lines: list[str] = []
    for line in reversed(text.splitlines()):
        if not line.strip() or line.startswith("{"):
            if lines:
                break
            continue
        lines.insert(0, line.strip())
    return "; ".join(lines)


def _read(stream: IO[bytes] | None, tell: Tell) -> None:
    for line in stream or ():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                tell(event)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
