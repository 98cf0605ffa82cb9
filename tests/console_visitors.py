"""People with browsers at a console, without a socket: they log in, keep their cookies and send its forms."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import Any, Final

import httpx
from fastapi import FastAPI

from fedward_server.studies.access import Role
from fedward_server.studies.api import build_api
from fedward_server.studies.book import StudyEntry
from tests.console_centre import ConsoleCentre

__all__ = ["Client", "Person"]

HERE: Final = "http://testserver"


class Client:
    """Asks an application without a socket, and keeps its cookies."""

    def __init__(self, app: FastAPI) -> None:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 40000))
        self._client = httpx.AsyncClient(transport=transport, base_url=HERE)
        self.cookies = self._client.cookies

    def get(self, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._client.get(path, **more))

    def post(self, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._client.post(path, **more))


class Person:
    """A browser of somebody who has logged in; with an `app`, at the console of somebody else."""

    def __init__(
        self, centre: ConsoleCentre, role: Role | None = Role.VIEWER, name: str = "", app: FastAPI | None = None
    ) -> None:
        self.app = app or build_api(centre.home)
        self.client = Client(self.app)
        self.name = name or f"{role}-{secrets.token_hex(4)}"
        if role is not None:
            self.token = centre.token(self.name, role)
            answer = self.client.post("/login", data={"token": self.token, "next": "/"})
            assert answer.status_code == 303

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def form(self, path: str = "/") -> str:
        (found, *_) = re.findall(r'name="form" value="([^"]+)"', self.get(path).text)
        return str(found)

    def wish(self, entry: StudyEntry, wish: str) -> httpx.Response:
        data = {"form": self.form(), "wish": wish}
        return self.client.post(f"/runs/{entry.id}/wish", data=data)
