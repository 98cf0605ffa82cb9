"""A centre's folder with hospitals in its roster and a key that signs its studies, without any process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.signing import create_key, public_text
from fedward_common.study import Study
from fedward_common.study_file import StudyFile
from fedward_server.centre import create_centre, load_centre, roster_of
from fedward_server.studies.book import StudyBook
from tests.builders import SITES, small_study
from tests.candidates import NOW, Candidate

__all__ = ["NOW", "InProcess", "StudiesCentre"]


@dataclass
class StudiesCentre:
    """A centre in `home` whose roster has `sites`."""

    home: Path
    sites: tuple[str, ...] = SITES

    def __post_init__(self) -> None:
        self.key: Ed25519PrivateKey = create_key(self.home.parent / f"{self.home.name}-author.pem")
        keys = [public_text(self.key.public_key())]
        create_centre(self.home, "localhost", 18443, NOW, bind="127.0.0.1", study_keys=keys, console_port=0)
        roster = roster_of(load_centre(self.home))
        for number, site in enumerate(self.sites, start=2):
            Candidate(site).enrolled(roster, number, days=36500)

    @property
    def book(self) -> StudyBook:
        """The book, as another process opens it."""
        return StudyBook(self.home)

    def signed(self, study: Study | None = None, **changes: object) -> StudyFile:
        """Return a study file that the centre takes."""
        return StudyFile(study or small_study(**changes)).signed(self.key)


@dataclass
class InProcess:
    """Asks an ASGI application in this process; one that breaks answers as its server would."""

    app: Any

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Return the answer to one request."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8470") as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())
