"""What a site and its centre say to each other before they trust each other: invite, requests, membership.

Rules and contracts only: no clock, no file, no socket. A site proves with a signature of each private key that it
holds what it registers; the texts that are signed begin with a word of their own, so that no signature made elsewhere
can stand here.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from fedward_common.canonical import canonical_json
from fedward_common.contract import Contract, quantity
from fedward_common.errors import EnrolmentCode, EnrolmentError
from fedward_common.study import SITE_NAME

__all__ = [
    "AUTHORITY_PATH",
    "CLOCK_TOLERANCE_S",
    "ENROL_PATH",
    "MAX_BODY_BYTES",
    "RENEW_PATH",
    "WARNING_DAYS",
    "Admission",
    "EnrolRequest",
    "Invite",
    "Membership",
    "Reminder",
    "RenewRequest",
    "check_clock",
    "days_left",
    "instant",
    "new_token",
    "refused",
    "token_hash",
    "warning_due",
]

AUTHORITY_PATH: Final = "/v1/enrol/authority"
ENROL_PATH: Final = "/v1/enrol/site"
RENEW_PATH: Final = "/v1/enrol/renew"
MAX_BODY_BYTES: Final = 16 * 1024
"""Longest request and longest answer of an enrolment, in bytes."""
CLOCK_TOLERANCE_S: Final = 300.0
WARNING_DAYS: Final = (30, 7, 1)
"""Days before an expiry on which somebody is told."""

_TICKET_FORM: Final = r"[0-9a-f]{16}\.[A-Za-z0-9_-]{43}"
_DIGEST_FORM: Final = r"[0-9a-f]{64}"
_INVITE: Final = re.compile(
    r"fedward-invite-1:(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):(?P<port>[0-9]{1,5})"
    rf"/(?P<site>[A-Za-z0-9][A-Za-z0-9_.-]{{0,62}})/(?P<fingerprint>{_DIGEST_FORM})/(?P<token>{_TICKET_FORM})",
    re.ASCII,
)
_MESSAGES: Final[dict[EnrolmentCode, tuple[str, str]]] = {
    EnrolmentCode.REQUEST_INVALID: ("the request is not well formed", "use the same release of Fedward on both sides"),
    EnrolmentCode.RATE_LIMITED: ("too many requests", "wait a minute, then try again"),
    EnrolmentCode.CLOCK_SKEW: (
        f"the clocks of site and centre differ by more than {CLOCK_TOLERANCE_S:.0f} s",
        "let both computers take their time from NTP",
    ),
    EnrolmentCode.INVITE_UNKNOWN: ("the centre knows no such invite", "copy the whole line, or ask for a new invite"),
    EnrolmentCode.INVITE_USED: (
        "the invite was used before, with other keys",
        "if that was not this hospital, tell the centre at once; else ask for a new invite",
    ),
    EnrolmentCode.INVITE_EXPIRED: ("the invite has expired", "ask the centre for a new one"),
    EnrolmentCode.NAME_MISMATCH: (
        "the invite is for a site of another name",
        "site.yaml, key `site`, must be the name that the centre gave; or ask for an invite of this name",
    ),
    EnrolmentCode.SIGNATURE_INVALID: (
        "a signature does not belong to the request",
        "run the command again; if it stays so, something between site and centre changes requests",
    ),
    EnrolmentCode.KEY_KNOWN: (
        "this key is, or was, registered for a site already",
        "a key is never used twice: fedward client enroll makes a new one",
    ),
    EnrolmentCode.KEY_UNKNOWN: ("the centre does not know this site's key", "ask the centre for an invite"),
    EnrolmentCode.KEY_EXPIRED: ("this site's key has expired", "ask the centre for a new invite, then enroll again"),
    EnrolmentCode.SITE_REVOKED: ("the centre has revoked this site", "ask the centre why, and for a new invite"),
    EnrolmentCode.FINGERPRINT_MISMATCH: (
        "the certificate authority that answers is not the one of the invite",
        "copy the whole line again; if it stays so, somebody else answers under that address: tell the centre",
    ),
    EnrolmentCode.PROTOCOL_MISMATCH: (
        "the releases of Fedward at site and centre do not work together",
        "upgrade the older one; see docs/operate-the-centre.md",
    ),
}


def refused(reason: EnrolmentCode) -> EnrolmentError:
    """Return the error of `reason` with its text and remedy, the same on both sides."""
    message, remedy = _MESSAGES[reason]
    return EnrolmentError(reason, f"{message} ({reason.value})", remedy=remedy)


@dataclass(frozen=True, slots=True)
class Invite:
    """One line with all that a hospital needs to join: where, whom to trust, under which name, and the right to.

    Args:
        host: name or address of the centre's public listener; an IPv6 address stands in brackets.
        port: its port, 1 to 65535.
        site: the name that the site will have in studies.
        fingerprint: SHA-256 of the centre's CA certificate (DER), 64 lower-case hexadecimal digits.
        token: the one-time secret; left out of `repr`.
    """

    host: str
    port: int
    site: str
    fingerprint: str
    token: str

    def __repr__(self) -> str:
        return f"Invite({self.address!r}, site={self.site!r}, token=<hidden>)"

    @property
    def address(self) -> str:
        """The centre as ``host:port``."""
        return f"{self.host}:{self.port}"

    def text(self) -> str:
        """Return the line that `parse` reads; no white space, safe in a shell."""
        return f"fedward-invite-1:{self.address}/{self.site}/{self.fingerprint}/{self.token}"

    @classmethod
    def parse(cls, text: str) -> Invite:
        """Return the invite in `text`; surrounding white space does not matter.

        Raises:
            EnrolmentError: ``invite_unknown``: a part is missing, cut off or of another form.
        """
        match = _INVITE.fullmatch(text.strip())
        if match is None or not 0 < int(match["port"]) < 2**16:
            message = "this is no whole invite: fedward-invite-1:HOST:PORT/SITE/FINGERPRINT/TOKEN"
            remedy = "copy the whole line that the centre sent; it has no spaces and no line breaks"
            raise EnrolmentError(EnrolmentCode.INVITE_UNKNOWN, message, remedy=remedy)
        return cls(match["host"], int(match["port"]), match["site"], match["fingerprint"], match["token"])


def new_token() -> tuple[str, str]:
    """Return the number of a new invite and its token: the number, a full stop, and 256 random bits."""
    number = secrets.token_hex(8)
    return number, f"{number}.{secrets.token_urlsafe(32)}"


def token_hash(token: str) -> str:
    """Return what the centre keeps of a token: its SHA-256. A token has 256 random bits, so no salt is needed."""
    return hashlib.sha256(b"fedward invite v1\x00" + token.encode("ascii")).hexdigest()


_SiteName = Annotated[str, Field(pattern=SITE_NAME)]
_Key = Annotated[str, Field(max_length=600)]
_Signature = Annotated[str, Field(max_length=300, pattern=r"^[A-Za-z0-9_-]+=*$")]
_Instant = Annotated[str, Field(max_length=40)]


class _Signed(Contract):
    """A request that ends with two signatures over all that comes before them."""

    signatures: ClassVar[tuple[str, str]]

    def payload(self) -> bytes:
        """Return the bytes that both keys sign."""
        body = self.model_dump(mode="json", exclude=set(self.signatures))
        return f"fedward {body['format']}\x00".encode() + canonical_json(body)


class EnrolRequest(_Signed):
    """A site's wish to be enrolled: public keys only, the token, and a proof that it holds the private halves."""

    signatures: ClassVar = ("node_signature", "audit_signature")

    format: Literal["fedward-enrol-1"] = "fedward-enrol-1"
    site: _SiteName = quantity("the site's name")
    token: str = quantity("the invite's one-time secret", pattern=rf"^{_TICKET_FORM}$", repr=False)
    node_key: _Key = quantity("public key that the site's requests are signed with")
    audit_key: _Key = quantity("public key that the site's audit log is signed with")
    at: _Instant = quantity("when the request was made, by the site's clock")
    node_signature: _Signature = quantity("by `node_key`, over all that is not a signature")
    audit_signature: _Signature = quantity("by `audit_key`, over the same")


