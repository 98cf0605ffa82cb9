"""Calls to a centre's enrolment paths: bounded answers, and of a refusal only a code that is on our own list."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import ssl
import time
from dataclasses import dataclass
from typing import Final

import httpx

from fedward_client.connection import Outbound
from fedward_client.diagnosis import diagnose, skew_s
from fedward_common.certificates import fingerprint, sole_certificate
from fedward_common.enrolment import AUTHORITY_PATH, MAX_BODY_BYTES, refused
from fedward_common.errors import EnrolmentCode, EnrolmentError, TransportError
from fedward_common.protocol import OURS, Release, compatible

__all__ = ["Answer", "fetch_authority", "post", "reach"]

_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the centre said.

    Args:
        body: at most `MAX_BODY_BYTES`.
        peer: certificate (DER) that the other end of TLS showed.
        seconds: until it was there.
        skew_s: seconds that this computer's clock is ahead of the centre's; None where it told no date.
    """

    body: bytes
    peer: bytes
    seconds: float
    skew_s: float | None


def fetch_authority(address: str, expected: str, proxy: httpx.Proxy | None) -> bytes:
    """Return the CA certificate (PEM) of the centre at `address`, over a connection that nothing verifies.

    Args:
        address: host:port.
        expected: the fingerprint that it has to have, SHA-256 in hexadecimal digits.
        proxy: the way out.

    Raises:
        EnrolmentError: ``fingerprint_mismatch``: what answers is another authority's, or none.
        TransportError: nobody answers.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    pem = post(address, AUTHORITY_PATH, b"", Outbound(unverified, proxy)).body
    try:
        if fingerprint(pem) == expected:
            return sole_certificate(pem)  # whoever answers may have added one of his own
    except ValueError:
        pass
    raise refused(EnrolmentCode.FINGERPRINT_MISMATCH)


def reach(address: str, way: Outbound) -> Answer:
    """Ask the centre for what is public, over verified TLS: is it there, and what time does it have?

    Raises:
        TransportError: it is not reached; the message names the cause.
    """
    return post(address, AUTHORITY_PATH, b"", way)


def post(address: str, path: str, body: bytes, way: Outbound) -> Answer:
    """Return the centre's answer to one request.

    Raises:
        EnrolmentError: a refusal with a code.
        TransportError: no answer, or another one than a centre gives; the message names the cause.
    """
    started = time.monotonic()
    headers = {"accept-encoding": "identity", "content-type": "application/json", **OURS.headers()}
    with httpx.Client(
        verify=way.tls, proxy=way.proxy, trust_env=False, timeout=_TIMEOUT_S, follow_redirects=False
    ) as client:
        try:
            with client.stream("POST", f"https://{address}{path}", content=body, headers=headers) as response:
                tls = response.extensions["network_stream"].get_extra_info("ssl_object")
                peer = tls.getpeercert(True) or b""  # noqa: FBT003  (the standard library's only way)
                answer = _bounded(response)
        except httpx.HTTPError as error:
            raise _transport(error, way) from error
    if not response.is_success:
        raise _refusal(response, answer, way)
    skew = skew_s(response.headers.get("date", ""), dt.datetime.now(dt.UTC))
    return Answer(answer, peer, time.monotonic() - started, skew)


def _bounded(response: httpx.Response) -> bytes:
    parts, left = [], MAX_BODY_BYTES
    for part in response.iter_raw():
        left -= len(part)
        if left < 0:
            msg = "the centre's answer is longer than an enrolment's"
            raise httpx.RemoteProtocolError(msg, request=response.request)
        parts.append(part)
    return b"".join(parts)


def _refusal(response: httpx.Response, answer: bytes, way: Outbound) -> EnrolmentError | TransportError:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        reason = EnrolmentCode(json.loads(answer)["code"])
        why = compatible(OURS, Release.of(response.headers)) if reason is EnrolmentCode.PROTOCOL_MISMATCH else None
        known = refused(reason)
        return known if why is None else EnrolmentError(reason, known.message, remedy=why)
    error = httpx.HTTPStatusError(str(response.status_code), request=response.request, response=response)
    return _transport(error, way)


def _transport(error: httpx.HTTPError, way: Outbound) -> TransportError:
    cause = diagnose(error, proxy=way.proxy_name, now=dt.datetime.now(dt.UTC))
    return TransportError(f"the centre cannot be reached: {cause.text} [{cause.kind}]", remedy=cause.remedy)
