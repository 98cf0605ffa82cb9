"""The interface: what each call answers, who may make it, and that every one of them is written down."""

from __future__ import annotations

import copy
import datetime as dt
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedward_common.audit_chain import Entry
from fedward_common.study_file import MAX_BYTES, StudyFile
from fedward_server.run_status import RunStatus, read_status, write_status
from fedward_server.studies.access import Access, Role
from fedward_server.studies.api import FILES, HOLD_OUTS, build_api
from fedward_server.studies.book import StudyBook
from fedward_server.studies.centre_log import centre_log
from fedward_server.studies.remote import PREFIX
from tests.builders import small_study
from tests.studies_centre import InProcess, StudiesCentre

NOW = dt.datetime.now(dt.UTC)


@dataclass
class Served:
    """A centre behind its interface, with one token for each role."""

    centre: StudiesCentre
    client: InProcess
    tokens: dict[str, str]

    def call(self, method: str, path: str, who: str | None, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tokens.get(who, who)}"} if who is not None else {}
        return self.client.request(method, PREFIX + path, headers=headers, **more)

    def submit(
        self, who: str | None = "scientist", study_file: StudyFile | None = None, query: str = ""
    ) -> httpx.Response:
        content = (study_file or self.centre.signed()).dump()
        return self.call("POST", f"/studies{query}", who, content=content)

    def wish(self, id_: str, wish: str, who: str) -> httpx.Response:
        return self.call("POST", f"/studies/{id_}/wish", who, json={"wish": wish})

    @property
    def book(self) -> StudyBook:
        return self.centre.book

    def log(self) -> list[Entry]:
        return list(centre_log(self.centre.home).entries())

    def submitted(self) -> str:
        return str(self.submit().json()["id"])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudiesCentre, dict[str, str]]:
    """Return a centre with its tokens, to be copied: making them costs more than most tests."""
    centre = StudiesCentre(tmp_path_factory.mktemp("template") / "centre")
    access = Access(centre.home)
    tokens = {role.value: access.issue(role.value, role, NOW) for role in Role}
    tokens["colleague"] = access.issue("colleague", Role.SCIENTIST, NOW)
    return centre, tokens


@pytest.fixture
def served(template: tuple[StudiesCentre, dict[str, str]], tmp_path: Path) -> Served:
    original, tokens = template
    shutil.copytree(original.home, tmp_path / "centre")
    centre = copy.copy(original)
    centre.home = tmp_path / "centre"
    return Served(centre, InProcess(build_api(centre.home)), tokens)


CALLS: list[tuple[str, str, str, dict[str, Any], set[str]]] = [
    ("GET", "/studies", "study-list", {}, {"viewer", "scientist", "operator", "auditor"}),
    ("GET", "/studies/ID", "study-show", {}, {"viewer", "scientist", "operator", "auditor"}),
    ("GET", "/studies/ID/result", "study-result", {}, {"viewer", "scientist", "operator", "auditor"}),
    ("GET", "/studies/ID/files/report.html", "study-result", {}, {"viewer", "scientist", "operator", "auditor"}),
    ("GET", "/studies/ID/files/model.safetensors", "study-model", {}, {"scientist", "operator", "auditor"}),
    ("POST", "/studies/ID/wish", "study-pause", {"json": {"wish": "pause"}}, {"scientist", "operator"}),
    ("POST", "/studies/ID/wish", "study-resume", {"json": {"wish": "resume"}}, {"scientist", "operator"}),
    ("POST", "/studies/ID/wish", "study-stop", {"json": {"wish": "stop"}}, {"operator"}),
    ("GET", "/sites", "site-list", {}, {"viewer", "scientist", "operator", "auditor"}),
    ("GET", "/audit", "audit-read", {}, {"auditor"}),
]


