"""The engine `deployed`: a SuperLink and one hospital daemon for each site, as real processes on loopback over TLS.

Everything that a real installation has is real here, except that the authority, the keys and the hosts are thrown
away afterwards. No process outlives this one: each holds the other end of a pipe that closes with us.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import yaml
from flwr.app import Context

from fedward_client.runner import DEFAULT_WORKER
from fedward_common.certificates import (
    ServerCertificate,
    create_authority,
    create_node_key,
    issue_server_certificate,
    public_key_bytes,
    write_private,
)
from fedward_common.errors import InstallationError
from fedward_server.grid_flower_adapter import CoordinatorGrid
from fedward_server.superlink_client import Bundle, SuperLinkClient, code_free_bundle

__all__ = ["Connected", "Deployed", "LoggedProcess", "SuperLinkProcess", "write_home"]

_START_S: Final = 60.0
_STOP_S: Final = 5.0
_HEARTBEAT_S: Final = 10.0

Connected = tuple[CoordinatorGrid, Context, dict[int, str]]
"""The grid, the ServerApp's context, and the site's name for each node id."""


class Deployed:
    """A federation of real processes, as a context manager that yields what is `Connected`.

    Args:
        homes: each site's name and its home folder. ``connection.yaml``, ``ca.pem`` and ``node.key`` are written
            into it, over what a former federation left there.
        logs: folder for one log file of each process; created if need be.
        app: the installed ClientApp that daemons run.
        bundle: what the run ships; the daemons pin the code-free one in any case.
        heartbeat_s: between signs of life; a site without one for twice as long is away, and its round fails at once.
        workers: other workers than `worker`, by site.
        detour: where a site connects to instead, given its name and the SuperLink's host:port.
        environment: what a site's daemon, or ``superlink``, finds in its environment besides ours, by its name.

    Inside the ``with`` this process is the ServerApp. On leaving, also by Ctrl-C or an exception, the run is reported
    and all processes end: SIGTERM, and after 5 s SIGKILL.

    Raises:
        InstallationError: a process does not come up within a minute; the message names its log.
    """

    def __init__(  # noqa: PLR0913  (what a federation can be made of, by name)
        self,
        homes: Mapping[str, Path],
        logs: Path,
        *,
        worker: str = DEFAULT_WORKER,
        bundle: Bundle | None = None,
        heartbeat_s: float = _HEARTBEAT_S,
        workers: Mapping[str, str] | None = None,
        detour: Callable[[str, str], str] = lambda _, address: address,
        environment: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._homes = {name: Path(home).resolve() for name, home in homes.items()}
        self._logs = logs
        self._worker = worker
        self._bundle = bundle or code_free_bundle()
        self._heartbeat_s = heartbeat_s
        self._workers = dict(workers or {})
        self._detour, self._environment = detour, environment
        self._stack = contextlib.ExitStack()
        self.processes: dict[str, LoggedProcess] = {}

    def __enter__(self) -> Connected:
        with contextlib.ExitStack() as stack:
            federation = self._open(stack)
            self._stack = stack.pop_all()
        return federation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _open(self, stack: contextlib.ExitStack) -> Connected:
        superlink = stack.enter_context(SuperLinkProcess(self._logs, self._environment("superlink")))
        self.superlink = superlink
        keys = {
            name: write_home(home, superlink, self._heartbeat_s, self._detour(name, superlink.public_address))
            for name, home in self._homes.items()
        }
        for name in self._homes:
            self.processes[name] = stack.enter_context(self.daemon(name))
        stack.callback(self._ask_all_to_stop)
        superlink.await_ready()
        client = superlink.client
        roster = {client.register(key, name): name for name, key in keys.items()}
        grid, context = stack.enter_context(client.session(client.start_run(self._bundle)))
        self._await_sites(grid, roster)
        return grid, context, roster

    def daemon(self, name: str) -> LoggedProcess:
        """Return the daemon of a site, not yet started."""
        worker = self._workers.get(name, self._worker)
        command = ["fedward_client.daemon", "--home", str(self._homes[name]), "--worker", worker]
        return LoggedProcess(name, command, self._logs, self._environment(name))

    def _ask_all_to_stop(self) -> None:
        """Let all daemons stop at the same time; waiting for each comes later."""
        for process in self.processes.values():
            process.ask_to_stop()

    def _await_sites(self, grid: CoordinatorGrid, roster: Mapping[int, str]) -> None:
        deadline = time.monotonic() + _START_S
        while missing := {roster[node] for node in set(roster) - set(grid.get_node_ids())}:
            ended = {name for name in missing if self.processes[name].ended}
            if ended or time.monotonic() > deadline:
                msg = f"these sites do not connect: {', '.join(sorted(ended or missing))}"
                raise InstallationError(msg, remedy=f"read their logs in {self._logs}")
            time.sleep(0.05)


class LoggedProcess:
    """A Python module run as a process of its own session, logging to ``logs/<name>.log``, ended on leaving.

    Its standard input is a pipe that closes when this process ends, however it ends; it stops then.
    """

    def __init__(self, name: str, command: list[str], logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self._name, self._more = name, dict(environment or {})
        # -P: no module is taken from the working directory.
        self._command = [sys.executable, "-P", "-m", *command, "--stop-on-eof"]
        self._log = logs / f"{name}.log"
        self._stack = contextlib.ExitStack()
        self._events: dict[str, dict[str, int]] = {}
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        log = self._stack.enter_context(self._log.open("ab"))
        environment = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1", **self._more}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    @property
    def pid(self) -> int:
        """The process's number, which is that of its session as well."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int | None:
        """What it ended with, a signal as a negative number; None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send SIGTERM and return at once."""
        self._process.terminate()

    def __exit__(self, *_: object) -> None:
        process = self._process
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()
            self._reader.join(1.0)
            if process.stdout is not None:
                process.stdout.close()
            self._stack.close()

    def await_event(self, name: str) -> dict[str, int]:
        """Return the fields of the JSON line ``{"event": name, …}`` on standard output, once it is there.

        Raises:
            InstallationError: it does not come within a minute, or the process ends first.
        """
        deadline = time.monotonic() + _START_S
        with self._changed:
            while name not in self._events:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    msg = f"{self._name} does not start"
                    raise InstallationError(msg, remedy=f"read {self._log}")
                self._changed.wait(0.1)
            return self._events[name]

    def _read(self, stream: IO[bytes] | None) -> None:
        for line in stream or ():
            with contextlib.suppress(ValueError), self._changed:
                event = json.loads(line)
                self._events[event.pop("event")] = event
                self._changed.notify_all()


