"""Ledger and log in step: what is found when one of them is put back, and the one way back to work."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fedward_client.approvals import Approvals
from fedward_client.books import Limits
from fedward_client.budget import Budget, Reconciled, reconcile, restart_log
from fedward_common.errors import LocalDataError, RefusalCode
from fedward_common.privacy import Spend, epsilon_of
from tests.builders import private_study
from tests.client.ledger_cases import (
    ICU,
    LIFETIME_DELTA,
    LIMITS,
    NOW,
    WARD,
    A,
    B,
    code_of,
    granted,
    people,
    released,
    reserved,
)

LEDGER = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm")
LOG = ("audit.jsonl", "audit.head", "audit.next")


def lifetime(rounds: int) -> float:
    return epsilon_of([Spend(4.0, 1.0, 2 * rounds)], LIFETIME_DELTA)


def put_back(home: Path, copy: Path, names: Iterable[str]) -> Budget:
    """Put the files `names` back as they were in `copy`, those that were not there away; return the budget again."""
    for name in names:
        (home / name).unlink(missing_ok=True)
        if (copy / name).exists():
            shutil.copy(copy / name, home / name)
    return Budget(home)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a site's folder in which one round of one study was debited and released."""
    folder = tmp_path / "home"
    folder.mkdir()
    budget = Budget(folder)
    granted(budget)
    reserved(budget, 1)
    released(budget, 1)
    return folder


@pytest.fixture
def backup(home: Path, tmp_path: Path) -> Path:
    """Return a copy of `home`, after which a second round was debited and released there."""
    copy = tmp_path / "backup"
    shutil.copytree(home, copy)
    budget = Budget(home)
    reserved(budget, 2)
    released(budget, 2)
    return copy


# ----------------------------------------------------------------------------------------------------------- in step


def test_each_change_of_the_ledger_is_an_entry_of_the_log(home: Path) -> None:
    entries = list(Budget(home).audit.entries())

    assert [entry.event for entry in entries] == ["granted", "reserved", "released"]
    grant, debit, release = (entry.fields for entry in entries)
    assert {"study": A, "cohort": "icu", "rounds": 3, "steps": 2, "noise": 4.0, "rate": 1.0}.items() <= grant.items()
    assert {"study": A, "cohort": "icu", "round": 1, "steps": 2, "snapshot": 1}.items() <= debit.items()
    assert debit["epsilon"] == grant["epsilon"] == epsilon_of([Spend(4.0, 1.0, 6)], 1e-4)
    assert {"study": A, "cohort": "icu", "round": 1, "bytes": 10, "sha256": f"{1:064x}"}.items() <= release.items()
    assert [fields["entry"] for fields in (grant, debit, release)] == [1, 2, 3]
    assert Budget(home).doubts() == []


def test_steps_are_those_of_all_rounds_so_far(tmp_path: Path) -> None:
    budget = Budget(tmp_path)
    granted(budget)

    assert [reserved(budget, round_) for round_ in (1, 2, 3)] == [2, 4, 6]


def test_refused_debit_is_in_neither(home: Path) -> None:
    budget = Budget(home)
    before = budget.ledger.changes(), list(budget.audit.entries())

    assert code_of(lambda: reserved(budget, 1)) == RefusalCode.ROUND_REPLAYED
    assert code_of(lambda: reserved(budget, 1, B)) == RefusalCode.BUDGET_EXCEEDED
    assert code_of(lambda: granted(budget, B, limits=Limits(8.0, 0.1, 1e-3))) == RefusalCode.BUDGET_EXCEEDED
    assert code_of(lambda: released(budget, 1)) == RefusalCode.ROUND_REPLAYED

    assert (budget.ledger.changes(), list(budget.audit.entries())) == before


def test_nothing_of_a_patient_is_in_the_log(home: Path) -> None:
    content = (home / "audit.jsonl").read_bytes()

    for code in ICU:
        identity = people([code]).tobytes()
        assert identity.hex().encode() not in content
        assert identity not in content


def test_closing_names_the_person(home: Path) -> None:
    assert Budget(home).close(study=A, person="ann", now=NOW)
    assert not Budget(home).close(study=A, person="ann", now=NOW)

    last = Budget(home).audit.last(1)[0]
    assert (last.event, last.fields["person"], last.fields["study"]) == ("closed", "ann", A)


