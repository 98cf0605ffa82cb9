"""What a centre does about hospitals of other releases: none is enrolled, none is asked, and each reason is kept."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from fedward_common import __version__
from fedward_common.enrolment import ENROL_PATH
from fedward_common.protocol import OURS, Release
from fedward_common.study import Study
from fedward_server.enrolment import CentreFacts, Enrolment
from tests.builders import small_study
from tests.candidates import NOW, Candidate, make_roster, node_key
from tests.doubles import Rehearsal

LATER = Release("9.0.0", OURS.newest + 1, OURS.newest + 2)
EARLIER = Release("0.0.1", 1, 1)
FACTS = CentreFacts(b"-----BEGIN CERTIFICATE-----\n", "a" * 64)


# ------------------------------------------------------------------------------------------------------------ roster
def test_a_site_is_outside_while_its_release_does_not_work_with_ours(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster)
    key = north.public.encode()

    found = [roster.outside(NOW)]
    for release in (LATER, OURS, EARLIER):
        roster.heard(key, release, NOW)
        found.append(roster.outside(NOW))

    assert found[0] == found[2] == {}
    assert "upgrade the centre to Fedward 9.0.0" in found[1]["north"]
    assert f"upgrade the site north to Fedward {__version__}" in found[3]["north"]
    assert all(why["north"].startswith("protocol_mismatch: ") for why in (found[1], found[3]))
    assert roster.releases() == {north.public: EARLIER}


def test_a_site_that_is_gone_is_not_outside(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    roster.heard(Candidate().enrolled(roster).public.encode(), LATER, NOW)
    roster.revoke("north", NOW)

    assert roster.outside(NOW) == {}


def test_the_newest_key_of_a_site_says_what_it_runs(tmp_path: Path) -> None:
    roster, new = make_roster(tmp_path), node_key()
    north = Candidate().enrolled(roster)
    roster.heard(north.public.encode(), LATER, NOW)
    request = north.renews(new)
    roster.renew(request, north.public, request.new_key, NOW, days=365)
    roster.heard(request.new_key.encode(), OURS, NOW)

    assert roster.outside(NOW) == {}


def test_what_a_stranger_says_of_itself_is_no_site_s(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    roster.heard(b"\xff no key", LATER, NOW)

    assert roster.outside(NOW) == {}


# --------------------------------------------------------------------------------------------------------- enrolment
def enrolled(folder: Path, release: Release) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
    """Return what a centre answers to a good request of a site of `release`."""
    roster, sent = make_roster(folder), list[Any]()
    body = Candidate().asks(roster.invite("north", NOW, days=7)).model_dump_json().encode()

    class Register:
        def ensure(self, public_key: bytes, name: str) -> int:
            assert public_key
            assert name
            return 7

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    headers = [(name.encode(), value.encode()) for name, value in release.headers().items()]
    service = Enrolment(roster, Register(), FACTS, clock=lambda: NOW + dt.timedelta(seconds=1))
    anyio.run(service, {"type": "http", "path": ENROL_PATH, "headers": headers, "client": None}, receive, send)
    return int(sent[0]["status"]), json.loads(sent[1]["body"]), dict(sent[0]["headers"])


@pytest.mark.parametrize("release", [LATER, EARLIER])
def test_a_site_of_another_protocol_is_not_enrolled_and_told_what_we_speak(tmp_path: Path, release: Release) -> None:
    status, answer, headers = enrolled(tmp_path, release)

    assert (status, answer) == (426, {"code": "protocol_mismatch"})
    assert headers[b"fedward-protocol"] == OURS.span.encode()
    assert b"fedward-version" not in headers


def test_a_site_of_this_protocol_is_enrolled(tmp_path: Path) -> None:
    status, answer, _ = enrolled(tmp_path, Release("0.0.9", OURS.newest, OURS.newest))

    assert status == 200
    assert answer["membership"]["site"] == "north"


# ------------------------------------------------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def study() -> Study:
    return small_study(sites=["north", "south", "west"])


def test_a_site_of_another_release_is_not_asked_and_the_result_says_why(study: Study, tmp_path: Path) -> None:
    why = "protocol_mismatch: upgrade the site south to Fedward 9.0.0"
    rehearsal = Rehearsal(study, tmp_path)

    outcome = rehearsal.run(unfit={"south": why, "nobody of this study": "x"})

    stored = json.loads((outcome.folder / "result.json").read_text(encoding="utf-8"))
    assert stored["status"] == "degraded"
    assert stored["sites"]["south"]["status"] == "excluded"
    assert stored["sites"]["south"]["reason"] == why
    assert {name: site["rounds"] for name, site in stored["sites"].items()} == {"north": 3, "south": 0, "west": 3}
    assert stored["reason"] is None
    assert {site for site, _ in outcome.grid.asked} == {"north", "west"}
    assert outcome.model == rehearsal.run(without=["south"]).model
