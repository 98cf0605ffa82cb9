"""Who may be enrolled and whose key counts: rules only, without clock, file or socket.

A token counts once, for one name, for some days; a key counts for one site, until it is retired, expires or is revoked.
Every check that a stranger can fail tells him no more than that he failed it.
"""

from __future__ import annotations

import datetime as dt
import hmac
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, Literal

from fedward_common.certificates import node_public_key, verify_as_node
from fedward_common.enrolment import EnrolRequest, RenewRequest, check_clock, instant, refused, token_hash
from fedward_common.errors import EnrolmentCode, SignatureError
from fedward_common.signing import load_public_key, verify

__all__ = [
    "KEY_DAYS",
    "OVERLAP",
    "InviteRow",
    "KeyRow",
    "RateLimit",
    "State",
    "check_enrolment",
    "check_invite",
    "check_renewal",
    "check_renewed_key",
    "counts",
]

KEY_DAYS: Final = 365
"""Days that a node key is valid, unless the centre says otherwise."""
OVERLAP: Final = dt.timedelta(minutes=10)
"""How long a renewed key's predecessor still counts once the new key was first used: for requests on their way."""

_NOBODY: Final = "0" * 64
_PEERS: Final = 4096

State = Literal["active", "retired", "revoked"]


@dataclass(frozen=True, slots=True)
class InviteRow:
    """An invite as the roster has it: never the token, only its hash."""

    number: str
    site: str
    token_hash: str
    expires_at: str
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What of a key decides whether it counts."""

    site: str
    node: int
    audit_key: str
    state: State
    not_after: str
    retire_at: str = ""


def check_enrolment(request: EnrolRequest, now: dt.datetime) -> str:
    """Return the node key, in the form in which it is registered, of a fresh request that both its keys have signed.

    Raises:
        EnrolmentError: ``clock_skew``, ``request_invalid`` (a key is none) or ``signature_invalid``.
    """
    check_clock(request.at, now)
    node_key = _node_key(request.node_key)
    try:
        audit_key = load_public_key(request.audit_key)
    except SignatureError:
        raise refused(EnrolmentCode.REQUEST_INVALID) from None
    if not verify_as_node(node_key.encode(), request.payload(), request.node_signature):
        raise refused(EnrolmentCode.SIGNATURE_INVALID)
    try:
        verify(audit_key, request.payload(), request.audit_signature)
    except SignatureError:
        raise refused(EnrolmentCode.SIGNATURE_INVALID) from None
    return node_key


def check_invite(invite: InviteRow | None, request: EnrolRequest, node_key: str, now: dt.datetime) -> None:
    """Return if `invite` lets the site that asks be enrolled with `node_key`.

    An invite that was used lets the same key in again, so that a site whose answer was lost can ask for it.

    Raises:
        EnrolmentError: ``invite_unknown``, ``name_mismatch``, ``invite_used`` or ``invite_expired``.
    """
    stored = invite.token_hash if invite else _NOBODY
    if not hmac.compare_digest(token_hash(request.token), stored) or invite is None:
        raise refused(EnrolmentCode.INVITE_UNKNOWN)
    if invite.site != request.site:
        raise refused(EnrolmentCode.NAME_MISMATCH)
    if invite.used_by:
        if invite.used_by == node_key:
            return
        raise refused(EnrolmentCode.INVITE_USED)
    if now >= instant(invite.expires_at):
        raise refused(EnrolmentCode.INVITE_EXPIRED)


def check_renewal(request: RenewRequest, now: dt.datetime) -> tuple[str, str]:
    """Return old and new node key of a fresh request that both have signed.

    Raises:
        EnrolmentError: ``clock_skew``, ``request_invalid`` or ``signature_invalid``.
    """
    check_clock(request.at, now)
    old, new = _node_key(request.node_key), _node_key(request.new_key)
    signed = request.payload()
    if old == new:
        raise refused(EnrolmentCode.KEY_KNOWN)
    if not verify_as_node(old.encode(), signed, request.node_signature) or not verify_as_node(
        new.encode(), signed, request.new_signature
    ):
        raise refused(EnrolmentCode.SIGNATURE_INVALID)
    return old, new


def check_renewed_key(key: KeyRow | None, site: str, now: dt.datetime) -> None:
    """Return if the key that signed a renewal may have a successor.

    Raises:
        EnrolmentError: ``key_unknown``, ``name_mismatch``, ``site_revoked`` or ``key_expired``.
    """
    if key is None or key.state == "retired":
        raise refused(EnrolmentCode.KEY_UNKNOWN)
    if key.site != site:
        raise refused(EnrolmentCode.NAME_MISMATCH)
    if key.state == "revoked":
        raise refused(EnrolmentCode.SITE_REVOKED)
    if not counts(key, now):
        raise refused(EnrolmentCode.KEY_EXPIRED)


def counts(key: KeyRow, now: dt.datetime) -> bool:
    """Return whether requests that this key signs are answered at `now`."""
    if key.state != "active" or now >= instant(key.not_after):
        return False
    return not key.retire_at or now < instant(key.retire_at)


def _node_key(text: str) -> str:
    try:
        return node_public_key(text).decode("ascii")
    except ValueError:
        raise refused(EnrolmentCode.REQUEST_INVALID) from None


class RateLimit:
    """At most so many requests a minute, from one peer and from all; for requests that cost a signature check.

    Args:
        of_one: requests of one peer in any 60 s.
        of_all: requests of all peers in any 60 s.
    """

    def __init__(self, of_one: int = 20, of_all: int = 200) -> None:
        self._of_one, self._of_all = of_one, of_all
        self._everybody: deque[float] = deque()
        self._peers: OrderedDict[str, deque[float]] = OrderedDict()

    def allows(self, peer: str, now: float) -> bool:
        """Return whether `peer` may ask at `now` (monotonic seconds), and count the request if so."""
        own = self._peers.setdefault(peer, deque())
        self._peers.move_to_end(peer)
        if len(self._peers) > _PEERS:
            self._peers.popitem(last=False)
        for past in (own, self._everybody):
            while past and past[0] <= now - 60.0:
                past.popleft()
        if len(own) >= self._of_one or len(self._everybody) >= self._of_all:
            return False
        own.append(now)
        self._everybody.append(now)
        return True
