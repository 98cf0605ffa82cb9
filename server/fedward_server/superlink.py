"""The SuperLink as Fedward runs it: one process, two listeners, one state.

The public listener speaks TLS and answers nothing but the Fleet API and, with a roster, enrolment; the loopback
listener answers nothing but the Control and Runtime APIs, for the coordinator on the same machine. Anything else is
404 on both. With a roster, its word decides whose requests are answered. Run as
``python -m fedward_server.superlink --config FILE``; two lines of JSON on standard output report the bound ports
and then that requests are answered. SIGTERM, SIGINT and, if asked for, the end of standard input stop it cleanly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from fedward_common.enrolment import MAX_BODY_BYTES
from fedward_common.errors import FedwardError, InstallationError
from fedward_common.logs import log_json_lines
from fedward_common.signing import load_private_key
from fedward_server.admission import KEY_DAYS, RateLimit
from fedward_server.enrolment import ENROLMENT_PATHS, CentreFacts, Enrolment
from fedward_server.handshake import Handshake
from fedward_server.heap import give_back_what_is_freed, spare_what_stays
from fedward_server.roster import Roster
from fedward_server.route_filter import AsgiApp, Doorbell, Parts, RouteFilter, SignedReplies, Switch, Waiting
from fedward_server.warden import Certificates, Warden

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

__all__ = [
    "PRIVATE_ROUTES",
    "SuperLinkConfig",
    "listen",
    "load_config",
    "main",
    "open_roster",
    "stop_when_input_closes",
]

_KEEP_ALIVE_S: Final = 75
_SHUTDOWN_S: Final = 3
_LOOK_S: Final = 2.0
_ROUNDS_AN_HOUR: Final = 1800
_SMALLEST_SECRET_BYTES: Final = 32


PRIVATE_ROUTES: Final = frozenset(
    {f"/v1/control/{name}" for name in ("list-nodes", "list-runs", "register-node", "start-run", "stop-run")}
    | {"/v1/control/unregister-node"}
    | {f"/v1/runtime/{direction}-{what}" for direction in ("pull", "push") for what in ("messages", "object")}
    | {"/v1/runtime/acquire-task", "/v1/runtime/pull-task-input", "/v1/runtime/push-task-output"}
    | {"/v1/runtime/confirm-message-received", "/v1/runtime/get-nodes", "/v1/runtime/send-task-heartbeat"}
)
"""What a coordinator needs of Control and Runtime; Flower's streams, agents, connectors and app store stay closed."""


@dataclass(frozen=True, slots=True)
class SuperLinkConfig:
    """Where the SuperLink listens and what it keeps.

    Args:
        database: sqlite file; runs, nodes and messages survive a restart in it.
        certificate: PEM file with the public listener's certificate chain.
        certificate_key: PEM file with its private key.
        secret: file with the coordinator's secret, at least 32 bytes.
        public_host: address of the TLS listener.
        public_port: its port; 0 takes a free one.
        private_host: loopback address of the coordinator's listener.
        private_port: its port; 0 takes a free one.
        roster: SQLite file that says which sites are known by which keys; None: Flower's own register does, and
            nobody enrols.
        roster_key: file with the Ed25519 key that signs the roster.
        ca: PEM file of the authority that sites pin.
        ca_key: PEM file of its key, with which the certificate is renewed; None where somebody else does that.
        study_keys: public keys that sign the centre's studies; told to sites that enrol.
        key_days: days that a site's key is valid.
        enrolments_per_minute: requests to enrol or renew that one address may send in any 60 s.
        advertised: host:port under which sites reach the public listener; part of an invite.
        console: loopback host:port of the interface for the central team; port 0 takes a free one.
        runs_at_once: how many studies ask hospitals at the same time.
        share_sites: whether two of them may ask the same hospital, which answers one message at a time.
    """

    database: Path
    certificate: Path
    certificate_key: Path
    secret: Path
    public_host: str = "127.0.0.1"
    public_port: int = 0
    private_host: str = "127.0.0.1"
    private_port: int = 0
    roster: Path | None = None
    roster_key: Path | None = None
    ca: Path | None = None
    ca_key: Path | None = None
    study_keys: tuple[str, ...] = ()
    key_days: int = KEY_DAYS
    enrolments_per_minute: int = 20
    advertised: str = ""
    console: str = "127.0.0.1:8470"
    runs_at_once: int = 2
    share_sites: bool = False

    def __post_init__(self) -> None:
        if self.roster is not None and (self.roster_key is None or self.ca is None):
            msg = "a roster needs roster_key and ca"
            raise InstallationError(msg, remedy="fedward server init makes all of them")
        if not ipaddress.ip_address(self.private_host).is_loopback:
            msg = f"private_host {self.private_host} is no loopback address"
            raise InstallationError(msg, remedy="Control and Runtime stay on this machine: use 127.0.0.1 or ::1")
        if type(self.runs_at_once) is not int or self.runs_at_once < 1:
            msg = f"runs_at_once {self.runs_at_once!r} lets no study run"
            raise InstallationError(msg, remedy="1 or more")


