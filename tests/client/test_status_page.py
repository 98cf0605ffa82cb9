"""The local page: what it says, that nothing can be smuggled into it, and that a browser can hold it to its policy."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from html.parser import HTMLParser

import pytest

from fedward_client.decisions import Standing
from fedward_client.enrolment import Expiry
from fedward_client.health import Condition, Health, conditions
from fedward_client.overview import Account, CohortBudget, Overview, Problem, Round, StudyLine
from fedward_client.status_page import content_policy, epsilon, notices, render
from fedward_common.audit import Entry

TODAY = dt.datetime(2026, 3, 1, 9, 30, tzinfo=dt.UTC)
DIGEST = "5e" * 32
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


def study(name: str = "sepsis", state: str = "approved", digest: str = DIGEST, **changes: object) -> StudyLine:
    standing = Standing(state, since="2026-02-01T10:00:00+00:00", by=("ann",), cohort="icu", **changes)  # type: ignore[arg-type]
    return StudyLine(name, digest, standing, epsilon=4.0, delta=1e-4, rounds=7, planned=20)


def budget(spent: float = 8.0, promised: float = 10.0, limit: float = 16.0) -> CohortBudget:
    return CohortBudget("icu", spent, promised, limit, 1e-3, (Account(DIGEST, 7, 3.999, 1e-4),))


def decision(number: int, event: str, **fields: str | int) -> Entry:
    return Entry(number, f"2026-02-02T10:{number:02d}:00+00:00", event, fields, "0" * 64)


OVERVIEW = Overview(
    site="north",
    studies=(study(),),
    budgets=(budget(),),
    rounds=(Round("2026-02-03T11:00:00+00:00", DIGEST, 7, 183_744, "ab" * 32),),
    decisions=(decision(2, "released", study=DIGEST, round=7, bytes=183_744), decision(1, "approved", study=DIGEST)),
    entries=72,
)


def page(overview: Overview = OVERVIEW, health: Health | None = None) -> str:
    health = health or healthy()
    met = conditions(health.facts(), 1.0, stale_s=90.0)
    return render(overview, health.facts(), met, now=90_061.0, today=TODAY, address="127.0.0.1:8470")


def healthy() -> Health:
    health = Health(0.0)
    health.policy_read()
    health.probed()
    health.admitted(0.5)
    return health


class Reader(HTMLParser):
    """Collects a page's tags with their attributes, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def words(text: str) -> str:
    return re.sub(r"\s+", " ", Reader(text.replace(style(text), "")).words)


def style(text: str) -> str:
    (found,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    return str(found)


# ------------------------------------------------------------------------------------------------------ its policy


def test_the_policy_allows_the_page_s_one_style_sheet_and_nothing_else() -> None:
    digest = base64.b64encode(hashlib.sha256(style(page()).encode()).digest()).decode()

    rules = dict(part.strip().split(" ", 1) for part in content_policy().split(";"))

    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_the_page_needs_nothing_that_its_policy_forbids() -> None:
    tags = Reader(page()).tags

    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "form", "input", "base", "a"}
    loading = {"src", "href", "action", "style", "srcset", "data"}
    assert not [(tag, name) for tag, attributes in tags for name in attributes if name in loading or name[:2] == "on"]
    assert "url(" not in style(page())
    assert "@import" not in style(page())


def test_nothing_that_came_over_the_network_or_from_a_person_becomes_markup() -> None:
    evil = Overview(
        site=EVIL,
        studies=(study(EVIL, "waiting"), study(EVIL, "approved", digest="f" * 64)),
        budgets=(CohortBudget(EVIL, 1, 2, 3, 1e-3, (Account(EVIL, 1, 1.0, 1e-3),)),),
        rounds=(Round(EVIL, EVIL, 1, 1, EVIL),),
        decisions=(decision(1, EVIL, study=EVIL, name=EVIL, code=EVIL, detail=EVIL, cohort=EVIL),),
        expiries=(Expiry(EVIL, TODAY),),
        problems=(Problem(EVIL, EVIL),),
    )
    health = healthy()
    health.shut_out(EVIL, EVIL)

    text = page(evil, health)

    assert {tag for tag, _ in Reader(text).tags} == {tag for tag, _ in Reader(page(evil_free(evil), health)).tags}
    assert "<script" not in text
    assert "<img" not in text


def evil_free(evil: Overview) -> Overview:
    """Return the same overview with harmless words."""
    return Overview(
        site="x", studies=(study("x", "waiting"), study("x", digest="f" * 64)), budgets=(budget(),),
        rounds=(Round("x", "x", 1, 1, "x"),), decisions=(decision(1, "x", study="x", name="x"),),
        expiries=(Expiry("x", TODAY),), problems=(Problem("x", "x"),), entries=evil.entries,
    )  # fmt: skip


def test_the_same_facts_give_the_same_page() -> None:
    assert page() == page()


# ---------------------------------------------------------------------------------------------------- what it says


def test_the_page_says_who_where_and_when() -> None:
    text = words(page())

    assert "north: ready" in text
    assert "1 Mar 2026, 09:30 UTC" in text
    assert "Running for 1 d 1 h" in text
    assert "127.0.0.1:8470" in text


def test_a_study_stands_with_its_decision_cost_and_rounds() -> None:
    text = words(page())

    assert f"sepsis {DIGEST[:12]} approved icu ann 1 Feb 2026, 10:00" in text
    assert "ε 4 δ 0.0001" in text
    assert "7 of 20" in text


def test_studies_that_wait_come_first() -> None:
    overview = Overview("north", studies=(study("a_first"), study("b_waits", "waiting", digest="b" * 64)))

    text = page(overview)

    assert text.index('row">b_waits') < text.index('row">a_first')


