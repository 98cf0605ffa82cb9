"""A site's membership of one centre: how it begins, how its key is renewed, and when something of it expires.

Each step leaves files that are whole, so that a process that is killed between any two of them is repeated by the
same command and nothing else. Private keys are made here (0600) and never leave.

::

    <home>/
      ca.pem            the centre's authority, pinned by its fingerprint
      node.key          the key that the centre knows this site by; node.key.new while it is being replaced
      audit.key         the key that signs the log of decisions
      enrolment.json    the centre's signed word on the two
      server.pem        the coordinator's certificate as it was last seen
      connection.yaml   how the coordinator is reached
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from fedward_client.config import load_site
from fedward_client.connection import (
    Outbound,
    choose_proxy,
    load_connection,
    open_way,
    tls_context,
    write_connection,
)
from fedward_client.enrolment_calls import fetch_authority, post
from fedward_common.audit import AuditLog
from fedward_common.certificates import (
    certificate_expiry,
    create_node_key,
    issued_by,
    load_node_key,
    public_key_bytes,
    sign_as_node,
)
from fedward_common.enrolment import (
    ENROL_PATH,
    RENEW_PATH,
    Admission,
    EnrolRequest,
    Invite,
    RenewRequest,
    days_left,
    instant,
    refused,
    warning_due,
)
from fedward_common.errors import EnrolmentCode, EnrolmentError, InstallationError, SignatureError
from fedward_common.files import replace_file, sync_folder
from fedward_common.signing import load_public_key, verify

__all__ = [
    "ADMISSION_FILE",
    "Detour",
    "Enrolled",
    "Expiry",
    "ExpiryWarning",
    "KeyFile",
    "enroll",
    "expiries",
    "expiry_warnings",
    "finish",
    "load_admission",
    "note_peer",
    "renew",
]

ADMISSION_FILE: Final = "enrolment.json"
_NEW_KEY: Final = "node.key.new"
_log = structlog.get_logger("fedward.enrolment")


class Expiry(NamedTuple):
    """Something that stops to be valid, and when (aware, UTC)."""

    what: str
    not_after: dt.datetime


class ExpiryWarning(NamedTuple):
    """Something that expires within 30 days, and the whole days that are left; negative once it has expired."""

    what: str
    not_after: dt.datetime
    days_left: int


def expiries(home: Path) -> list[Expiry]:
    """Return when the node key, the centre's CA certificate and the coordinator's certificate expire.

    What this site does not have (yet) is left out: without enrolment a node key has no expiry, and the coordinator's
    certificate is known from the first connection on.
    """
    found = []
    if (admission := load_admission(home)) is not None:
        with contextlib.suppress(EnrolmentError):
            found.append(Expiry("node key", instant(admission.membership.not_after)))
    for what, name in (("CA certificate", "ca.pem"), ("coordinator's certificate", "server.pem")):
        with contextlib.suppress(OSError, ValueError):
            found.append(Expiry(what, certificate_expiry((home / name).read_bytes())))
    return found


def expiry_warnings(home: Path, now: dt.datetime) -> list[ExpiryWarning]:
    """Return what of `home` expires within 30 days of `now` (aware), or has expired, the next one first."""
    due = [entry for entry in expiries(home) if warning_due(entry.not_after, now) is not None]
    return [
        ExpiryWarning(entry.what, entry.not_after, days_left(entry.not_after, now))
        for entry in sorted(due, key=lambda entry: entry.not_after)
    ]


def load_admission(home: Path) -> Admission | None:
    """Return the centre's signed word on this site; None where it is not enrolled, or the file is damaged."""
    try:
        return Admission.model_validate_json((home / ADMISSION_FILE).read_bytes())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Detour:
    """What stands between this site and the internet; the keys of ``connection.yaml`` of the same names."""

    proxy: str = ""
    proxy_password_file: Path | None = None
    extra_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What came of it: the centre's signed word, and whether TLS ended at somebody else's proxy on the way."""

    admission: Admission
    inspected: bool


def enroll(
    home: Path, invite: Invite, now: dt.datetime, *, detour: Detour | None = None, again: bool = False
) -> Enrolled:
    """Join the centre of `invite`: fetch and pin its authority, register this site's keys, write the connection.

    The authority comes over a connection that nothing verifies yet, and counts only if it has the invite's
    fingerprint; all else goes over connections that it verifies. Repeated after a crash, it ends where it would have.

    Args:
        home: a folder that `fedward client init` made.
        invite: the centre's line.
        now: this computer's time, aware.
        detour: proxy and further authority; without it HTTPS_PROXY counts.
        again: replace a membership that this site has already.

    Raises:
        EnrolmentError: the centre says no, or is not the one of the invite.
        InstallationError: this site is enrolled already, or lacks a file.
        TransportError: the centre cannot be reached.
    """
    if load_site(home).site != invite.site:
        raise refused(EnrolmentCode.NAME_MISMATCH)
    if not again and _complete(home):
        msg = f"{home} is enrolled already"
        raise InstallationError(msg, remedy="fedward client renew makes a new key; --again joins anew, by a new invite")
    detour = detour or Detour()
    proxy = choose_proxy(invite.address, detour.proxy, detour.proxy_password_file, os.environ)
    authority = fetch_authority(invite.address, invite.fingerprint, proxy)
    way = Outbound(tls_context(authority, detour.extra_ca), proxy, detour.extra_ca is not None)
    key, log = _pending_key(home), AuditLog(home)
    request = EnrolRequest(
        site=invite.site,
        token=invite.token,
        node_key=public_key_bytes(key).decode("ascii"),
        audit_key=log.public_key(),
        at=now.isoformat(),
        node_signature="A",
        audit_signature="A",
    )
    payload = request.payload()
    signatures = {"node_signature": sign_as_node(key, payload), "audit_signature": log.signature(payload)}
    body = request.model_copy(update=signatures).model_dump_json().encode()
    answer = post(invite.address, ENROL_PATH, body, way)
    admission = _admission(answer.body, request.site, request.node_key, request.audit_key)
    note_peer(home, answer.peer)
    _write_membership(home, invite, authority, admission, detour)
    log.append(
        "enrolled at centre", at=now.isoformat(timespec="seconds"), name=invite.address, sha256=invite.fingerprint
    )
    return Enrolled(admission, not issued_by(answer.peer, authority))


def renew(home: Path, now: dt.datetime) -> Enrolled:
    """Replace this site's node key by a new one, registered by a request that the old one signs.

    Both count until the new one was used, so a daemon that runs meanwhile loses no round, and a site that is killed
    between any two steps works with the one or the other; repeated, it ends where it would have.

    Raises:
        EnrolmentError: the centre says no: the old key has expired, or was revoked.
        InstallationError: this site is not enrolled.
        TransportError: the centre cannot be reached.
    """
    finish(home)
    admission, settings = load_admission(home), load_connection(home)
    if admission is None:
        msg = f"{home / ADMISSION_FILE} is missing or damaged"
        raise InstallationError(msg, remedy="ask the centre for a new invite, then fedward client enroll --again")
    old, new = load_node_key(settings.node_key), _pending_key(home)
    word = admission.membership
    request = RenewRequest(
        site=word.site,
        node_key=public_key_bytes(old).decode("ascii"),
        new_key=public_key_bytes(new).decode("ascii"),
        at=now.isoformat(),
        node_signature="A",
        new_signature="A",
    )
    payload = request.payload()
    signatures = {"node_signature": sign_as_node(old, payload), "new_signature": sign_as_node(new, payload)}
    body = request.model_copy(update=signatures).model_dump_json().encode()
    answer = post(settings.superlink, RENEW_PATH, body, open_way(settings, os.environ))
    renewed = _admission(answer.body, word.site, request.new_key, word.audit_key)
    note_peer(home, answer.peer)
    replace_file(home / ADMISSION_FILE, renewed.model_dump_json(indent=1).encode())
    finish(home)
    log = AuditLog(home)
    log.append("key renewed", at=now.isoformat(timespec="seconds"), name=settings.superlink)
    return Enrolled(renewed, not issued_by(answer.peer, settings.ca.read_bytes()))


def finish(home: Path) -> bool:
    """Put a new key in its place, if the centre has admitted it; return whether that was done.

    It is the last step of `enroll` and `renew`. A daemon does it first of all, for a process that was killed before.
    """
    pending, admission = home / _NEW_KEY, load_admission(home)
    if admission is None or not pending.exists():
        return False
    if public_key_bytes(load_node_key(pending)).decode("ascii") != admission.membership.node_key:
        return False
    pending.replace(home / "node.key")
    sync_folder(home)
    return True


def note_peer(home: Path, certificate: bytes) -> None:
    """Keep the coordinator's certificate (DER) as it was last seen, so that its expiry is known."""
    path, pem = home / "server.pem", ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")
    with contextlib.suppress(OSError):
        if not path.exists() or path.read_bytes() != pem:
            replace_file(path, pem)


