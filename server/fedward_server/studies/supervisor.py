"""``fedward server up``: one process that keeps the launcher, the interface and each study's process alive.

Run as ``python -m fedward_server.studies.supervisor --home CENTRE``. Lines of JSON on standard output report the ports
and then that everything is up. SIGTERM stops the processes and ends no run: what was running goes on with the next
start. Whatever ends the supervisor, its processes end with it: each holds the other end of a pipe.

Two locks keep two supervisors apart: ``up.lock`` is held by the supervisor, ``processes.lock`` by it and each of its
processes, so that a successor waits for the last process of one that was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import fcntl
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from fedward_common.errors import FedwardError, InstallationError, TransportError
from fedward_common.files import replace_file
from fedward_common.logs import log_json_lines
from fedward_common.notify import Watchdog
from fedward_server.centre import load_centre
from fedward_server.studies.book import StudyBook, StudyEntry
from fedward_server.studies.centre_log import note
from fedward_server.studies.children import Child
from fedward_server.studies.restarts import AGAIN, Failures, judge
from fedward_server.studies.runs import Process, Runs

__all__ = ["Supervisor", "main", "read_state", "supervised"]

STATE: Final = "supervisor.json"
_LOOK_S: Final = 0.25
_PROMISE_S: Final = 30.0
_PREDECESSOR_S: Final = 30.0
_RUN_STOP_S: Final = 15.0
_SERVICE_STOP_S: Final = 8.0
_MISCONFIGURED: Final = 2
_APPLICATION: Final = "fedward_server.application"
_log = structlog.get_logger()


@dataclass
class _Service:
    """A process that is there as long as the supervisor."""

    name: str
    command: list[str]
    child: Child | None = None
    since: str = ""
    began: float = 0.0
    ready: bool = False
    failures: Failures = field(default_factory=Failures)
    not_before: float = 0.0
    last_error: str = ""


class Supervisor:
    """The supervisor of the centre in `home`.

    Args:
        home: the centre's folder.
        application: module that is the process of one run.
        watchdog: of the service manager.
    """

    def __init__(self, home: Path, *, application: str = _APPLICATION, watchdog: Watchdog | None = None) -> None:
        config = load_centre(home)
        self._home, self._application = home.resolve(), application
        self._watchdog = watchdog or Watchdog.from_environment(os.environ)
        self._book = StudyBook(home)
        self._runs = Runs(
            self._book, self._run, at_once=config.runs_at_once, share_sites=config.share_sites, note=self._noted
        )
        config_file = str(self._home / "superlink.json")
        self._launcher = _Service("launcher", ["fedward_server.superlink", "--config", config_file])
        self._console = _Service("console", ["fedward_server.studies.serve", "--home", str(self._home)])
        self._stopping = threading.Event()
        self._keep: int | None = None
        self._written: dict[str, Any] = {}
        self._began = _stamp()
        self._reported = False

    def stop(self, *_: object) -> None:
        """Let `run` return soon."""
        self._stopping.set()

    def run(self) -> int:
        """Keep everything alive until `stop`; return the exit code: 0, or 2 where the launcher's settings are wrong.

        Raises:
            InstallationError: another supervisor is at work here.
            Refusal: the centre's log of decisions is not whole.
        """
        with _locks(self._home) as self._keep, self._watchdog.watching():
            self._watchdog.allow(_PROMISE_S)
            note(self._home, "centre started")
            self._runs.recover("the centre was restarted")
            code = 0
            try:
                while not self._stopping.is_set() and not code:
                    code = self._step()
                    self._stopping.wait(_LOOK_S)
            finally:
                self._watchdog.notifier.stopping()
                self._end_all()
            note(self._home, "centre stopped")
        return code

    def _step(self) -> int:
        for service in (self._launcher, self._console):
            if not self._tend(service):
                return _MISCONFIGURED
        try:
            self._runs.step(admit=self._launcher.ready)
            self._publish()
        except (FedwardError, OSError, sqlite3.Error) as error:  # a full disk ends no run
            _log.error("step_failed", kind=type(error).__name__, error=str(error))
        self._watchdog.allow(_PROMISE_S)
        return 0

    def _tend(self, service: _Service) -> bool:
        """Start a service that is not there; return False where that cannot help."""
        if service.child is not None and (code := service.child.poll()) is not None:
            service.child.close()
            service.child, service.ready = None, False
            verdict = judge(code, time.monotonic() - service.began, service.failures)
            service.last_error = verdict.reason
            note(self._home, "process restarted", person="", detail=f"{service.name}: {verdict.reason}")
            if code == _MISCONFIGURED:
                return False
            wait = verdict.wait_s if verdict.wait_s is not None else _PROMISE_S
            service.failures, service.not_before = verdict.failures, time.monotonic() + wait
            _log.warning("process_ended", process=service.name, reason=verdict.reason)
        if service.child is None and time.monotonic() >= service.not_before:
            service.began, service.since = time.monotonic(), _stamp()
            service.child = Child(service.command, lambda event: self._heard(service, event), keep=self._keep)
        return True

    def _heard(self, service: _Service, event: dict[str, Any]) -> None:
        """Pass on what a service says of its ports; called in a thread of its own."""
        if event["event"] == "ready":
            service.ready = True
        else:
            _say(event | ({"process": service.name} if service is self._console else {}))

    def _run(self, folder: Path) -> Process:
        command = [self._application, "--home", str(self._home), "--run", str(folder)]
        return Child(command, lambda _: None, log=folder / "process.log", keep=self._keep)

    def _noted(self, event: str, entry: StudyEntry, detail: str) -> None:
        note(self._home, event, person="", run=entry.id, study=entry.digest, detail=detail, code=entry.state)
        _log.info(event.replace(" ", "_"), run=entry.id, study=entry.name, state=entry.state, detail=detail)

    def _publish(self) -> None:
        """Write down what is alive, where that is news."""
        services = {
            service.name: {
                "pid": service.child.pid if service.child else None,
                "since": service.since,
                "ready": service.ready,
                "last_error": service.last_error,
            }
            for service in (self._launcher, self._console)
        }
        runs = {id_: process.pid for id_, process in self._runs.processes.items() if isinstance(process, Child)}
        state = {"pid": os.getpid(), "since": self._began, "services": services, "runs": runs}
        if state != self._written:
            replace_file(self._home / STATE, json.dumps(state, indent=1).encode())
            self._written = state
        if self._launcher.ready and self._console.ready:
            self._watchdog.notifier.ready(f"{len(runs)} runs have a process")
            if not self._reported:
                self._reported = True
                _say({"event": "ready"})

    def _end_all(self) -> None:
        """Stop the runs' processes while the launcher is still there, then the services."""
        children = [process for process in self._runs.processes.values() if isinstance(process, Child)]
        for services in (children, [s.child for s in (self._console, self._launcher) if s.child is not None]):
            patience = _RUN_STOP_S if services is children else _SERVICE_STOP_S
            for child in services:
                child.ask_to_stop()
            until = time.monotonic() + patience
            for child in services:
                child.end(max(0.0, until - time.monotonic()))
        self._runs.leave("the centre was stopped; it goes on with the next start")
        (self._home / STATE).unlink(missing_ok=True)