class RenewRequest(_Signed):
    """A site's wish to be known by another node key, signed by the one that it is known by and by the new one."""

    signatures: ClassVar = ("node_signature", "new_signature")

    format: Literal["fedward-renew-1"] = "fedward-renew-1"
    site: _SiteName = quantity("the site's name")
    node_key: _Key = quantity("public key that the site's requests are signed with")
    new_key: _Key = quantity("public key that is to take the place of `node_key`")
    at: _Instant = quantity("when the request was made, by the site's clock")
    node_signature: _Signature = quantity("by `node_key`, over all that is not a signature")
    new_signature: _Signature = quantity("by `new_key`, over the same")


class Membership(Contract):
    """One key of one site as the centre's roster has it, and signs it."""

    format: Literal["fedward-roster-1"] = "fedward-roster-1"
    site: _SiteName = quantity("the site's name")
    node: str = quantity("Flower's number of the site", pattern=r"^[0-9]{1,20}$")
    node_key: _Key = quantity("public key that the site's requests are signed with")
    audit_key: _Key = quantity("public key that the site's audit log is signed with")
    not_before: _Instant = quantity("from when the key is good")
    not_after: _Instant = quantity("until when the key is good")

    def payload(self) -> bytes:
        """Return the bytes that the roster's key signs."""
        return b"fedward roster entry\x00" + canonical_json(self.model_dump(mode="json"))


