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
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from fedward_client.connection import ConnectionSettings, load_connection
from fedward_client.daemon import (
    Daemon,
    SiteBorder,
    StopRequested,
    main,
    pause_s,
)
from fedward_client.flower_adapter import (
    Doorbell,
    FleetConnection,
    Incoming,
    ObjectStore,
    PackedReply,
)
from fedward_client.flower_adapter.codec import inflate
from fedward_client.runner import Runner
from fedward_client.worker import InProcessWorker
from fedward_common.audit import AuditLog
from fedward_common.certificates import create_authority, create_node_key
from fedward_common.errors import InstallationError, Refusal, RefusalCode
from fedward_common.flower_adapter import detached_message
from fedward_common.wire import read_refusal, write_refusal, write_roll_call
from fedward_server.superlink_client import Bundle, code_free_bundle
from fedward_simulations.engines.deployed import SuperLinkProcess, write_home
from tests.builders import site_home, small_study

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

    def fetch(self, incoming: Incoming, _: ObjectStore) -> Message:
        self.calls.append("fetch")
        return incoming.head

    def bundle_sha256(self, _: int) -> str:
        self.calls.append("bundle")
        return self.bundle

    def push(self, packed: PackedReply) -> None:
        self.calls.append("reply")
        root = packed.request.message_object_trees[0].children[0].object_id
        self.replies.append(
            inflate(self.message, root, {name: bytes(content) for name, content in packed.objects.items()})
        )


@dataclass
class Desk:
    """A site's border that answers everything with `reply`, and notes what reached it."""

    reply: RecordDict = field(default_factory=RecordDict)
    seen: list[RecordDict] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def respond(self, content: RecordDict) -> RecordDict:
        self.seen.append(content)
        return self.reply

    def refuse(self, refusal: Refusal) -> RecordDict:
        self.refused.append(refusal)
        return write_refusal("north", refusal)


def answer(fleet: Fleet, desk: Desk, home: Path) -> Message:
    """Let a daemon answer the fleet's one message."""
    settings = ConnectionSettings("127.0.0.1:1", home / "ca", home / "key", PINNED)
    daemon = Daemon(home, settings, desk, threading.Event())
    daemon._answer(cast("FleetConnection", fleet), Incoming(fleet.message, ObjectTree()))
    return fleet.replies[-1]


def task(message_type: str = "train", source: int = 1, target: int = NODE) -> Message:
    return detached_message(RecordDict(), source=source, target=target, message_type=message_type)


def reason(reply: Message) -> str | None:
    assert reply.has_content()
    return read_refusal(reply.content)


def test_an_admitted_message_reaches_the_site_whole(tmp_path: Path) -> None:
    message = detached_message(CONTENT, source=1, target=NODE, message_type="train")
    fleet, desk = Fleet(message), Desk()

    reply = answer(fleet, desk, tmp_path)

    assert reply.has_content()
    assert fleet.calls == ["bundle", "fetch", "reply"]
    assert desk.seen == [CONTENT]
    assert not desk.refused


@pytest.mark.parametrize("message_type", ["evaluate", "train.other", "query.shell", "system"])
def test_another_type_of_message_is_refused_before_anything_is_fetched(message_type: str, tmp_path: Path) -> None:
    fleet, desk = Fleet(task(message_type)), Desk()

    assert reason(answer(fleet, desk, tmp_path)) == "message_type_not_allowed"
    assert fleet.calls == ["reply"]
    assert not desk.seen


@pytest.mark.parametrize(("source", "target"), [(2, NODE), (NODE, NODE), (1, NODE + 1), (1, 1)])
def test_a_message_on_another_route_is_refused(source: int, target: int, tmp_path: Path) -> None:
    fleet, desk = Fleet(task(source=source, target=target)), Desk()

    assert reason(answer(fleet, desk, tmp_path)) == "message_invalid"
    assert fleet.calls == ["reply"]


@pytest.mark.parametrize("bundle", ["", "b" * 64, PINNED[:-1], PINNED.upper()])
def test_a_run_with_another_bundle_is_refused_before_its_message_is_fetched(bundle: str, tmp_path: Path) -> None:
    fleet, desk = Fleet(task(), bundle), Desk()

    assert reason(answer(fleet, desk, tmp_path)) == "bundle_not_pinned"
    assert fleet.calls == ["bundle", "reply"]
    assert not desk.seen


def test_a_bundle_is_hashed_once_for_a_run_and_a_refused_one_every_time(tmp_path: Path) -> None:
    settings = ConnectionSettings("127.0.0.1:1", Path("ca"), Path("key"), PINNED)
    desk = Desk()
    daemon = Daemon(tmp_path, settings, desk, threading.Event())
    fleet = Fleet(task(), "b" * 64)
    for bundle in ("b" * 64, PINNED, "b" * 64):
        fleet.bundle = bundle
        daemon._answer(cast("FleetConnection", fleet), Incoming(fleet.message, ObjectTree()))

    assert [reason(reply) for reply in fleet.replies] == ["bundle_not_pinned", None, None]
    assert fleet.calls.count("bundle") == 2


