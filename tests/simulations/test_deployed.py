from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedward_simulations.engines.deployed import Connected, Deployed, LoggedProcess
from tests.tiny_app import CANARY

pytestmark = pytest.mark.deployed

APP = "tests.tiny_app:app"
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module", autouse=True)
def _tests_are_importable() -> Iterator[None]:
    """Let daemons, which take nothing from the working directory, find the tests' ClientApp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ROOT)
        yield


def status(pid: int) -> tuple[str, int]:
    """Return a process's state letter and its parent, or ("", 0) if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return fields[0], int(fields[1])


def alive(pid: int) -> bool:
    return status(pid)[0] not in {"", "Z"}


def descendants(pid: int) -> list[int]:
    parents = {int(entry.name): status(int(entry.name))[1] for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


class Running:
    """Two sites and what a test wants to know of them."""

    def __init__(self, engine: Deployed, federation: Connected, folder: Path) -> None:
        self.engine = engine
        self.grid, self.context, self.roster = federation
        self.folder = folder

    def ask(self, content: RecordDict, message_type: str, timeout_s: float = 30.0) -> dict[str, Message]:
        """Send `content` to both sites and return their replies by name."""
        waiting = dict(
            zip(
                self.grid.push_messages([Message(content, node, message_type, ttl=60) for node in self.roster]),
                self.roster.values(),
                strict=True,
            )
        )
        replies = {}
        deadline = time.monotonic() + timeout_s
        while waiting and time.monotonic() < deadline:
            for reply in self.grid.pull_messages(list(waiting)):
                replies[waiting.pop(reply.metadata.reply_to_message_id)] = reply
        return replies

    def log(self, site: str) -> str:
        return (self.folder / "logs" / f"{site}.log").read_text()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("deployed")
    homes = {name: folder / name for name in ("north", "south")}
    engine = Deployed(homes, folder / "logs", app=APP)
    with engine as federation:
        yield Running(engine, federation, folder)
    assert not [process for process in engine.processes.values() if alive(process.pid)]


def test_each_site_answers_from_its_own_home(running: Running) -> None:
    replies = running.ask(RecordDict(), "query.hello")

    homes = {name: reply.content.config_records["hello"]["home"] for name, reply in replies.items()}
    assert homes == {name: str(running.folder / name) for name in ("north", "south")}
    assert sorted(running.roster.values()) == ["north", "south"]


def test_arrays_go_there_and_back(running: Running) -> None:
    values = np.arange(50_000, dtype=np.int64)
    content = RecordDict({"model": ArrayRecord({"values": Array(values)})})

    replies = running.ask(content, "train")

    assert len(replies) == 2
    for reply in replies.values():
        assert np.array_equal(values + 1, reply.content.array_records["model"]["values"].numpy())


def test_exception_text_never_crosses(running: Running) -> None:
    replies = running.ask(RecordDict({"how": ConfigRecord({"how": "raise"})}), "query")

    assert {reply.error.reason for reply in replies.values()} == {"internal_error"}
    assert CANARY not in "".join(running.log(site) for site in ("north", "south", "superlink"))


def test_child_that_dies_becomes_a_coded_reply_and_the_daemon_lives_on(running: Running) -> None:
    replies = running.ask(RecordDict({"how": ConfigRecord({"how": "be killed"})}), "query")

    assert {reply.error.reason for reply in replies.values()} == {"task_crashed"}
    assert len(running.ask(RecordDict(), "query.hello")) == 2


def test_a_type_that_is_not_on_the_list_is_refused(running: Running) -> None:
    replies = running.ask(RecordDict(), "train.other")

    assert {reply.error.reason for reply in replies.values()} == {"message_type_not_allowed"}


def test_keys_are_private(running: Running) -> None:
    for site in ("north", "south"):
        assert (running.folder / site / "node.key").stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_was_killed_is_back_without_waiting(running: Running) -> None:
    north = running.engine.processes["north"]
    os.kill(north.pid, signal.SIGKILL)
    command = ["fedward_client.daemon", "--home", str(running.folder / "north"), "--app", APP]
    with LoggedProcess("north-again", command, running.folder / "logs"):
        replies = running.ask(RecordDict(), "query.hello")
        assert len(replies) == 2
        assert all(reply.has_content() for reply in replies.values())
    assert "session_resumed" in running.log("north-again")


SCRIPT = """
import sys
from pathlib import Path
from fedward_common.errors import InstallationError
from fedward_simulations.engines.deployed import Deployed

folder, app = Path(sys.argv[1]), sys.argv[2]
try:
    with Deployed({"north": folder / "north"}, folder / "logs", app=app):
        print("up", flush=True)
        sys.stdin.read()
except InstallationError as error:
    print(error.message, "|", error.remedy, flush=True)
"""


def parent(folder: Path, app: str) -> subprocess.Popen[str]:
    """Start a process that runs a federation of one site until it is told otherwise."""
    command = [sys.executable, "-c", SCRIPT, str(folder), app]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_no_process_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    with parent(tmp_path, APP) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        children = descendants(process.pid)
        assert len(children) >= 3  # SuperLink, daemon, fork server
        process.send_signal(how)
        deadline = time.monotonic() + 15.0
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.1)

    assert not [child for child in children if alive(child)]


def test_a_daemon_that_cannot_start_is_an_error_that_names_it(tmp_path: Path) -> None:
    with parent(tmp_path, "no.such.module:app") as process:
        told, _ = process.communicate(timeout=120.0)

    assert "these sites do not connect: north" in told
    assert str(tmp_path / "logs") in told