def load_config(path: Path) -> SuperLinkConfig:
    """Return the configuration in a JSON file; relative paths are relative to the file's folder.

    Raises:
        InstallationError: no such file, no JSON object, an unknown or missing key, a private host off loopback.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        folder = path.parent.resolve()
        for key in ("database", "certificate", "certificate_key", "secret"):
            raw[key] = folder / raw[key]
        for key in ("roster", "roster_key", "ca", "ca_key"):
            raw[key] = folder / raw[key] if raw.get(key) else None
        return SuperLinkConfig(**raw | {"study_keys": tuple(raw.get("study_keys", ()))})
    except (OSError, ValueError, TypeError, KeyError) as error:
        msg = f"{path} is not a SuperLink configuration: {error}"
        raise InstallationError(msg, remedy="keys: " + ", ".join(SuperLinkConfig.__dataclass_fields__)) from error


def open_roster(config: SuperLinkConfig) -> Roster | None:
    """Return the roster that a launcher works with, or None if it has none.

    Raises:
        SignatureError: its key cannot be read.
    """
    if config.roster is None or config.roster_key is None:
        return None
    return Roster(config.roster, load_private_key(config.roster_key))


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; callers queue in it until the application is up.

    Raises:
        InstallationError: the address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        msg = f"cannot listen on {host}:{port}: {error.strerror}"
        raise InstallationError(msg, remedy="choose another port, or 0 for a free one") from error
    return sock


def main(arguments: list[str] | None = None) -> int:
    """Run the SuperLink until it is told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedward_server.superlink", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the settings")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    log_json_lines()
    give_back_what_is_freed()
    try:
        config = load_config(options.config)
        secret = _read_secret(config.secret)
        public = listen(config.public_host, config.public_port)
        private = listen(config.private_host, config.private_port)
    except FedwardError as error:
        sys.stderr.write(error.diagnostics() + "\n")
        return 2
    if options.stop_on_eof:
        stop_when_input_closes()
    _report("bound", public_port=public.getsockname()[1], private_port=private.getsockname()[1])
    _run(config, secret, public, private)
    return 0


def stop_when_input_closes(grace_s: float = 10.0) -> None:
    """Send this process SIGTERM once standard input ends, that is, once whoever started it is gone.

    If it still lives `grace_s` seconds later, it is ended without further ado.
    """

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="stop-on-eof", daemon=True).start()


def _run(config: SuperLinkConfig, secret: bytes, public: socket.socket, private: socket.socket) -> None:
    # After the ports are reported: importing flwr takes seconds, and callers may already queue.
    from fedward_server import flower_adapter  # noqa: PLC0415

    app = flower_adapter.build_superlink(config.database, secret)
    with asyncio.Runner(loop_factory=_server(app, None).config.get_loop_factory()) as runner:
        runner.run(_serve(app, config, [public, private]))


