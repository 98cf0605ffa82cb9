"""The hospital's daemon: one outbound connection, one message at a time, no code from the network.

``python -m fedward_client.daemon --home DIR`` reads ``DIR/connection.yaml`` and runs until SIGTERM or SIGINT. It
opens no port but that of the local page, on loopback, where ``site.yaml`` asks for one. For each message it checks, in
this order and before anything of the content is fetched, the message's type and the SHA-256 of its run's bundle; the
bundle itself is hashed and dropped, never unpacked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog
from flwr.app import Message, RecordDict

from fedward_client.app import refuse, respond
from fedward_client.budget import Budget
from fedward_client.config import load_site
from fedward_client.connection import ConnectionSettings, Outbound, load_connection, open_way
from fedward_client.enrolment import KeyFile, expiry_warnings, finish, note_peer
from fedward_client.flower_adapter import (
    FleetConnection,
    Incoming,
    NotAdmittedError,
    OtherReleaseError,
    PackedReply,
    RejectedError,
    RunOverError,
    WireLimits,
    check_flower_version,
    open_fleet,
    pack_reply,
)
from fedward_client.mailbox import Box, Key, Mailbox
from fedward_client.runner import DEFAULT_WORKER, ChildrenDieError, Runner, TaskLimits, configure_logs
from fedward_client.syslog_forward import forwarder
from fedward_client.vitals import Vitals, shown
from fedward_client.worker import Worker
from fedward_common.certificates import issued_by
from fedward_common.enrolment import Reminder
from fedward_common.errors import FedwardError, InstallationError, Refusal, RefusalCode, TransportError
from fedward_common.files import replace_file
from fedward_common.notify import Watchdog
from fedward_common.protocol import OURS, Release
from fedward_common.wire import read_refusal

__all__ = [
    "ALLOWED_TYPES",
    "Border",
    "Daemon",
    "SiteBorder",
    "StopRequested",
    "main",
    "pause_s",
]

ALLOWED_TYPES: Final = frozenset({"query", "train"})

MailT = TypeVar("MailT")

_REMEMBERED_RUNS: Final = 64
_log = structlog.get_logger("fedward.daemon")
_COORDINATOR_NODE: Final = 1  # Flower's node id of every ServerApp
_FASTEST_S: Final = 0.05
_SLOWEST_S: Final = 3.0
_IDLE_SHARE: Final = 0.05
_STEP_S: Final = 150.0  # longer than one request's patience and time-out together
_REMIND_S: Final = 3600.0
_TRIES: Final = 5
_DISK: Final = "is the disk of the site's folder full, or read-only?"
_UNKEPT: Final = Refusal(RefusalCode.INTERNAL, "the site's folder takes no file", remedy=_DISK)
_RENEW: Final = "fedward client renew"
_INSPECTED: Final = "whoever runs it reads models and updates; a reply that it changes is refused by the coordinator"


def pause_s(idle_s: float) -> float:
    """Return how long to wait before asking again after `idle_s` seconds without a message: 5 %, .05 s to 3 s."""
    return min(max(idle_s * _IDLE_SHARE, _FASTEST_S), _SLOWEST_S)


class StopRequested(BaseException):
    """Raised by `Daemon.request_stop` out of waiting for the next message."""


class Border(Protocol):
    """The site as its daemon sees it; whatever happens behind, a reply comes back and the log has an entry."""

    def respond(self, content: RecordDict) -> RecordDict:
        """Return the reply to a message's content."""

    def refuse(self, refusal: Refusal) -> RecordDict:
        """Return a refusal that was decided before the content was fetched."""


class SiteBorder:
    """The `Border` of the site in `home`, whose cohorts are opened and trained on by `worker`."""

    def __init__(self, home: Path, worker: Worker) -> None:
        self._home, self._worker = home, worker

    def respond(self, content: RecordDict) -> RecordDict:
        """See `Border.respond`."""
        return respond(content, self._home, self._worker)

    def refuse(self, refusal: Refusal) -> RecordDict:
        """See `Border.refuse`."""
        return refuse(refusal, self._home)


