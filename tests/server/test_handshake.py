"""Who has proved who they are is told this release; who speaks other protocols is turned away and told why."""

from __future__ import annotations

import base64
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from fedward_common.protocol import OURS, Release
from fedward_server.handshake import Handshake, said

Message = MutableMapping[str, Any]
PATH = "/v1/fleet/get-run"
PULL = "/v1/fleet/pull-messages"
KEY = b"-----BEGIN PUBLIC KEY-----"
OURSELVES = [(name.encode(), value.encode()) for name, value in OURS.headers().items()]
LATER = Release("0.9.0", OURS.newest + 1, OURS.newest + 2)
EARLIER = Release("0.0.1", 1, 1)


@dataclass
class Desk:
    """A handshake before an application that answers everything with `status`, and what came of its requests."""

    status: int = 200
    asked: list[str] = field(default_factory=list)
    heard: list[tuple[bytes, Release]] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.handshake = Handshake(self.app, lambda key, release: self.heard.append((key, release)))

    async def app(self, scope: Message, _: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"date", b"today")]})
        await send({"type": "http.response.body", "body": b"body"})

    def ask(self, path: str = PATH, **headers: str) -> int:
        """Send one request and return the answer's status."""
        self.sent.clear()

        async def send(message: Message) -> None:
            self.sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request"}

        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"flwr-public-key", base64.b64encode(KEY)))
        anyio.run(self.handshake, {"type": "http", "path": path, "headers": raw}, receive, send)
        return int(self.sent[0]["status"])

    def ask_as(self, release: Release, path: str = PATH) -> int:
        return self.ask(path, **{name.replace("-", "_"): value for name, value in release.headers().items()})

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.sent[0]["headers"])


@pytest.mark.parametrize("status", [200, 403])
def test_a_registered_site_is_told(status: int) -> None:
    desk = Desk(status)

    assert desk.ask() == status
    assert desk.headers == [(b"date", b"today"), *OURSELVES]
    assert desk.sent[1] == {"type": "http.response.body", "body": b"body"}


@pytest.mark.parametrize("status", [400, 401, 404, 411, 412, 413, 415, 422, 500, 503])
@pytest.mark.parametrize("release", [OURS, LATER, EARLIER])
def test_whoever_has_proved_nothing_is_not_told(status: int, release: Release) -> None:
    desk = Desk(status)

    assert desk.ask_as(release) == status
    assert desk.headers == [(b"date", b"today")]
    assert desk.heard == []


@pytest.mark.parametrize("path", ["/", "/v1/enrol/authority", "/v1/enrol/site", "/v1/control/list-runs", "/v1/fleet"])
def test_nobody_is_told_outside_the_fleet_api(path: str) -> None:
    desk = Desk()

    assert desk.ask_as(LATER, path) == 200
    assert desk.headers == [(b"date", b"today")]


@pytest.mark.parametrize("release", [LATER, EARLIER])
@pytest.mark.parametrize("path", ["/v1/fleet/activate-node", PATH])
@pytest.mark.parametrize("status", [200, 403])
def test_a_known_site_of_another_protocol_is_told_what_to_upgrade_by(release: Release, path: str, status: int) -> None:
    desk = Desk(status)

    assert desk.ask_as(release, path) == 426
    assert desk.headers == [*OURSELVES, (b"content-length", b"0")]
    assert desk.sent[1]["body"] == b""
    assert desk.heard == [(KEY, release)]


@pytest.mark.parametrize("release", [LATER, EARLIER])
@pytest.mark.parametrize("path", [PULL, "/v1/fleet/push-messages", "/v1/fleet/send-node-heartbeat"])
def test_no_message_is_handed_to_a_site_of_another_protocol(release: Release, path: str) -> None:
    desk = Desk()

    assert desk.ask_as(release, path) == 426
    assert desk.asked == []
    assert not set(desk.headers) & set(OURSELVES)


@pytest.mark.parametrize("span", ["", "x", "3-2", "9" * 40])
def test_what_cannot_be_read_is_turned_away(span: str) -> None:
    desk = Desk()

    assert desk.ask(PULL, fedward_protocol=span) == 426
    assert desk.asked == []


def test_a_site_from_before_the_headers_is_served() -> None:
    desk = Desk()

    assert desk.ask(PULL) == 200
    assert desk.heard == [(KEY, Release("", 2, 2))]


def test_each_release_of_a_site_is_noted_once() -> None:
    desk = Desk()
    for release in (OURS, OURS, LATER, LATER, OURS):
        desk.ask_as(release)

    assert desk.heard == [(KEY, OURS), (KEY, LATER), (KEY, OURS)]


def test_a_request_that_is_no_text_is_below_all_releases() -> None:
    assert said({"headers": [(b"fedward-protocol", b"\xff\xfe")]}).newest == 0


def test_a_websocket_passes_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Message, _: Any, __: Any) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(_: Message) -> None:
        pytest.fail("nothing is to be sent")

    anyio.run(Handshake(app), {"type": "websocket", "path": PATH, "headers": []}, receive, send)

    assert seen == ["websocket"]
