"""A centre as a real process on loopback: launcher, authority, roster."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import ssl
from pathlib import Path
from typing import Self

from fedward_common.enrolment import Invite
from fedward_server.centre import create_centre, invitation, load_centre, roster_of
from fedward_server.roster import Roster
from fedward_server.superlink_client import SuperLinkClient
from fedward_simulations.engines.deployed import LoggedProcess

__all__ = ["Centre", "now"]


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Centre:
    """A centre in `home`, made and started on entering, ended on leaving.

    Args:
        home: an empty folder.
        key_days: days that hospitals' keys are valid.
    """

    def __init__(self, home: Path, *, key_days: int = 365) -> None:
        self.home = home
        create_centre(home, "127.0.0.1", 1, now(), bind="127.0.0.1", private_port=1)
        self._set(public_port=0, private_port=0, key_days=key_days, enrolments_per_minute=10_000)
        self._stack = contextlib.ExitStack()

    def _set(self, **changes: object) -> None:
        path = self.home / "superlink.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def __enter__(self) -> Self:
        self.start("launcher")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str) -> None:
        """Run the launcher; a second time it takes the ports of the first."""
        command = ["fedward_server.superlink", "--config", str(self.home / "superlink.json")]
        self.process = self._stack.enter_context(LoggedProcess(name, command, self.home))
        ports = self.process.await_event("bound")
        self.process.await_event("ready")
        self.address = f"127.0.0.1:{ports['public_port']}"
        self._set(advertised=self.address, **ports)
        self.client = SuperLinkClient(f"127.0.0.1:{ports['private_port']}", (self.home / "secret").read_bytes())

    @property
    def roster(self) -> Roster:
        """The roster, as a command of the centre opens it."""
        return roster_of(load_centre(self.home))

    def invite(self, site: str, days: int = 7) -> Invite:
        """Return a new invite."""
        return invitation(load_centre(self.home), site, now(), days=days)

    def trust(self) -> ssl.SSLContext:
        """Return what a site verifies this centre with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=self.home / "ca.pem")
        return context

    def log(self) -> str:
        """Return the launchers' log."""
        return "".join(path.read_text() for path in sorted(self.home.glob("*.log")))
