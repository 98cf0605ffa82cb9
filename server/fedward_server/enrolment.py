"""Where hospitals enrol and renew their keys: three paths on the public listener, beside Flower's.

What comes in is bounded in size, rate and time; every enrolment, renewal and refusal is a line in the launcher's log.
A refusal says its code and nothing else.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol, TypeVar

import anyio.to_thread
import structlog

from fedward_common.enrolment import (
    AUTHORITY_PATH,
    ENROL_PATH,
    RENEW_PATH,
    Admission,
    EnrolRequest,
    RenewRequest,
    refused,
)
from fedward_common.errors import EnrolmentCode, EnrolmentError
from fedward_common.protocol import OURS, PROTOCOL_HEADER, Release, compatible
from fedward_server.admission import KEY_DAYS, RateLimit, check_enrolment, check_renewal
from fedward_server.handshake import said
from fedward_server.roster import Entry, Roster
from fedward_server.route_filter import Receive, Scope, Send, answer_empty, whole_body

__all__ = ["ENROLMENT_PATHS", "CentreFacts", "Enrolment", "Register"]

ENROLMENT_PATHS: Final = frozenset({AUTHORITY_PATH, ENROL_PATH, RENEW_PATH})

_BODY_S: Final = 10.0
_log = structlog.get_logger("fedward.enrolment")

RequestT = TypeVar("RequestT", EnrolRequest, RenewRequest)


class Register(Protocol):
    """The SuperLink's own register of nodes."""

    def ensure(self, public_key: bytes, name: str) -> int:
        """Return the number of the node with this key (PEM), registered now if it was not.

        Raises:
            ValueError: the key belonged to a node that was removed.
        """


@dataclass(frozen=True, slots=True)
class CentreFacts:
    """What a site is told once it is enrolled.

    Args:
        authority: the CA certificate that sites pin, PEM.
        bundle_sha256: digest of the one bundle whose runs sites answer.
        study_keys: public keys that sign the centre's studies.
        key_days: days that a node key is valid.
    """

    authority: bytes
    bundle_sha256: str
    study_keys: tuple[str, ...] = ()
    key_days: int = KEY_DAYS


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Enrolment:
    """ASGI application for the three paths.

    Args:
        roster: who is known.
        register: the SuperLink's own register.
        facts: what sites are told.
        clock: the time of day, aware.
        limit: how often somebody may ask.
    """

    def __init__(
        self,
        roster: Roster,
        register: Register,
        facts: CentreFacts,
        *,
        clock: Callable[[], dt.datetime] = _now,
        limit: RateLimit | None = None,
    ) -> None:
        self._roster = roster
        self._register = register
        self._facts = facts
        self._clock = clock
        self._limit = limit or RateLimit()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            body = await asyncio.wait_for(whole_body(receive), _BODY_S)
        except TimeoutError:
            body = None
        if body is None:
            await answer_empty(scope, send, HTTPStatus.REQUEST_TIMEOUT)
            return
        theirs = said(scope)
        status, answer = await anyio.to_thread.run_sync(self._answer, scope["path"], body, _peer(scope), theirs)
        headers = [(b"content-length", str(len(answer)).encode()), (b"cache-control", b"no-store")]
        headers.append((PROTOCOL_HEADER.encode(), OURS.span.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _answer(self, path: str, body: bytes, peer: str, theirs: Release) -> tuple[int, bytes]:
        if path == AUTHORITY_PATH:
            return HTTPStatus.OK, self._facts.authority
        site = ""
        try:
            if not self._limit.allows(peer, time.monotonic()):
                raise refused(EnrolmentCode.RATE_LIMITED)
            if compatible(OURS, theirs) is not None:
                raise refused(EnrolmentCode.PROTOCOL_MISMATCH)
            if path == ENROL_PATH:
                enrol = _read(EnrolRequest, body)
                site, entry = enrol.site, self._enrol(enrol)
            else:
                renewal = _read(RenewRequest, body)
                site, entry = renewal.site, self._renew(renewal)
        except EnrolmentError as error:
            _log.warning("refused", path=path, site=site, peer=peer, code=error.reason.value)
            return _STATUS.get(error.reason, HTTPStatus.FORBIDDEN), json.dumps({"code": error.reason.value}).encode()
        word = entry.membership
        _log.info("admitted", path=path, site=word.site, node=word.node, peer=peer, not_after=word.not_after)
        return HTTPStatus.OK, self._admission(entry)

    def _enrol(self, request: EnrolRequest) -> Entry:
        now = self._clock()
        node_key = check_enrolment(request, now)
        self._roster.check(request, node_key, now)
        try:
            node = self._register.ensure(node_key.encode("ascii"), request.site)
        except ValueError:
            raise refused(EnrolmentCode.KEY_KNOWN) from None
        return self._roster.enrol(request, node_key, node, now, days=self._facts.key_days)

    def _renew(self, request: RenewRequest) -> Entry:
        now = self._clock()
        old, new = check_renewal(request, now)
        return self._roster.renew(request, old, new, now, days=self._facts.key_days)

    def _admission(self, entry: Entry) -> bytes:
        admission = Admission(
            membership=entry.membership,
            signature=entry.signature,
            roster_key=self._roster.public_key,
            bundle_sha256=self._facts.bundle_sha256,
            study_keys=self._facts.study_keys,
        )
        return admission.model_dump_json().encode()


_STATUS: Final = {
    EnrolmentCode.REQUEST_INVALID: HTTPStatus.BAD_REQUEST,
    EnrolmentCode.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    EnrolmentCode.PROTOCOL_MISMATCH: HTTPStatus.UPGRADE_REQUIRED,
}


def _read(kind: type[RequestT], body: bytes) -> RequestT:
    try:
        return kind.model_validate_json(body)
    except ValueError:
        raise refused(EnrolmentCode.REQUEST_INVALID) from None


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
