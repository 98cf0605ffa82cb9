"""What went wrong on the way to the coordinator, in a word and a remedy. Rules only: nothing is asked of the network.

An error is read with all that caused it. Texts name hosts, ports and codes; of an answer only its status and its date
are looked at.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import httpx

from fedward_common.errors import EnrolmentCode, EnrolmentError

__all__ = ["FAST_S", "SLOW_S", "Cause", "Kind", "clock_text", "diagnose", "skew_s"]

Kind = Literal["proxy", "dns", "network", "tls", "clock", "authentication", "server", "unknown"]

FAST_S: Final = 5.0
"""A clock this many seconds ahead of the coordinator's is refused (flwr 1.41, SYSTEM_TIME_TOLERANCE)."""
SLOW_S: Final = 300.0
"""A clock this many seconds behind it is refused (flwr 1.41, TIMESTAMP_TOLERANCE)."""

# X509_V_ERR_… in OpenSSL's x509_vfy.h
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_WRONG_NAME: Final = frozenset({62, 64})
_UNKNOWN_ISSUER: Final = frozenset({2, 18, 19, 20, 21})
_NTP: Final = "let this computer take its time from NTP (timedatectl set-ntp true), then try again"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the coordinator was not reached: the part at fault, what happened, and what to do about it."""

    kind: Kind
    text: str
    remedy: str


def diagnose(error: BaseException, *, proxy: str = "", now: dt.datetime | None = None) -> Cause:
    """Return the cause of a failed call.

    Args:
        error: as it was caught; what it was raised from is looked at too.
        proxy: host:port of the proxy that the call went through; empty for none. Through a proxy it is the proxy's
            name that is looked up, and the proxy that does or does not answer.
        now: this computer's time (aware). With it, a refused signature is told from a wrong clock.
    """
    chain = list(_chain(error))
    for rule in (_proxy_refusal, _certificate, _handshake, _enrolment, _status, _lookup, _silence):
        for link in chain:
            cause = rule(link, proxy, now)
            if cause is not None:
                return cause
    return Cause("unknown", f"an unexpected {type(error).__name__}", "read this computer's log; report it to Fedward")


def skew_s(date: str, now: dt.datetime) -> float | None:
    """Return how many seconds this computer's clock is ahead of an answer's ``Date`` header; None without a date."""
    try:
        return (now - email.utils.parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError):
        return None


def clock_text(skew: float) -> str:
    """Return a clock's skew in seconds as a sentence."""
    return f"this computer's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the coordinator's"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _proxy_refusal(error: BaseException, proxy: str, _: dt.datetime | None) -> Cause | None:
    if not isinstance(error, httpx.ProxyError):
        return None
    status = str(error)[:3]
    if status == "407":
        remedy = "set `proxy` and `proxy_password_file` in connection.yaml, or user:password in HTTPS_PROXY"
        return Cause("proxy", f"the proxy {proxy} wants a user and a password (407)", remedy)
    remedy = "let the proxy's administrator allow CONNECT to the coordinator's host and port"
    return Cause("proxy", f"the proxy {proxy} does not open a tunnel ({status})", remedy)


def _certificate(error: BaseException, _: str, __: dt.datetime | None) -> Cause | None:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return None
    code = error.verify_code
    if code == _NOT_YET_VALID:
        return Cause("clock", "by this computer's clock the coordinator's certificate is not valid yet", _NTP)
    if code == _EXPIRED:
        remedy = "if this computer's date is right, the centre must renew its certificate"
        return Cause("tls", "the coordinator's certificate has expired", remedy)
    if code in _WRONG_NAME:
        remedy = "use the host name that the centre gave; key `superlink` in connection.yaml"
        return Cause("tls", "the certificate that answers is for another host", remedy)
    if code in _UNKNOWN_ISSUER:
        remedy = (
            "a proxy that inspects TLS? name its CA file as `extra_ca` in connection.yaml; "
            "otherwise ask the centre whether its authority has changed"
        )
        return Cause("tls", "the certificate that answers is not of the coordinator's authority", remedy)
    return Cause("tls", f"the coordinator's certificate is refused (OpenSSL code {code})", "ask the centre")


def _handshake(error: BaseException, _: str, __: dt.datetime | None) -> Cause | None:
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or "cut short"
        remedy = "does another service listen on that port, or does a firewall cut TLS?"
        return Cause("tls", f"no TLS with whoever answers ({str(reason).lower()})", remedy)
    return None


def _enrolment(error: BaseException, _: str, __: dt.datetime | None) -> Cause | None:
    if not isinstance(error, EnrolmentError):
        return None
    kind: Kind = "clock" if error.reason is EnrolmentCode.CLOCK_SKEW else "authentication"
    return Cause(kind, error.message, error.remedy)


def _status(error: BaseException, _: str, now: dt.datetime | None) -> Cause | None:
    if not isinstance(error, httpx.HTTPStatusError):
        return None
    status = error.response.status_code
    if status in {401, 412}:
        skew = skew_s(error.response.headers.get("date", ""), now - _elapsed(error.response)) if now else None
        if skew is not None and not -SLOW_S < skew < FAST_S:
            return Cause("clock", clock_text(skew), _NTP)
        remedy = "was the site enrolled here, is its key expired (fedward client connection), was it revoked?"
        return Cause("authentication", f"the coordinator does not accept this site's key (HTTP {status})", remedy)
    if status in {502, 503, 504}:
        return Cause("server", f"the coordinator is down (HTTP {status})", "wait; the centre knows or will know")
    return Cause("server", f"the coordinator answers HTTP {status}", "is that the coordinator's port? tell the centre")


def _elapsed(response: httpx.Response) -> dt.timedelta:
    """Return how long an answer took: the SuperLink dates it when the request comes, and may hold it for seconds."""
    try:
        return response.elapsed
    except RuntimeError:
        return dt.timedelta(0)


def _lookup(error: BaseException, proxy: str, _: dt.datetime | None) -> Cause | None:
    if not isinstance(error, socket.gaierror):
        return None
    if proxy:
        return Cause("dns", f"the name of the proxy {proxy} cannot be looked up", "correct `proxy` or HTTPS_PROXY")
    remedy = "correct `superlink` in connection.yaml, or ask whoever runs DNS here; is a proxy needed to get out?"
    return Cause("dns", "the coordinator's name cannot be looked up", remedy)


def _silence(error: BaseException, proxy: str, _: dt.datetime | None) -> Cause | None:
    cut = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadTimeout, httpx.WriteTimeout)
    if isinstance(error, cut):
        remedy = "try again; if it stays so, a firewall or proxy cuts long connections"
        return Cause("network", f"the connection was cut ({type(error).__name__})", remedy)
    if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | ConnectionError | TimeoutError):
        return None
    if proxy:
        return Cause("proxy", f"the proxy {proxy} does not answer", "correct `proxy` or HTTPS_PROXY; is it running?")
    remedy = "let the firewall allow outgoing TCP to the coordinator's host and port; is a proxy needed to get out?"
    return Cause("network", "nobody answers at the coordinator's address", remedy)
