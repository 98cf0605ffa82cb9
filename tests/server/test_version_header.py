"""The release is told to sites that have proved who they are, and to nobody else."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import anyio
import pytest

from fedward_common import __version__
from fedward_server.version_header import VersionHeader

Message = MutableMapping[str, Any]
PATH = "/v1/fleet/get-run"


def headers(status: int, path: str = PATH) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with `status` from an application behind."""
    sent: list[Message] = []

    async def app(_: Message, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"date", b"today")]})
        await send({"type": "http.response.body", "body": b"body"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    anyio.run(VersionHeader(app), {"type": "http", "path": path}, receive, send)
    assert sent[1] == {"type": "http.response.body", "body": b"body"}
    return list(sent[0]["headers"])


@pytest.mark.parametrize("status", [200, 403])
def test_a_registered_site_is_told(status: int) -> None:
    assert headers(status) == [(b"date", b"today"), (b"fedward-version", __version__.encode())]


@pytest.mark.parametrize("status", [400, 401, 404, 411, 412, 413, 415, 422, 500, 503])
def test_whoever_has_proved_nothing_is_not_told(status: int) -> None:
    assert headers(status) == [(b"date", b"today")]


@pytest.mark.parametrize("path", ["/", "/v1/enrol/authority", "/v1/enrol/site", "/v1/control/list-runs", "/v1/fleet"])
def test_nobody_is_told_outside_the_fleet_api(path: str) -> None:
    assert headers(200, path) == [(b"date", b"today")]


def test_a_websocket_passes_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Message, _: Any, __: Any) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(_: Message) -> None:
        pytest.fail("nothing is to be sent")

    anyio.run(VersionHeader(app), {"type": "websocket", "path": PATH}, receive, send)

    assert seen == ["websocket"]