@pytest.mark.parametrize(("method", "path", "action", "more", "may"), CALLS)
@pytest.mark.parametrize("who", ["viewer", "scientist", "operator", "auditor", "nobody"])
def test_each_call_is_let_through_for_its_roles_and_written_down_once(
    served: Served, method: str, path: str, action: str, more: dict[str, Any], may: set[str], who: str
) -> None:
    id_ = served.submitted()
    for name in FILES:
        (served.book.folder(id_) / name).write_text("{}")
    if action == "study-resume":
        served.book.wish(id_, "pause", "scientist", NOW)
    before = len(served.log())

    answer = served.call(method, path.replace("ID", id_), None if who == "nobody" else who, **more)

    assert answer.status_code == (200 if who in may else 401 if who == "nobody" else 403)
    (entry,) = served.log()[before:]
    run = id_ if "ID" in path else ""
    told = {key: entry.fields[key] for key in ("person", "role", "action", "run")}
    known = {"person": "", "role": ""} if who == "nobody" else {"person": who, "role": who}
    assert told == {**known, "action": action, "run": run}
    assert (entry.event, entry.fields["code"]) == (
        ("allowed", "ok") if who in may else ("refused", "token_missing" if who == "nobody" else "forbidden")
    )
    if who not in may:
        assert set(answer.json()) == {"code", "message", "remedy"}
        assert answer.json()["remedy"]
        assert served.book.entry(id_).state == ("paused" if action == "study-resume" else "queued")


def test_a_scientist_has_a_hand_on_studies_of_his_own_only(served: Served) -> None:
    id_ = served.submitted()

    assert served.wish(id_, "pause", "colleague").status_code == 403
    assert served.wish(id_, "pause", "scientist").json()["state"] == "paused"
    assert served.wish(id_, "resume", "colleague").status_code == 403
    assert served.wish(id_, "resume", "scientist").json()["state"] == "queued"


def test_what_an_operator_paused_its_author_does_not_set_going_again(served: Served) -> None:
    id_ = served.submitted()
    served.wish(id_, "pause", "operator")

    assert served.wish(id_, "resume", "scientist").status_code == 403
    assert served.wish(id_, "resume", "operator").json()["state"] == "queued"


# -------------------------------------------------------------------------------------------------------- submission
def test_a_submitted_study_is_in_the_book_in_its_submitter_s_name(served: Served) -> None:
    study_file = served.centre.signed()
    answer = served.submit("scientist", study_file)

    assert answer.status_code == 201
    (entry,) = served.book.entries()
    assert (entry.submitted_by, entry.digest) == ("scientist", study_file.study.digest)
    assert served.call("GET", "/studies", "viewer").json() == {"studies": [answer.json()]}


@pytest.mark.parametrize("who", ["viewer", "operator", "auditor", None, "nonsense"])
def test_nobody_else_submits(served: Served, who: str | None) -> None:
    answer = served.submit(who)

    assert answer.status_code == (403 if who in {"viewer", "operator", "auditor"} else 401)
    assert served.book.entries() == []
    assert [entry.event for entry in served.log()] == ["refused"]


def test_a_submission_is_logged_with_the_digest_of_what_was_sent(served: Served) -> None:
    served.submit(study_file=StudyFile(small_study()))
    served.submitted()

    refused, allowed = served.log()
    assert (refused.event, refused.fields["code"]) == ("refused", "study_signature")
    assert (allowed.event, allowed.fields["code"]) == ("allowed", "ok")
    assert refused.fields["sha256"] != allowed.fields["sha256"]
    assert len(str(allowed.fields["sha256"])) == 64


def test_a_refusal_says_why_and_what_to_do(served: Served) -> None:
    served.submit()

    again = served.submit()
    unknown = served.submit(study_file=served.centre.signed(sites=["north", "east"], name="other"))
    unsigned = served.submit(study_file=StudyFile(small_study()))

    assert (again.status_code, unknown.status_code, unsigned.status_code) == (409, 409, 422)
    assert "east" in unknown.json()["message"]
    assert all(answer.json()["remedy"] for answer in (again, unknown, unsigned))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"study": {}, "digest": "", "signatures": []}', b"[" * 9999]
)
def test_what_is_no_study_file_is_refused_with_a_code(served: Served, content: bytes) -> None:
    answer = served.call("POST", "/studies", "scientist", content=content)

    assert answer.status_code == 422
    assert answer.json()["code"].startswith("study_")


