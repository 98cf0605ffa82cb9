"""What systemd is told: ready, still alive, stopping (the protocol of sd_notify(3)); nothing where it does not ask.

The watchdog is no clock of its own: the serving loop says how long its next step may take, and the service manager
hears of a sign of life only as long as it keeps that promise. A loop that hangs is restarted; one that trains for an
hour, or waits in a held request, is not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

__all__ = ["Notifier", "Watchdog"]

_FEWEST_S: Final = 0.05


class Notifier:
    """Sends datagrams to the service manager; does nothing without one.

    Args:
        address: value of ``NOTIFY_SOCKET``: a path, or a name in the abstract namespace behind ``@``; empty for none.
    """

    def __init__(self, address: str) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._status = ""
        self._ready = False

    def ready(self, status: str) -> None:
        """Say that the service does what it is there for; said again, it only changes the status."""
        self._send({"READY": "1", "STATUS": status} if not self._ready else {"STATUS": status})
        self._ready, self._status = True, status

    def status(self, status: str) -> None:
        """Say in a line what goes on; ``systemctl status`` shows it."""
        if status != self._status:
            self._status = status
            self._send({"STATUS": status})

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send({"STOPPING": "1", "STATUS": "stopping"})

    def alive(self) -> None:
        """Give the watchdog a sign of life."""
        self._send({"WATCHDOG": "1"})

    def _send(self, fields: Mapping[str, str]) -> None:
        if not self._address:
            return
        lines = "".join(f"{key}={' '.join(value.split())}\n" for key, value in fields.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(self._address)
            channel.send(lines.encode())


class Watchdog:
    """Signs of life, for as long as a promise lasts.

    Args:
        notifier: who passes them on.
        interval_s: time within which the service manager wants one; None: it wants none.
        clock: monotonic seconds.
    """

    def __init__(
        self, notifier: Notifier, interval_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._notifier = notifier
        self._interval = interval_s
        self._clock = clock
        self._until = clock()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Watchdog:
        """Return the watchdog that ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` ask for."""
        micros, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        wanted = micros.isdigit() and int(micros) > 0 and pid in {"", str(os.getpid())}
        return cls(Notifier(environ.get("NOTIFY_SOCKET", "")), int(micros) / 1e6 if wanted else None)

    @property
    def notifier(self) -> Notifier:
        """Who passes the signs on."""
        return self._notifier

    def allow(self, seconds: float) -> None:
        """Promise that this is called again within `seconds`, and give a sign of life for as long."""
        self._until = self._clock() + seconds

    def look(self) -> bool:
        """Give a sign of life if the promise still holds, and return whether it does."""
        kept = self._clock() <= self._until
        if kept:
            self._notifier.alive()
        return kept

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look twice in each interval, inside the ``with``, from a thread of its own."""
        if self._interval is None:
            yield
            return
        pause, stop = max(self._interval / 2, _FEWEST_S), threading.Event()

        def watch() -> None:
            while not stop.wait(pause):
                self.look()

        thread = threading.Thread(target=watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=2.0)
