"""The hospital's daemon: one outbound connection, one message at a time, no code from the network.

``python -m fedward_client.daemon --home DIR`` reads ``DIR/connection.yaml`` and runs until SIGTERM or SIGINT. It
opens no port. For each message it checks, in this order and before anything of the content is fetched, the message's
type and the SHA-256 of its run's bundle; the bundle itself is hashed and dropped, never unpacked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import ssl
import sys
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import structlog
import yaml
from flwr.app import Context, Error, Message, RecordDict

from fedward_client.flower_adapter import (
    FleetConnection,
    Incoming,
    NotAdmittedError,
    RunOverError,
    WireLimits,
    check_flower_version,
    open_fleet,
)
from fedward_client.runner import DEFAULT_APP, Outcome, Runner, TaskLimits, coded, configure_logs
from fedward_common.certificates import load_node_key
from fedward_common.errors import FedwardError, InstallationError, Refusal, RefusalCode, TransportError

__all__ = [
    "ALLOWED_TYPES",
    "REFUSED",
    "ConnectionSettings",
    "Daemon",
    "StopRequested",
    "load_connection",
    "main",
    "pause_s",
]

ALLOWED_TYPES: Final = frozenset({"query", "query.hello", "train"})
REFUSED: Final = 1000
"""Error code of every refusal; Flower's own codes are below 100. The reason is a `RefusalCode` and its fields."""

