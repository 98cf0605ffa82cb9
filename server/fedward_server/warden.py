"""Keeps the SuperLink's register of nodes, and its certificate, as the roster and the calendar say.

The roster is asked at each request, so a key that was revoked or has expired is refused at once, whatever happens here.
What happens here is that the coordinator hears of it: within seconds the site is gone from its list of nodes.
"""

from __future__ import annotations

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
        self._loaded = certificate.stat().st_mtime_ns

    def renew(self, now: dt.datetime) -> bool:
        """Make a new certificate and key for the same hosts, if the old one has 30 days left or fewer.

        Returns:
            Whether that was done; never without the authority's key, nor where certificate and key are two files,
            which no crash may leave with one of each.
        """
        pem = self._certificate.read_bytes()
        if self._authority_key is None or self._key != self._certificate:
            return False
        if days_left(certificate_expiry(pem), now) >= RENEWED_DAYS_AHEAD:
            return False
        authority = load_authority(self._authority, self._authority_key)
        issued = issue_server_certificate(authority, now, certificate_hosts(pem), days=CERTIFICATE_DAYS)
        replace_file(self._certificate, issued.certificate_pem + issued.key_pem)
        return True

    def reload(self, contexts: list[ssl.SSLContext]) -> bool:
        """Let new connections use the certificate that is on the disk now; return whether it had changed."""
        changed = self._certificate.stat().st_mtime_ns
        if changed == self._loaded:
            return False
        for context in contexts:
            context.load_cert_chain(self._certificate, self._key)
        self._loaded = changed
        return True

    def expiries(self) -> list[tuple[str, dt.datetime]]:
        """Return when the authority and the server's certificate expire."""
        files = (("CA certificate", self._authority), ("server certificate", self._certificate))
        return [(what, certificate_expiry(path.read_bytes())) for what, path in files]


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

    def care(self, now: dt.datetime, contexts: list[ssl.SSLContext]) -> None:
        """Renew the server's certificate in time, and let new connections use what is on the disk."""
        if self._certificates is None:
            return
        if self._certificates.renew(now):
            _log.info("certificate_renewed", days=CERTIFICATE_DAYS)
        if self._certificates.reload(contexts):
            _log.info("certificate_reloaded")

    def _current(self, now: dt.datetime) -> list[Entry]:
        return [entry for entry in self._roster.entries() if counts(entry.row, now) and not entry.retire_at]