class Daemon:
    """Answers the messages of one coordinator for one site.

    Whatever ends it, the next one goes on: a message is in the inbox before it is looked at, and a reply in the outbox
    before it is sent (`fedward_client.mailbox`).

    Args:
        home: the site's folder.
        settings: the connection.
        site: who answers what is admitted.
        stop: set by whoever wants the daemon to end.
        watchdog: hears how long each step may take.
        vitals: hears what becomes of connection and tasks.
        ours: the protocols that this site speaks.
    """

    def __init__(
        self,
        home: Path,
        settings: ConnectionSettings,
        site: Border,
        stop: threading.Event,
        watchdog: Watchdog | None = None,
        vitals: Vitals | None = None,
        *,
        ours: Release = OURS,
    ) -> None:
        self._home = home
        self._settings = settings
        self._site = site
        self._stop = stop
        self._watchdog = watchdog or Watchdog.from_environment({})
        self._vitals = vitals or Vitals()
        self._mailbox = Mailbox(home, max(settings.cache_bytes, settings.message_bytes))
        self._reminder = Reminder()
        self._next_reminder = 0.0
        self._pinned_runs: dict[int, None] = {}
        self._rejected: dict[Key, int] = {}
        self._waiting = False
        self._ours, self._turned_away = ours, ""

    def request_stop(self, *_: object) -> None:
        """End `serve` soon. A signal handler: it interrupts the wait for a message, and nothing else.

        A message that the SuperLink hands out in this very moment is handed out again to the next session.
        """
        self._stop.set()
        if self._waiting:
            self._waiting = False
            raise StopRequested

    def serve(self) -> None:
        """Connect, and stay connected, until `stop` is set.

        Raises:
            InstallationError: the key or the CA file is unusable; waiting would not help.
        """
        finish(self._home)
        key, way = KeyFile(self._settings.node_key), open_way(self._settings, os.environ)
        if lost := self._mailbox.recover():
            _log.error("mail_damaged", entries=lost, cause="the disk", remedy="these rounds are lost to this site")
        with self._watchdog.watching():
            try:
                self._stay_connected(key, way)
            except StopRequested:
                pass
            finally:
                self._watchdog.notifier.stopping()

    def _stay_connected(self, key: KeyFile, way: Outbound) -> None:
        failures = 0
        while not self._stop.is_set():
            self._allow(_STEP_S)
            way = self._way(way)
            try:
                with open_fleet(
                    self._settings.superlink,
                    way.tls,
                    key,
                    self._stop,
                    known_node_id=self._recall_node(),
                    limits=WireLimits(message_bytes=self._settings.message_bytes),
                    proxy=way.proxy,
                    heartbeat_s=self._settings.heartbeat_s,
                    wait_s=self._settings.wait_s,
                    watching=self._vitals.answer_seen,
                    ours=self._ours,
                    upload_mbit_s=self._settings.upload_mbit_s,
                    download_mbit_s=self._settings.download_mbit_s,
                ) as fleet:
                    self._greet(fleet, way)
                    failures = 0
                    self._serve(fleet)
            except TransportError as error:
                failures += 1
                wait = min(0.25 * 2**failures, 20.0)
                _log.warning("not_connected", cause=error.message, remedy=error.remedy, retry_s=wait)
                self._watchdog.notifier.status(f"not connected: {error.message}")
                self._vitals.disconnected(error)
                if isinstance(error, OtherReleaseError):
                    self._note_other_release(error)
                self._remind()
                self._stop.wait(wait)

    def _way(self, former: Outbound) -> Outbound:
        """Return the way out as its files are now: a CA file that was replaced counts from the next connection on."""
        try:
            return open_way(self._settings, os.environ)
        except InstallationError as error:
            _log.error("way_unusable", cause=error.message, remedy=error.remedy)
            return former

    def _note_other_release(self, error: OtherReleaseError) -> None:
        """Put into the site's log, once for each release of the centre, that nothing can be done with it."""
        if error.message == self._turned_away:
            return
        self._turned_away = error.message
        _log.error("other_release", cause=error.message, remedy=error.remedy)
        code = RefusalCode.PROTOCOL_MISMATCH
        self._site.refuse(Refusal(code, error.message, remedy=error.remedy, fields=error.facts()))

    def _allow(self, seconds: float) -> None:
        """Promise to be here again within `seconds`."""
        self._watchdog.allow(seconds)
        self._vitals.allow(seconds)

    def _greet(self, fleet: FleetConnection, way: Outbound) -> None:
        """Note what a new session says of itself."""
        self._remember_node(fleet.node_id)
        self._vitals.connected()
        fleet.alive = lambda: self._allow(_STEP_S)
        _log.info("connected", node=str(fleet.node_id), superlink=self._settings.superlink, proxy=way.proxy_name)
        if fleet.peer is not None:
            note_peer(self._home, fleet.peer)
            if way.inspectable and not issued_by(fleet.peer, self._settings.ca.read_bytes()):
                _log.warning("tls_inspected", cause="TLS ends at a proxy of this hospital", remedy=_INSPECTED)
        self._watchdog.notifier.ready(f"connected as node {fleet.node_id}")

    def _serve(self, fleet: FleetConnection) -> None:
        active = time.monotonic()
        unfinished = True  # a former process, or a former session, may have left something
        while not self._stop.is_set():
            self._remind()
            try:
                if unfinished:
                    self._take_up(fleet)
                    unfinished = False
                incoming = self._receive(fleet)
                if incoming is None and fleet.doorbell.answered:
                    continue  # the SuperLink has waited for us
                if incoming is None:
                    self._stop.wait(pause_s(time.monotonic() - active))
                    continue
                self._answer(fleet, incoming, kept=self._keep(incoming))
                active = time.monotonic()
            except NotAdmittedError:
                raise
            except TransportError as error:
                unfinished = True
                _log.warning("call_failed", cause=error.message, remedy=error.remedy)
                self._vitals.failed(error)
                self._stop.wait(_SLOWEST_S if isinstance(error, RejectedError) else _FASTEST_S)
            except OSError as error:
                unfinished = True
                _log.error("mail_not_kept", cause=error.strerror, remedy=_DISK)
                self._stop.wait(_SLOWEST_S)

    def _take_up(self, fleet: FleetConnection) -> None:
        """Deliver the replies that wait, then answer the messages that do."""
        for packed in _readable(self._mailbox.outbox, PackedReply.from_bytes):
            _log.info("delivering_again", run=str(packed.run_id))
            self._deliver(fleet, packed)
        waiting = _readable(self._mailbox.inbox, Incoming.from_bytes)
        self._mailbox.objects.retain(object_id for incoming in waiting for object_id in incoming.object_ids())
        for incoming in waiting:
            head = incoming.head.metadata
            _log.info("taken_up_again", run=str(head.run_id), type=head.message_type)
            if head.created_at + head.ttl < time.time():
                self._mailbox.abandoned(_key(incoming), incoming.object_ids())
            else:
                self._answer(fleet, incoming)

    def _remind(self) -> None:
        """Warn, 30, 7 and 1 days ahead, of what expires; looked at every hour."""
        if time.monotonic() < self._next_reminder:
            return
        self._next_reminder = time.monotonic() + _REMIND_S
        now = datetime.now(UTC)
        for what, not_after, left in expiry_warnings(self._home, now):
            if self._reminder.due(what, not_after, now):
                remedy = _RENEW if what == "node key" else "the centre renews it; ask there if it does not"
                _log.warning("expires_soon", what=what, not_after=not_after.isoformat(), days_left=left, remedy=remedy)

    def _receive(self, fleet: FleetConnection) -> Incoming | None:
        self._waiting = True
        try:
            return fleet.receive()
        finally:
            self._waiting = False

    def _keep(self, incoming: Incoming) -> bool:
        """Return whether a message is in the inbox, where a killed daemon finds it again."""
        try:
            self._mailbox.announced(_key(incoming), incoming.to_bytes())
        except OSError as error:
            _log.error("mail_not_kept", cause=error.strerror, remedy=_DISK)
            return False
        return True

    def _answer(self, fleet: FleetConnection, incoming: Incoming, *, kept: bool = True) -> None:
        """Answer a message; one that could not be kept is refused, so that its round does not wait for this site."""
        head = incoming.head
        log = _log.bind(run=str(head.metadata.run_id), type=head.metadata.message_type)
        started = time.monotonic()
        try:
            content = self._work(fleet, incoming) if kept else self._site.refuse(_UNKEPT)
        except RunOverError:
            self._mailbox.abandoned(_key(incoming), incoming.object_ids())
            log.info("run_over")
            return
        worked = time.monotonic()
        packed = pack_reply(Message(content, reply_to=head), worked - started)
        try:
            self._mailbox.answered(_key(incoming), packed.pieces(), incoming.object_ids())
        except OSError as error:  # it is sent all the same: a round that was debited has this one reply
            _log.error("reply_not_kept", cause=error.strerror, remedy=_DISK)
        refusal = read_refusal(content)
        try:
            self._deliver(fleet, packed)
        finally:
            self._vitals.answered(head.metadata.message_type, worked - started, refusal)
        log.info(
            "answered", refusal=refusal, task_s=round(worked - started, 3), reply_s=round(time.monotonic() - worked, 3)
        )

    def _deliver(self, fleet: FleetConnection, packed: PackedReply) -> None:
        """Send a reply that is in the outbox, and forget it: delivered, too late, or not to be taken."""
        key = Key(packed.run_id, packed.answers)
        try:
            fleet.push(packed)
        except RunOverError:
            _log.info("run_over", run=str(packed.run_id))
        except RejectedError as error:
            self._rejected[key] = self._rejected.get(key, 0) + 1
            if self._rejected[key] < _TRIES:
                raise
            _log.error("reply_given_up", run=str(packed.run_id), cause=error.message)
        self._rejected.pop(key, None)
        self._mailbox.delivered(key)

    def _work(self, fleet: FleetConnection, incoming: Incoming) -> RecordDict:
        head = incoming.head.metadata
        try:
            self._admit(fleet, head.message_type, head.run_id, (head.src_node_id, head.dst_node_id))
            content = fleet.fetch(incoming, self._mailbox.objects).content
        except Refusal as refusal:
            _log.warning("refused", code=refusal.reason.value, cause=refusal.message)
            return self._site.refuse(refusal)
        self._allow(self._settings.task_wall_s + _STEP_S)
        self._watchdog.notifier.status(f"working for run {head.run_id}")
        try:
            return self._site.respond(content)
        finally:
            self._watchdog.notifier.status(f"connected as node {fleet.node_id}")

    def _admit(self, fleet: FleetConnection, message_type: str, run_id: int, route: tuple[int, int]) -> None:
        """Return if the message may be fetched.

        Raises:
            Refusal: another type, sender or receiver than allowed, or a run with another bundle than the pinned one.
        """
        if message_type not in ALLOWED_TYPES:
            raise Refusal(RefusalCode.MESSAGE_TYPE_NOT_ALLOWED, f"type {message_type[:40]!r}")
        if route != (_COORDINATOR_NODE, fleet.node_id):
            raise Refusal(RefusalCode.MESSAGE_INVALID, "sent by, or to, another node")
        if run_id in self._pinned_runs:
            return
        if fleet.bundle_sha256(run_id) != self._settings.bundle_sha256:
            raise Refusal(RefusalCode.BUNDLE_NOT_PINNED, "the run's bundle is not the pinned one")
        self._pinned_runs[run_id] = None
        if len(self._pinned_runs) > _REMEMBERED_RUNS:
            del self._pinned_runs[next(iter(self._pinned_runs))]

    def _recall_node(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self._home / "node_id").read_text(encoding="ascii"))
        return None

    def _remember_node(self, node_id: int) -> None:
        with contextlib.suppress(OSError):  # only a convenience after a crash
            replace_file(self._home / "node_id", f"{node_id}\n".encode("ascii"))


