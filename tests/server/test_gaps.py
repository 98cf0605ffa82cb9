"""Which hospital was missing when, told in as few lines as it takes."""

from __future__ import annotations

import re
from typing import Any

from fedward_server.gaps import Gap, gaps_of
from fedward_server.report import REASONS
from fedward_server.result import RoundResult, SiteRound
from tests.builders import small_study
from tests.server.run_results import result_of
from tests.server.test_report import HOSTILE, PRIVATE, told

CAME = SiteRound(status="accepted")
AWAY = SiteRound(status="absent", reason="not_connected")
SILENT = SiteRound(status="missed", reason="no_reply_before_the_deadline")
LATE = SiteRound(status="late", reason="reply_after_the_deadline")


def rounds(*parts: SiteRound, site: str = "south") -> tuple[RoundResult, ...]:
    """Return rounds in which one site did these things and another was always there."""
    return tuple(
        RoundResult(round=number, sites=("north",), seconds=1.0, statuses={"north": CAME, site: part})
        for number, part in enumerate(parts, start=1)
    )


def test_rounds_in_a_row_are_one_gap_while_status_and_reason_stay() -> None:
    found = gaps_of(rounds(CAME, SILENT, AWAY, AWAY, CAME, AWAY, LATE))
    assert [(gap.rounds, gap.status) for gap in found] == [
        ("2", "missed"), ("3 to 4", "absent"), ("6", "absent"), ("7", "late"),
    ]  # fmt: skip
    assert found[1] == Gap("south", 3, 4, "absent", "not_connected")


def test_gaps_of_two_sites_do_not_hide_each_other() -> None:
    one, other = rounds(AWAY, AWAY, CAME), rounds(CAME, SILENT, SILENT, site="west")
    both = [a.model_copy(update={"statuses": a.statuses | b.statuses}) for a, b in zip(one, other, strict=True)]
    assert [(gap.site, gap.rounds) for gap in gaps_of(both)] == [("south", "1 to 2"), ("west", "2 to 3")]


def test_a_result_that_holds_no_statuses_has_no_gaps() -> None:
    assert gaps_of([RoundResult(round=1, sites=("north",), missing={"south": "task_crashed"}, seconds=1.0)]) == []


def test_the_report_tells_each_gap_in_words() -> None:
    text = told(result_of(PRIVATE, status="degraded", rounds=rounds(CAME, SILENT, AWAY, AWAY, LATE)))
    for words in (
        f"2 south gave no update. {REASONS['no_reply_before_the_deadline']} no_reply_before_the_deadline",
        f"3 to 4 south was away. {REASONS['not_connected']} not_connected",
        f"5 south answered late. {REASONS['reply_after_the_deadline']} reply_after_the_deadline",
    ):
        assert words in text
    assert "Rounds in which a hospital was missing" not in told(result_of(PRIVATE, rounds=rounds(CAME, CAME)))


def test_a_reason_from_outside_is_text_and_nothing_else() -> None:
    study = small_study()
    bad = SiteRound(status="missed", reason=HOSTILE)
    assert HOSTILE in told(result_of(study, rounds=rounds(CAME, bad)), study)


def test_of_very_many_gaps_the_report_shows_some_and_says_so() -> None:
    parts: list[Any] = [SILENT, CAME] * 250
    text = told(result_of(PRIVATE, rounds=rounds(*parts)))
    assert "The first 200 of 250 are shown" in text
    assert len(re.findall("gave no update", text)) == 200
