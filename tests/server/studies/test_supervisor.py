"""The supervisor with real processes: launcher, interface, and doubles of a run's process."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from fedward_common.audit_words import CENTRE
from fedward_server.studies.centre_log import centre_log
from fedward_server.studies.supervisor import read_state, supervised
from tests.studies_centre import StudiesCentre

pytestmark = pytest.mark.deployed
ROOT = Path(__file__).parents[3]
SITES = ("east", "north", "south", "west")


class Up:
    """``fedward server up`` in `home`, entered once it is ready if that is wanted, ended on leaving."""

    def __init__(self, home: Path, *, ready: bool = True) -> None:
        self._home = home
        self._wait = ready
        self._stack = contextlib.ExitStack()
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "fedward_server.studies.supervisor", "--home", str(self._home)]
        command += ["--application", "tests.double_application", "--stop-on-eof"]
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


@pytest.fixture
def centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StudiesCentre]:
    others = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{others}{os.pathsep}{ROOT}" if others else str(ROOT))
    made = StudiesCentre(tmp_path / "centre", SITES)
    path = made.home / "superlink.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"public_port": 0, "private_port": 0}))
    yield made
    until(lambda: not supervised(made.home))


def submit(centre: StudiesCentre, name: str, *sites: str) -> str:
    study_file = centre.signed(name=name, sites=list(sites or ("north", "south")))
    return centre.book.submit(study_file, "ann", dt.datetime.now(dt.UTC)).id


def state(centre: StudiesCentre, id_: str) -> str:
    return centre.book.entry(id_).state


def starts(centre: StudiesCentre, id_: str) -> list[int]:
    """Return the processes that a run has had."""
    path = centre.book.folder(id_) / "starts"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_studies_go_through_the_queue_to_their_ends(centre: StudiesCentre) -> None:
    ids = {name: submit(centre, name) for name in ("quick", "faulty", "mortal")}
    with Up(centre.home) as up:
        until(lambda: not any(entry.live for entry in centre.book.entries()))
        ends = {name: state(centre, id_) for name, id_ in ids.items()}
        answer = httpx.get(f"{up.console}/api/v1/health", trust_env=False)

    assert ends == {"quick": "completed", "faulty": "failed", "mortal": "completed"}
    assert centre.book.entry(ids["faulty"]).reason == "the hold-out has no column age; remedy: give another file"
    assert len(starts(centre, ids["mortal"])) == 3
    assert (answer.status_code, up.process.returncode) == (200, 0)
    log = centre_log(centre.home)
    events = [entry.event for entry in log.entries()]
    assert log.verify() == []
    assert (events[0], events[-1]) == ("centre started", "centre stopped")
    assert (events.count("run ended"), events.count("run restarted")) == (3, 2)
    assert set(events) <= CENTRE.events


def test_a_second_one_is_refused_and_the_first_goes_on(centre: StudiesCentre) -> None:
    with Up(centre.home) as up:
        command = [sys.executable, "-m", "fedward_server.studies.supervisor", "--home", str(centre.home)]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

        assert second.returncode == 2
        assert "is up already" in second.stderr
        assert up.process.poll() is None
        assert supervised(centre.home)
        found = read_state(centre.home)
        assert found is not None
        assert found["pid"] == up.process.pid
        assert set(found["services"]) == {"console", "launcher"}
    assert read_state(centre.home) is None


def test_what_ran_goes_on_after_a_stop_and_after_a_kill(centre: StudiesCentre) -> None:
    id_ = submit(centre, "patient")
    with Up(centre.home):
        until(lambda: len(starts(centre, id_)) == 1 and state(centre, id_) == "running")
    assert state(centre, id_) == "queued"
    assert "next start" in (centre.book.entry(id_).reason or "")

    with Up(centre.home) as up:
        until(lambda: len(starts(centre, id_)) == 2 and state(centre, id_) == "running")
        up.process.kill()
        up.process.wait()
    assert state(centre, id_) == "running"  # nobody was left to note it, and nobody answers

    with Up(centre.home):
        until(lambda: len(starts(centre, id_)) == 3 and state(centre, id_) == "running")
        centre.book.wish(id_, "stop", "olga", dt.datetime.now(dt.UTC))
        until(lambda: state(centre, id_) == "interrupted")
    assert centre.book.entry(id_).reason == "stopped by the operator"
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and _is_double(pid) for pid in starts(centre, id_))


def _is_double(pid: int) -> bool:
    return b"double_application" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("name", ["launcher", "console"])
def test_a_service_that_is_killed_comes_back_and_no_run_ends(centre: StudiesCentre, name: str) -> None:
    id_ = submit(centre, "patient")
    with Up(centre.home):
        until(lambda: state(centre, id_) == "running" and starts(centre, id_))
        before = read_state(centre.home)
        assert before is not None
        os.kill(before["services"][name]["pid"], signal.SIGKILL)

        def back() -> bool:
            now = read_state(centre.home) or before
            service = now["services"][name]
            return bool(service["ready"]) and service["pid"] != before["services"][name]["pid"]

        until(back)
        after = read_state(centre.home)
        assert after is not None
        assert "signal 9" in after["services"][name]["last_error"]
        assert state(centre, id_) == "running"
        assert len(starts(centre, id_)) == 1


def test_wrong_settings_of_the_launcher_end_it_with_code_2(centre: StudiesCentre) -> None:
    (centre.home / "secret").write_bytes(b"short")
    with Up(centre.home, ready=False) as up:
        until(lambda: up.process.poll() is not None)

    assert up.process.returncode == 2
    assert "shorter than 32 bytes" in (centre.home.parent / "up.log").read_text()
