"""A whole installation on loopback: a centre with its roster, its hospitals' daemons, and the process of one run.

Everything is what `fedward server init`, `fedward client enroll` and the daemons make, on free ports.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from fedward_client.enrolment import enroll
from fedward_client.runner import DEFAULT_WORKER
from fedward_common.study import Study
from fedward_common.study_file import StudyFile
from fedward_server.centre import create_centre, invitation, load_centre
from fedward_server.checkpoint import write_atomically
from fedward_simulations.engines.deployed import LoggedProcess
from fedward_simulations.ports import free_ports

__all__ = ["Installation"]


class Installation:
    """A centre and its enrolled hospitals, running while its context lasts.

    Args:
        folder: an empty folder.
        homes: the hospitals' folders, by name; each has its policy, its cohort and its approvals.
        environment: what ``superlink``, ``application`` or a hospital's daemon finds in its environment besides ours.
    """

    def __init__(
        self,
        folder: Path,
        homes: Mapping[str, Path],
        environment: Callable[[str], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._environment = environment
        self.home, self.logs = folder / "centre", folder / "logs"
        self._homes = dict(homes)
        self._stack = contextlib.ExitStack()
        self._current: dict[str, contextlib.ExitStack] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.logs.mkdir(parents=True)
            now = dt.datetime.now(dt.UTC)
            public, private = free_ports(2)
            create_centre(self.home, "127.0.0.1", public, now, bind="127.0.0.1", private_port=private)
            settings = self.home / "superlink.json"
            settings.write_text(json.dumps({**json.loads(settings.read_text()), "enrolments_per_minute": 1000}))
            stack.callback(self._stop_all)
            self.start_superlink()
            for site, home in tuple(self._homes.items()):
                self.join(site, home)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_superlink(self) -> LoggedProcess:
        """Start the launcher, again if it ended, and return it once its requests are answered."""
        process = self._start("superlink", ["fedward_server.superlink", "--config", str(self.home / "superlink.json")])
        process.await_event("ready")
        return process

    def join(self, site: str, home: Path) -> LoggedProcess:
        """Let a hospital be invited and enrolled, and start its daemon."""
        self._homes[site] = home
        now = dt.datetime.now(dt.UTC)
        enroll(home, invitation(load_centre(self.home), site, now), now)
        return self.start_site(site)

    def start_site(self, site: str) -> LoggedProcess:
        """Start a hospital's daemon, again if it ended."""
        command = ["fedward_client.daemon", "--home", str(self._homes[site].resolve()), "--worker", DEFAULT_WORKER]
        return self._start(site, command)

    def stop(self, name: str) -> None:
        """End ``superlink``, ``application`` or a hospital's daemon."""
        self._current.pop(name).close()

    def submit(self, study: Study, hold_out: Path | None = None) -> Path:
        """Return the folder of a new run of `study`."""
        runs = self.home / "runs"
        runs.mkdir(exist_ok=True)
        folder = runs / f"{len(list(runs.iterdir())):04d}-{study.digest[:12]}"
        folder.mkdir()
        (folder / "study.json").write_bytes(StudyFile(study, ()).dump())
        settings = {"hold_out": str(hold_out) if hold_out else None}
        write_atomically(folder / "run.json", json.dumps(settings).encode())
        return folder

    def start_application(self, folder: Path) -> LoggedProcess:
        """Start the process of a run, again if it ended."""
        command = ["fedward_server.application", "--home", str(self.home), "--run", str(folder)]
        return self._start("application", command)

    def _start(self, name: str, command: list[str]) -> LoggedProcess:
        if name in self._current:
            self.stop(name)
        stack = self._current[name] = contextlib.ExitStack()
        return stack.enter_context(LoggedProcess(name, command, self.logs, self._environment(name)))

    def _stop_all(self) -> None:
        for stack in self._current.values():
            stack.close()
