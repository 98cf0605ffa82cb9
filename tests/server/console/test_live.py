"""The round view says of each site and round what the run's own files say, and no more."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import get_args

import pytest

from fedward_common.privacy import Spend, epsilon_of
from fedward_common.study import DpSgd
from fedward_server.console.facts import RunFacts
from fedward_server.console.live import Cell, CellState, costs, eta, grid, open_round, spent, troubles
from fedward_server.console.live_page import live_view
from fedward_server.result import RoundResult, SiteRound
from fedward_server.run_status import RunStatus, SiteStatus
from tests.console_centre import SITES, ConsoleCentre
from tests.server.console.lines import line

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)


def signs(facts: RunFacts) -> dict[str, str]:
    return {row.site: "".join(cell.sign for cell in row.cells) for row in grid(facts).rows}


def test_each_cell_is_what_the_real_run_recorded(facts: dict[str, RunFacts]) -> None:
    assert signs(facts["running"]) == {
        "Aachen": "✓✓✓✓✓✓✓···",
        "Basel": "✓✓✓✓✓✓…···",
        "Bern": "✓✓!!✓✓…···",
        "Graz": "✓!✓✓✓✓!···",
        "Ulm": "✓✓✓✓✓✓✓···",
        "Zurich": "××××××××××",
    }


def test_the_open_round_comes_from_the_status_and_ends_with_its_commit(facts: dict[str, RunFacts]) -> None:
    running = facts["running"]
    assert open_round(running) == 7
    assert running.status is not None

    stale = replace(running, status=running.status.model_copy(update={"round": 6}))

    assert open_round(stale) is None
    assert signs(stale)["Basel"] == "✓✓✓✓✓✓····"


def test_a_run_that_is_over_has_no_open_round_whatever_its_status_says(facts: dict[str, RunFacts]) -> None:
    late = RunStatus(state="running", round=9, rounds=9, updated_at="", pid=1)

    assert open_round(replace(facts["completed"], status=late)) is None
    assert set(signs(facts["completed"]).values()) == {"✓✓✓✓"}


def test_what_a_closed_round_says_of_each_site_counts(facts: dict[str, RunFacts]) -> None:
    done = facts["completed"]
    assert done.result is not None
    told = {
        "Aachen": SiteRound(status="accepted"),
        "Basel": SiteRound(status="late", reason="no_reply_before_the_deadline"),
        "Bern": SiteRound(status="absent", reason="not_connected"),
        "Graz": SiteRound(status="excluded", reason="budget_exceeded"),
    }
    last = done.result.rounds[-1].model_copy(update={"statuses": told})
    changed = replace(done, result=done.result.model_copy(update={"rounds": (*done.result.rounds[:-1], last)}))

    assert signs(changed) == {"Aachen": "✓✓✓✓", "Basel": "✓✓✓»", "Bern": "✓✓✓–", "Graz": "✓✓✓×"}
    assert {(t.site, t.cell.word) for t in troubles(grid(changed))} == {
        ("Basel", "too late, not used"),
        ("Bern", "away, not asked"),
        ("Graz", "excluded"),
    }


def test_a_result_of_an_earlier_version_names_who_was_missing_only(facts: dict[str, RunFacts]) -> None:
    running = facts["running"]
    assert running.progress is not None
    older = tuple(entry.model_copy(update={"statuses": {}}) for entry in running.closed)
    known = replace(running, progress=running.progress.model_copy(update={"closed": older}))

    assert signs(known) == signs(running)


def test_who_never_enrolled_is_excluded_from_every_round(facts: dict[str, RunFacts]) -> None:
    assert set(signs(facts["failed"]).values()) == {"×××"}
    found = troubles(grid(facts["failed"]))
    assert [(t.site, t.when, t.code) for t in found] == [
        (site, "at the roll call", "no_reply_before_the_deadline") for site in SITES[:3]
    ]


def test_the_roll_call_is_a_column_of_its_own_while_it_lasts(facts: dict[str, RunFacts]) -> None:
    enrolling = facts["enrolling"]

    assert grid(enrolling).rounds == (0, 1, 2, 3)
    assert signs(enrolling) == {"Graz": "✓···", "Ulm": "…···", "Zurich": "–···"}
    assert [(t.site, t.when, t.code) for t in troubles(grid(enrolling))] == [
        ("Zurich", "at the roll call", "awaiting_approval")
    ]


def test_a_row_counts_all_its_rounds(facts: dict[str, RunFacts]) -> None:
    rows = {row.site: row.accepted for row in grid(facts["running"], shown=2).rows}

    assert rows == {"Aachen": 6, "Basel": 6, "Bern": 4, "Graz": 5, "Ulm": 6, "Zurich": 0}


@pytest.mark.parametrize(
    ("shown", "rounds", "hidden"), [(3, (5, 6, 7), 4), (8, (1, 2, 3, 4, 5, 6, 7, 8), 0), (50, tuple(range(1, 11)), 0)]
)
def test_the_last_rounds_that_have_begun_are_shown(
    facts: dict[str, RunFacts], shown: int, rounds: tuple[int, ...], hidden: int
) -> None:
    found = grid(facts["running"], shown=shown)

    assert found.rounds == rounds
    assert found.hidden == hidden


def test_a_reason_is_told_once_with_its_rounds_and_the_last_first(facts: dict[str, RunFacts]) -> None:
    found = [(t.site, t.when, t.code, t.cell.state) for t in troubles(grid(facts["running"]))]

    assert found == [
        ("Graz", "round 7", "transport_error", "missed"),
        ("Zurich", "rounds 1 to 7", "budget_exceeded", "excluded"),
        ("Bern", "rounds 3 to 4", "task_out_of_memory", "missed"),
        ("Graz", "round 2", "no_reply_before_the_deadline", "missed"),
    ]


def test_each_state_has_a_sign_and_a_word_of_its_own() -> None:
    cells = [Cell(state) for state in get_args(CellState)]

    assert len({cell.sign for cell in cells}) == len({cell.word for cell in cells}) == 7


# ------------------------------------------------------------------------------------------------------------- the cost


def test_a_site_s_epsilon_is_that_of_the_rounds_it_was_asked_for(facts: dict[str, RunFacts]) -> None:
    """Its ledger reported the steps of earlier rounds; the open one, and one without an answer, may have been paid."""
    running = facts["running"]
    assert running.file is not None
    privacy = running.file.study.privacy
    assert isinstance(privacy, DpSgd)
    noise, delta = privacy.noise_multiplier, privacy.delta
    assert noise is not None

    def after(rounds: int) -> float:
        return epsilon_of([Spend(noise, 1.0, 2 * rounds)], delta)

    assert spent(running, "Aachen") == pytest.approx(after(7))
    assert spent(running, "Graz") == pytest.approx(after(7))  # asked in round 2 too, and trained: its reply was late
    assert spent(running, "Zurich") == 0.0


def test_of_a_run_that_is_over_the_result_is_shown(facts: dict[str, RunFacts]) -> None:
    done = facts["completed"]
    assert done.result is not None

    assert [spent(done, site) for site in done.sites] == [done.result.sites[s].epsilon for s in done.sites]
    assert [cost.over for cost in costs(done)] == [False] * 4


def test_an_epsilon_above_the_claim_is_told(facts: dict[str, RunFacts]) -> None:
    done = facts["completed"]
    assert done.result is not None
    site = done.result.sites["Bern"].model_copy(update={"epsilon": 4.001})
    worse = replace(done, result=done.result.model_copy(update={"sites": dict(done.result.sites) | {"Bern": site}}))

    found = {cost.site: cost for cost in costs(worse)}["Bern"]

    assert found.over
    assert found.spent == "4.01"  # rounded up
    assert found.share == 100.0


def test_no_bound_is_told_as_none(facts: dict[str, RunFacts]) -> None:
    done = facts["completed"]
    assert done.result is not None
    site = done.result.sites["Bern"].model_copy(update={"epsilon": None})
    worse = replace(done, result=done.result.model_copy(update={"sites": dict(done.result.sites) | {"Bern": site}}))

    assert {cost.site: (cost.spent, cost.over) for cost in costs(worse)}["Bern"] == ("", True)


def test_a_study_without_privacy_claims_nothing(facts: dict[str, RunFacts]) -> None:
    assert costs(facts["failed"]) == []
    assert costs(RunFacts(line())) == []


# -------------------------------------------------------------------------------------------------------------- the end


def rounds(*seconds: float) -> tuple[RoundResult, ...]:
    return tuple(RoundResult(round=n, sites=("a",), seconds=s) for n, s in enumerate(seconds, start=1))


def timed(running: RunFacts, closed: tuple[RoundResult, ...], opened_s: float | None = None) -> RunFacts:
    """Return a run of ten rounds with these closed, and its next one open for some seconds."""
    assert running.progress is not None
    opened = (NOW - dt.timedelta(seconds=opened_s)).isoformat() if opened_s is not None else None
    status = RunStatus(
        state="running",
        round=len(closed) + 1 if opened else len(closed),
        rounds=10,
        opened_at=opened,
        updated_at="",
        pid=1,
    )
    return replace(running, progress=running.progress.model_copy(update={"closed": closed}), status=status)


def test_the_end_is_the_median_times_the_rounds_that_are_left(facts: dict[str, RunFacts]) -> None:
    found = eta(timed(facts["running"], rounds(10, 20, 600)), NOW)

    assert found.seconds == 7 * 20
    assert found.at == NOW + dt.timedelta(seconds=140)
    assert found.text == "about 2 min (median of 3 rounds: 20 s)"


@pytest.mark.parametrize(("opened_s", "left"), [(5.0, 135.0), (19.0, 121.0), (5000.0, 120.0), (-3.0, 140.0)])
def test_the_open_round_shortens_it_by_a_round_at_most(
    facts: dict[str, RunFacts], opened_s: float, left: float
) -> None:
    assert eta(timed(facts["running"], rounds(20, 20, 20), opened_s), NOW).seconds == left


def test_there_is_no_end_before_a_round_is_closed_nor_for_a_run_that_stands_still(facts: dict[str, RunFacts]) -> None:
    running = facts["running"]

    assert eta(timed(running, ()), NOW).text == "No estimate before the first round is closed."
    assert eta(facts["queued"], NOW).text == "No estimate while the run is queued."
    assert eta(replace(running, wish="pause"), NOW).text == "No estimate while the run is paused."
    assert eta(replace(running, wish="stop"), NOW).text == "No estimate while the run is stopping."
    assert eta(facts["completed"], NOW) == eta(facts["failed"], NOW)
    assert eta(facts["completed"], NOW).seconds is None


# ------------------------------------------------------------------------------------------------------ in one sentence


def test_the_sentence_says_how_far_the_open_round_is(
    lived: tuple[ConsoleCentre, object], facts: dict[str, RunFacts]
) -> None:
    view = live_view(facts["running"], lived[0].now)

    assert view.now == "Round 7 of 10, open for 40 s: 3 of 5 hospitals have answered."
    assert not view.silent
    assert view.live


def test_a_run_that_has_not_spoken_for_long_is_told(
    lived: tuple[ConsoleCentre, object], facts: dict[str, RunFacts]
) -> None:
    later = lived[0].now + dt.timedelta(minutes=5)

    assert live_view(facts["running"], later).silent
    assert not live_view(facts["completed"], later).silent


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("enrolling", "Asks the hospitals whether they take part."),
        ("queued", "Waits in the queue."),
        ("failed", "Failed after "),
    ],
)
def test_every_standing_has_a_sentence(
    lived: tuple[ConsoleCentre, object], facts: dict[str, RunFacts], kind: str, words: str
) -> None:
    assert live_view(facts[kind], lived[0].now).now.startswith(words)


def test_a_run_without_any_file_is_shown() -> None:
    view = live_view(RunFacts(line(state="running")), NOW)

    assert view.now == "Starts."
    assert view.grid.rows[0].site == "north"
    assert view.curve is None


def test_an_unknown_site_in_a_status_makes_no_row(facts: dict[str, RunFacts]) -> None:
    running = facts["running"]
    assert running.status is not None
    told = dict(running.status.sites) | {"Mars": SiteStatus(state="accepted")}

    found = grid(replace(running, status=running.status.model_copy(update={"sites": told})))

    assert [row.site for row in found.rows] == list(SITES)