def _key(incoming: Incoming) -> Key:
    return Key(incoming.head.metadata.run_id, incoming.head.metadata.message_id)


def _readable(box: Box, read: Callable[[bytes | memoryview], MailT]) -> list[MailT]:
    """Return the entries of a box; one of another release's form is taken out, and the log says so."""
    found = []
    for name, content in box.entries():
        try:
            found.append(read(content))
        except ValueError:
            _log.error("mail_unreadable", entry=name, remedy="this round is lost to this site; let rounds end first")
            box.discard(name)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon until it is told to stop; return 0: stopped, 2: misconfigured, 1: worth another start."""
    parser = argparse.ArgumentParser(prog="python -m fedward_client.daemon", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder with connection.yaml")
    parser.add_argument("--worker", default=DEFAULT_WORKER, help="installed worker, module:attribute")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    configure_logs()
    if options.stop_on_eof:
        _stop_when_input_closes()
    try:
        check_flower_version()
        home = options.home.resolve()
        settings = load_connection(home)
        config = load_site(home)  # a site without a valid policy does not even connect
        _look_at_the_budget(home)
        sender = forwarder(home, config.audit)
        stop = threading.Event()
        runner = Runner(options.worker, TaskLimits(wall_s=settings.task_wall_s), stop)
        watchdog = Watchdog.from_environment(os.environ)
        os.environ.pop("NOTIFY_SOCKET", None)  # not for the task processes
        with shown(config, home, runner, settings.heartbeat_s) as vitals:
            daemon = Daemon(home, settings, SiteBorder(home, runner), stop, watchdog, vitals)
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, daemon.request_stop)
            runner.start()
            vitals.probe()
            try:
                daemon.serve()
            finally:
                if sender is not None:
                    sender.stop()
    except FedwardError as error:
        _log.error("cannot_start", cause=error.message, remedy=error.remedy)
        return 1 if isinstance(error, ChildrenDieError) else 2
    _log.info("stopped")
    return 0


def _look_at_the_budget(home: Path) -> None:
    """Say at the start, and not only at the next round, that ledger and log are not those that were kept together."""
    try:
        Budget(home).check(datetime.now(UTC).isoformat(timespec="seconds"))
    except FedwardError as error:  # work without a budget goes on; each debit is refused, and says why
        _log.error("budget_not_trusted", cause=error.message, remedy=error.remedy)


def _stop_when_input_closes(grace_s: float = 10.0) -> None:
    """Send this process SIGTERM once standard input ends; if it still lives `grace_s` seconds later, end it."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="stop-on-eof", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
