"""The SuperLink as Fedward runs it: one process, two listeners, one state.

The public listener speaks TLS and answers nothing but the Fleet API; the loopback listener answers nothing but
the Control and Runtime APIs, for the coordinator on the same machine. Anything else is 404 on both. Run as
``python -m fedward_server.superlink --config FILE``; two lines of JSON on standard output report the bound ports
and then that requests are answered. SIGTERM, SIGINT and, if asked for, the end of standard input stop it cleanly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from fedward_common.errors import FedwardError, InstallationError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

__all__ = ["PRIVATE_ROUTES", "Doorbell", "RouteFilter", "SuperLinkConfig", "Waiting", "load_config", "main"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_BODY_BYTES: Final = 64 * 1024 * 1024  # Flower cuts arrays into objects of 5 MiB; records are single objects
_KEEP_ALIVE_S: Final = 75
_LONGEST_WAIT_S: Final = 10.0
_SHUTDOWN_S: Final = 3
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
    """

    database: Path
    certificate: Path
    certificate_key: Path
    secret: Path
    public_host: str = "127.0.0.1"
    public_port: int = 0
    private_host: str = "127.0.0.1"
    private_port: int = 0

    def __post_init__(self) -> None:
        if not ipaddress.ip_address(self.private_host).is_loopback:
            msg = f"private_host {self.private_host} is no loopback address"
            raise InstallationError(msg, remedy="Control and Runtime stay on this machine: use 127.0.0.1 or ::1")


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
        return SuperLinkConfig(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        msg = f"{path} is not a SuperLink configuration: {error}"
        raise InstallationError(msg, remedy="keys: " + ", ".join(SuperLinkConfig.__dataclass_fields__)) from error


class Doorbell:
    """Wakes those who wait for messages in one direction. Belongs to one event loop.

    Args:
        start: first value of `count`; a restarted SuperLink takes another one, so that nobody who has seen the former
            one's messages takes these for them.
    """

    def __init__(self, start: int = 0) -> None:
        self.count = start
        self._closed = False
        self._changed = asyncio.Event()

    def ring(self) -> None:
        """Note that a message has been stored, and wake everybody."""
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Wake everybody, now and from now on."""
        self._closed = True
        self.ring()

    async def wait(self, seen: int, seconds: float) -> None:
        """Return once another message than the `seen` first has been stored, or after `seconds`."""
        if self.count == seen and not self._closed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), seconds)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Which path of a listener waits for a bell, and which path rings another."""

    pull: str
    pull_bell: Doorbell
    push: str
    push_bell: Doorbell


class RouteFilter:
    """ASGI application that lets through POST requests to the listed paths and answers 404 to the rest.

    Paths are compared exactly, as the router behind sees them. A body must declare its length: 411 without,
    413 beyond `max_body` bytes, both before anything of it is read.

    With `waiting`, a request for messages that says what it has seen (``fedward-seen``) is held until there is
    something else, at most as long as it asks (``fedward-wait-ms``) and at most 10 s: nobody polls, and a message is
    seen as soon as it is stored. Clients that say nothing, like Flower's own, are answered at once.
    """

    def __init__(
        self,
        app: AsgiApp,
        paths: frozenset[str],
        waiting: Waiting | None = None,
        *,
        max_body: int = _MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._paths = paths
        self._waiting = waiting
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or pass it on."""
        status = self._refusal(scope)
        if status is not None:
            await _answer_empty(scope, send, status)
        elif self._waiting and scope["path"] == self._waiting.pull:
            await self._pull(self._waiting.pull_bell, scope, receive, send)
        else:
            await self._app(scope, receive, send)
            if self._waiting and scope["path"] == self._waiting.push:
                self._waiting.push_bell.ring()

    async def _pull(self, bell: Doorbell, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        seen, wait_ms = headers.get(b"fedward-seen", b""), headers.get(b"fedward-wait-ms", b"")
        if seen.isdigit() and wait_ms.isdigit():
            body = await _whole_body(receive)
            seconds = min(int(wait_ms) / 1000, _LONGEST_WAIT_S)
            if body is None or not await _held(bell.wait(int(seen), seconds), receive):
                return  # whoever asked is gone: the app would hand out a message that nobody gets
            receive = _replay(body, receive)
        count = str(bell.count).encode("ascii")  # before the app looks: what comes later is not in its answer

        async def tell(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"fedward-seen", count)]
            await send(message)

        await self._app(scope, receive, tell)

    def _refusal(self, scope: Scope) -> int | None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            return 404
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdigit():
            return 411
        return 413 if int(lengths[0]) > self._max_body else None


async def _whole_body(receive: Receive) -> bytes | None:
    """Return a request's body, whose length has been checked, or None if its sender is gone."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _held(wait: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Return True once `wait` is over, or False at once when whoever asked hangs up."""
    waiting, hanging_up = asyncio.ensure_future(wait), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({waiting, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        return not hanging_up.done()
    finally:
        for task in (waiting, hanging_up):
            task.cancel()
        await asyncio.gather(waiting, hanging_up, return_exceptions=True)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` first."""
    first: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> MutableMapping[str, Any]:
        return first.pop() if first else await receive()

    return replayed


async def _answer_empty(scope: Scope, send: Send, status: int) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


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
    from fedward_server import flower_adapter  # noqa: PLC0415

    fleet, runtime = "/v1/fleet/", "/v1/runtime/"
    to_sites, to_centre = Doorbell(secrets.randbits(48)), Doorbell(secrets.randbits(48))
    public = Waiting(fleet + "pull-messages", to_sites, fleet + "push-messages", to_centre)
    private = Waiting(runtime + "pull-messages", to_centre, runtime + "push-messages", to_sites)
    servers = [
        _server(RouteFilter(app, flower_adapter.fleet_routes(), public), config),
        _server(RouteFilter(app, PRIVATE_ROUTES, private), None),
    ]

    def stop() -> None:
        for server in servers:
            server.should_exit = True
        to_sites.close()
        to_centre.close()

    # sqlite has one writer, and a writer that waits for another sleeps up to .1 s: handlers take turns instead.
    anyio.to_thread.current_default_thread_limiter().total_tokens = int(os.environ.get("TOK", "1"))
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)
    async with app.router.lifespan_context(app), asyncio.TaskGroup() as group:
        for server, sock in zip(servers, sockets, strict=True):
            group.create_task(server.serve(sockets=[sock]))
        while not all(server.started or server.should_exit for server in servers):  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.01)
        _report("ready")


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