def test_what_the_daemon_refuses_is_in_the_site_s_log(tmp_path: Path) -> None:
    home = site_home(tmp_path)
    fleet = Fleet(task("query.shell"))
    settings = ConnectionSettings("127.0.0.1:1", home / "ca", home / "key", PINNED)
    daemon = Daemon(home, settings, SiteBorder(home, InProcessWorker()), threading.Event())

    daemon._answer(cast("FleetConnection", fleet), Incoming(fleet.message, ObjectTree()))

    assert reason(fleet.replies[-1]) == "message_type_not_allowed"
    assert [(e.event, e.fields["code"]) for e in AuditLog(home).entries()] == [("refused", "message_type_not_allowed")]


def test_a_crash_of_the_worker_is_in_the_site_s_log_and_leaves_as_a_code(tmp_path: Path) -> None:
    study = small_study(description="open: be killed")
    home = site_home(tmp_path, study)
    runner = Runner("tests.tiny_worker:TinyWorker")
    runner.start()

    reply = SiteBorder(home, runner).respond(write_roll_call(study))

    assert read_refusal(reply) == "task_crashed"
    assert [(e.event, e.fields["code"]) for e in AuditLog(home).entries()] == [("refused", "task_crashed")]


def test_a_site_whose_policy_cannot_be_read_answers_with_a_code(tmp_path: Path) -> None:
    border = SiteBorder(tmp_path, InProcessWorker())

    assert read_refusal(border.respond(RecordDict())) == "internal_error"
    assert read_refusal(border.refuse(Refusal(RefusalCode.MESSAGE_TOO_LARGE))) == "internal_error"


@pytest.mark.parametrize(("idle", "expected"), [(0.0, 0.05), (1.0, 0.05), (10.0, 0.5), (60.0, 3.0), (1e6, 3.0)])
def test_the_pause_is_a_twentieth_of_the_idle_time(idle: float, expected: float) -> None:
    assert pause_s(idle) == pytest.approx(expected)


def test_a_stop_interrupts_the_wait_and_nothing_else() -> None:
    stop = threading.Event()
    settings = ConnectionSettings("127.0.0.1:1", Path("ca"), Path("key"), PINNED)
    daemon = Daemon(Path("/nowhere"), settings, Desk(), stop)

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


def test_a_site_with_a_wrong_key_in_its_policy_does_not_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = write_settings(tmp_path)
    (home / "site.yaml").write_text("site: north\npolicy:\n  max_epsilon_per_studdy: 3\n")

    assert main(["--home", str(home)]) == 2
    assert "max_epsilon_per_study" in capfd.readouterr().err


def test_a_daemon_without_settings_does_not_start(tmp_path: Path) -> None:
    assert main(["--home", str(tmp_path)]) == 2


def test_a_daemon_without_a_key_does_not_start(tmp_path: Path) -> None:
    home = write_settings(tmp_path)
    daemon = Daemon(home, load_connection(home), Desk(), threading.Event())

    with pytest.raises(InstallationError, match="private key"):
        daemon.serve()


def test_a_daemon_without_an_authority_does_not_start(tmp_path: Path) -> None:
    home = write_settings(tmp_path)
    create_node_key(home / "node.key")
    daemon = Daemon(home, load_connection(home), Desk(), threading.Event())

    with pytest.raises(InstallationError, match="CA certificate"):
        daemon.serve()


# ------------------------------------------------------------------------------------- against a real SuperLink


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("logs")) as process:
        process.await_ready()
        yield process


class Running:
    """A daemon in a thread, before a site that answers everything."""

    def __init__(self, home: Path) -> None:
        self.desk = Desk()
        self.stop = threading.Event()
        daemon = Daemon(home, load_connection(home), self.desk, self.stop)
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


def ask(superlink: SuperLinkProcess, home: Path, bundle: Bundle) -> tuple[Message, Desk]:
    """Start a run with `bundle`, send one message to a daemon and return its reply and what its site saw."""
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
                return reply, daemon.desk
    pytest.fail("no reply")


@pytest.mark.deployed
def test_a_message_of_the_pinned_bundle_is_answered(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    reply, desk = ask(superlink, tmp_path / "site", code_free_bundle())

    assert reply.has_content()
    assert desk.seen == [CONTENT]


@pytest.mark.deployed
def test_a_message_that_finds_the_disk_full_is_refused_at_once_and_never_fetched(
    superlink: SuperLinkProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedward_client.mailbox.replaced_file", full)

    reply, desk = ask(superlink, tmp_path / "site", code_free_bundle())

    assert reason(reply) == "internal_error"
    assert [refusal.remedy for refusal in desk.refused] == ["is the disk of the site's folder full, or read-only?"]
    assert not desk.seen


@pytest.mark.deployed
def test_bundle_with_another_digest_is_refused_and_never_imported(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    marker = tmp_path / "imported"

    reply, desk = ask(superlink, tmp_path / "site", hostile_bundle(marker))

    assert reason(reply) == "bundle_not_pinned"
    assert not desk.seen
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
