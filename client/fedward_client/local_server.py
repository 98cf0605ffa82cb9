"""Health, metrics and the local page over HTTP, on loopback, in a thread of the daemon.

Starlette and uvicorn rather than the standard library's ``http.server``: they parse hostile requests with limits, time
out idle connections and are kept by others. What that costs was measured in a process that has the daemon's own imports
(flwr brings both packages anyway): 64 ms and 3.8 MB with jinja2 and prometheus-client, where ``http.server`` in their
place takes 40 ms and 2.2 MB.

Every request must be a GET that names this address in its Host header. That keeps a web page of the internet from
reading the site through a browser on this computer (DNS rebinding); other accounts of this computer can read it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fedward_client.health import Condition, Facts, Health, alive, conditions
from fedward_client.loopback import Loopback
from fedward_client.metrics import exposition
from fedward_client.overview import Overseer
from fedward_client.status_page import content_policy, render
from fedward_common.errors import InstallationError

__all__ = ["STALE_S", "Guard", "LocalServer", "build_app"]

STALE_S: Final = 90.0
"""An accepted signature counts for three of the shortest intervals between signs of life that Flower's default sets."""

_OK: Final = 200
_UNAVAILABLE: Final = 503
_MISDIRECTED: Final = 421
_STOP_S: Final = 5.0

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI application that passes on GET requests that name this address, and answers 405 or 421 to all others."""

    def __init__(self, app: AsgiApp, address: Loopback) -> None:
        self._app = app
        self._address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or pass it on; every answer gets the headers of `_HEADERS`."""
        refusal = self._refusal(scope)
        if scope["type"] == "http":
            send = _careful(send)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["type"] != "http":
            return PlainTextResponse("no websocket here\n", _MISDIRECTED)
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._address.named_by(hosts[0]):
            return PlainTextResponse("this address is not what the request names\n", _MISDIRECTED)
        if scope["method"] != "GET":
            return PlainTextResponse("only GET\n", 405, {"allow": "GET"})
        return None


_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


def _careful(send: Send) -> Send:
    """Return a `send` that adds the headers of `_HEADERS`, and a policy that allows nothing where there is none."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = list(message["headers"])
            if not any(name == b"content-security-policy" for name, _ in given):
                given.append((b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))
            message["headers"] = [*given, *_HEADERS]
        await send(message)

    return sent


class _Pages:
    """The four answers, from a daemon's facts and its folder."""

    def __init__(self, health: Health, home: Path, address: Loopback, stale_s: float) -> None:
        self._health = health
        self._overseer = Overseer(home)
        self._address = address
        self._stale_s = stale_s

    def _now(self) -> tuple[Facts, float, list[Condition]]:
        self._health.policy_read(*self._overseer.policy())
        facts, now = self._health.facts(), time.monotonic()
        return facts, now, [alive(facts, now), *conditions(facts, now, stale_s=self._stale_s)]

    def healthz(self, _: Request) -> Response:
        """Answer 200 while the serving loop turns."""
        serving = self._now()[2][0]
        return _answer([serving], "alive")

    def readyz(self, _: Request) -> Response:
        """Answer 200 when a round could be trained now, else 503 and which condition is not met."""
        return _answer(self._now()[2], "ready")

    def metrics(self, _: Request) -> Response:
        """Answer with the metrics for Prometheus."""
        facts, now, met = self._now()
        text = exposition(facts, self._overseer.look(), met, now=now, today=datetime.now(UTC))
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    def page(self, _: Request) -> Response:
        """Answer with the page for people."""
        facts, now, met = self._now()
        page = render(self._overseer.look(), facts, met, now=now, today=datetime.now(UTC), address=self._address.netloc)
        return HTMLResponse(page, headers={"content-security-policy": content_policy()})


def _answer(found: list[Condition], word: str) -> Response:
    good = all(condition.met for condition in found)
    return JSONResponse(
        {word: good, "conditions": [asdict(condition) for condition in found]}, _OK if good else _UNAVAILABLE
    )


def build_app(health: Health, home: Path, address: Loopback, stale_s: float = STALE_S) -> AsgiApp:
    """Return the ASGI application with ``/healthz``, ``/readyz``, ``/metrics`` and ``/``, behind a `Guard`.

    Args:
        health: the daemon's facts.
        home: the site's folder.
        address: where requests are answered; their Host header must name it.
        stale_s: for how many seconds an accepted signature counts.
    """
    pages = _Pages(health, home, address, stale_s)
    routes = {"/": pages.page, "/healthz": pages.healthz, "/readyz": pages.readyz, "/metrics": pages.metrics}
    app = Starlette(routes=[Route(path, answer) for path, answer in routes.items()])
    app.router.redirect_slashes = False
    return Guard(app, address)


class LocalServer:
    """Serves `build_app` while entered.

    Args:
        health: the daemon's facts.
        home: the site's folder.
        address: a loopback address; port 0 takes a free one.
        stale_s: see `build_app`.
    """

    def __init__(self, health: Health, home: Path, address: Loopback, stale_s: float = STALE_S) -> None:
        self._health = health
        self._home = home
        self._stale_s = stale_s
        self.address = address

    def __enter__(self) -> Self:
        """Listen; requests are answered from here on.

        Raises:
            InstallationError: the port is taken.
        """
        listener = _listen(self.address)
        self.address = Loopback(self.address.host, listener.getsockname()[1])
        app = build_app(self._health, self._home, self.address, self._stale_s)
        self._server = uvicorn.Server(_settings(app))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="local-page", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop answering."""
        self._server.should_exit = True
        self._thread.join(_STOP_S)


def _settings(app: AsgiApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        http="h11",
        ws="none",
        limit_concurrency=32,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
    )


def _listen(address: Loopback) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        msg = f"local_page: cannot listen on {address.netloc}: {error.strerror}"
        remedy = "choose another port for `local_page` in site.yaml, or take the line out"
        raise InstallationError(msg, remedy=remedy) from error
    return listener
