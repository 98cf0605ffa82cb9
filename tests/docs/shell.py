"""Runs the commands of one page as its reader would: in order, in one directory, with one environment."""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

# Directory and variables outlive a command through a file; functions and unexported options do not.
_SCRIPT = """\
trap '{{ export -p; printf "cd %q\\n" "$PWD"; }} > {state}' EXIT
if [ -s {state} ]; then . {state}; fi
set -aeo pipefail
{command}
"""


class Shell:
    """A reader's shell in an empty home, with the environment under test first on PATH.

    Leaving the context ends every process that the page left in the background.
    """

    def __init__(self, home: Path, *, cache: Path) -> None:
        self._home = home / "home"
        self._work = self._home / "work"
        self._work.mkdir(parents=True)
        self._state = home / "state.sh"
        self._groups: list[int] = []
        self._environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"} | {
            "COLUMNS": "110",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "HOME": str(self._home),
            "NO_COLOR": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "TERM": "dumb",
            "XDG_CACHE_HOME": str(cache),  # shared by the pages: building a font cache takes seconds
        }

    def run(self, command: str, *, timeout_s: float) -> tuple[int, str]:
        """Run one command; return its exit status (negative: the signal that ended it) and what it printed.

        A command that outlives `timeout_s` is killed with all that it started. A process that it leaves in
        the background goes on.
        """
        script = _SCRIPT.format(state=shlex.quote(str(self._state)), command=command)
        # A file: a pipe would stay open as long as a background process.
        printed = self._state.with_suffix(".out")
        with printed.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self._work,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._groups.append(process.pid)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            status = process.wait()
        return status, printed.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in self._groups:
            _kill_group(group)


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
