"""Flower as its own manual deploys it, on loopback: `flower-superlink`, two `flower-supernode` and `flwr run`.

Of what Flower offers, the faster is taken each time: no TLS, no node keys, the state in memory, and no installation of
dependencies. Each task runs in a process of its own (isolation ``subprocess``), which is the default.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from fedward_common.errors import InstallationError
from fedward_simulations.bench import stock_job
from fedward_simulations.ports import free_ports

__all__ = ["run_stock"]

_START_S: Final = 60.0
_ROUND_S: Final = 60.0
_SPARE_S: Final = 120.0
_KILLED_S: Final = 30.0
_MARK: Final = "FEDWARD_BENCH"
_PYPROJECT: Final = """\
[project]
name = "stock-job"
version = "1.0.0"
description = "A small job for a comparison."
license = {{text = "Apache-2.0"}}
dependencies = []

[tool.flwr.app]
publisher = "fedward"

[tool.flwr.app.components]
serverapp = "stock_job:server_app"
clientapp = "stock_job:client_app"

[tool.flwr.app.config]
{config}
"""
_CONNECTION: Final = """\
[superlink]
default = "bench"

[superlink.bench]
address = "{address}"
insecure = true
"""


def run_stock(folder: Path, sites: Sequence[str], config: Mapping[str, str | int | float | bool]) -> list[float]:
    """Run `stock_job` and return when its rounds ended, in monotonic seconds; the first entry is the start.

    Everything that was started has ended on return, and would end by itself after the time that the job may take.

    Args:
        folder: an empty folder; the processes' logs stay in it.
        sites: names, one SuperNode each.
        config: the job's run config; ``rounds`` and ``tables`` among it.

    Raises:
        InstallationError: a process does not come up, or the rounds do not end in a minute each; names the logs.
    """
    rounds, marks = int(config["rounds"]), folder / "marks"
    limit = _START_S * 2 + rounds * _ROUND_S
    app = folder / "app"
    app.mkdir()
    shutil.copy(stock_job.__file__, app / "stock_job.py")
    values = {**config, "marks": str(marks)}
    lines = "\n".join(f"{key} = {_toml(value)}" for key, value in values.items())
    (app / "pyproject.toml").write_text(_PYPROJECT.format(config=lines), encoding="utf-8")
    address, *ports = (f"127.0.0.1:{port}" for port in free_ports(1 + len(sites)))
    (folder / "config.toml").write_text(_CONNECTION.format(address=address), encoding="utf-8")
    with _Processes(folder, limit + _SPARE_S) as processes:
        host, _, port = address.rpartition(":")
        quick = ["--insecure", "--disable-runtime-dependency-installation"]
        processes.start("superlink", ["flower-superlink", *quick, "--host", host, "--port", port])
        processes.await_port(address)
        for site, runtime in zip(sites, ports, strict=True):
            host, _, port = runtime.rpartition(":")
            place = ["--superlink", address, "--host", host, "--port", port, "--node-config", f'site="{site}"']
            processes.start(site, ["flower-supernode", "--insecure", *place])
        processes.run("run", ["flwr", "run", str(app), "bench"])
        return processes.await_marks(marks, rounds + 1, limit)


def _toml(value: str | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


class _Processes:
    """Processes of Flower's that log into a folder, with all that they start, ended on leaving.

    Args:
        folder: for the logs, and Flower's own home.
        limit_s: seconds after which each ends in any case, also if this process is gone.
        stop_s: seconds that they get to stop by themselves on leaving.
    """

    def __init__(self, folder: Path, limit_s: float, *, stop_s: float = 10.0) -> None:
        self._folder = folder
        self._limit_s = limit_s
        self._stop_s = stop_s
        self._mark = uuid.uuid4().hex
        self._running: list[subprocess.Popen[bytes]] = []
        self._timeout = shutil.which("timeout") or ""
        if not self._timeout:
            msg = "the command timeout is missing"
            raise InstallationError(msg, remedy="install GNU coreutils")
        tools = str(Path(sys.executable).parent)
        self._environment = {
            **os.environ,
            _MARK: self._mark,
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask all to stop, and end by force what does not, also what has left for a session of its own."""
        for process in reversed(self._running):
            process.terminate()
        deadline = time.monotonic() + self._stop_s
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        while time.monotonic() < deadline and any(_marked(self._mark)):
            time.sleep(0.1)
        self._kill_all()
        for process in self._running:
            process.wait()

    def _kill_all(self) -> None:
        """Kill what is left and what it may have started meanwhile; return once the kernel has ended all of it."""
        until = time.monotonic() + _KILLED_S
        while (left := list(_marked(self._mark))) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process; ``timeout`` ends it should nobody else."""
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [self._timeout, "--kill-after=5", str(round(self._limit_s)), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def run(self, name: str, command: Sequence[str]) -> None:
        """Run a process to its end.

        Raises:
            InstallationError: it fails.
        """
        if self.start(name, command).wait(_START_S * 2):
            raise self._failed(name)

    def await_port(self, address: str) -> None:
        """Return once somebody listens at host:port."""
        host, _, port = address.rpartition(":")
        for _ in self._looks(_START_S):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
                return
        raise self._failed()

    def await_marks(self, marks: Path, count: int, limit_s: float) -> list[float]:
        """Return the times in a file once there are so many."""
        for _ in self._looks(limit_s):
            lines = marks.read_text(encoding="ascii").splitlines(keepends=True) if marks.exists() else []
            if len(lines) >= count and lines[count - 1].endswith("\n"):
                return [float(line) for line in lines[:count]]
        raise self._failed()

    def _looks(self, limit_s: float) -> Iterator[None]:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and not any(process.poll() for process in self._running):
            yield
            time.sleep(0.1)

    def _failed(self, name: str = "superlink") -> InstallationError:
        log = self._folder / f"{name}.log"
        end = log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else ""
        msg = f"stock Flower does not run the job\n{end}"
        return InstallationError(msg, remedy=f"read the logs in {self._folder}")


def _marked(mark: str) -> Iterator[int]:
    """Yield the processes whose environment carries `mark`: ours, and what they started."""
    wanted = f"{_MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
