"""What a daemon tells of itself while it works: facts for its health, and the local page that shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import structlog

from fedward_client.config import SiteConfig
from fedward_client.flower_adapter import NotAdmittedError
from fedward_client.health import Health
from fedward_client.loopback import loopback
from fedward_client.probe import training_problem
from fedward_client.worker import Worker
from fedward_common.errors import RefusalCode, TransportError

__all__ = ["Vitals", "shown"]

_KNOWN: Final = frozenset({httpx.codes.OK, httpx.codes.FORBIDDEN})  # only after a signature was accepted (flwr 1.41)
_PROBE_S: Final = 180.0
_STALE_S: Final = 90.0
_SIGNS: Final = 3
_BROKEN: Final = frozenset(
    code.value
    for code in RefusalCode
    if code is RefusalCode.INTERNAL or (code.value.startswith("task_") and code is not RefusalCode.TASK_DENIED)
)
"""Codes after which it is open whether this computer can still train."""

_log = structlog.get_logger("fedward.vitals")


class Vitals:
    """Keeps a daemon's `Health` up to date; safe to be told from several threads.

    Args:
        health: the facts.
        probe: trains a step on nobody's rows and returns what hinders it; None: nobody asks, so nobody tries.
    """

    def __init__(self, health: Health | None = None, probe: Callable[[], str] | None = None) -> None:
        self.health = health or Health(time.monotonic())
        self._probe = probe
        self._inside = False

    def allow(self, seconds: float) -> None:
        """Note that the serving loop turns, and that it will again within `seconds`."""
        self.health.turn(time.monotonic(), seconds)

    def connected(self) -> None:
        """Note that the coordinator has let this site in."""
        self._inside = True
        self.health.admitted(time.monotonic())

    def disconnected(self, error: TransportError) -> None:
        """Note why there is no connection, or no longer one."""
        if isinstance(error, NotAdmittedError):
            self.health.shut_out(error.message, error.remedy, unknown=not self._inside)
        else:
            self.health.unreachable(error.message, error.remedy)
        self._inside = False

    def failed(self, error: TransportError) -> None:
        """Note that one call of a session did not succeed."""
        self.health.unreachable(error.message, error.remedy)

    def answer_seen(self, sent: int, received: int, response: httpx.Response) -> None:
        """Note what one request to the coordinator came to; see `fedward_client.flower_adapter.Watching`."""
        self.health.transferred(received=received, sent=sent)
        if response.status_code in _KNOWN:
            self.health.heard(time.monotonic())
        elif response.status_code == httpx.codes.UNAUTHORIZED:
            remedy = "was the site revoked, is its key expired, is the clock right? fedward client doctor"
            self.health.shut_out("the coordinator refuses this site's signature (HTTP 401)", remedy)

    def answered(self, kind: str, seconds: float, refusal: str | None) -> None:
        """Note a message of type `kind` that was answered; after a task that broke, find out whether training works."""
        self.health.received(kind)
        self.health.answered(kind, seconds, refusal)
        if refusal is not None and refusal.partition(" ")[0] in _BROKEN:
            self.probe()

    def probe(self) -> None:
        """Find out whether a step can be trained here."""
        if self._probe is None:
            return
        self.allow(_PROBE_S)
        problem = self._probe()
        if problem:
            _log.error("cannot_train", cause=problem, remedy="fedward client doctor")
        self.health.probed(problem)


@contextmanager
def shown(config: SiteConfig, home: Path, worker: Worker, heartbeat_s: float) -> Iterator[Vitals]:
    """Yield the vitals of a daemon, shown on the site's local page while the context lasts, if it has one.

    Args:
        config: ``site.yaml``.
        home: the site's folder.
        worker: who trains.
        heartbeat_s: between two signs of life; an accepted signature counts for three of them, at least 90 seconds.

    Raises:
        InstallationError: the page's port is taken.
    """
    if config.local_page is None:
        yield Vitals()
        return
    from fedward_client.local_server import LocalServer  # noqa: PLC0415  (for those who want it)

    vitals = Vitals(probe=lambda: training_problem(worker))
    stale_s = max(_STALE_S, _SIGNS * heartbeat_s)
    with LocalServer(vitals.health, home, loopback(config.local_page), stale_s) as server:
        _log.info("local_page", address=f"http://{server.address.netloc}/")
        yield vitals
