"""The log of decisions, sent on to a hospital's syslog receiver over TLS; an outage never blocks and never loses.

A thread reads the log behind a cursor (``syslog.cursor``) and sends what is new. TLS says nothing about what a receiver
has taken, so each batch ends with a close of the connection that the receiver must answer (``close_notify``; RFC 5425,
section 4.4): only then is the cursor moved, on the disk. Whatever was cut off is sent again from there: the receiver
may see an entry twice, which its number shows, and it misses none. For a receiver that does not answer
(``audit.answers``: false) an orderly end of the TCP connection has to do, which somebody on the network can forge.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from fedward_client.syslog_message import AuditSettings, backoff_s, frame, message
from fedward_common.audit import AuditLog
from fedward_common.audit_chain import GENESIS, Position, entry_of
from fedward_common.canonical import canonical_json
from fedward_common.errors import FedwardError, InstallationError, TransportError
from fedward_common.files import replace_file

__all__ = ["SyslogForwarder", "backlog", "forwarder"]

_CURSOR: Final = "syslog.cursor"
_BATCH: Final = 500
_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 1.0
_NO_ANSWER: Final = (
    "rsyslog: driver ossl in place of gtls; where that cannot be, answers: false under audit in site.yaml"
)
_START: Final = Position(0, 0, GENESIS)
_log = structlog.get_logger("fedward.syslog")


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The last entry that the receiver at `address` has taken."""

    address: str
    position: Position


class SyslogForwarder:
    """Sends one site's log of decisions to one receiver.

    Args:
        home: the site's folder.
        settings: where to; ``ca`` is relative to `home`.
        look_s: how often it looks for new entries, in seconds.

    Raises:
        InstallationError: ``audit.ca`` is no file of certificates.
    """

    def __init__(self, home: Path, settings: AuditSettings, *, look_s: float = _LOOK_S) -> None:
        self._home = home
        self._audit = AuditLog(home)
        self._host, self._port = settings.address
        self._answers = settings.answers
        self._tls = _trusting(home / settings.ca if settings.ca else None)
        self._look_s = look_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-syslog", daemon=True)

    def start(self) -> None:
        """Begin to send, in a thread of its own."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Let the thread end; what it has not sent is sent after the next start."""
        self._stop.set()
        self._thread.join(timeout_s)

    def forward(self) -> int:
        """Send the next entries, 500 at most, and return how many the receiver has taken.

        Raises:
            OSError: the receiver cannot be reached, is not the one that `ca` vouches for, or does not answer.
            FedwardError: the log cannot be read.
        """
        position = _cursor_of(self._home, self._address).position
        lines = self._audit.following(position, _BATCH)
        if lines is None:
            _log.warning("log_replaced", cause="the log is not the one sent so far", remedy="it is sent from its start")
            lines = self._audit.following(_START, _BATCH) or []
        if not lines:
            return 0
        host = socket.gethostname()
        self._send(b"".join(frame(message(entry_of(line), host=host)) for _, line in lines))
        _keep(self._home, _Cursor(self._address, lines[-1][0]))
        return len(lines)

    @property
    def _address(self) -> str:
        return f"{self._host}:{self._port}"

    def _send(self, content: bytes) -> None:
        with (
            socket.create_connection((self._host, self._port), timeout=_TIMEOUT_S) as plain,
            self._tls.wrap_socket(plain, server_hostname=self._host) as secure,
        ):
            secure.sendall(content)
            try:
                secure.unwrap().close()  # returns once the receiver has answered our close_notify with its own
            except OSError as error:
                if not _ended(error):
                    raise
                if self._answers:
                    msg = f"{self._address} ends connections without the answer that RFC 5425 asks for"
                    raise TransportError(msg, remedy=_NO_ANSWER) from error

    def _run(self) -> None:
        failures, told = 0, ""
        while not self._stop.is_set():
            try:
                sent = self.forward()
            except (OSError, FedwardError, ValueError) as error:
                failures += 1
                cause = error.diagnostics() if isinstance(error, FedwardError) else f"{type(error).__name__}: {error}"
                if cause != told:
                    _log.warning("syslog_unreachable", receiver=self._address, cause=cause)
                told = cause
                self._stop.wait(backoff_s(failures))
                continue
            if failures:
                _log.info("syslog_reached_again", receiver=self._address, after=failures)
            failures, told = 0, ""
            if not sent:
                self._stop.wait(self._look_s)


def forwarder(home: Path, settings: AuditSettings) -> SyslogForwarder | None:
    """Return a forwarder that was started, None where no receiver is configured.

    Raises:
        InstallationError: ``audit.ca`` is no file of certificates.
    """
    if settings.syslog is None:
        return None
    made = SyslogForwarder(home, settings)
    made.start()
    return made


def backlog(home: Path, settings: AuditSettings) -> int:
    """Return how many entries the configured receiver has not taken yet; 0 where none is configured.

    Raises:
        Refusal: ``audit_untrusted``: the log's head is not signed by this site's key.
    """
    if settings.syslog is None:
        return 0
    host, port = settings.address
    sent = _cursor_of(home, f"{host}:{port}").position.number
    return max(0, AuditLog(home).head().number - sent)


def _ended(error: OSError) -> bool:
    """Return whether the peer closed its side in good order but without a word; a reset is another error."""
    return isinstance(error, ssl.SSLEOFError) or (type(error) is OSError and not error.errno)


def _trusting(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        msg = f"{ca} holds no certificate of an authority"
        remedy = "key audit.ca in site.yaml names the file; without it those count that this computer trusts"
        raise InstallationError(msg, remedy=remedy) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _cursor_of(home: Path, address: str) -> _Cursor:
    """Return the cursor for the receiver at `address`; before the first entry where there is none for it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        value = json.loads((home / _CURSOR).read_bytes())
        position = Position(int(value["n"]), int(value["offset"]), str(value["hash"]))
        if value["receiver"] == address and min(position.number, position.offset) >= 0:
            return _Cursor(address, position)
    return _Cursor(address, _START)


def _keep(home: Path, cursor: _Cursor) -> None:
    where = cursor.position
    value = {"receiver": cursor.address, "n": where.number, "offset": where.offset, "hash": where.hash}
    replace_file(home / _CURSOR, canonical_json(value))