def test_clock_set_back_is_flagged_and_changes_no_budget(home: Path) -> None:
    budget = Budget(home)
    early = "2001-01-01T00:00:00+00:00"

    assert code_of(lambda: reserved(budget, 1, now=early)) == RefusalCode.ROUND_REPLAYED
    assert reserved(budget, 2, now=early) == 4
    assert reserved(budget, 3, now="2099-01-01T00:00:00+00:00") == 6
    assert code_of(lambda: reserved(budget, 4, now=early)) == RefusalCode.BUDGET_EXCEEDED

    events = [entry.event for entry in budget.audit.entries()]
    assert events == ["granted", "reserved", "released", "clock set back", "reserved", "reserved"]
    assert [change.round for change in budget.ledger.changes()] == [0, 1, 1, 2, 3]
    assert budget.doubts() == []


def test_crash_between_ledger_and_log_is_made_good_before_the_next_change(home: Path) -> None:
    """The debit is on the disk and the log does not say so yet."""
    budget = Budget(home)
    with budget._in_step(NOW) as stamp:
        budget.ledger.reserve(cohort="icu", study=A, identities=people(ICU), round_=2, limits=LIMITS, stamp=stamp)

    assert Budget(home).doubts() == []
    assert code_of(lambda: reserved(Budget(home), 2)) == RefusalCode.ROUND_REPLAYED

    last = Budget(home).audit.last(1)[0]
    assert (last.event, last.fields["round"], last.fields["steps"]) == ("reserved", 2, 4)
    assert last.fields["detail"] == "logged after a crash"
    assert reserved(Budget(home), 3) == 6


# ---------------------------------------------------------------------------------------------------------- put back


def everything_refused(budget: Budget) -> bool:
    """Return whether every change of the budget is refused as untrusted and none is written."""
    before = budget.audit.path.read_bytes()
    calls: list[Callable[[], object]] = [
        lambda: reserved(budget, 3),
        lambda: granted(budget, B, WARD, cohort="ward"),
        lambda: released(budget, 2),
        lambda: budget.close(study=A, person="ann", now=NOW),
        lambda: budget.check(NOW),
    ]
    codes = {code_of(call) for call in calls}
    return codes == {RefusalCode.BUDGET_UNTRUSTED} and budget.audit.path.read_bytes() == before


def test_old_ledger_that_was_put_back_spends_nothing(home: Path, backup: Path) -> None:
    budget = put_back(home, backup, LEDGER)

    assert everything_refused(budget)
    assert budget.doubts() == [
        f"the ledger lacks round 2 of {A[:12]}: an old copy was put back",
        f"the ledger lacks the release of round 2 of {A[:12]}: an old copy was put back",
    ]


def test_old_log_that_was_put_back_stops_the_budget(home: Path, backup: Path) -> None:
    budget = put_back(home, backup, LOG)

    assert everything_refused(budget)
    assert "old log" in budget.doubts()[0]


def test_old_log_one_change_behind_is_no_crash(home: Path, tmp_path: Path) -> None:
    """A ledger that is one line ahead is what a crash leaves; the log's last entry shows that it was none."""
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    Budget(home).audit.append("approved", at=NOW, study=B)
    reserved(Budget(home), 2)

    budget = put_back(home, copy, LOG)

    assert everything_refused(budget)


@pytest.mark.parametrize("also", [(), ("ledger.key",)])
def test_deleted_ledger_is_no_fresh_budget(home: Path, also: tuple[str, ...]) -> None:
    for name in (*LEDGER, *also):
        (home / name).unlink(missing_ok=True)

    assert "old ledger" in Budget(home).doubts()[0] or "lacks" in Budget(home).doubts()[0]
    assert not (home / "ledger.sqlite").exists()
    assert everything_refused(Budget(home))


def test_deleted_log_stops_the_budget(home: Path) -> None:
    for name in LOG:
        (home / name).unlink(missing_ok=True)
    Budget(home).audit.append("site made", at=NOW)

    assert everything_refused(Budget(home))


