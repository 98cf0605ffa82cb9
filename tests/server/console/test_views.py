"""What the lists and the study page say, from real runs, a real roster and a real contract."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from fedward_common.signing import public_text
from fedward_common.study_file import Signature, StudyFile
from fedward_server.centre import load_centre, roster_of
from fedward_server.console.facts import RunFacts
from fedward_server.console.views import approvals, cards, certificate_line, run_lines, signers, site_lines
from fedward_server.console.words import ago, count, moment, size, span
from fedward_server.result import RunResult
from fedward_server.run_status import RunStatus, SiteStatus
from tests.builders import private_study, small_study
from tests.console_centre import SITES, ConsoleCentre
from tests.server.console.lines import line

NOW = dt.datetime(2026, 11, 27, 12, 0, tzinfo=dt.UTC)


# ----------------------------------------------------------------------------------------------------- all studies


def test_studies_that_go_on_come_first_and_then_the_newest(facts: dict[str, RunFacts]) -> None:
    lines = run_lines(facts.values(), NOW)

    assert [found.name for found in lines] == [
        "fall_risk", "sepsis_early_warning", "delirium", "heart_failure", "stroke_pilot",
    ]  # fmt: skip


def test_a_line_says_how_far_a_study_is_and_who_submitted_it(
    lived: tuple[ConsoleCentre, object], facts: dict[str, RunFacts]
) -> None:
    found = {one.name: one for one in run_lines(facts.values(), lived[0].now)}
    sepsis, stroke = found["sepsis_early_warning"], found["stroke_pilot"]

    assert (sepsis.done, sepsis.planned, sepsis.sites, sepsis.trouble) == (6, 10, 6, 1)
    assert (sepsis.who, sepsis.state, sepsis.tone, sepsis.ago) == ("maria", "running", "good", "2 days ago")
    assert (stroke.tone, stroke.trouble) == ("bad", 3)
    assert stroke.reason == "No hospital enrolled; the study asks for at least 2."


def test_a_state_that_this_version_does_not_know_is_shown_as_it_is() -> None:
    class Newer:
        def __getattr__(self, name: str) -> object:
            return "hibernating" if name == "state" else getattr(line(), name)

    (found,) = run_lines([RunFacts(Newer())], NOW)  # type: ignore[arg-type]

    assert (found.state, found.tone, found.live) == ("hibernating", "plain", False)


# ------------------------------------------------------------------------------------------------------- approvals


def test_who_has_not_approved_is_awaited_with_the_days(
    lived: tuple[ConsoleCentre, object], facts: dict[str, RunFacts]
) -> None:
    found = approvals(facts["enrolling"], lived[0].now)

    assert [(a.site, a.text, a.awaiting) for a in found] == [
        ("Ulm", "awaiting Ulm, 2 days", True),
        ("Zurich", "awaiting Zurich, 2 days", True),
        ("Graz", "approved", False),
    ]
    assert found[1].detail == "The hospital has not approved the study."


def test_in_a_run_that_goes_on_the_roll_call_says_who_is_in(
    lived: tuple[ConsoleCentre, object], facts: dict[str, RunFacts]
) -> None:
    found = {a.site: (a.text, a.detail) for a in approvals(facts["running"], lived[0].now)}

    assert found["Aachen"] == ("approved", "40 patients")
    assert found["Zurich"][0] == "does not take part"
    assert "privacy budget" in found["Zurich"][1]


def test_nobody_is_awaited_once_a_run_is_over(facts: dict[str, RunFacts]) -> None:
    assert not any(a.awaiting for a in approvals(facts["failed"], NOW))
    assert {a.text for a in approvals(facts["failed"], NOW)} == {"does not take part"}
    assert {a.text for a in approvals(facts["completed"], NOW)} == {"approved"}


def test_a_refusal_is_no_waiting() -> None:
    told = {"north": SiteStatus(state="absent", reason="budget_exceeded: limit=4")}
    status = RunStatus(state="enrolling", rounds=3, sites=told, updated_at="", pid=1)

    north, south = sorted(approvals(RunFacts(line(state="running"), status=status), NOW), key=lambda a: a.site)

    assert (north.text, north.tone) == ("does not take part", "bad")
    assert (south.text, south.tone) == ("not asked yet", "plain")


# ------------------------------------------------------------------------------------------------------- signatures


def test_a_signature_is_verified_and_its_key_looked_up(
    facts: dict[str, RunFacts], lived: tuple[ConsoleCentre, object]
) -> None:
    file = facts["running"].file
    assert file is not None
    known = [public_text(lived[0].centre.key.public_key())]

    assert [(s.valid, s.known) for s in signers(file, known)] == [(True, True)]
    assert [(s.valid, s.known) for s in signers(file, [])] == [(True, False)]
    assert signers(file, known)[0].fingerprint.startswith("sha256:")


def test_a_signature_over_another_study_is_not_valid(facts: dict[str, RunFacts]) -> None:
    file = facts["running"].file
    assert file is not None

    moved = StudyFile(small_study(), file.signatures)

    assert [s.valid for s in signers(moved, [])] == [False]


def test_what_is_no_key_is_shown_and_not_believed() -> None:
    file = StudyFile(small_study(), (Signature("ed25519:nonsense", "AAAA"),))

    (found,) = signers(file, ["ed25519:nonsense"])

    assert (found.valid, found.fingerprint) == (False, "no key")


# -------------------------------------------------------------------------------------------------------- contract


def test_every_value_of_the_contract_is_on_a_card_or_among_the_columns() -> None:
    study = private_study()
    shown = {fact.term.casefold() for card in cards(study) for fact in card.facts}

    for part in ("model", "training", "privacy", "aggregation", "evaluation"):
        for key in study.contract()[part]:
            assert key.strip("_").replace("_", " ").casefold() in shown, key


def test_a_study_without_privacy_says_that_it_gives_no_guarantee() -> None:
    (card,) = [c for c in cards(small_study()) if c.title == "Privacy"]

    assert card.what == "this study gives no guarantee"


def test_numbers_are_grouped_and_an_empty_mark_is_told() -> None:
    terms = {fact.term: fact.value for card in cards(small_study()) for fact in card.facts}

    assert terms["Max weight"] == "1,000,000"
    assert terms["Missing marks"].startswith("(empty)")


# ------------------------------------------------------------------------------------------------------------ sites


def test_sites_stand_with_their_state_and_what_to_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    centre = ConsoleCentre(tmp_path_factory.mktemp("sites"))
    roster = roster_of(load_centre(centre.home))
    roster.revoke("Bern", NOW)
    roster.invite("Essen", NOW, days=7)

    found = {s.site: (s.state, s.tone, s.left) for s in site_lines(roster.entries(), roster.waiting(NOW), NOW)}

    assert list(found) == sorted([*SITES, "Essen"])
    assert found["Aachen"][:2] == ("enrolled", "good")
    assert found["Bern"] == ("revoked", "bad", "")
    assert found["Essen"] == ("invited", "wait", "7 days left")

    much_later = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
    assert {s.state for s in site_lines(roster.entries(), (), much_later)} == {"expired", "revoked"}


@pytest.mark.parametrize(
    ("days", "state", "tone", "left"),
    [
        (90, "valid", "good", "90 days left"),
        (1.5, "expires soon", "wait", "1 day left"),
        (0.5, "expires soon", "wait", "today"),
        (-0.5, "expired", "bad", "over"),
    ],
)
def test_a_certificate_that_runs_out_says_what_helps(days: float, state: str, tone: str, left: str) -> None:
    found = certificate_line("server certificate", NOW + dt.timedelta(days=days), NOW, "renew it")

    assert (found.state, found.tone, found.left) == (state, tone, left)
    assert found.note == ("" if state == "valid" else "renew it")


# ------------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (-5, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h 0 min"),
     (86400, "24 h 0 min"), (2 * 86400, "2 days"), (100 * 86400, "100 days")],
)  # fmt: skip
def test_a_span_is_told_in_its_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_times_without_a_zone_are_utc_and_other_texts_stay() -> None:
    assert moment("2026-11-27T10:00:00") == moment("2026-11-27T11:00:00+01:00") == "27 Nov 2026, 10:00"
    assert moment("yesterday") == "yesterday"
    assert moment(None) == moment("") == "—"
    assert ago("yesterday", NOW) == ""
    assert ago("2026-11-27T11:59:30", NOW) == "30 s ago"


def test_counts_and_sizes_are_short() -> None:
    assert [count(n, "site") for n in (0, 1, 1200)] == ["0 sites", "1 site", "1,200 sites"]
    assert [size(n) for n in (0, 999, 1000, 400_000_000, 5e12)] == ["0 B", "999 B", "1.0 kB", "400.0 MB", "5000.0 GB"]


def test_a_result_of_a_study_that_lost_its_file_is_shown(facts: dict[str, RunFacts]) -> None:
    lost = replace(facts["completed"], file=None)

    assert isinstance(lost.result, RunResult)
    assert {a.text for a in approvals(lost, NOW)} == {"approved"}
    assert run_lines([lost], NOW)[0].done == 4
