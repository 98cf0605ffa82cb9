from __future__ import annotations

import datetime as dt
import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

import pytest
import yaml
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from fedward_client.daemon import (
    REFUSED,
    ConnectionSettings,
    Daemon,
    StopRequested,
    load_connection,
    main,
    pause_s,
)
from fedward_client.flower_adapter import (
    Doorbell,
    FleetConnection,
    Incoming,
)
from fedward_client.runner import Outcome, Runner
from fedward_common.certificates import create_authority, create_node_key
from fedward_common.errors import InstallationError
from fedward_common.flower_adapter import detached_message
from fedward_server.superlink_client import Bundle, code_free_bundle
from fedward_simulations.engines.deployed import SuperLinkProcess, write_home
from tests.tiny_app import CANARY

NODE = 7
PINNED = "a" * 64


CONTENT = RecordDict({"question": ConfigRecord({"text": "x" * 1000})})


# ------------------------------------------------------------------------------- deciding, with a connection's double


@dataclass
class Fleet:
    """A fleet connection of one message, which notes what is asked of it."""

    message: Message
    bundle: str = PINNED
    doorbell: Doorbell = field(default_factory=lambda: Doorbell(0))
    node_id: int = NODE
    calls: list[str] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)

    def fetch(self, incoming: Incoming) -> Message:
        self.calls.append("fetch")
        return incoming.head

    def bundle_sha256(self, _: int) -> str:
        self.calls.append("bundle")
        return self.bundle

    def reply(self, message: Message, _: float) -> None:
        self.calls.append("reply")
        self.replies.append(message)


@dataclass
class Tasks:
    """A runner that runs nothing and returns what it was made with."""

    outcome: Outcome = field(default_factory=lambda: Outcome(RecordDict(), None, 0.1))
    seen: list[tuple[Message, Context]] = field(default_factory=list)

    def run(self, message: Message, context: Context, _: threading.Event) -> Outcome:
        self.seen.append((message, context))
        return self.outcome


def answer(fleet: Fleet, tasks: Tasks, home: Path = Path("/nowhere")) -> Message:
    """Let a daemon answer the fleet's one message."""
    settings = ConnectionSettings("127.0.0.1:1", home / "ca", home / "key", PINNED)
    daemon = Daemon(home, settings, cast("Runner", tasks), threading.Event())
    daemon._answer(cast("FleetConnection", fleet), Incoming(fleet.message, ObjectTree()))
    return fleet.replies[-1]


def task(message_type: str = "train", source: int = 1, target: int = NODE) -> Message:
    return detached_message(RecordDict(), source=source, target=target, message_type=message_type)


def reason(reply: Message) -> str:
    assert reply.has_error()
    assert reply.error.code == REFUSED
    return str(reply.error.reason)


def test_an_admitted_message_runs_in_the_site_s_home() -> None:
    fleet, tasks = Fleet(task()), Tasks()

    reply = answer(fleet, tasks, Path("/srv/site"))

    assert reply.has_content()
    assert fleet.calls == ["bundle", "fetch", "reply"]
    assert tasks.seen[0][1].node_config == {"fedward-home": "/srv/site"}


@pytest.mark.parametrize("message_type", ["evaluate", "train.other", "query.shell", "system"])
def test_another_type_of_message_is_refused_before_anything_is_fetched(message_type: str) -> None:
    fleet, tasks = Fleet(task(message_type)), Tasks()

    assert reason(answer(fleet, tasks)) == "message_type_not_allowed"
    assert fleet.calls == ["reply"]
    assert not tasks.seen


@pytest.mark.parametrize(("source", "target"), [(2, NODE), (NODE, NODE), (1, NODE + 1), (1, 1)])
def test_a_message_on_another_route_is_refused(source: int, target: int) -> None:
    fleet, tasks = Fleet(task(source=source, target=target)), Tasks()

    assert reason(answer(fleet, tasks)) == "message_invalid"
    assert fleet.calls == ["reply"]


@pytest.mark.parametrize("bundle", ["", "b" * 64, PINNED[:-1], PINNED.upper()])
def test_a_run_with_another_bundle_is_refused_before_its_message_is_fetched(bundle: str) -> None:
    fleet, tasks = Fleet(task(), bundle), Tasks()

    assert reason(answer(fleet, tasks)) == "bundle_not_pinned"
    assert fleet.calls == ["bundle", "reply"]
    assert not tasks.seen


def test_a_bundle_is_hashed_once_for_a_run_and_a_refused_one_every_time() -> None:
    settings = ConnectionSettings("127.0.0.1:1", Path("ca"), Path("key"), PINNED)
    daemon = Daemon(Path("/nowhere"), settings, cast("Runner", Tasks()), threading.Event())
    fleet = Fleet(task(), "b" * 64)
    for bundle in ("b" * 64, PINNED, "b" * 64):
        fleet.bundle = bundle
        daemon._answer(cast("FleetConnection", fleet), Incoming(fleet.message, ObjectTree()))

    assert [reply.has_error() for reply in fleet.replies] == [True, False, False]
    assert fleet.calls.count("bundle") == 2


def test_a_refusal_of_the_task_is_passed_on_as_a_code() -> None:
    tasks = Tasks(Outcome(None, "budget_exceeded limit=8", 0.1))

    assert reason(answer(Fleet(task()), tasks)) == "budget_exceeded limit=8"


def test_exception_text_never_crosses_even_if_the_runner_were_wrong() -> None:
    assert reason(answer(Fleet(task()), Tasks(Outcome(None, CANARY, 0.1)))) == "internal_error"