class Admission(Contract):
    """The centre's yes: the site's membership, signed, and what the site pins from now on."""

    format: Literal["fedward-admission-1"] = "fedward-admission-1"
    membership: Membership
    signature: _Signature = quantity("by `roster_key`, over `membership`")
    roster_key: _Key = quantity("public key that the centre's roster is signed with")
    bundle_sha256: str = quantity("SHA-256 of the bundle whose runs are answered", pattern=rf"^{_DIGEST_FORM}$")
    study_keys: tuple[_Key, ...] = quantity("public keys that sign the centre's studies", default=(), max_length=32)


def instant(text: str) -> dt.datetime:
    """Return the time stamp in `text`.

    Raises:
        EnrolmentError: ``request_invalid``: no ISO 8601 with an offset from UTC.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise refused(EnrolmentCode.REQUEST_INVALID) from None
    if moment.tzinfo is None:
        raise refused(EnrolmentCode.REQUEST_INVALID)
    return moment


def check_clock(at: str, now: dt.datetime) -> None:
    """Return if a request made at `at` is fresh.

    Raises:
        EnrolmentError: ``clock_skew``: more than `CLOCK_TOLERANCE_S` seconds before or after `now`.
    """
    if abs((instant(at) - now).total_seconds()) > CLOCK_TOLERANCE_S:
        raise refused(EnrolmentCode.CLOCK_SKEW)


def days_left(not_after: dt.datetime, now: dt.datetime) -> int:
    """Return the whole days until `not_after`; negative once it has passed."""
    return (not_after - now) // dt.timedelta(days=1)


def warning_due(not_after: dt.datetime, now: dt.datetime) -> int | None:
    """Return which of `WARNING_DAYS` an expiry has reached, the smallest; None while it is further away.

    An expiry that has passed has reached the last one.
    """
    reached = [days for days in WARNING_DAYS if not_after - now <= dt.timedelta(days=days)]
    return min(reached, default=None)


class Reminder:
    """Says of everything that expires once for each of `WARNING_DAYS` that it does."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[dt.datetime, int]] = {}

    def due(self, what: str, not_after: dt.datetime, now: dt.datetime) -> bool:
        """Return whether somebody is to be told now, and remember that this was done."""
        reached = warning_due(not_after, now)
        if reached is None or self._told.get(what) == (not_after, reached):
            return False
        self._told[what] = (not_after, reached)
        return True