@contextlib.contextmanager
def _locks(home: Path) -> Iterator[int]:
    """Hold both locks; yield the file descriptor that processes inherit.

    Raises:
        InstallationError: another supervisor holds the first.
        TransportError: processes of a killed one do not end in half a minute.
    """
    with (home / "up.lock").open("ab") as mine, (home / "processes.lock").open("ab") as theirs:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"the centre in {home} is up already"
            raise InstallationError(
                msg, remedy="fedward server status shows what runs; fedward server down stops it"
            ) from None
        until = time.monotonic() + _PREDECESSOR_S
        while True:
            try:
                fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    msg = "processes of a supervisor that was killed do not end"
                    raise TransportError(msg, remedy=f"fuser {home / 'processes.lock'} shows them") from None
                time.sleep(_LOOK_S)
        yield theirs.fileno()


def supervised(home: Path) -> bool:
    """Return whether a supervisor is at work in `home`."""
    try:
        with (home / "up.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_state(home: Path) -> dict[str, Any] | None:
    """Return what the supervisor in `home` has written down of its processes; None where none is at work."""
    if not supervised(home):
        return None
    try:
        state: dict[str, Any] = json.loads((home / STATE).read_bytes())
    except (OSError, ValueError):
        return {"pid": None, "since": "", "services": {}, "runs": {}}
    return state


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _stamp() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def main(arguments: list[str] | None = None) -> int:
    """Run the supervisor until it is told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedward_server.studies.supervisor", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the centre's folder")
    parser.add_argument("--application", default=_APPLICATION, help="module that is the process of one run")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    log_json_lines()
    try:
        supervisor = Supervisor(options.home, application=options.application)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, supervisor.stop)
        if options.stop_on_eof:
            from fedward_server.superlink import stop_when_input_closes  # noqa: PLC0415

            stop_when_input_closes(60.0)
        return supervisor.run()
    except FedwardError as error:
        sys.stderr.write(error.diagnostics() + "\n")
        return AGAIN if isinstance(error, TransportError) else _MISCONFIGURED


if __name__ == "__main__":
    sys.exit(main())