class SuperLinkProcess:
    """A SuperLink of its own on free loopback ports, with a throw-away authority, ended on leaving.

    Entered, its ports are known and connections queue up; `await_ready` returns when they are answered.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self._logs, self._environment = logs, environment
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._logs.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedward-superlink-")))
            now = dt.datetime.now(dt.UTC)
            authority = create_authority(now, days=1)
            secret = _write_superlink(folder, issue_server_certificate(authority, now, days=1))
            command = ["fedward_server.superlink", "--config", str(folder / "superlink.json")]
            self.process = stack.enter_context(LoggedProcess("superlink", command, self._logs, self._environment))
            ports = self.process.await_event("bound")
            self.ca_pem = authority.certificate_pem()
            self.public_address = f"127.0.0.1:{ports['public_port']}"
            self.client = SuperLinkClient(f"127.0.0.1:{ports['private_port']}", secret)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def await_ready(self) -> None:
        """Return once requests are answered.

        Raises:
            InstallationError: they are not within a minute.
        """
        self.process.await_event("ready")


def _write_superlink(folder: Path, certificate: ServerCertificate) -> bytes:
    """Write what the SuperLink reads and return the secret that it shares with the coordinator."""
    secret = secrets.token_bytes(32)
    (folder / "server.pem").write_bytes(certificate.certificate_pem)
    write_private(folder / "server.key", certificate.key_pem)
    write_private(folder / "secret", secret)
    settings = {
        "database": "state.db",
        "certificate": "server.pem",
        "certificate_key": "server.key",
        "secret": "secret",
    }
    (folder / "superlink.json").write_text(json.dumps(settings), encoding="ascii")
    return secret


def write_home(home: Path, superlink: SuperLinkProcess, heartbeat_s: float = _HEARTBEAT_S, address: str = "") -> bytes:
    """Write a site's connection into its home folder and return the public key that it is known by.

    Args:
        home: the folder.
        superlink: whom it trusts.
        heartbeat_s: between signs of life.
        address: where it connects to, if not to the SuperLink's own address.
    """
    home.mkdir(parents=True, exist_ok=True)
    for name in ("node.key", "node_id"):
        (home / name).unlink(missing_ok=True)
    key = create_node_key(home / "node.key")
    (home / "ca.pem").write_bytes(superlink.ca_pem)
    connection = {
        "superlink": address or superlink.public_address,
        "ca": "ca.pem",
        "node_key": "node.key",
        "bundle_sha256": code_free_bundle().sha256,
        "heartbeat_s": heartbeat_s,
    }
    (home / "connection.yaml").write_text(yaml.safe_dump(connection), encoding="utf-8")
    return public_key_bytes(key)