def test_log_written_anew_with_the_site_s_own_key_stops_the_budget(home: Path) -> None:
    """Whoever has the key tells another story of as many entries; the ledger names an entry that is not in it."""
    kept = [(entry.event, dict(entry.fields)) for entry in Budget(home).audit.entries()]
    for name in LOG:
        (home / name).unlink(missing_ok=True)
    forged = Budget(home).audit
    for event, fields in kept:
        forged.append(event, at="2026-11-24T00:00:00+00:00", **fields)

    assert forged.verify() == []
    assert everything_refused(Budget(home))
    assert "another log" in Budget(home).doubts()[0]


def test_ledger_and_log_put_back_together_are_not_found_here(home: Path, backup: Path) -> None:
    """What only a copy elsewhere shows (test_evidence.py); this test says what is not claimed."""
    budget = put_back(home, backup, [*LEDGER, *LOG])

    assert budget.doubts() == []
    assert reserved(budget, 2) == 4


def test_lost_key_stops_the_budget(home: Path) -> None:
    (home / "ledger.key").unlink()

    assert everything_refused(Budget(home))


def test_damaged_ledger_stops_the_budget(home: Path) -> None:
    (home / "ledger.sqlite").write_bytes(b"damage " * 1000)

    assert code_of(lambda: reserved(Budget(home), 2)) == RefusalCode.BUDGET_UNTRUSTED
    assert "damaged" in Budget(home).doubts()[0]


def test_changed_log_stops_the_budget_as_the_log_s_fault(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-5] + b"xxx}\n")

    assert code_of(lambda: reserved(Budget(home), 2)) == RefusalCode.AUDIT_UNTRUSTED


# --------------------------------------------------------------------------------------------------------- reconciled


def test_reconciled_ledger_has_every_debit_again(home: Path, backup: Path) -> None:
    put_back(home, backup, LEDGER)

    done = reconcile(home, person="ann", now=NOW)

    budget = Budget(home)
    assert done == Reconciled(2, 0, renewed=True)
    assert budget.doubts() == []
    assert [(one.reserved, one.released) for one in budget.ledger.summaries()] == [(2, 2)]
    assert code_of(lambda: reserved(budget, 2)) == RefusalCode.ROUND_REPLAYED
    assert reserved(budget, 3) == 6
    told = budget.audit.last(2)[0]
    assert (told.event, told.fields["person"]) == ("reconciled", "ann")


def test_patients_that_an_old_ledger_knows_are_charged_and_no_others(home: Path, backup: Path) -> None:
    put_back(home, backup, LEDGER)
    reconcile(home, person="ann", now=NOW)
    budget = Budget(home)

    granted(budget, B, WARD, cohort="ward")

    assert budget.ledger.spent("icu", LIFETIME_DELTA) == lifetime(2)
    assert budget.ledger.spent("ward", LIFETIME_DELTA) == 0


