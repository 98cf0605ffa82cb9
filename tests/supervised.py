"""``fedward server up`` as a process of its own, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

__all__ = ["Up", "until"]


class Up:
    """``fedward server up`` in `home`, entered once it is ready if that is wanted, ended on leaving."""

    def __init__(self, home: Path, application: str = "fedward_server.application", *, ready: bool = True) -> None:
        self._home = home
        self._application = application
        self._wait = ready
        self._stack = contextlib.ExitStack()
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "fedward_server.studies.supervisor", "--home", str(self._home)]
        command += ["--application", self._application, "--stop-on-eof"]
        log = self._stack.enter_context((self._home.parent / "up.log").open("ab"))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=os.environ, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if self._wait:
            until(lambda: {"event": "ready"} in self.events)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._reader.join(5)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._stack.close()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.events.append(json.loads(line))

    @property
    def console(self) -> str:
        port = next(event["port"] for event in self.events if event.get("process") == "console")
        return f"http://127.0.0.1:{port}"


def until(met: Callable[[], object], seconds: float = 60.0) -> None:
    """Return once `met` says so; how long that takes decides nothing, only that it does not come at all."""
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            pytest.fail("it does not happen")
        time.sleep(0.05)
