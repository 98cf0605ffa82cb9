from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from fedward_server.route_filter import Doorbell, RouteFilter, Waiting

PULL, PUSH, OTHER = "/pull", "/push", "/other"


Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Inner:
    """An ASGI application that notes the paths it is asked for and answers 200."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: MutableMapping[str, Any], _: object, send: Send) -> None:
        self.paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def ask(app: RouteFilter, path: str, *, hangs_up: float = 60.0, **headers: str) -> tuple[int, dict[bytes, bytes]]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    bodies: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": b""}]

    async def receive() -> MutableMapping[str, Any]:
        if bodies:
            return bodies.pop()
        await asyncio.sleep(hangs_up)
        return {"type": "http.disconnect"}

    method = headers.pop("method", "POST")
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
    return (sent[0]["status"], dict(sent[0]["headers"])) if sent else (0, {})


def status(app: RouteFilter, path: str, **headers: str) -> int:
    return asyncio.run(ask(app, path, hangs_up=60.0, **headers))[0]


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        (OTHER, {"content_length": "3"}, 200),
        (OTHER, {"content_length": "3", "method": "GET"}, 404),
        (OTHER + "/", {"content_length": "3"}, 404),
        ("/docs", {"content_length": "0"}, 404),
        ("//other", {"content_length": "0"}, 404),
        (OTHER, {}, 411),
        (OTHER, {"content_length": "-1"}, 411),
        (OTHER, {"content_length": "1e3"}, 411),
        (OTHER, {"transfer_encoding": "chunked"}, 411),
        (OTHER, {"content_length": "1001"}, 413),
    ],
)
def test_only_listed_paths_and_bounded_bodies_pass(path: str, headers: dict[str, str], expected: int) -> None:
    inner = Inner()

    assert status(RouteFilter(inner, frozenset({OTHER}), max_body=1000), path, **headers) == expected
    assert inner.paths == ([OTHER] if expected == 200 else [])


def test_a_path_may_have_a_smaller_limit_of_its_own() -> None:
    inner = Inner()
    app = RouteFilter(inner, frozenset({OTHER, PUSH}), max_body=1000, limits={PUSH: 10})

    assert [status(app, PUSH, content_length=length) for length in ("10", "11", "1000")] == [200, 413, 413]
    assert status(app, OTHER, content_length="1000") == 200


def test_a_websocket_is_closed() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def connect() -> None:
        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "websocket.connect"}

        await RouteFilter(Inner(), frozenset({OTHER}))({"type": "websocket", "path": OTHER}, receive, send)

    asyncio.run(connect())

    assert [message["type"] for message in sent] == ["websocket.close"]


def waiting_filter() -> tuple[RouteFilter, Doorbell, Doorbell]:
    mine, theirs = Doorbell(), Doorbell()
    paths = frozenset({PULL, PUSH, OTHER})
    return RouteFilter(Inner(), paths, Waiting(PULL, mine, PUSH, theirs)), mine, theirs


def test_a_client_that_says_nothing_is_answered_at_once() -> None:
    app, _, _ = waiting_filter()

    answered, headers = asyncio.run(asyncio.wait_for(ask(app, PULL, content_length="0"), 1.0))

    assert (answered, headers[b"fedward-seen"]) == (200, b"0")


def test_a_request_for_messages_is_held_until_the_bell_rings() -> None:
    async def scenario() -> tuple[bool, bytes]:
        app, mine, _ = waiting_filter()
        held = asyncio.create_task(ask(app, PULL, content_length="0", fedward_seen="0", fedward_wait_ms="9000"))
        await asyncio.sleep(0.05)
        early = held.done()
        mine.ring()
        _, headers = await asyncio.wait_for(held, 1.0)
        return early, headers[b"fedward-seen"]

    assert asyncio.run(scenario()) == (False, b"1")


def test_what_rang_between_two_requests_is_not_missed() -> None:
    async def scenario() -> None:
        app, mine, _ = waiting_filter()
        mine.ring()
        request = ask(app, PULL, content_length="0", fedward_seen="0", fedward_wait_ms="9000")
        await asyncio.wait_for(request, 1.0)

    asyncio.run(scenario())


def test_no_message_is_handed_out_to_somebody_who_has_hung_up() -> None:
    async def scenario() -> int:
        app, mine, _ = waiting_filter()
        request = ask(app, PULL, hangs_up=0.05, content_length="0", fedward_seen="0", fedward_wait_ms="9000")
        answered, _ = await asyncio.wait_for(request, 1.0)
        mine.ring()
        return answered

    assert asyncio.run(scenario()) == 0


def test_a_push_rings_the_other_side_after_it_is_stored() -> None:
    app, mine, theirs = waiting_filter()

    asyncio.run(ask(app, PUSH, content_length="0"))

    assert (mine.count, theirs.count) == (0, 1)


def test_nobody_waits_at_a_closed_bell() -> None:
    async def scenario() -> None:
        app, mine, _ = waiting_filter()
        mine.close()
        request = ask(app, PULL, content_length="0", fedward_seen=str(mine.count), fedward_wait_ms="9000")
        await asyncio.wait_for(request, 1.0)

    asyncio.run(scenario())