def test_study_that_the_old_ledger_never_saw_is_charged_to_everybody(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    granted(Budget(home), B, WARD, cohort="ward")
    reserved(Budget(home), 1, B, WARD, cohort="ward")
    put_back(home, copy, LEDGER)

    done = reconcile(home, person="ann", now=NOW)

    budget = Budget(home)
    assert done.entered == 2
    assert budget.ledger.spent("icu", LIFETIME_DELTA) == lifetime(2)
    assert code_of(lambda: granted(budget, "d" * 64, range(500, 510), limits=Limits(8.0, lifetime(5), 1e-3))) == (
        RefusalCode.BUDGET_EXCEEDED
    )
    assert reserved(budget, 2, B, WARD, cohort="ward") == 4


@pytest.mark.parametrize("lost", [LEDGER, (*LEDGER, "ledger.key"), ("ledger.key",)], ids=["ledger", "both", "key"])
def test_lost_ledger_or_key_charges_everybody_for_everything(home: Path, lost: tuple[str, ...]) -> None:
    for name in lost:
        (home / name).unlink(missing_ok=True)

    reconcile(home, person="ann", now=NOW)

    budget = Budget(home)
    assert budget.doubts() == []
    assert code_of(lambda: reserved(budget, 1)) == RefusalCode.ROUND_REPLAYED
    one_study = Limits(8.0, lifetime(3), 1e-3)
    assert code_of(lambda: granted(budget, B, WARD, cohort="w", limits=one_study)) == RefusalCode.BUDGET_EXCEEDED
    granted(budget, B, WARD, cohort="ward", limits=Limits(8.0, lifetime(6), 1e-3))
    assert reserved(budget, 2) == 4


def test_damaged_ledger_is_kept_beside_the_new_one(home: Path) -> None:
    (home / "ledger.sqlite").write_bytes(b"damage " * 1000)

    reconcile(home, person="ann", now=NOW)

    assert (home / "ledger.sqlite.kept-1").read_bytes() == b"damage " * 1000
    assert code_of(lambda: reserved(Budget(home), 1)) == RefusalCode.ROUND_REPLAYED
    assert reserved(Budget(home), 2) == 4


def test_old_log_learns_what_the_ledger_knows(home: Path, backup: Path) -> None:
    put_back(home, backup, LOG)

    done = reconcile(home, person="ann", now=NOW)

    budget = Budget(home)
    assert done == Reconciled(0, 2, renewed=True)
    assert [entry.event for entry in budget.audit.last(3)] == ["reserved", "released", "reconciled"]
    assert budget.audit.last(3)[0].fields["detail"] == "the log lacked it"
    assert budget.doubts() == []
    assert reserved(budget, 3) == 6


def test_nothing_is_done_where_nothing_is_wrong(home: Path) -> None:
    before = (home / "audit.jsonl").read_bytes()

    assert reconcile(home, person="ann", now=NOW) == Reconciled(0, 0, renewed=False)
    assert (home / "audit.jsonl").read_bytes() == before


def test_reconciling_twice_enters_nothing_twice(home: Path, backup: Path) -> None:
    put_back(home, backup, LEDGER)
    reconcile(home, person="ann", now=NOW)

    assert not reconcile(home, person="ann", now=NOW).renewed
    put_back(home, backup, LEDGER)
    reconcile(home, person="ann", now=NOW)
    assert Budget(home).doubts() == []
    assert [one.reserved for one in Budget(home).ledger.summaries()] == [2]


def test_log_that_is_not_whole_cannot_say_what_was_spent(home: Path, backup: Path) -> None:
    put_back(home, backup, LEDGER)
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"released", b"refused!"))

    assert code_of(lambda: reconcile(home, person="ann", now=NOW)) == RefusalCode.AUDIT_UNTRUSTED


def test_terms_come_from_the_study_s_file_where_the_log_has_none(home: Path) -> None:
    """A log that was begun anew has debits in it whose grant stands in the old log."""
    study = private_study()
    Approvals(home).propose(study)
    log = Budget(home).audit
    log.append("reserved", at=NOW, study=study.digest, cohort="icu", round=1, snapshot=9, entry=4)

    reconcile(home, person="ann", now=NOW)

    account = Budget(home).ledger.account(study.digest)
    assert account is not None
    assert account.terms.rounds == study.training.rounds
    assert Budget(home).doubts() == []


def test_terms_that_nobody_knows_are_not_guessed(home: Path) -> None:
    Budget(home).audit.append("reserved", at=NOW, study=B, cohort="icu", round=1, snapshot=9, entry=4)

    with pytest.raises(LocalDataError, match="terms of study"):
        reconcile(home, person="ann", now=NOW)


# ---------------------------------------------------------------------------------------------------- a log begun anew


def test_log_begun_anew_goes_on_with_the_ledger_that_was_kept(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"released", b"refused!"))
    damaged = path.read_bytes()

    kept = restart_log(home, person="ann", now=NOW)

    budget = Budget(home)
    assert kept.read_bytes() == damaged
    assert [entry.event for entry in budget.audit.entries()] == ["log restarted", "reconciled"]
    assert budget.doubts() == []
    assert code_of(lambda: reserved(budget, 1)) == RefusalCode.ROUND_REPLAYED
    assert reserved(budget, 2) == 4


def test_whole_log_is_not_put_aside(home: Path) -> None:
    with pytest.raises(LocalDataError, match="whole"):
        restart_log(home, person="ann", now=NOW)


def test_log_is_not_begun_anew_over_an_old_ledger(home: Path, backup: Path) -> None:
    """The signed head still counts what was debited, whatever became of the lines."""
    put_back(home, backup, LEDGER)
    (home / "audit.jsonl").write_bytes(b"damage\n")

    assert code_of(lambda: restart_log(home, person="ann", now=NOW)) == RefusalCode.BUDGET_UNTRUSTED
    assert (home / "audit.jsonl").read_bytes() == b"damage\n"
