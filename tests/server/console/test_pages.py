"""The console over HTTP: who sees what, what a form needs, and which files are given."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedward_server.console.pages import REFRESH_HEADER
from fedward_server.console.sessions import COOKIE, LONGEST_S
from fedward_server.run_status import read_wish
from fedward_server.studies.access import Role
from fedward_server.studies.book import StudyEntry
from fedward_server.studies.centre_log import centre_log
from tests.console_centre import ConsoleCentre
from tests.console_visitors import Person

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{7*7}}"
Lived = tuple[ConsoleCentre, Mapping[str, StudyEntry]]


@pytest.fixture
def centre(tmp_path: Path) -> ConsoleCentre:
    return ConsoleCentre(tmp_path)


@pytest.fixture
def queued(centre: ConsoleCentre) -> StudyEntry:
    return centre.queued()


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
