"""The console over HTTP: who sees what, what a form needs, what a browser is told, and that no text becomes markup."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import re
import secrets
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from fedward_server.console.page import content_policy
from fedward_server.console.pages import REFRESH_HEADER
from fedward_server.console.sessions import COOKIE, LONGEST_S
from fedward_server.result import RunResult
from fedward_server.run_status import RunStatus, SiteStatus, read_wish, write_status
from fedward_server.studies.access import Role
from fedward_server.studies.api import build_api
from fedward_server.studies.book import StudyEntry
from fedward_server.studies.centre_log import centre_log
from tests.builders import small_study
from tests.console_centre import ConsoleCentre
from tests.server.run_results import result_of

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{7*7}}"
HERE = "http://testserver"
Lived = tuple[ConsoleCentre, Mapping[str, StudyEntry]]


class Client:
    """Asks an application without a socket, and keeps its cookies."""

    def __init__(self, app: FastAPI) -> None:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 40000))
        self._client = httpx.AsyncClient(transport=transport, base_url=HERE)
        self.cookies = self._client.cookies

    def get(self, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._client.get(path, **more))

    def post(self, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._client.post(path, **more))


class Person:
    """A browser of somebody who has logged in; with an `app`, at the console of somebody else."""

    def __init__(
        self, centre: ConsoleCentre, role: Role | None = Role.VIEWER, name: str = "", app: FastAPI | None = None
    ) -> None:
        self.app = app or build_api(centre.home)
        self.client = Client(self.app)
        self.name = name or f"{role}-{secrets.token_hex(4)}"
        if role is not None:
            self.token = centre.token(self.name, role)
            answer = self.client.post("/login", data={"token": self.token, "next": "/"})
            assert answer.status_code == 303

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)

    def form(self, path: str = "/") -> str:
        (found, *_) = re.findall(r'name="form" value="([^"]+)"', self.get(path).text)
        return str(found)

    def wish(self, entry: StudyEntry, wish: str) -> httpx.Response:
        data = {"form": self.form(), "wish": wish}
        return self.client.post(f"/runs/{entry.id}/wish", data=data)


@pytest.fixture
def centre(tmp_path: Path) -> ConsoleCentre:
    return ConsoleCentre(tmp_path)


@pytest.fixture
def queued(centre: ConsoleCentre) -> StudyEntry:
    return centre.queued()


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# ----------------------------------------------------------------------------------------------------------- the door


PAGES = ("/", "/sites", "/audit", "/runs/x", "/runs/x/study", "/runs/x/stop", "/runs/x/files/result.json")


@pytest.mark.parametrize("path", PAGES)
def test_without_a_session_every_page_leads_to_the_log_in(lived: Lived, path: str) -> None:
    answer = Person(lived[0], None).get(path)

    assert answer.status_code == 303
    assert answer.headers["location"] == f"/login?next={path}"


def test_a_token_opens_and_the_browser_never_gets_it(centre: ConsoleCentre) -> None:
    person = Person(centre)
    answer = person.client.post("/login", data={"token": person.token, "next": "/sites"})

    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/sites"
    assert {"HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={int(LONGEST_S)}"} <= set(cookie.split("; "))
    assert "Secure" not in cookie  # over loopback
    assert person.token not in cookie
    assert person.token not in person.get("/").text


def test_behind_a_proxy_that_speaks_tls_the_cookie_is_for_tls_alone(centre: ConsoleCentre) -> None:
    person = Person(centre)

    answer = person.client.post("/login", data={"token": person.token}, headers={"x-forwarded-proto": "https"})

    assert "; Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("token", ["", "wrong", "0" * 12 + "." + "A" * 43, EVIL])
def test_a_wrong_token_is_told_what_to_do(centre: ConsoleCentre, token: str) -> None:
    answer = Person(centre, None).client.post("/login", data={"token": token})

    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text
    assert "<script>alert" not in answer.text


def test_guessing_is_slowed_down(centre: ConsoleCentre) -> None:
    client = Person(centre, None).client

    answers = [client.post("/login", data={"token": f"{n:012x}." + "A" * 43}).status_code for n in range(22)]

    assert answers[0] == 401
    assert answers[-1] == 429


@pytest.mark.parametrize(
    "following", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\nb", ""]
)
def test_a_log_in_leads_nowhere_else(centre: ConsoleCentre, following: str) -> None:
    person = Person(centre)

    answer = person.client.post("/login", data={"token": person.token, "next": following})

    assert answer.headers["location"] == "/"


def test_a_revoked_token_ends_its_session_at_once(centre: ConsoleCentre) -> None:
    person = Person(centre)
    assert person.get("/").status_code == 200

    centre.access.revoke(person.name, dt.datetime.now(dt.UTC))

    assert person.get("/").status_code == 401
    assert person.get("/").status_code == 303


def test_logging_out_ends_the_session_at_the_server(centre: ConsoleCentre) -> None:
    person = Person(centre)
    number, form = person.client.cookies[COOKIE], person.form()

    assert person.client.post("/logout", data={"form": form}).headers["location"] == "/login"
    person.client.cookies.set(COOKIE, number)

    assert person.get("/").status_code == 303


# ---------------------------------------------------------------------------------------------------------- the roles


@pytest.mark.parametrize(
    ("role", "sees"), [(Role.VIEWER, 403), (Role.SCIENTIST, 403), (Role.OPERATOR, 403), (Role.AUDITOR, 200)]
)
def test_the_trail_is_for_auditors(centre: ConsoleCentre, role: Role, sees: int) -> None:
    person = Person(centre, role)

    assert person.get("/audit").status_code == sees
    assert ('href="/audit"' in person.get("/").text) == (sees == 200)


@pytest.mark.parametrize(
    ("role", "offered"),
    [(Role.VIEWER, ()), (Role.SCIENTIST, ()), (Role.OPERATOR, ("pause", "stop")), (Role.AUDITOR, ())],
)
def test_a_page_offers_what_the_role_may_and_the_state_allows(
    centre: ConsoleCentre, queued: StudyEntry, role: Role, offered: tuple[str, ...]
) -> None:
    text = Person(centre, role).get(f"/runs/{queued.id}").text

    found = tuple(w for w in ("pause", "resume", "stop") if f'value="{w}"' in text or f'/{w}"' in text)

    assert found == offered


def test_a_scientist_pauses_own_studies_only(centre: ConsoleCentre, queued: StudyEntry) -> None:
    own, other = Person(centre, Role.SCIENTIST, "jonas"), Person(centre, Role.SCIENTIST, "maria")

    assert 'value="pause"' in own.get(f"/runs/{queued.id}").text
    assert other.wish(queued, "pause").status_code == 403
    assert own.wish(queued, "pause").status_code == 303
    assert centre.book.entry(queued.id).state == "paused"
    assert 'value="resume"' in own.get(f"/runs/{queued.id}").text


def test_an_operator_s_wish_reaches_the_run_and_the_log(centre: ConsoleCentre, queued: StudyEntry) -> None:
    centre.book.begin(queued.id, centre.now)
    person = Person(centre, Role.OPERATOR)

    assert person.wish(queued, "pause").headers["location"] == f"/runs/{queued.id}"
    assert read_wish(centre.book.folder(queued.id)) == "pause"
    person.wish(queued, "resume")
    centre.book.begin(queued.id, centre.now)
    assert "cannot go on" in person.get(f"/runs/{queued.id}/stop").text
    assert person.wish(queued, "stop").status_code == 303

    assert read_wish(centre.book.folder(queued.id)) == "stop"
    told = [
        (e.fields["action"], e.fields["person"])
        for e in centre_log(centre.home).entries()
        if "study-" in str(e.fields.get("action"))
    ]
    for action in ("study-pause", "study-resume", "study-stop"):
        assert (action, person.name) in told


def test_a_wish_that_has_no_meaning_is_refused_with_what_to_do(centre: ConsoleCentre, queued: StudyEntry) -> None:
    person = Person(centre, Role.OPERATOR)

    answers = [person.wish(queued, "resume"), person.wish(queued, "explode"), person.get("/runs/nobody")]

    assert [answer.status_code for answer in answers] == [409, 400, 404]
    assert all("What you can do" in answer.text for answer in answers)
    assert centre.book.entry(queued.id).state == "queued"


# ---------------------------------------------------------------------------------------------------------- the forms


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        ({}, {}),
        ({"form": "guess"}, {}),
        ({"form": None}, {"sec-fetch-site": "cross-site"}),
        ({"form": None}, {"sec-fetch-site": "same-site"}),
        ({"form": None}, {"origin": "https://evil.example"}),
        ({"form": None}, {"origin": "null"}),
    ],
)
def test_a_form_from_elsewhere_changes_nothing(
    centre: ConsoleCentre, queued: StudyEntry, data: dict[str, str | None], headers: dict[str, str]
) -> None:
    person = Person(centre, Role.OPERATOR)
    fields = {key: value or person.form() for key, value in data.items()} | {"wish": "pause"}

    answer = person.client.post(f"/runs/{queued.id}/wish", data=fields, headers=headers)
    left = person.client.post("/logout", data=fields, headers=headers)

    assert answer.status_code == left.status_code == 403
    assert centre.book.entry(queued.id).state == "queued"
    assert person.get("/").status_code == 200


def test_another_session_s_form_is_none_of_mine(centre: ConsoleCentre, queued: StudyEntry) -> None:
    mine = Person(centre, Role.OPERATOR)
    theirs = Person(centre, Role.OPERATOR, app=mine.app)

    answer = mine.client.post(f"/runs/{queued.id}/wish", data={"form": theirs.form(), "wish": "pause"})

    assert answer.status_code == 403


def test_nothing_is_changed_by_a_get(centre: ConsoleCentre, queued: StudyEntry) -> None:
    person = Person(centre, Role.OPERATOR)

    for path in (f"/runs/{queued.id}/wish?wish=stop", "/logout"):
        assert person.get(path).status_code == 405
    assert person.get(f"/runs/{queued.id}/stop").status_code == 200
    assert centre.book.entry(queued.id).state == "queued"


def test_a_long_form_is_not_read_to_its_end(centre: ConsoleCentre) -> None:
    answer = Person(centre, None).client.post("/login", data={"token": "x" * 100_000})

    assert answer.status_code == 413


# -------------------------------------------------------------------------------------------------- what a browser gets


def paths(entry: StudyEntry) -> list[str]:
    return [
        "/",
        "/sites",
        f"/runs/{entry.id}",
        f"/runs/{entry.id}/study",
        f"/runs/{entry.id}?rounds=all",
        "/login",
        "/nothing",
    ]


def test_every_page_brings_its_policy_and_needs_nothing_that_it_forbids(lived: Lived) -> None:
    person = Person(lived[0], Role.AUDITOR)
    for path in (*paths(lived[1]["running"]), "/audit", "/runs/x"):
        answer = person.get(path)
        assert answer.headers["content-security-policy"] == content_policy()
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        for tag, attributes in Tags(answer.text).found:
            assert tag not in {"style", "iframe", "object", "base", "img"}
            assert not {name for name in attributes if name == "style" or name.startswith("on")}, (path, tag)
            for name in ("src", "href", "action"):
                assert str(attributes.get(name) or "/").startswith(("/", "#")), (path, attributes)
            if tag == "script":
                assert attributes == {"src": "/static/console.js", "defer": None}


def test_the_policy_allows_no_inline_code_and_no_other_origin() -> None:
    rules = dict(part.strip().split(" ", 1) for part in content_policy().split(";"))

    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert {value for name, value in rules.items() if value != "'none'"} == {"'self'"}


@pytest.mark.parametrize(
    ("name", "kind"), [("console.css", "text/css"), ("console.js", "text/javascript"), ("console.svg", "image/svg+xml")]
)
def test_the_three_files_are_there_and_refer_to_nothing(lived: Lived, name: str, kind: str) -> None:
    answer = Person(lived[0], None).get(f"/static/{name}")

    assert answer.headers["content-type"].startswith(kind)
    assert "url(" not in answer.text
    assert "@import" not in answer.text
    assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("name", ["base.html.j2", "..%2Fconsole.css", "%2e%2e", "console.css.bak"])
def test_no_other_file_is_given(lived: Lived, name: str) -> None:
    assert Person(lived[0], None).get(f"/static/{name}").status_code == 404


def test_the_interface_for_programs_keeps_its_own_answers(lived: Lived) -> None:
    answer = Person(lived[0], None).get("/api/v1/nothing")

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
    assert "There is no such page" in Person(lived[0], None).get("/nothing").text


# ------------------------------------------------------------------------------------------------------------ downloads


def test_files_are_given_with_their_names_and_shut_in(lived: Lived) -> None:
    entry = lived[1]["completed"]
    person = Person(lived[0], Role.AUDITOR)
    for name in ("report.html", "result.json", "privacy.json", "study.json", "model.safetensors"):
        answer = person.get(f"/runs/{entry.id}/files/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == f'attachment; filename="heart_failure-{name}"'
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert answer.content == (lived[0].book.folder(entry.id) / name).read_bytes()


def test_a_report_can_be_opened_without_script_or_anything_from_elsewhere(lived: Lived) -> None:
    answer = Person(lived[0]).get(f"/runs/{lived[1]['completed'].id}/files/report.html?open")

    assert answer.headers["content-disposition"].startswith("inline")
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_model_is_not_for_viewers(lived: Lived) -> None:
    entry = lived[1]["completed"]
    person = Person(lived[0])

    assert person.get(f"/runs/{entry.id}/files/model.safetensors").status_code == 403
    assert "not for the role viewer" in person.get(f"/runs/{entry.id}/study").text


@pytest.mark.parametrize(
    "name", ["run.json", "wish.json", "checkpoint.safetensors", "..%2F..%2Faccess.json", "journal.fedward"]
)
def test_no_other_file_of_a_run_is_given(lived: Lived, name: str) -> None:
    assert Person(lived[0], Role.OPERATOR).get(f"/runs/{lived[1]['running'].id}/files/{name}").status_code == 404


# ------------------------------------------------------------------------------------------------------------ the trail


def test_the_trail_is_verified_filtered_and_in_leaves(centre: ConsoleCentre) -> None:
    person = Person(centre, Role.AUDITOR)
    for _ in range(55):
        person.get("/sites")

    text = person.get("/audit?event=allowed&text=site-list").text

    assert "Chain verified" in text
    assert text.count("<tr>") == 51
    assert "Leaf 1 of 2" in text
    assert "page=2" in text
    assert "Leaf 2 of 2" in person.get("/audit?page=2&text=site-list").text
    assert person.get("/audit?page=-1&event=x").status_code == 200


def test_a_changed_line_is_told_and_no_line_is_believed(centre: ConsoleCentre) -> None:
    person = Person(centre, Role.AUDITOR)
    person.get("/sites")
    path = centre.home / "audit.jsonl"
    path.write_text(path.read_text().replace("study-list", "study-stop", 1))

    text = person.get("/audit").text

    assert "The chain is broken" in text
    assert "Chain verified" not in text
    assert "study-stop" not in text


def test_a_log_without_its_end_lets_nobody_on(centre: ConsoleCentre) -> None:
    person = Person(centre, Role.AUDITOR)
    person.get("/sites")
    path = centre.home / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))

    answer = person.get("/audit")

    assert answer.status_code == 503
    assert "fedward server audit verify" in answer.text


def test_a_page_that_refreshes_itself_fills_no_log(centre: ConsoleCentre, queued: StudyEntry) -> None:
    person = Person(centre)
    path, refresh = f"/runs/{queued.id}", {REFRESH_HEADER: "1"}
    person.get(path)
    before = len(list(centre_log(centre.home).entries()))

    assert [person.get(path, headers=refresh).status_code for _ in range(5)] == [200] * 5
    assert len(list(centre_log(centre.home).entries())) == before

    person.get(f"/runs/{queued.id}/files/study.json", headers=refresh)
    other = Person(centre, app=person.app)
    start = len(list(centre_log(centre.home).entries()))
    other.get(path, headers=refresh)  # which it has never opened by hand
    assert len(list(centre_log(centre.home).entries())) == start + 1


# ------------------------------------------------------------------------------------------------------------- hostile


def test_no_text_of_a_file_becomes_markup(centre: ConsoleCentre, queued: StudyEntry) -> None:
    folder, study = centre.book.folder(queued.id), small_study(name="delirium", sites=("Aachen", "Basel"))
    told = {EVIL: SiteStatus(state="missed", reason=EVIL), "Aachen": SiteStatus(state="excluded", reason=EVIL)}
    write_status(
        folder,
        RunStatus(state="running", round=1, rounds=3, sites=told, updated_at=EVIL, opened_at=EVIL, pid=1, reason=EVIL),
    )
    centre.book.begin(queued.id, centre.now)
    centre.book.explain(queued.id, EVIL)
    person = Person(centre, Role.OPERATOR)

    before = [Tags(person.get(path).text).found for path in paths(queued)]
    (folder / "result.json").write_text(_evil(result_of(study)).model_dump_json())
    after = [person.get(path).text for path in paths(queued)]

    for found in [*before, *(Tags(text).found for text in after)]:
        assert [attributes for tag, attributes in found if tag == "script"] == [
            {"src": "/static/console.js", "defer": None}
        ]
        assert not [
            tag for tag, attributes in found if tag == "img" or any(name.startswith("on") for name in attributes)
        ]


def _evil(result: RunResult) -> RunResult:
    site = result.sites["Aachen"].model_copy(update={"status": "excluded", "reason": EVIL})
    rounds = [
        entry.model_copy(update={"sites": (), "missing": {"Aachen": EVIL, EVIL: EVIL}}) for entry in result.rounds
    ]
    return result.model_copy(update={"sites": {"Aachen": site, EVIL: site}, "rounds": tuple(rounds), "reason": EVIL})


def test_an_address_with_markup_is_answered_with_words(lived: Lived) -> None:
    person = Person(lived[0], Role.AUDITOR)
    for path in (f"/runs/{EVIL}", f"/audit?text={EVIL}&event={EVIL}", f"/login?next={EVIL}"):
        assert "<script>alert" not in person.get(path).text
        assert "<img" not in person.get(path).text


# ----------------------------------------------------------------------------------------------------- for everybody


def test_every_page_can_be_read_without_seeing_it(lived: Lived) -> None:
    person = Person(lived[0], Role.AUDITOR)
    for path in (*paths(lived[1]["running"]), *paths(lived[1]["completed"]), "/audit"):
        found = Tags(person.get(path).text).found
        tags = [tag for tag, _ in found]
        assert dict(found)["html"] == {"lang": "en"}
        assert tags.count("h1") == tags.count("main") == 1, path
        assert next(a for t, a in found if t == "a")["href"] == "#content"  # the skip link
        levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels)), path
        assert tags.count("table") == tags.count("caption")
        assert all(a.get("scope") in {"col", "row"} for t, a in found if t == "th")
        ids = [a["id"] for _, a in found if "id" in a]
        assert len(ids) == len(set(ids)), path
        labelled = {a["for"] for t, a in found if t == "label"}
        named = [a for t, a in found if t in {"input", "select"} and a.get("type") != "hidden"]
        assert all(a["id"] in labelled for a in named)
        for _, attributes in found:
            for name in ("aria-labelledby", "aria-describedby"):
                assert set(str(attributes.get(name) or "").split()) <= set(ids), path
