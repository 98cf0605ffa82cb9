"""What stands before the SuperLink's application: which paths there are, how large a request is, who waits.

ASGI applications of a few lines; nothing here knows Flower.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import anyio.to_thread

from fedward_common.certificates import verify_as_node
from fedward_server.heap import drop_large

__all__ = [
    "AsgiApp",
    "Doorbell",
    "Parts",
    "Receive",
    "RouteFilter",
    "Scope",
    "Send",
    "SignedReplies",
    "Switch",
    "Waiting",
    "answer_empty",
    "whole_body",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_BODY_BYTES: Final = 64 * 1024 * 1024  # Flower cuts arrays into objects of 5 MiB; records are single objects
_LONGEST_WAIT_S: Final = 10.0
_PARTS: Final = ("/push-object", "/pull-object")
_PIECE_BYTES: Final = 256 * 1024


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


@dataclass(frozen=True, slots=True)
class Parts:
    """Whose turn it is among the requests that carry parts of models, and the folder for their nameless files."""

    turn: asyncio.Semaphore
    folder: Path


class RouteFilter:
    """ASGI application that lets through POST requests to the listed paths and answers 404 to the rest.

    Paths are compared exactly, as the router behind sees them. A body must declare its length: 411 without,
    413 beyond `max_body` bytes, or what `limits` says for its path, both before anything of it is read.

    With `waiting`, a request for messages that says what it has seen (``fedward-seen``) is held until there is
    something else, at most as long as it asks (``fedward-wait-ms``) and at most 10 s: nobody polls, and a message is
    seen as soon as it is stored. Clients that say nothing, like Flower's own, are answered at once. What a request for
    messages says of resuming a session (``fedward-resume``) is given to `resuming`, in the request's own context.

    With `parts`, bodies and answers of the requests that carry parts of models wait in files, and the application has
    one of these requests in hand at a time.
    """

    def __init__(
        self,
        app: AsgiApp,
        paths: frozenset[str],
        waiting: Waiting | None = None,
        *,
        max_body: int = _MAX_BODY_BYTES,
        limits: Mapping[str, int] | None = None,
        resuming: Callable[[bool], object] = bool,
        parts: Parts | None = None,
    ) -> None:
        self._app = app
        self._paths = paths
        self._waiting = waiting
        self._max_body = max_body
        self._limits = dict(limits or {})
        self._resuming = resuming
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or pass it on."""
        status = self._refusal(scope)
        if status is not None:
            await answer_empty(scope, send, status)
        elif self._waiting and scope["path"] == self._waiting.pull:
            await self._pull(self._waiting.pull_bell, scope, receive, send)
        elif self._parts and scope["path"].endswith(_PARTS):
            await self._one_at_a_time(self._parts, scope, receive, send)
        else:
            await self._app(scope, receive, send)
            if self._waiting and scope["path"] == self._waiting.push:
                self._waiting.push_bell.ring()

    async def _one_at_a_time(self, parts: Parts, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose body or answer is large: from file to file, and with the application one at a time.

        A slow sender or receiver costs the disk its bytes, and nobody else their turn.
        """
        with tempfile.TemporaryFile(dir=parts.folder) as body, tempfile.TemporaryFile(dir=parts.folder) as answer:
            if not await _received(receive, body):
                return
            body.seek(0)
            begun: list[MutableMapping[str, Any]] = []
            whole = False

            async def replayed() -> MutableMapping[str, Any]:
                nonlocal whole
                if whole:
                    return await receive()
                piece = body.read(_PIECE_BYTES)
                whole = not piece
                return {"type": "http.request", "body": piece, "more_body": bool(piece)}

            async def kept(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.body":
                    answer.write(message.get("body", b""))
                else:
                    begun.append(message)

            async with parts.turn:
                await self._app(scope, replayed, kept)
                drop_large(body.tell() + answer.tell())
            for message in begun:
                await send(message)
            answer.seek(0)
            while piece := answer.read(_PIECE_BYTES):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pull(self, bell: Doorbell, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self._resuming(headers.get(b"fedward-resume") == b"1")
        seen, wait_ms = headers.get(b"fedward-seen", b""), headers.get(b"fedward-wait-ms", b"")
        if seen.isdigit() and wait_ms.isdigit():
            body = await whole_body(receive)
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
        return 413 if int(lengths[0]) > self._limits.get(scope["path"], self._max_body) else None


class Switch:
    """Sends requests for the named paths to applications of their own, and all others to one.

    Args:
        others: the application for every other path.
        paths: applications by exact path.
    """

    def __init__(self, others: AsgiApp, paths: Mapping[str, AsgiApp]) -> None:
        self._others = others
        self._paths = dict(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        app = self._paths.get(scope["path"], self._others) if scope["type"] == "http" else self._others
        await app(scope, receive, send)


class SignedReplies:
    """Answers 401 to a reply that its sender's key has not signed whole (``fedward-signature``).

    Flower's signature covers a time stamp. This one covers the reply's metadata and the SHA-256 of each part of its
    content, so that nobody between site and centre, a proxy that inspects TLS included, can send one in its name.

    Args:
        app: the application behind, which says whether the key counts.
        path: where replies are announced; everything else passes.
    """

    def __init__(self, app: AsgiApp, path: str) -> None:
        self._app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or pass it on."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        body = await whole_body(receive)
        if body is None:
            return
        if not await anyio.to_thread.run_sync(_signed_whole, dict(scope["headers"]), body):
            await answer_empty(scope, send, 401)
            return
        await self._app(scope, _replay(body, receive), send)


def _signed_whole(headers: Mapping[bytes, bytes], body: bytes) -> bool:
    try:
        key = base64.b64decode(headers[b"flwr-public-key"], validate=True)
        signature = headers[b"fedward-signature"].decode("ascii")
    except (KeyError, UnicodeDecodeError, binascii.Error):
        return False
    return verify_as_node(key, body, signature)


async def _received(receive: Receive, target: BinaryIO) -> bool:
    """Write a request's body, whose length has been checked, to a file; return False if its sender is gone."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return False
        target.write(message.get("body", b""))
        if not message.get("more_body", False):
            return True


async def whole_body(receive: Receive) -> bytes | None:
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


async def answer_empty(scope: Scope, send: Send, status: int) -> None:
    """Answer `status` without a body and close the connection; a websocket is closed."""
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
