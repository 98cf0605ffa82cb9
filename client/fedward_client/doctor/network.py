"""The way to the coordinator, hop by hop: name, proxy, TLS, certificates and clock. Nothing changes at the other end.

Every check asks by itself, over the route that the daemon takes (`fedward_client.connection.open_way`).
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import Final, NoReturn

import httpx
from cryptography import x509

from fedward_client.config import load_site
from fedward_client.connection import ConnectionSettings, Outbound, load_connection, open_way
from fedward_client.diagnosis import diagnose, skew_s
from fedward_client.doctor import rules
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Level
from fedward_client.enrolment import Expiry, expiries
from fedward_client.flower_adapter import greet
from fedward_client.loopback import loopback
from fedward_common.certificates import load_node_key
from fedward_common.protocol import OURS, Release

__all__ = ["certificates", "clock", "daemon", "dns", "identity", "proxy", "tls"]

_TIMEOUT_S: Final = 4.0
_WITHOUT_DATES: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL: chain and host name are still checked
_COORDINATOR: Final = "coordinator's certificate"
_REMEDIES: Final = {
    "node key": "fedward client renew",
    "CA certificate": "ask the centre for its new CA certificate",
    _COORDINATOR: "tell the centre to renew its certificate",
}


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the coordinator is, and the way there."""

    settings: ConnectionSettings
    way: Outbound

    @property
    def host(self) -> str:
        return self.settings.superlink.rpartition(":")[0].strip("[]")

    @property
    def first_hop(self) -> tuple[str, int]:
        """Whose name is looked up and whose port is opened: the proxy's, where there is one."""
        if self.way.proxy is not None:
            return str(self.way.proxy.url.host), self.way.proxy.url.port or 80
        return self.host, int(self.settings.superlink.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class _Greeting:
    """What an answer of the coordinator shows, whatever it says: the end of TLS, and the clock of either side."""

    leaf: x509.Certificate
    protocol: str
    date: str
    sent: float
    received: float


Asking = Callable[[Place, _Target], Iterator[Finding]]


def _online(check: str) -> Callable[[Asking], Callable[[Place], Iterator[Finding]]]:
    """Return a decorator: the check of an enrolled site's way out, or one WARN where there is no way to look at."""

    def decorate(asking: Asking) -> Callable[[Place], Iterator[Finding]]:
        @wraps(asking)
        def look(place: Place) -> Iterator[Finding]:
            if not place.enrolled:
                remedy = "fedward client enroll INVITE, with the line that the centre sent"
                yield Finding(check, Level.WARN, "not enrolled yet", remedy)
                return
            settings = load_connection(place.home)
            yield from asking(place, _Target(settings, open_way(settings, place.environment)))

        return look

    return decorate


@_online("dns")
def dns(_: Place, target: _Target) -> Iterator[Finding]:
    """Find whether the coordinator's name, or that of the proxy before it, is an address."""
    host, port = target.first_hop
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        cause = diagnose(socket.gaierror() if isinstance(error, UnicodeError) else error, proxy=target.way.proxy_name)
        yield Finding("dns", Level.FAIL, f"{host}: {cause.text}", cause.remedy)
        return
    addresses = sorted({str(entry[4][0]) for entry in found})
    later = f"; the proxy looks up {target.host}" if target.way.proxy else ""
    yield Finding("dns", Level.PASS, f"{host} is {', '.join(addresses[:3])}{later}")


@_online("proxy")
def proxy(_: Place, target: _Target) -> Iterator[Finding]:
    """Find whether the proxy, if there is one, opens a tunnel to the coordinator."""
    name = target.way.proxy_name
    if not name:
        yield Finding("proxy", Level.PASS, "none: the coordinator is reached directly")
        return
    try:
        _greet(target, target.way.tls)
    except httpx.HTTPError as error:
        cause = diagnose(error, proxy=name)
        if cause.kind in {"proxy", "dns"}:
            yield Finding("proxy", Level.FAIL, cause.text, cause.remedy)
            return
    yield Finding("proxy", Level.PASS, f"{name} opens a tunnel to {target.settings.superlink}")


@_online("tls")
def tls(_: Place, target: _Target) -> Iterator[Finding]:
    """Find whether whoever answers is the coordinator: the chain ends at the pinned CA and names the host."""
    address = target.settings.superlink
    try:
        greeting = _greet(target, target.way.tls)
    except httpx.HTTPError as error:
        cause = diagnose(error, proxy=target.way.proxy_name)
        yield Finding("tls", Level.FAIL, f"{address}: {cause.text}", cause.remedy)
        return
    yield Finding("tls", Level.PASS, f"{address} answers over {greeting.protocol}, with a certificate of the pinned CA")
    if target.way.inspectable:
        what = "extra_ca is trusted as well: whoever holds that authority can read what passes"
        yield Finding("tls", Level.WARN, what, "ask for an exception from inspection, and take extra_ca out")


def certificates(place: Place) -> Iterator[Finding]:
    """Find what of the site's and the coordinator's certificates expires; the last one seen counts when offline."""
    now = place.now()
    known = {expiry.what: expiry for expiry in expiries(place.home)}
    if place.enrolled and (live := _live_expiry(place)) is not None:
        known[_COORDINATOR] = live
    for expiry in known.values():
        yield rules.expiry(expiry.what, expiry.not_after, now, _REMEDIES.get(expiry.what, "ask the centre"))
    if not known:
        yield Finding("certificates", Level.WARN, "none is known yet", "fedward client enroll INVITE")


def _live_expiry(place: Place) -> Expiry | None:
    settings = load_connection(place.home)
    target = _Target(settings, open_way(settings, place.environment))
    try:
        return Expiry(_COORDINATOR, _greet(target, _dateless(target.way.tls)).leaf.not_valid_after_utc)
    except httpx.HTTPError:
        return None  # the check of TLS says why


@_online("clock")
def clock(place: Place, target: _Target) -> Iterator[Finding]:
    """Find how far this computer's clock is from the coordinator's, which has proved who it is.

    Dates of certificates are not looked at here: a wrong clock would make them look wrong.
    """
    try:
        greeting = _greet(target, _dateless(target.way.tls), place.clock)
    except httpx.HTTPError as error:
        cause = diagnose(error, proxy=target.way.proxy_name)
        yield Finding("clock", Level.WARN, f"not compared: {cause.text}", cause.remedy)
        return
    middle = datetime.fromtimestamp((greeting.sent + greeting.received) / 2, UTC)
    ahead = skew_s(greeting.date, middle)
    if ahead is None:
        yield Finding("clock", Level.WARN, "the coordinator names no date", "compare the clock by hand: timedatectl")
        return
    half_s = 0.5  # a Date header has whole seconds, rounded down
    yield rules.clock(ahead - half_s, half_s + (greeting.received - greeting.sent) / 2)


@_online("identity")
def identity(place: Place, target: _Target) -> Iterator[Finding]:
    """Find whether the coordinator accepts this site's signature, and which release of Fedward it runs."""
    try:
        node_id = int((place.home / "node_id").read_text(encoding="ascii"))
    except (OSError, ValueError):
        what = "the coordinator has not given this site a number yet"
        yield Finding("identity", Level.WARN, what, "start the daemon, which asks for it: fedward client run")
        return
    key, now = load_node_key(target.settings.node_key), place.now()
    try:
        answer = greet(target.settings.superlink, target.way.tls, key, node_id, proxy=target.way.proxy)
    except httpx.HTTPStatusError as error:
        answer = error.response
        if answer.status_code != httpx.codes.UPGRADE_REQUIRED:
            yield _unanswered(error, target, now)
            return
    except httpx.HTTPError as error:
        yield _unanswered(error, target, now)
        return
    yield Finding("identity", Level.PASS, f"the coordinator accepts this site's signature, as node {node_id}")
    yield _release(answer)


def _unanswered(error: httpx.HTTPError, target: _Target, now: datetime) -> Finding:
    cause = diagnose(error, proxy=target.way.proxy_name, now=now)
    return Finding("identity", Level.FAIL, cause.text, cause.remedy)


def _release(answer: httpx.Response) -> Finding:
    try:
        return rules.version(OURS, Release.of(answer.headers))
    except ValueError:
        what = "what the coordinator says of its release cannot be read here"
        return Finding("version", Level.FAIL, what, "ask the centre for its release of Fedward")


def daemon(place: Place) -> Iterator[Finding]:
    """Find whether the daemon of this site runs, and thinks itself ready."""
    text = load_site(place.home).local_page
    if not text:
        yield Finding("daemon", Level.PASS, "local_page is not set, so a running daemon cannot be asked")
        return
    address = loopback(text)
    try:
        with httpx.Client(trust_env=False, timeout=_TIMEOUT_S) as client:
            answer = client.get(f"http://{address.netloc}/readyz")
            found = json.loads(answer.content)["conditions"]
            unmet = [(str(c["name"]), str(c["why"]), str(c["remedy"])) for c in found if not c["met"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        what = f"no daemon answers on {address.netloc} ({type(error).__name__})"
        yield Finding("daemon", Level.WARN, what, "systemctl start fedward, or: fedward client run")
        return
    for name, why, remedy in unmet:
        yield Finding("daemon", Level.FAIL, f"the running daemon is not ready, {name}: {why}", remedy or "see its log")
    if not unmet:
        yield Finding("daemon", Level.PASS, "it runs and is ready")


def _dateless(verifying: ssl.SSLContext) -> ssl.SSLContext:
    """Return `verifying`, changed: it no longer asks whether certificates are valid today."""
    verifying.verify_flags |= _WITHOUT_DATES
    return verifying


def _greet(target: _Target, context: ssl.SSLContext, clock: Callable[[], float] | None = None) -> _Greeting:
    """Ask the coordinator for nothing in particular; whatever status it answers with is an answer.

    Raises:
        httpx.HTTPError: no answer; `fedward_client.diagnosis.diagnose` says why.
    """
    now = clock or (lambda: 0.0)
    host, _, port = target.settings.superlink.rpartition(":")
    client = httpx.Client(verify=context, proxy=target.way.proxy, trust_env=False, timeout=_TIMEOUT_S)
    with client:
        sent = now()
        with client.stream("GET", f"https://{host}:{port}/") as response:
            received = now()
            stream = response.extensions["network_stream"]
            secured: ssl.SSLObject = stream.get_extra_info("ssl_object")
            leaf = secured.getpeercert(True)  # noqa: FBT003  (httpcore hands out the C object, which takes no names)
            if leaf is None:
                _nothing_shown()
            date = response.headers.get("date", "")
            return _Greeting(x509.load_der_x509_certificate(leaf), secured.version() or "TLS", date, sent, received)


def _nothing_shown() -> NoReturn:
    msg = "no certificate"
    raise httpx.ConnectError(msg)