def test_a_body_that_is_too_large_is_not_read_to_its_end(served: Served) -> None:
    read: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(64):
            read.append(number)
            yield b"x" * (1 << 20)

    stated = served.call("POST", "/studies", "scientist", content=b"x" * (MAX_BYTES + 1))
    streamed = served.call("POST", "/studies", "scientist", content=pieces())

    assert (stated.status_code, streamed.status_code) == (413, 413)
    assert stated.json()["code"] == "too_large"
    assert len(read) <= 1 + (MAX_BYTES >> 20)


@pytest.mark.parametrize("name", ["../superlink.json", "/etc/passwd", "secret", "..", ".", "a/b"])
def test_no_hold_out_is_taken_from_outside_its_folder(served: Served, name: str) -> None:
    answer = served.submit(query=f"?hold_out={name}")

    assert answer.status_code == 409
    assert served.book.entries() == []
    assert str(served.centre.home.parent) not in answer.json()["message"]


def test_a_hold_out_of_the_centre_is_used(served: Served) -> None:
    folder = served.centre.home / HOLD_OUTS
    folder.mkdir()
    (folder / "rows.csv").write_text("age\n")

    id_ = served.submit(query="?hold_out=rows.csv").json()["id"]

    assert json.loads((served.book.folder(id_) / "run.json").read_text()) == {"hold_out": str(folder / "rows.csv")}


# ------------------------------------------------------------------------------------------------------------ reading
def test_a_study_is_shown_with_where_it_stands(served: Served) -> None:
    id_ = served.submitted()
    first = served.call("GET", f"/studies/{id_}", "viewer").json()
    status = RunStatus(state="running", round=2, rounds=3, updated_at="2026-11-27T12:00:00+00:00", pid=1)
    write_status(served.book.folder(id_), status)

    then = served.call("GET", f"/studies/{id_}", "viewer").json()

    assert first["status"] is None
    assert (then["status"]["round"], then["study"]["id"]) == (2, id_)
    assert first["version"] != then["version"]


