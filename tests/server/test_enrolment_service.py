from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from fedward_common.certificates import public_key_bytes
from fedward_common.enrolment import (
    AUTHORITY_PATH,
    ENROL_PATH,
    MAX_BODY_BYTES,
    RENEW_PATH,
    Admission,
    EnrolRequest,
    RenewRequest,
)
from fedward_server.admission import RateLimit
from fedward_server.enrolment import ENROLMENT_PATHS, CentreFacts, Enrolment
from fedward_server.roster import Roster
from fedward_server.route_filter import RouteFilter
from tests.candidates import NOW, Candidate, make_roster, node_key

FACTS = CentreFacts(b"-----BEGIN CERTIFICATE-----\n", "a" * 64, ("ed25519:" + "k" * 43,), 90)


class Register:
    """The SuperLink's register, in memory."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, int] = {}
        self.removed: set[bytes] = set()

    def ensure(self, public_key: bytes, name: str) -> int:
        assert name
        if public_key in self.removed:
            msg = "removed"
            raise ValueError(msg)
        return self.nodes.setdefault(public_key, 100 + len(self.nodes))


class Service:
    """The endpoint behind its route filter, as the public listener has it."""

    def __init__(self, roster: Roster, at: dt.datetime = NOW, limit: RateLimit | None = None) -> None:
        self.register = Register()
        self.roster = roster
        inner = Enrolment(roster, self.register, FACTS, clock=lambda: at, limit=limit)
        self._app = RouteFilter(inner, ENROLMENT_PATHS, max_body=MAX_BODY_BYTES)

    def call(self, path: str, body: bytes, peer: str = "10.0.0.1", length: int | None = None) -> tuple[int, bytes]:
        sent: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body}

        declared = str(len(body) if length is None else length).encode()
        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-length", declared)],
                 "client": (peer, 1)}  # fmt: skip
        asyncio.run(self._app(scope, receive, send))
        return int(sent[0]["status"]), bytes(sent[1]["body"])

    def enrol(self, request: EnrolRequest, peer: str = "10.0.0.1") -> tuple[int, dict[str, Any]]:
        status, answer = self.call(ENROL_PATH, request.model_dump_json().encode(), peer)
        return status, json.loads(answer)

    def renew(self, request: RenewRequest) -> tuple[int, dict[str, Any]]:
        status, answer = self.call(RENEW_PATH, request.model_dump_json().encode())
        return status, json.loads(answer)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(make_roster(tmp_path))


def test_a_site_is_told_what_it_pins(service: Service) -> None:
    north = Candidate()

    status, answer = service.enrol(north.asks(service.roster.invite("north", NOW, days=7)))

    admission = Admission.model_validate(answer)
    assert status == 200
    assert admission.bundle_sha256 == FACTS.bundle_sha256
    assert admission.study_keys == FACTS.study_keys
    assert admission.roster_key == service.roster.public_key
    assert admission.membership.node == "100"
    assert admission.membership.not_after == (NOW + dt.timedelta(days=90)).isoformat()


def test_asking_twice_enrols_once(service: Service) -> None:
    north = Candidate()
    request = north.asks(service.roster.invite("north", NOW, days=7))

    assert service.enrol(request) == service.enrol(request)
    assert len(service.register.nodes) == 1


def test_anybody_may_have_the_authority_s_certificate(service: Service) -> None:
    assert service.call(AUTHORITY_PATH, b"") == (200, FACTS.authority)


def test_a_stranger_is_not_even_registered(service: Service) -> None:
    status, answer = service.enrol(Candidate().asks("0123456789abcdef." + "A" * 43))

    assert (status, answer) == (403, {"code": "invite_unknown"})
    assert not service.register.nodes


def test_a_renewed_key_needs_no_second_registration(service: Service) -> None:
    north, new = Candidate(), node_key()
    service.enrol(north.asks(service.roster.invite("north", NOW, days=7)))

    status, answer = service.renew(north.renews(new))

    assert status == 200
    assert answer["membership"]["node"] == "100"
    assert list(service.register.nodes) == [north.public.encode()]
    assert service.roster.admitted(public_key_bytes(new), NOW) == 100


def test_a_key_that_was_removed_from_the_superlink_is_not_registered_again(service: Service) -> None:
    north = Candidate()
    service.register.removed.add(north.public.encode())

    status, answer = service.enrol(north.asks(service.roster.invite("north", NOW, days=7)))

    assert (status, answer) == (403, {"code": "key_known"})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"site": "north"}', b"\xff\xfe", b'{"format": "fedward-enrol-2"}', b"1" * 5000,
     b"[" * 10_000],
)  # fmt: skip
@pytest.mark.parametrize("path", [ENROL_PATH, RENEW_PATH])
def test_what_is_no_request_is_refused_with_a_code(service: Service, path: str, body: bytes) -> None:
    status, answer = service.call(path, body)

    assert (status, json.loads(answer)) == (400, {"code": "request_invalid"})


def test_a_body_beyond_16_kib_is_never_read(service: Service) -> None:
    assert service.call(ENROL_PATH, b"", length=MAX_BODY_BYTES + 1)[0] == 413


def test_a_flood_is_cut_off_and_another_hospital_still_enrols(tmp_path: Path) -> None:
    service = Service(make_roster(tmp_path), limit=RateLimit(of_one=3, of_all=100))
    flood = Candidate("flood").asks("0123456789abcdef." + "A" * 43)
    answers = [service.enrol(flood, "10.6.6.6") for _ in range(5)]
    north = Candidate()

    assert [status for status, _ in answers] == [403, 403, 403, 429, 429]
    assert answers[-1][1] == {"code": "rate_limited"}
    assert service.enrol(north.asks(service.roster.invite("north", NOW, days=7)))[0] == 200


def test_a_recorded_request_is_refused_later(tmp_path: Path) -> None:
    roster, north = make_roster(tmp_path), Candidate()
    request = north.asks(roster.invite("north", NOW, days=7))

    assert Service(roster, NOW + dt.timedelta(minutes=6)).enrol(request) == (403, {"code": "clock_skew"})


def test_every_enrolment_and_refusal_is_a_line_in_the_log_without_the_token(service: Service) -> None:
    token = service.roster.invite("north", NOW, days=7)
    with structlog.testing.capture_logs() as lines:
        service.enrol(Candidate().asks(token))
        service.enrol(Candidate().asks(token))
        service.call(ENROL_PATH, b"{", "10.6.6.6")

    assert [(line["event"], line.get("code"), line["peer"]) for line in lines] == [
        ("admitted", None, "10.0.0.1"),
        ("refused", "invite_used", "10.0.0.1"),
        ("refused", "request_invalid", "10.6.6.6"),
    ]
    assert token.partition(".")[2] not in str(lines)


def test_whoever_never_sends_its_body_is_sent_away(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedward_server.enrolment._BODY_S", 0.05)
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def never() -> MutableMapping[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": ENROL_PATH, "headers": [(b"content-length", b"10")]}
    asyncio.run(service._app(scope, never, send))

    assert sent[0]["status"] == 408
