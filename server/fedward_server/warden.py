"""Keeps the SuperLink's register of nodes, and its certificate, as the roster and the calendar say.

The roster is asked at each request, so a key that was revoked or has expired is refused at once, whatever happens here.
What happens here is that the coordinator hears of it: within seconds the site is gone from its list of nodes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ssl
from pathlib import Path
from typing import Final, Protocol

import structlog

from fedward_common.certificates import (
    certificate_expiry,
    certificate_hosts,
    issue_server_certificate,
    load_authority,
)
from fedward_common.enrolment import Reminder, days_left, instant
from fedward_common.errors import InstallationError
from fedward_common.files import replace_file
from fedward_server.admission import counts
from fedward_server.roster import Entry, Roster

__all__ = ["CERTIFICATE_DAYS", "RENEWED_DAYS_AHEAD", "Certificates", "Register", "Warden"]

CERTIFICATE_DAYS: Final = 90
"""Days that the server's certificate is valid; the authority outlives many of them."""
RENEWED_DAYS_AHEAD: Final = 30

_log = structlog.get_logger("fedward.warden")


class Register(Protocol):
    """The SuperLink's own register of nodes."""

    def ensure(self, public_key: bytes, name: str) -> int:
        """Return the number of the node with this key, registered now if it was not."""

    def exists(self, node: int) -> bool:
        """Return whether there is such a node, removed ones included."""

    def remove(self, node: int) -> None:
        """Remove a node for good; removing it twice does nothing."""

    def rest(self, node: int) -> None:
        """Call a node offline, until it is admitted again."""


class Certificates:
    """The server's certificate on the disk and in the TLS contexts that use it.

    Args:
        authority: PEM file of the CA certificate.
        authority_key: PEM file of its key; None where the certificate is renewed by other means.
        certificate: PEM file of the server's certificate.
        key: PEM file of its key; the same file, where Fedward is to renew the two.
    """

    def __init__(self, authority: Path, authority_key: Path | None, certificate: Path, key: Path) -> None:
        self._authority, self._authority_key = authority, authority_key
        self._certificate, self._key = certificate, key
        self._seen = self._stamp()

    def renew(self, now: dt.datetime) -> bool:
        """Make a new certificate and key for the same hosts, if the old one has 30 days left or fewer.

        Returns:
            Whether that was done; never without the authority's key, nor where certificate and key are two files,
            which no crash may leave with one of each.

        Raises:
            InstallationError: the certificate, the authority or its key cannot be read; nothing was changed.
        """
        if self._authority_key is None or self._key != self._certificate:
            return False
        try:
            pem = self._certificate.read_bytes()
            expiry = certificate_expiry(pem)
        except (OSError, ValueError) as error:
            msg = f"{self._certificate} holds no certificate"
            raise InstallationError(msg, remedy="restore it from the backup of the centre's folder") from error
        if days_left(expiry, now) >= RENEWED_DAYS_AHEAD:
            return False
        authority = load_authority(self._authority, self._authority_key)
        issued = issue_server_certificate(authority, now, certificate_hosts(pem), days=CERTIFICATE_DAYS)
        replace_file(self._certificate, issued.certificate_pem + issued.key_pem)
        return True

    def reload(self, contexts: list[ssl.SSLContext]) -> bool:
        """Let new connections use the certificate that is on the disk now; return whether that is another one.

        Connections that stand go on with the one that they began with.

        Raises:
            InstallationError: once for each change of the files: what is on the disk is no certificate with its key.
                The contexts keep the former one, and the files are looked at again when they change again.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:  # half written, or only one of two files replaced yet
            msg = f"{self._certificate} and {self._key} are no certificate with its key; the former one stays in use"
            raise InstallationError(msg, remedy="write both anew, each under another name, then rename") from error
        for context in contexts:
            context.load_cert_chain(self._certificate, self._key)
        return True

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what changes whenever one of the files is replaced."""
        found: list[tuple[int, int, int] | None] = []
        for path in (self._certificate, self._key):
            try:
                stat = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(found)

    def expiries(self) -> list[tuple[str, dt.datetime]]:
        """Return when the authority and the server's certificate expire; what cannot be read is left out."""
        found = []
        for what, path in (("CA certificate", self._authority), ("server certificate", self._certificate)):
            with contextlib.suppress(OSError, ValueError):
                found.append((what, certificate_expiry(path.read_bytes())))
        return found


class Warden:
    """Looks after one launcher.

    Args:
        roster: who is known.
        register: the SuperLink's own register.
        certificates: the launcher's; None where somebody else cares for them.
    """

    def __init__(self, roster: Roster, register: Register, certificates: Certificates | None = None) -> None:
        self._roster = roster
        self._register = register
        self._certificates = certificates
        self._removed: set[int] = set()
        self._resting: set[int] = set()
        self._reminder = Reminder()

    def settle(self, now: dt.datetime) -> None:
        """Register every site that counts at a SuperLink that does not know it: its own file was lost."""
        for entry in self._roster.entries():
            if counts(entry.row, now) and not self._register.exists(entry.row.node):
                word = entry.membership
                node = self._register.ensure(word.node_key.encode("ascii"), word.site)
                self._roster.move(word.node_key, node, now)
                _log.warning("registered_again", site=word.site, node=str(node), cause="the SuperLink's file was lost")

    def look(self, now: dt.datetime) -> bool:
        """Take out of the register whom no key stands for any more, and call offline whose key has expired.

        Returns:
            Whether somebody has departed since the last look.
        """
        revoked, expired = self._roster.departed(now)
        for node in revoked - self._removed:
            self._register.remove(node)
            _log.warning("site_removed", node=str(node), cause="revoked")
        departed = bool(revoked - self._removed or expired - self._resting)
        self._removed |= revoked
        for node in expired - self._resting:
            self._register.rest(node)
            _log.warning("site_offline", node=str(node), cause="its key has expired", remedy="invite it again")
        self._resting = expired
        return departed

    def remind(self, now: dt.datetime) -> None:
        """Warn, 30, 7 and 1 days ahead, of every site's key and of the certificates."""
        due = [(f"node key of {entry.row.site}", instant(entry.row.not_after)) for entry in self._current(now)]
        if self._certificates is not None:
            due += self._certificates.expiries()
        for what, not_after in due:
            if self._reminder.due(what, not_after, now):
                left = days_left(not_after, now)
                _log.warning("expires_soon", what=what, not_after=not_after.isoformat(), days_left=left)

    def care(self, now: dt.datetime) -> None:
        """Renew the server's certificate in time; what hinders that is logged, and tried again when next called."""
        try:
            if self._certificates is not None and self._certificates.renew(now):
                _log.info("certificate_renewed", days=CERTIFICATE_DAYS)
        except InstallationError as error:
            _log.error("certificate_not_renewed", cause=error.message, remedy=error.remedy)

    def refresh(self, contexts: list[ssl.SSLContext]) -> None:
        """Let new connections use the certificate that is on the disk, whoever has put it there."""
        try:
            if self._certificates is not None and self._certificates.reload(contexts):
                _log.info("certificate_reloaded")
        except InstallationError as error:
            _log.error("certificate_unusable", cause=error.message, remedy=error.remedy)

    def _current(self, now: dt.datetime) -> list[Entry]:
        return [entry for entry in self._roster.entries() if counts(entry.row, now) and not entry.retire_at]
