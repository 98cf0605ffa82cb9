from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedward_client.approvals import Approvals
from fedward_client.decisions import Decision
from fedward_common.fixed_point import encode_weighted
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_common.wire import read_enrolment, read_refusal, read_update, write_roll_call, write_task
from fedward_simulations.engines.deployed import Connected, Deployed, LoggedProcess
from tests.builders import COHORT, SITES, site_home, small_study
from tests.tiny_worker import CANARY, DIARY

pytestmark = pytest.mark.deployed

WORKER = "tests.tiny_worker:TinyWorker"
STUDY = small_study()
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module", autouse=True)
def _tests_are_importable() -> Iterator[None]:
    """Let daemons, which take nothing from the working directory, find the tests' worker."""
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


def site_that_agrees(folder: Path, name: str, *studies: Study) -> Path:
    """Return a home whose staff has approved `studies` on the tiny worker's cohort."""
    home = site_home(folder, name=name)
    for study in studies:
        at = datetime.now(UTC).isoformat()
        Approvals(home).decide(study, Decision("approved", "test", at, COHORT, "f" * 64))
    return home


class Running:
    """Two sites and what a test wants to know of them."""

    def __init__(self, engine: Deployed, federation: Connected, folder: Path) -> None:
        self.engine = engine
        self.grid, self.context, self.roster = federation
        self.folder = folder

    def ask(self, content: RecordDict, message_type: str, timeout_s: float = 30.0) -> dict[str, RecordDict]:
        """Send `content` to both sites and return their replies' contents by name."""
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
                replies[waiting.pop(reply.metadata.reply_to_message_id)] = reply.content
        return replies

    def refusals(self, how: str, message_type: str = "query") -> set[str | None]:
        """Let both sites' workers do `how` and return what the sites say."""
        study = small_study(description=how)
        for name in SITES:
            site_that_agrees(self.folder, name, study)
        return {read_refusal(reply) for reply in self.ask(write_roll_call(study), message_type).values()}

    def log(self, site: str) -> str:
        return (self.folder / "logs" / f"{site}.log").read_text()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("deployed")
    homes = {name: site_that_agrees(folder, name, STUDY) for name in SITES}
    engine = Deployed(homes, folder / "logs", worker=WORKER)
    with engine as federation:
        yield Running(engine, federation, folder)
    assert not [process for process in engine.processes.values() if alive(process.pid)]


def test_each_site_answers_from_its_own_home(running: Running) -> None:
    replies = running.ask(write_roll_call(STUDY), "query")

    assert {name: read_enrolment(reply).site for name, reply in replies.items()} == {name: name for name in SITES}
    assert {name for name in SITES if (running.folder / name / DIARY).exists()} == set(SITES)
    assert sorted(running.roster.values()) == sorted(SITES)


def test_a_model_goes_there_and_its_change_comes_back(running: Running) -> None:
    weights = initial_weights(STUDY)

    replies = running.ask(write_task(STUDY, 2, weights), "train")

    assert len(replies) == 2
    for reply in replies.values():
        update = read_update(reply, size=weights.size)
        assert update.weight == 3
        assert np.array_equal(update.values, encode_weighted(weights + 2, 3, bound=STUDY.aggregation.update_bound))


def test_exception_text_never_crosses(running: Running) -> None:
    assert running.refusals("open: raise") == {"internal_error"}
    assert CANARY not in "".join(running.log(site) for site in ("north", "south", "superlink"))


def test_child_that_dies_becomes_a_coded_reply_and_the_daemon_lives_on(running: Running) -> None:
    assert running.refusals("open: be killed") == {"task_crashed"}
    assert running.refusals("") == {None}


def test_a_type_that_is_not_on_the_list_is_refused(running: Running) -> None:
    assert running.refusals("", "train.other") == {"message_type_not_allowed"}


def test_keys_are_private(running: Running) -> None:
    for site in SITES:
        assert (running.folder / site / "node.key").stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_was_killed_is_back_without_waiting(running: Running) -> None:
    north = running.engine.processes["north"]
    os.kill(north.pid, signal.SIGKILL)
    command = ["fedward_client.daemon", "--home", str(running.folder / "north"), "--worker", WORKER]
    with LoggedProcess("north-again", command, running.folder / "logs"):
        assert running.refusals("") == {None}
    assert "session_resumed" in running.log("north-again")


SCRIPT = """
import sys
from pathlib import Path
from fedward_common.errors import InstallationError
from fedward_simulations.engines.deployed import Deployed

folder, worker = Path(sys.argv[1]), sys.argv[2]
try:
    with Deployed({"north": folder / "north"}, folder / "logs", worker=worker):
        print("up", flush=True)
        sys.stdin.read()
except InstallationError as error:
    print(error.message, "|", error.remedy, flush=True)
"""


def parent(folder: Path, worker: str) -> subprocess.Popen[str]:
    """Start a process that runs a federation of one site until it is told otherwise."""
    command = [sys.executable, "-c", SCRIPT, str(folder), worker]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_no_process_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    site_that_agrees(tmp_path, "north")
    with parent(tmp_path, WORKER) as process:
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
    site_that_agrees(tmp_path, "north")
    with parent(tmp_path, "no.such.module:Worker") as process:
        told, _ = process.communicate(timeout=120.0)

    assert "these sites do not connect: north" in told
    assert str(tmp_path / "logs") in told