class KeyFile:
    """The site's key as its file is now, so that a renewal needs no restart.

    Args:
        path: PEM file, mode 0600.

    Raises:
        InstallationError: at first, the file holds no key; later a file that cannot be read leaves the former key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self._key = load_node_key(path)

    def __call__(self) -> ec.EllipticCurvePrivateKey:
        """Return the key."""
        stamp = self._look()
        if stamp != self._stamp and stamp is not None:
            try:
                self._key = load_node_key(self._path)
                _log.info("key_changed", cause="the node key was renewed")
            except InstallationError as error:
                _log.warning("key_unreadable", cause=error.message, remedy=error.remedy)
            self._stamp = stamp
        return self._key

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _complete(home: Path) -> bool:
    """Return whether nothing is left to do of an enrolment."""
    admission = load_admission(home)
    if admission is None or not (home / "connection.yaml").exists():
        return False
    try:
        key = load_node_key(load_connection(home).node_key)
    except InstallationError:
        return False
    return public_key_bytes(key).decode("ascii") == admission.membership.node_key


def _pending_key(home: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key that is not in its place yet, made now unless a former attempt has made it."""
    path = home / _NEW_KEY
    if not path.exists():
        draft = home / f"{_NEW_KEY}.part"
        draft.unlink(missing_ok=True)
        create_node_key(draft)
        draft.replace(path)
        sync_folder(home)
    return load_node_key(path)


