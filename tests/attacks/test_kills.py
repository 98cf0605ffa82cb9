"""kill -9 of a site's daemon or child loses no debit, no release and no approval, and a run goes on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedward_client.site import Site
from fedward_common.audit import AuditLog
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.study import Study
from fedward_common.wire import read_update, write_roll_call, write_task
from fedward_simulations.faults.kill_book import (
    RULES,
    Arrival,
    Flaw,
    Mark,
    flaws_of_run,
    flaws_of_site,
    mark_of,
    read_book,
)
from fedward_simulations.faults.killer import SITES, volleys_of
from fedward_simulations.faults.kills import campaign
from tests.builders import private_study, site_home

ROUNDS = 3
AT = "2026-11-24T09:00:00+00:00"


@dataclass
class Case:
    """A site that trained three rounds, and what is known of it outside of its folder."""

    home: Path
    study: Study
    approved: dict[str, list[Any]]
    arrivals: list[Arrival]
    marks: list[Mark]

    def flaws(self) -> list[Flaw]:
        return flaws_of_site(read_book(self.home, "north"), self.arrivals, self.approved, self.marks)

    def rules(self) -> set[str]:
        return {flaw.rule for flaw in self.flaws()}

    def change_ledger(self, *orders: str) -> None:
        """Change the ledger as somebody can who may write the file."""
        with closing(sqlite3.connect(self.home / "ledger.sqlite", isolation_level=None)) as database:
            for order in ("DROP INDEX one_debit", "DROP INDEX one_release", "DROP TRIGGER journal_DELETE",
                          "DROP TRIGGER journal_UPDATE", *orders):  # fmt: skip
                database.execute(order)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    study = private_study(training={"rounds": ROUNDS})
    home = site_home(tmp_path, study)
    approved = json.loads((home / "approvals.json").read_bytes())
    site, weights = Site(home), initial_weights(study)
    site.answer(write_roll_call(study))
    found = Case(home, study, approved, [], [])
    for round_ in range(1, ROUNDS + 1):
        found.marks.append(mark_of(home))
        reply = read_update(site.answer(write_task(study, round_, weights)), size=parameter_spec(study).size)
        sha256 = hashlib.sha256(reply.values.tobytes()).hexdigest()
        found.arrivals.append(Arrival("north", study.digest, round_, reply.steps, sha256))
    found.marks.append(mark_of(home))
    return found


def test_books_that_nobody_spoilt_have_no_flaw(case: Case) -> None:
    assert case.flaws() == []


# ------------------------------------------------------------------------------------------------------- spoilt books
def _debited_twice(case: Case) -> None:
    case.change_ledger("UPDATE journal SET event = 'reserved', round = 2 WHERE event = 'granted'")


def _logged_twice(case: Case) -> None:
    (line,) = (e for e in AuditLog(case.home).entries() if e.event == "reserved" and e.fields["round"] == 2)
    AuditLog(case.home).append("reserved", at=AT, **line.fields)


def _trained_twice(case: Case) -> None:
    case.arrivals.append(case.arrivals[1]._replace(sha256="0" * 64))


def _more_steps_than_debited(case: Case) -> None:
    case.arrivals[2] = case.arrivals[2]._replace(steps=case.arrivals[2].steps + 1)


def _fewer_steps_in_the_ledger(case: Case) -> None:
    case.change_ledger("DROP TRIGGER accounts_UPDATE", "UPDATE accounts SET steps = steps - 1")


def _left_without_a_debit(case: Case) -> None:
    case.arrivals.append(Arrival("north", case.study.digest, 9, 0, "0" * 64))


def _debit_taken_back(case: Case) -> None:
    case.change_ledger("DELETE FROM journal WHERE event = 'reserved' AND round = 3")


def _released_before_the_debit(case: Case) -> None:
    case.change_ledger("UPDATE journal SET entry = 99 WHERE event = 'reserved' AND round = 1")


def _release_of_other_bytes(case: Case) -> None:
    case.change_ledger("UPDATE journal SET sha256 = hex(zeroblob(32)) WHERE event = 'released' AND round = 1")


def _approvals_gone(case: Case) -> None:
    (case.home / "approvals.json").unlink()


def _approval_of_another(case: Case) -> None:
    text = (case.home / "approvals.json").read_text()
    (case.home / "approvals.json").write_text(text.replace("approved", "denied"))


def _waiting_again(case: Case) -> None:
    AuditLog(case.home).append("refused", at=AT, study=case.study.digest, code="awaiting_approval")


def _proposed_again(case: Case) -> None:
    AuditLog(case.home).append("proposed", at=AT, study=case.study.digest, name="small")


def _log_cut(case: Case) -> None:
    path = case.home / "audit.jsonl"
    path.write_bytes(path.read_bytes()[: path.read_bytes().removesuffix(b"\n").rfind(b"\n") + 1])


def _one_byte_of_the_log(case: Case) -> None:
    path = case.home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":3', 1))


def _log_grown(case: Case) -> None:
    with (case.home / "audit.jsonl").open("ab") as file:
        file.write(b"{}\n")


def _log_written_anew(case: Case) -> None:
    """Write the same entries but one with the site's own key: the chain and the head are whole."""
    entries = list(AuditLog(case.home).entries())
    for path in case.home.glob("audit.*"):
        path.unlink()
    for entry in entries:
        if entry.event != "enrolled":
            AuditLog(case.home).append(entry.event, at=entry.at, **entry.fields)