def _server(app: AsgiApp, tls: SuperLinkConfig | None) -> uvicorn.Server:
    import uvicorn  # noqa: PLC0415

    class Quiet(uvicorn.Server):
        """A server that leaves the process's signals alone: two of them share one process."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

    return Quiet(
        uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_SHUTDOWN_S,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.certificate_key if tls else None,
        )
    )


async def _serve(app: FastAPI, config: SuperLinkConfig, sockets: list[socket.socket]) -> None:
    from fedward_server import fleet_flower_adapter, runtime_flower_adapter  # noqa: PLC0415  (see _run)

    runtime_flower_adapter.keep_runs(app)
    fleet, runtime = "/v1/fleet/", "/v1/runtime/"
    to_sites, to_centre = Doorbell(secrets.randbits(48)), Doorbell(secrets.randbits(48))
    public = Waiting(fleet + "pull-messages", to_sites, fleet + "push-messages", to_centre)
    private = Waiting(runtime + "pull-messages", to_centre, runtime + "push-messages", to_sites)
    parts = Parts(asyncio.Semaphore(1), config.database.parent)
    outside, warden = _public_app(app, config, public, parts)
    inside = RouteFilter(app, PRIVATE_ROUTES, private, resuming=fleet_flower_adapter.RESUMING.set, parts=parts)
    servers = [_server(outside, config), _server(inside, None)]
    stopping = asyncio.Event()

    def stop() -> None:
        for server in servers:
            server.should_exit = True
        to_sites.close()
        to_centre.close()
        stopping.set()

    # sqlite has one writer, and a writer that waits for another sleeps up to .1 s: handlers take turns instead.
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)
    async with app.router.lifespan_context(app), asyncio.TaskGroup() as group:
        for server, sock in zip(servers, sockets, strict=True):
            group.create_task(server.serve(sockets=[sock]))
        while not all(server.started or server.should_exit for server in servers):  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.01)
        if warden is not None:
            group.create_task(_guarded(warden, servers[0], stopping, to_sites))
        spare_what_stays()
        _report("ready")


def _public_app(app: FastAPI, config: SuperLinkConfig, waiting: Waiting, parts: Parts) -> tuple[AsgiApp, Warden | None]:
    """Return what the public listener serves, and who looks after the roster if there is one."""
    from fedward_common.flower_adapter import ANNOUNCEMENT_BYTES  # noqa: PLC0415
    from fedward_server import fleet_flower_adapter, flower_adapter  # noqa: PLC0415
    from fedward_server.superlink_client import code_free_bundle  # noqa: PLC0415

    roster, resuming = open_roster(config), fleet_flower_adapter.RESUMING.set
    visiting = fleet_flower_adapter.VISITING.set
    limits = {waiting.push: ANNOUNCEMENT_BYTES}
    if roster is None or config.ca is None:
        fleet_flower_adapter.guard(app, None)
        routes = flower_adapter.fleet_routes()
        fleet = RouteFilter(app, routes, waiting, limits=limits, resuming=resuming, parts=parts)
        return Handshake(fleet, visiting=visiting), None
    register = fleet_flower_adapter.guard(app, lambda key: roster.admitted(key, _now()))
    facts = CentreFacts(config.ca.read_bytes(), code_free_bundle().sha256, config.study_keys, config.key_days)
    limit = RateLimit(config.enrolments_per_minute, 10 * config.enrolments_per_minute)
    service = Enrolment(roster, register, facts, limit=limit)
    enrolment = RouteFilter(service, ENROLMENT_PATHS, max_body=MAX_BODY_BYTES)
    signed = SignedReplies(app, waiting.push)
    routes = flower_adapter.fleet_routes()
    fleet = RouteFilter(signed, routes, waiting, limits=limits, resuming=resuming, parts=parts)
    certificates = Certificates(config.ca, config.ca_key, config.certificate, config.certificate_key)
    greeted = Handshake(fleet, lambda key, release: roster.heard(key, release, _now()), visiting=visiting)
    return Switch(greeted, dict.fromkeys(ENROLMENT_PATHS, enrolment)), Warden(roster, register, certificates)


async def _guarded(warden: Warden, server: uvicorn.Server, stopping: asyncio.Event, bell: Doorbell) -> None:
    """Let the warden look around every two seconds, and at the calendar every hour, until the launcher stops.

    A certificate that somebody has put on the disk is in use within those two seconds.

    Whoever has departed and waits for a message hears of it at once: `bell` lets the requests go that are held.
    """
    await anyio.to_thread.run_sync(warden.settle, _now())
    rounds = 0
    while not stopping.is_set():
        if await anyio.to_thread.run_sync(warden.look, _now()):
            bell.ring()
        if rounds % _ROUNDS_AN_HOUR == 0:
            await anyio.to_thread.run_sync(warden.care, _now())
            await anyio.to_thread.run_sync(warden.remind, _now())
        context = server.config.ssl
        await anyio.to_thread.run_sync(warden.refresh, [context] if context else [])
        rounds += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _LOOK_S)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _read_secret(path: Path) -> bytes:
    try:
        secret = path.read_bytes()
    except OSError as error:
        msg = f"the coordinator's secret {path} cannot be read"
        raise InstallationError(msg) from error
    if len(secret) < _SMALLEST_SECRET_BYTES:
        msg = f"the coordinator's secret {path} is shorter than {_SMALLEST_SECRET_BYTES} bytes"
        raise InstallationError(msg, remedy=f"head -c {_SMALLEST_SECRET_BYTES} /dev/urandom > {path}")
    return secret


def _report(event: str, **fields: int) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
