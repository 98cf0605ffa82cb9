"""A child tells its events, leaves its last words, inherits a lock and ends with whoever started it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedward_server.studies.children import Child, last_words

ROOT = Path(__file__).parents[3]

CHILD = """
import json, os, signal, sys, threading
from fedward_server.superlink import stop_when_input_closes
what = sys.argv[1]
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
stop_when_input_closes(0.2)
print("no JSON"); print("[1]"); print(json.dumps({"event": "ready", "port": 7}), flush=True)
if what == "faulty":
    sys.stderr.write('the port is taken\\n  remedy: another\\n')
    sys.exit(2)
threading.Event().wait(60)
"""

SUPERVISOR = """
import os, sys, threading
from fedward_server.studies.children import Child
ready = threading.Event()
child = Child(["tiny_child", "patient"], lambda event: ready.set())
ready.wait(60)
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on the children's path that has the module `tiny_child`."""
    (tmp_path / "tiny_child.py").write_text(CHILD)
    others = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{others}" if others else str(tmp_path))
    return tmp_path


class Ear:
    """Hears a child's events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.ready = threading.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.ready.set()


@pytest.mark.usefixtures("path")
def test_events_are_told_and_nothing_else() -> None:
    ear = Ear()
    child = Child(["tiny_child", "patient"], ear)
    assert ear.ready.wait(60)
    child.ask_to_stop()

    assert child.end(30.0) == -signal.SIGTERM
    assert ear.events == [{"event": "ready", "port": 7}]


def test_what_it_says_last_is_kept_in_a_private_file(path: Path) -> None:
    log = path / "process.log"
    log.write_text("words of an earlier process\n")
    log.chmod(0o600)
    child = Child(["tiny_child", "faulty"], Ear(), log=log)

    assert child.end(60.0) == 2
    assert child.last_words() == "the port is taken; remedy: another"
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("path")
def test_who_does_not_hear_is_killed() -> None:
    ear = Ear()
    child = Child(["tiny_child", "deaf"], ear)
    assert ear.ready.wait(60)
    child.ask_to_stop()

    assert child.end(0.1) == -signal.SIGKILL


def test_a_lock_that_it_inherits_holds_until_it_ends(path: Path) -> None:
    ear = Ear()
    with (path / "lock").open("ab") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        child = Child(["tiny_child", "patient"], ear, keep=mine.fileno())
        assert ear.ready.wait(60)
    with (path / "lock").open("ab") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
        child.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.usefixtures("path")
def test_no_child_outlives_a_supervisor_that_is_killed() -> None:
    told = subprocess.run([sys.executable, "-c", SUPERVISOR], capture_output=True, text=True, check=False)
    pid = int(told.stdout)

    assert told.returncode == -signal.SIGKILL
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        threading.Event().wait(0.05)
        state = Path(f"/proc/{pid}/stat").read_text() if Path(f"/proc/{pid}").exists() else ") Z"
        if state.rpartition(")")[2].split()[0] == "Z":
            return
    pytest.fail("the child still lives after half a minute")


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ('{"event": "x"}\n', ""),
        ('{"event": "x"}\nno such file\n  remedy: make one\n', "no such file; remedy: make one"),
        ('old words\n{"event": "x"}\nnew words\n{"event": "y"}\n\n', "new words"),
    ],
)
def test_last_words_are_the_plain_lines_at_the_end(log: str, words: str) -> None:
    assert last_words(log) == words