def _change_lost(case: Case) -> None:
    case.change_ledger("DELETE FROM journal WHERE entry = (SELECT MAX(entry) FROM journal)")


def _change_unlogged(case: Case) -> None:
    case.change_ledger("UPDATE journal SET round = 4 WHERE event = 'reserved' AND round = 3")


@pytest.mark.parametrize(
    ("rule", "spoil"),
    [
        ("double_spend", _debited_twice),
        ("double_spend", _logged_twice),
        ("double_spend", _trained_twice),
        ("double_spend", _more_steps_than_debited),
        ("double_spend", _fewer_steps_in_the_ledger),
        ("unspent_release", _left_without_a_debit),
        ("unspent_release", _debit_taken_back),
        ("unspent_release", _released_before_the_debit),
        ("unspent_release", _release_of_other_bytes),
        ("lost_approval", _approvals_gone),
        ("lost_approval", _approval_of_another),
        ("lost_approval", _waiting_again),
        ("lost_approval", _proposed_again),
        ("broken_log", _log_cut),
        ("broken_log", _one_byte_of_the_log),
        ("broken_log", _log_grown),
        ("broken_log", _log_written_anew),
        ("books_disagree", _change_lost),
        ("books_disagree", _change_unlogged),
    ],
)
def test_a_spoilt_book_is_found(case: Case, rule: str, spoil: Callable[[Case], None]) -> None:
    spoil(case)

    assert rule in case.rules()


# ----------------------------------------------------------------------------------------------------- the run's end
def _result(*, status: str = "degraded", rounds: int = ROUNDS, sites: tuple[str, ...] = ("north",)) -> dict[str, Any]:
    committed = [{"round": round_, "sites": list(sites), "missing": {}} for round_ in range(1, rounds + 1)]
    return {"status": status, "reason": "why", "rounds": committed, "sites": {"north": {}}}


def _stops(case: Case, result: dict[str, Any], *, checkpoint: int = ROUNDS, last_kill: int = 1) -> int:
    return len(flaws_of_run(result, case.arrivals, rounds=ROUNDS, checkpoint=checkpoint, last_kill=last_kill))


def test_a_run_that_went_on_to_its_end_has_no_flaw(case: Case) -> None:
    assert _stops(case, _result()) == 0


def test_a_run_that_did_not_go_on_is_found(case: Case) -> None:
    assert _stops(case, _result(status="failed"))
    assert _stops(case, _result(rounds=2))
    assert _stops(case, _result(), checkpoint=2)
    assert _stops(case, _result(), last_kill=ROUNDS)
    assert _stops(case, _result(sites=()))
    case.arrivals.pop()
    assert _stops(case, _result())


# -------------------------------------------------------------------------------------------------------- the campaign
@pytest.mark.parametrize("kills", [1, 2, 200])
def test_the_plan_is_the_seed_s_and_has_so_many_kills(kills: int) -> None:
    plan = volleys_of(kills, 1, daemons=0.4)

    assert sum(len(shots) for _, shots in plan) == kills
    assert plan == volleys_of(kills, 1, daemons=0.4)
    assert plan[0][1][0].target == "daemon"
    if kills > 2:
        assert plan != volleys_of(kills, 2, daemons=0.4)
        assert {site for site, _ in plan} == set(SITES)
        assert {shot.target for _, shots in plan for shot in shots} == {"daemon", "nursery", "child"}


@pytest.mark.reduced
@pytest.mark.deployed
def test_a_dozen_kills_leave_the_books_whole_and_the_run_goes_on(tmp_path: Path) -> None:
    figures = campaign(tmp_path, 12, 13, daemons=0.1)

    assert figures["flaws"] == {rule: [] for rule in RULES}
    assert figures["kills"] == 12
    assert figures["by_target"] == {"child": 9, "daemon": 2, "nursery": 1}
    assert figures["updates_accepted"] <= figures["rounds_released"] <= figures["rounds_debited"]


@pytest.mark.campaign
@pytest.mark.deployed
def test_two_hundred_kills_leave_the_books_whole_and_the_run_goes_on(tmp_path: Path) -> None:
    figures = campaign(tmp_path, 200, 1)

    assert figures["flaws"] == {rule: [] for rule in RULES}
    assert figures["kills"] == 200
    assert figures["rounds_after_the_last_kill"] > 0