def _write_membership(home: Path, invite: Invite, authority: bytes, admission: Admission, detour: Detour) -> None:
    replace_file(home / "ca.pem", authority)
    write_connection(
        home,
        {
            "superlink": invite.address,
            "ca": "ca.pem",
            "node_key": "node.key",
            "bundle_sha256": admission.bundle_sha256,
            "study_keys": list(admission.study_keys),
            "proxy": detour.proxy or None,
            "proxy_password_file": str(detour.proxy_password_file.resolve()) if detour.proxy_password_file else None,
            "extra_ca": str(detour.extra_ca.resolve()) if detour.extra_ca else None,
        },
    )
    (home / "node_id").unlink(missing_ok=True)
    replace_file(home / ADMISSION_FILE, admission.model_dump_json(indent=1).encode())
    finish(home)


def _admission(answer: bytes, site: str, node_key: str, audit_key: str) -> Admission:
    """Return the centre's answer, which is about this site and these keys and signed by the key that it names.

    Raises:
        EnrolmentError: it is not.
    """
    try:
        admission = Admission.model_validate_json(answer)
        verify(load_public_key(admission.roster_key), admission.membership.payload(), admission.signature)
    except ValueError:
        raise refused(EnrolmentCode.REQUEST_INVALID) from None
    except SignatureError:
        raise refused(EnrolmentCode.SIGNATURE_INVALID) from None
    word = admission.membership
    if (word.site, word.node_key, word.audit_key) != (site, node_key, audit_key):
        raise refused(EnrolmentCode.SIGNATURE_INVALID)
    return admission