def test_a_study_without_privacy_says_so() -> None:
    line = StudyLine("open", DIGEST, Standing("denied", by=("ann",)), None, None, 0, 3)

    assert "no privacy" in words(page(Overview("north", studies=(line,))))


def test_a_budget_s_bar_is_as_long_as_what_is_spent() -> None:
    bars = [attributes for tag, attributes in Reader(page()).tags if tag == "rect"]

    assert [(bar["class"], bar["width"]) for bar in bars] == [
        ("track", "100"),
        ("promised", "62.50"),
        ("spent", "50.00"),
    ]


@pytest.mark.parametrize("spent", [17.0, float("inf")])
def test_a_bar_never_ends_outside_itself(spent: float) -> None:
    overview = Overview("north", budgets=(budget(spent, spent),))

    bars = [attributes for tag, attributes in Reader(page(overview)).tags if tag == "rect"]

    assert all(0 <= float(str(bar["width"])) <= 100 for bar in bars)


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (3.999, "4"), (3.1401, "3.15"), (4.0, "4"), (12.34, "12.4")])
def test_a_spent_epsilon_is_rounded_up(value: float, shown: str) -> None:
    assert epsilon(value) == shown


def test_an_infinite_epsilon_is_one() -> None:
    assert epsilon(float("inf")) == "∞"


def test_equal_refusals_in_a_row_are_one_line_with_their_number() -> None:
    refused = tuple(decision(n, "refused", study=DIGEST, code="awaiting_approval") for n in (5, 4, 3))
    overview = Overview("north", studies=(study(),), decisions=(*refused, decision(2, "proposed", study=DIGEST)))

    text = words(page(overview))

    assert "2 Feb 2026, 10:05 refused ×3 sepsis awaiting_approval" in text
    assert "10:04" not in text


def test_how_many_patients_a_cohort_has_is_not_shown() -> None:
    """The log holds it for the hospital's own auditors; a page that any account of the computer reads does not."""
    overview = Overview("north", decisions=(decision(1, "enrolled", study=DIGEST, cohort="icu", patients=4711),))

    assert "4711" not in page(overview)


def test_an_empty_site_has_a_page_too() -> None:
    text = words(page(Overview("north"), Health(0.0)))

    assert "Not ready to train" in text
    assert "No study was proposed yet." in text
    assert "Nothing was decided yet." in text


# -------------------------------------------------------------------------------------------------------- notices


def told(overview: Overview, unmet: tuple[Condition, ...] = ()) -> list[str]:
    return [notice.what for notice in notices(overview, unmet, TODAY)]


def test_what_is_urgent_comes_first() -> None:
    overview = Overview(
        "north", studies=(study(state="waiting"),), problems=(Problem("the ledger lacks a round", "x"),)
    )
    unmet = (Condition("authenticated", met=False, why="HTTP 401", remedy="enroll"),)

    found = notices(overview, unmet, TODAY)

    assert [notice.urgent for notice in found] == [True, True, False]
    assert found[0].what == "Not authenticated: HTTP 401"
    assert found[1].what == "The ledger lacks a round"
    assert all(notice.remedy for notice in found)


@pytest.mark.parametrize(
    ("line", "words_of_it"),
    [
        (study(state="waiting"), "waits for your decision"),
        (study(state="incomplete", needed=2), "another person"),
        (study(state="expired", reason="an approval holds for 180 days"), "180 days"),
        (study(expires="2026-03-08T09:00:00+00:00"), "ends in 6 days"),
        (study(expires="2026-03-01T10:00:00+00:00"), "ends today"),
    ],
)
def test_a_study_that_needs_somebody_is_told_with_the_command_to_look(line: StudyLine, words_of_it: str) -> None:
    (notice,) = notices(Overview("north", studies=(line,)), (), TODAY)

    assert words_of_it in notice.what
    assert notice.remedy == f"fedward client show {DIGEST[:12]}"


@pytest.mark.parametrize("line", [study(), study(state="denied"), study(expires="2026-06-01T10:00:00+00:00")])
def test_a_study_that_needs_nobody_is_not_told(line: StudyLine) -> None:
    assert told(Overview("north", studies=(line,))) == []


def test_a_study_that_is_refused_although_it_was_approved_is_told() -> None:
    line = StudyLine("sepsis", DIGEST, study().standing, 4.0, 1e-4, 7, 20, stuck=True)

    assert "its cohort has changed" in told(Overview("north", studies=(line,)))[0]


@pytest.mark.parametrize(
    ("left", "what", "urgent"),
    [
        (dt.timedelta(days=31), None, False),
        (dt.timedelta(days=29, hours=1), "The node key expires in 29 days", False),
        (dt.timedelta(days=1, hours=1), "The node key expires tomorrow", False),
        (dt.timedelta(hours=5), "The node key expires today", True),
        (-dt.timedelta(hours=5), "The node key has expired", True),
    ],
)
def test_what_expires_is_told_in_time(left: dt.timedelta, what: str | None, *, urgent: bool) -> None:
    found = notices(Overview("north", expiries=(Expiry("node key", TODAY + left),)), (), TODAY)

    assert [notice.what for notice in found] == ([what] if what else [])
    assert [notice.urgent for notice in found] == ([urgent] if what else [])


def test_a_budget_that_is_nearly_spent_is_told() -> None:
    assert told(Overview("north", budgets=(budget(spent=12.7),))) == []
    assert told(Overview("north", budgets=(budget(spent=12.8),))) == ["Cohort icu: 80% of the privacy budget is spent"]
