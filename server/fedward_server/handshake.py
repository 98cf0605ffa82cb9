"""Which releases talk to each other: said on every connection, and a site that speaks other protocols is turned away.

Release and protocols are told to sites that have proved who they are, and to nobody else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import anyio.to_thread

from fedward_common.protocol import OURS, Release, compatible
from fedward_server.route_filter import AsgiApp, Receive, Scope, Send, answer_empty

__all__ = ["Handshake", "Heard", "said"]

Heard = Callable[[bytes, Release], None]
"""Is told which release the site with a public key (PEM) runs."""

_FLEET: Final = "/v1/fleet/"
_GREETINGS: Final = frozenset({f"{_FLEET}activate-node", f"{_FLEET}get-run"})
"""What a site of any release may ask, so that it proves who it is and is told what to upgrade."""
_KNOWN: Final = frozenset({200, 403})
"""Statuses that the Fleet API answers with only once the signature of a registered site was accepted (flwr 1.41)."""
_NO_RELEASE: Final = Release("", 0, 0)
_REMEMBERED: Final = 4096


def said(scope: Scope) -> Release:
    """Return the release that a request is from; one that is below all others where its headers cannot be read."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    try:
        return Release.of(headers)
    except ValueError:
        return _NO_RELEASE


class Handshake:
    """ASGI application that lets sites of this release, and of those that work with it, through to the Fleet API.

    Others are answered 426 whatever they ask: with our headers if they have proved who they are, without a request for
    a message that nobody would read ever reaching the application behind.

    Args:
        app: the application behind.
        heard: told of each site's release when it is first heard, and whenever it changes.
        visiting: told, in the request's own context, that a request is passed on only so that its sender proves who
            it is.
        ours: what this side speaks.
    """

    def __init__(
        self,
        app: AsgiApp,
        heard: Heard | None = None,
        *,
        visiting: Callable[[bool], object] = bool,
        ours: Release = OURS,
    ) -> None:
        self._app = app
        self._heard = heard
        self._visiting = visiting
        self._ours = ours
        self._headers = [(name.encode(), value.encode()) for name, value in ours.headers().items()]
        self._told: dict[bytes, Release] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or pass it on."""
        if scope["type"] != "http" or not scope["path"].startswith(_FLEET):
            await self._app(scope, receive, send)
            return
        theirs = said(scope)
        fits = compatible(self._ours, theirs) is None
        if not fits and scope["path"] not in _GREETINGS:
            await answer_empty(scope, send, HTTPStatus.UPGRADE_REQUIRED)
            return
        self._visiting(not fits)
        refused = False

        async def tell(message: MutableMapping[str, Any]) -> None:
            nonlocal refused
            if message["type"] != "http.response.start":
                await send({**message, "body": b""} if refused else message)
                return
            if message["status"] in _KNOWN:
                await self._note(scope, theirs)
                refused = not fits
                message["headers"] = [*([] if refused else message["headers"]), *self._headers]
            if refused:
                message["status"] = HTTPStatus.UPGRADE_REQUIRED
                message["headers"] += [(b"content-length", b"0")]
            await send(message)

        await self._app(scope, receive, tell)

    async def _note(self, scope: Scope, theirs: Release) -> None:
        """Pass on what a site that has proved who it is runs, if that is news."""
        key = next((value for name, value in scope["headers"] if name == b"flwr-public-key"), b"")
        if self._heard is None or self._told.get(key) == theirs:
            return
        try:
            public = base64.b64decode(key, validate=True)
        except binascii.Error:
            return
        await anyio.to_thread.run_sync(self._heard, public, theirs)
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[key] = theirs