def test_whoever_watches_is_answered_when_something_happens(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    id_ = served.submitted()
    version = served.call("GET", f"/studies/{id_}", "viewer").json()["version"]
    looks: list[str] = []
    original = read_status

    def look(folder: Path) -> RunStatus | None:
        looks.append(folder.name)
        if len(looks) == 2:
            served.book.wish(id_, "pause", "bob", NOW)
        return original(folder)

    monkeypatch.setattr("fedward_server.studies.api.read_status", look)
    answer = served.call("GET", f"/studies/{id_}?seen={version}&wait=25", "viewer").json()

    assert answer["study"]["state"] == "paused"
    assert 2 <= len(looks) <= 3


def test_files_of_a_run_are_given_away_by_name_and_no_other(served: Served) -> None:
    id_ = served.submitted()
    folder = served.book.folder(id_)
    for name in (*FILES, "checkpoint.safetensors", "journal.fedward"):
        (folder / name).write_bytes(name.encode())

    for name, (_, kind) in FILES.items():
        answer = served.call("GET", f"/studies/{id_}/files/{name}", "scientist")
        assert (answer.content, answer.headers["content-type"]) == (name.encode(), kind)
        assert "attachment" in answer.headers["content-disposition"]
        assert "sandbox" in answer.headers["content-security-policy"]
    for name in ("checkpoint.safetensors", "journal.fedward", "run.json", "..%2f..%2fsecret", "%2e%2e"):
        assert served.call("GET", f"/studies/{id_}/files/{name}", "scientist").status_code in {404, 409}


def test_a_result_that_is_not_there_is_a_refusal_with_a_remedy(served: Served) -> None:
    answer = served.call("GET", f"/studies/{served.submitted()}/result", "viewer")

    assert (answer.status_code, answer.json()["message"]) == (409, "this study has no result.json")


def test_sites_are_listed_without_keys(served: Served) -> None:
    content = served.call("GET", "/sites", "viewer").json()

    assert [row["site"] for row in content["sites"]] == ["north", "south"]
    assert set(content["sites"][0]) == {"site", "state", "counts", "not_after"}


def test_an_auditor_reads_the_log_his_own_call_included(served: Served) -> None:
    served.submit()
    entries = served.call("GET", "/audit?last=2", "auditor").json()["entries"]

    assert [entry["fields"]["action"] for entry in entries] == ["study-submit", "audit-read"]
    assert served.call("GET", "/audit?last=0", "auditor").status_code == 422


# --------------------------------------------------------------------------------------------------------- strangers
def test_health_tells_nothing_and_needs_nothing(served: Served) -> None:
    assert set(served.call("GET", "/health", None).json()) == {"ok", "version"}
    assert served.log() == []


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/api/v1", "/api/v1/nothing", "/api/v2/studies"])
def test_nothing_describes_the_interface_to_a_stranger(served: Served, path: str) -> None:
    answer = served.client.request("GET", path)

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


def test_a_study_that_is_not_there_is_told_to_callers_and_not_to_strangers(served: Served) -> None:
    path = "/studies/20261127-120000-abcdef"

    assert served.call("GET", path, "viewer").status_code == 404
    assert served.call("GET", path, None).status_code == 401
    assert [entry.fields["run"] for entry in served.log()] == ["", ""]


@pytest.mark.parametrize("body", [{}, {"wish": "delete"}, {"wish": "stop", "more": 1}, [], None])
def test_a_wish_of_another_form_is_refused(served: Served, body: object) -> None:
    answer = served.call("POST", f"/studies/{served.submitted()}/wish", "operator", json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_nothing_of_an_exception_leaves(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: StudyBook) -> None:
        msg = "patient Ann Miller, /var/lib/fedward-centre/secret"
        raise RuntimeError(msg)

    monkeypatch.setattr(StudyBook, "entries", broken)
    answer = served.call("GET", "/studies", "viewer")

    assert answer.status_code == 500
    assert answer.json() == {
        "code": "internal", "message": "the centre failed at this call", "remedy": "its log says what failed",
    }  # fmt: skip


def test_nothing_has_an_effect_that_cannot_be_written_down(served: Served) -> None:
    id_ = served.submitted()
    (served.centre.home / "audit.head").write_bytes(b"{}")

    answer = served.wish(id_, "stop", "operator")

    assert (answer.status_code, answer.json()["code"]) == (503, "audit_untrusted")
    assert served.book.entry(id_).state == "queued"
    assert str(served.centre.home) not in answer.text


def test_the_entry_stands_before_the_effect(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, object]] = []
    original = StudyBook.wish

    def wish(self: StudyBook, *arguments: Any) -> Any:
        last = served.log()[-1]
        seen.append((last.event, last.fields["action"]))
        return original(self, *arguments)

    id_ = served.submitted()
    monkeypatch.setattr(StudyBook, "wish", wish)
    served.wish(id_, "stop", "operator")

    assert seen == [("allowed", "study-stop")]


def test_a_call_that_somebody_else_overtook_is_written_down_as_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyBook, "check", lambda *_: None)
    served.submit()
    second = served.submit()

    assert second.status_code == 409
    assert [entry.event for entry in served.log()] == ["allowed", "allowed", "refused"]


def test_a_flood_of_wrong_tokens_does_not_fill_the_log(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("fedward_server.studies.desk.time.monotonic", lambda: clock[0])
    answers = [served.call("GET", "/studies", f"wrong{number}").status_code for number in range(40)]
    inside = len(served.log())
    clock[0] += 30.0
    served.call("GET", "/studies", "wrong")
    quiet = len(served.log())

    assert set(answers) == {401, 429}
    assert inside == answers.count(401) + 1
    assert served.log()[inside - 1].fields["code"] == "rate_limited"
    assert quiet in {inside, inside + 1}


def test_a_token_is_in_no_log_and_no_answer(served: Served) -> None:
    served.submit()
    served.call("GET", "/studies", served.tokens["viewer"] + "x")

    content = (served.centre.home / "audit.jsonl").read_bytes()
    assert not any(token.partition(".")[2].encode() in content for token in served.tokens.values())
