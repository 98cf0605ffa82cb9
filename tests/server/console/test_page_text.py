"""What is in a page: nothing that its policy forbids, no text that became markup, a name for whoever does not see."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedward_server.console.page import content_policy
from fedward_server.result import RunResult
from fedward_server.run_status import RunStatus, SiteStatus, write_status
from fedward_server.studies.access import Role
from fedward_server.studies.book import StudyEntry
from tests.builders import small_study
from tests.console_centre import ConsoleCentre
from tests.console_visitors import Person
from tests.server.run_results import result_of

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{7*7}}"
Lived = tuple[ConsoleCentre, Mapping[str, StudyEntry]]


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
