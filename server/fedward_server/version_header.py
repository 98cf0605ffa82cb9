"""Which release of Fedward answers: told to sites that have proved who they are, and to nobody else."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

from fedward_common import __version__
from fedward_server.route_filter import AsgiApp, Receive, Scope, Send

__all__ = ["VersionHeader"]

_FLEET: Final = "/v1/fleet/"
_KNOWN: Final = frozenset({200, 403})
"""Statuses that the Fleet API answers with only once the signature of a registered site was accepted (flwr 1.41)."""


class VersionHeader:
    """ASGI application that adds ``fedward-version`` to the Fleet API's answers to registered sites.

    Args:
        app: the application behind.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""

        async def tell(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] in _KNOWN:
                message["headers"] = [*message["headers"], (b"fedward-version", __version__.encode("ascii"))]
            await send(message)

        fleet = scope["type"] == "http" and scope["path"].startswith(_FLEET)
        await self._app(scope, receive, tell if fleet else send)
