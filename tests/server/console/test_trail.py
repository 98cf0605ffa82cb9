"""The audit page shows what the log has, finds what is sought, and says when the chain is broken."""

from __future__ import annotations

from fedward_common.audit import Entry, Finding
from fedward_server.console.trail import Filter, leaf


def entry(number: int, event: str = "allowed", **fields: str | int) -> Entry:
    return Entry(number, f"2026-11-27T10:{number % 60:02d}:00+00:00", event, fields, "0" * 64)


ENTRIES = [
    entry(n, "refused" if n % 10 == 0 else "allowed", person="maria", role="operator", action="study-show", code="ok")
    for n in range(1, 121)
]


def test_the_last_entry_comes_first_in_leaves_of_fifty() -> None:
    first, last = leaf(ENTRIES, (), Filter()), leaf(ENTRIES, (), Filter(page=3))

    assert [line.number for line in first.lines] == list(range(120, 70, -1))
    assert [line.number for line in last.lines] == list(range(20, 0, -1))
    assert (first.pages, first.matching, first.entries, first.whole) == (3, 120, 120, True)


def test_a_leaf_that_is_not_there_is_the_nearest() -> None:
    assert leaf(ENTRIES, (), Filter(page=99)).page == 3
    assert leaf(ENTRIES, (), Filter(page=0)).page == 1
    assert leaf([], (), Filter(page=7)).lines == ()


def test_events_and_words_are_found_in_any_case() -> None:
    entries = [*ENTRIES, entry(121, "refused", person="Jonas", site="Bern")]

    assert leaf(entries, (), Filter(event="refused")).matching == 13
    assert leaf(entries, (), Filter(text="jonas")).matching == 1
    assert leaf(entries, (), Filter(event="allowed", text="JONAS")).matching == 0
    assert leaf(entries, (), Filter()).events == ("allowed", "refused")


def test_a_line_says_who_and_leaves_nothing_of_the_entry_out_but_an_ok() -> None:
    told = entry(
        1, person="maria", role="operator", code="ok", sha256="ab" * 32, action="study-pause", name="ward 7", count=3
    )

    (line,) = leaf([told], (), Filter()).lines

    assert line.who == "maria (operator)"
    assert line.details == (
        ("action", "study-pause"), ("count", "3"), ("name", "ward 7"), ("sha256", "abababababab…"),
    )  # fmt: skip


def test_an_entry_without_a_person_is_not_given_one() -> None:
    (line,) = leaf([entry(1, "centre started", role="operator", code="restart")], (), Filter()).lines

    assert line.who == ""
    assert line.details == (("code", "restart"), ("role", "operator"))


def test_a_broken_chain_is_told() -> None:
    found = leaf((), (Finding(3, "its hash is another"),), Filter())

    assert not found.whole
    assert found.findings[0].number == 3


def test_another_leaf_is_under_the_same_filter() -> None:
    wanted = Filter(event="run ended", text="a&b=c")

    assert wanted.query(2) == "event=run+ended&text=a%26b%3Dc&page=2"
    assert Filter().query(1) == ""