@pytest.mark.parametrize(("idle", "expected"), [(0.0, 0.05), (1.0, 0.05), (10.0, 0.5), (60.0, 3.0), (1e6, 3.0)])
def test_the_pause_is_a_twentieth_of_the_idle_time(idle: float, expected: float) -> None:
    assert pause_s(idle) == pytest.approx(expected)


def test_a_stop_interrupts_the_wait_and_nothing_else() -> None:
    stop = threading.Event()
    settings = ConnectionSettings("127.0.0.1:1", Path("ca"), Path("key"), PINNED)
    daemon = Daemon(Path("/nowhere"), settings, cast("Runner", Tasks()), stop)

    daemon.request_stop()
    assert stop.is_set()
    daemon._waiting = True
    with pytest.raises(StopRequested):
        daemon.request_stop()


# ------------------------------------------------------------------------------------------------ connection.yaml


def write_settings(home: Path, **changes: object) -> Path:
    raw: dict[str, object] = {"superlink": "a:1", "ca": "ca.pem", "node_key": "node.key", "bundle_sha256": PINNED}
    raw |= changes
    text = yaml.safe_dump({key: value for key, value in raw.items() if value is not None})
    (home / "connection.yaml").write_text(text)
    return home


def test_files_are_relative_to_the_home(tmp_path: Path) -> None:
    settings = load_connection(write_settings(tmp_path, heartbeat_s=12.0))

    assert settings == ConnectionSettings("a:1", tmp_path / "ca.pem", tmp_path / "node.key", PINNED, heartbeat_s=12.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"ca": None}, "'ca'"), ({"sperlink": "a:1"}, "'sperlink'"), ({"bundle_sha256": "abc"}, "bundle_sha256")],
)
def test_a_missing_unknown_or_malformed_key_is_named(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    with pytest.raises(InstallationError, match=named):
        load_connection(write_settings(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "- a", "{", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "connection.yaml").write_text(text)

    with pytest.raises(InstallationError):
        load_connection(tmp_path)


def test_a_daemon_without_settings_does_not_start(tmp_path: Path) -> None:
    assert main(["--home", str(tmp_path)]) == 2


def test_a_daemon_without_a_key_does_not_start(tmp_path: Path) -> None:
    home = write_settings(tmp_path)
    daemon = Daemon(home, load_connection(home), cast("Runner", Tasks()), threading.Event())

    with pytest.raises(InstallationError, match="private key"):
        daemon.serve()


def test_a_daemon_without_an_authority_does_not_start(tmp_path: Path) -> None:
    home = write_settings(tmp_path)
    create_node_key(home / "node.key")
    daemon = Daemon(home, load_connection(home), cast("Runner", Tasks()), threading.Event())

    with pytest.raises(InstallationError, match="CA certificate"):
        daemon.serve()


# ------------------------------------------------------------------------------------- against a real SuperLink


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("logs")) as process:
        process.await_ready()
        yield process


class Running:
    """A daemon in a thread, with a runner that runs nothing."""

    def __init__(self, home: Path) -> None:
        self.tasks = Tasks()
        self.stop = threading.Event()
        daemon = Daemon(home, load_connection(home), cast("Runner", self.tasks), self.stop)
        self._thread = threading.Thread(target=daemon.serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()


def hostile_bundle(marker: Path) -> Bundle:
    """Return a bundle that ships a package under our name; importing it leaves a mark."""
    content = io.BytesIO(code_free_bundle().content)
    with zipfile.ZipFile(content, "a") as archive:
        for name in ("fedward_client/__init__.py", "fedward_client/app.py", "sitecustomize.py"):
            archive.writestr(name, f"open({str(marker)!r}, 'w')\n")
    data = content.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())


def ask(superlink: SuperLinkProcess, home: Path, bundle: Bundle) -> tuple[Message, Tasks]:
    """Start a run with `bundle`, send one message to a daemon and return its reply and what its runner saw."""
    node = superlink.client.register(write_home(home, superlink), home.name)
    with (home / "connection.yaml").open("a") as file:
        file.write("wait_s: 0.3\n")
    with superlink.client.session(superlink.client.start_run(bundle)) as (grid, _), Running(home) as daemon:
        while node not in grid.get_node_ids():
            time.sleep(0.05)
        waiting = list(grid.push_messages([Message(CONTENT, node, "train", ttl=60)]))
        for _ in range(100):
            for reply in grid.pull_messages(waiting):
                daemon.stop.set()
                return reply, daemon.tasks
    pytest.fail("no reply")


@pytest.mark.deployed
def test_a_message_of_the_pinned_bundle_is_answered(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    reply, tasks = ask(superlink, tmp_path / "site", code_free_bundle())

    assert reply.has_content()
    assert tasks.seen[0][0].content == CONTENT


@pytest.mark.deployed
def test_bundle_with_another_digest_is_refused_and_never_imported(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    marker = tmp_path / "imported"

    reply, tasks = ask(superlink, tmp_path / "site", hostile_bundle(marker))

    assert reason(reply) == "bundle_not_pinned"
    assert not tasks.seen
    assert not marker.exists()
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.deployed
def test_a_server_of_another_authority_never_sees_a_message(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    home = tmp_path / "site"
    write_home(home, superlink)
    (home / "ca.pem").write_bytes(create_authority(dt.datetime.now(dt.UTC)).certificate_pem())
    with Running(home) as daemon:
        daemon.stop.wait(0.5)

    assert not (home / "node_id").exists()