_REMEMBERED_RUNS: Final = 64
_log = structlog.get_logger("fedward.daemon")
_COORDINATOR_NODE: Final = 1  # Flower's node id of every ServerApp
_FASTEST_S: Final = 0.05
_SLOWEST_S: Final = 3.0
_IDLE_SHARE: Final = 0.05
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How a site reaches its coordinator; the keys of ``connection.yaml``.

    Args:
        superlink: host:port of the coordinator's public listener.
        ca: PEM file of the authority that signed the coordinator's certificate.
        node_key: PEM file of this site's P-384 key, mode 0600.
        bundle_sha256: digest of the one bundle whose runs are answered, 64 lower-case hexadecimal digits.
        heartbeat_s: seconds between the signs of life that the coordinator is promised, 10 to 1800.
        task_wall_s: longest time for one task, in seconds.
        message_bytes: largest message that is accepted or sent, in bytes.
        wait_s: longest time that the coordinator may hold a request for messages, in seconds.
    """

    superlink: str
    ca: Path
    node_key: Path
    bundle_sha256: str
    heartbeat_s: float = 30.0
    task_wall_s: float = 3600.0
    message_bytes: int = 512 * 1024 * 1024
    wait_s: float = 10.0


def load_connection(home: Path) -> ConnectionSettings:
    """Return the settings in ``home/connection.yaml``; relative files are relative to `home`.

    Raises:
        InstallationError: no such file, an unknown, missing or malformed key.
    """
    path = home / "connection.yaml"
    known = {entry.name for entry in fields(ConnectionSettings)}
    required = {"superlink", "ca", "node_key", "bundle_sha256"}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        msg = f"{path} cannot be read"
        raise InstallationError(msg, remedy="it is made when the site is enrolled") from error
    if not isinstance(raw, dict) or not required <= set(raw) <= known:
        given = set(raw) if isinstance(raw, dict) else set()
        msg = f"{path}: missing keys {sorted(required - given)}, unknown keys {sorted(map(str, given - known))}"
        raise InstallationError(msg, remedy=f"required: {sorted(required)}; optional: {sorted(known - required)}")
    if not _SHA256.fullmatch(str(raw["bundle_sha256"])):
        msg = f"{path}: bundle_sha256 is no SHA-256"
        raise InstallationError(msg, remedy="64 lower-case hexadecimal digits, as the coordinator prints them")
    return ConnectionSettings(**{**raw, "ca": home / raw["ca"], "node_key": home / raw["node_key"]})


def pause_s(idle_s: float) -> float:
    """Return how long to wait before asking again after `idle_s` seconds without a message: 5 %, .05 s to 3 s."""
    return min(max(idle_s * _IDLE_SHARE, _FASTEST_S), _SLOWEST_S)


class StopRequested(BaseException):
    """Raised by `Daemon.request_stop` out of waiting for the next message."""


class Daemon:
    """Answers the messages of one coordinator for the site whose files are in `home`.

    Args:
        home: the site's folder; handlers find it as ``context.node_config["fedward-home"]``.
        settings: the connection.
        runner: a started runner.
        stop: set by whoever wants the daemon to end; a running task is then killed and answered with a code.
    """

    def __init__(self, home: Path, settings: ConnectionSettings, runner: Runner, stop: threading.Event) -> None:
        self._home = home
        self._settings = settings
        self._runner = runner
        self._stop = stop
        self._pinned_runs: dict[int, None] = {}
        self._waiting = False

    def request_stop(self, *_: object) -> None:
        """End `serve` soon. A signal handler: it interrupts the wait for a message, and nothing else.

        A message that the SuperLink hands out in this very moment is lost; it then reports the site as gone.
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
        key = load_node_key(self._settings.node_key)
        tls = _tls(self._settings.ca)
        failures = 0
        while not self._stop.is_set():
            try:
                with open_fleet(
                    self._settings.superlink,
                    tls,
                    key,
                    self._stop,
                    known_node_id=self._recall_node(),
                    limits=WireLimits(message_bytes=self._settings.message_bytes),
                    heartbeat_s=self._settings.heartbeat_s,
                    wait_s=self._settings.wait_s,
                ) as fleet:
                    self._remember_node(fleet.node_id)
                    _log.info("connected", node=str(fleet.node_id), superlink=self._settings.superlink)
                    failures = 0
                    self._serve(fleet)
            except TransportError as error:
                failures += 1
                wait = min(0.25 * 2**failures, 20.0)
                _log.warning("not_connected", cause=error.message, remedy=error.remedy, retry_s=wait)
                self._stop.wait(wait)
            except StopRequested:
                return

    def _serve(self, fleet: FleetConnection) -> None:
        active = time.monotonic()
        while not self._stop.is_set():
            try:
                incoming = self._receive(fleet)
                if incoming is None and fleet.doorbell.answered:
                    continue  # the SuperLink has waited for us
                if incoming is None:
                    self._stop.wait(pause_s(time.monotonic() - active))
                    continue
                self._answer(fleet, incoming)
                active = time.monotonic()
            except NotAdmittedError:
                raise
            except TransportError as error:
                _log.warning("call_failed", cause=error.message, remedy=error.remedy)

    def _receive(self, fleet: FleetConnection) -> Incoming | None:
        self._waiting = True
        try:
            return fleet.receive()
        finally:
            self._waiting = False

    def _answer(self, fleet: FleetConnection, incoming: Incoming) -> None:
        head = incoming.head
        log = _log.bind(run=str(head.metadata.run_id), type=head.metadata.message_type)
        try:
            outcome = self._work(fleet, incoming)
            if outcome.content is not None:
                reply = Message(outcome.content, reply_to=head)
            else:
                reply = Message(Error(REFUSED, coded(outcome.refusal or "")), reply_to=head)
            started = time.monotonic()
            fleet.reply(reply, outcome.seconds)
        except RunOverError:
            log.info("run_over")
            return
        seconds = round(outcome.seconds, 3)
        log.info("answered", refusal=outcome.refusal, task_s=seconds, reply_s=round(time.monotonic() - started, 3))

    def _work(self, fleet: FleetConnection, incoming: Incoming) -> Outcome:
        head = incoming.head.metadata
        try:
            self._admit(fleet, head.message_type, head.run_id, (head.src_node_id, head.dst_node_id))
            message = fleet.fetch(incoming)
        except Refusal as refusal:
            _log.warning("refused", code=refusal.reason.value, cause=refusal.message)
            return Outcome(None, refusal.crossing(), 0.0)
        context = Context(
            head.run_id, fleet.node_id, {"fedward-home": str(self._home)}, state=RecordDict(), run_config={}
        )
        return self._runner.run(message, context, self._stop)

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
            (self._home / "node_id").write_text(f"{node_id}\n", encoding="ascii")


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon until it is told to stop; return the exit code (0 stopped, 2 misconfigured)."""
    parser = argparse.ArgumentParser(prog="python -m fedward_client.daemon", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder with connection.yaml")
    parser.add_argument("--app", default=DEFAULT_APP, help="installed ClientApp, module:attribute")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    configure_logs()
    if options.stop_on_eof:
        _stop_when_input_closes()
    try:
        check_flower_version()
        home = options.home.resolve()
        settings = load_connection(home)
        limits = TaskLimits(wall_s=settings.task_wall_s, reply_bytes=settings.message_bytes)
        runner = Runner(options.app, limits)
        daemon = Daemon(home, settings, runner, threading.Event())
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, daemon.request_stop)
        runner.start()
        daemon.serve()
    except FedwardError as error:
        _log.error("cannot_start", cause=error.message, remedy=error.remedy)
        return 2
    _log.info("stopped")
    return 0


def _tls(ca: Path) -> ssl.SSLContext:
    """Return a context that trusts the one authority in `ca` and checks the host name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        msg = f"{ca} holds no CA certificate"
        raise InstallationError(msg, remedy="key `ca` in connection.yaml names the coordinator's CA file") from error
    return context


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
