"""The privacy account: on disk before anything is noised, once for each round, and never given back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedward_client.ledger import Ledger
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.privacy import Spend, epsilon_of

SPEND = Spend(4.0, 1.0, 2)
DELTA = 1e-4
NOW = "2026-01-01T00:00:00+00:00"


def grant(ledger: Ledger, study: str = "a" * 64, cohort: str = "icu", **changes: Any) -> None:
    values: dict[str, Any] = {
        "rounds": 3, "spend": SPEND, "delta": DELTA, "max_epsilon": 8.0, "max_lifetime": 16.0, "lifetime_delta": 1e-3,
    }  # fmt: skip
    ledger.grant(cohort=cohort, study=study, now=NOW, **(values | changes))


def reserve(ledger: Ledger, round_: int, study: str = "a" * 64, cohort: str = "icu") -> int:
    return ledger.reserve(cohort=cohort, study=study, round_=round_, now=NOW)


def code_of(call: Any) -> RefusalCode:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.reason


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    found = Ledger(tmp_path / "ledger.sqlite")
    grant(found)
    return found


def test_reservation_survives_reopening(tmp_path: Path, ledger: Ledger) -> None:
    assert reserve(ledger, 1) == 2
    again = Ledger(tmp_path / "ledger.sqlite")
    assert [entry.rounds for entry in again.entries("icu")] == [1]
    assert code_of(lambda: reserve(again, 1)) == RefusalCode.ROUND_REPLAYED


CHILD = """
import sys
from pathlib import Path
from fedward_client.ledger import Ledger
Ledger(Path(sys.argv[1])).reserve(cohort="icu", study="a" * 64, round_=1, now="now")
print("reserved", flush=True)
sys.stdin.read()
"""


def test_reservation_survives_kill_9_right_after_it_returned(tmp_path: Path, ledger: Ledger) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "ledger.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reserved\n"
        os.kill(child.pid, signal.SIGKILL)
    assert [(entry.rounds, entry.steps) for entry in ledger.entries("icu")] == [(1, 2)]
    assert code_of(lambda: reserve(ledger, 1)) == RefusalCode.ROUND_REPLAYED


def test_ledger_is_synced_to_disk_with_every_commit(ledger: Ledger) -> None:
    with ledger._open() as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)


def test_replayed_round_is_refused_and_costs_nothing(ledger: Ledger) -> None:
    reserve(ledger, 1)
    spent = ledger.spent("icu", DELTA)
    assert code_of(lambda: reserve(ledger, 1)) == RefusalCode.ROUND_REPLAYED
    assert ledger.spent("icu", DELTA) == spent


def test_replay_of_the_last_round_is_called_a_replay(ledger: Ledger) -> None:
    for round_ in (1, 2, 3):
        reserve(ledger, round_)
    assert code_of(lambda: reserve(ledger, 3)) == RefusalCode.ROUND_REPLAYED


def test_more_rounds_than_granted_are_refused(ledger: Ledger) -> None:
    assert [reserve(ledger, round_) for round_ in (1, 2, 3)] == [2, 4, 6]
    assert code_of(lambda: reserve(ledger, 4)) == RefusalCode.BUDGET_EXCEEDED


def test_rounds_may_come_in_any_order_and_with_gaps(ledger: Ledger) -> None:
    assert [reserve(ledger, round_) for round_ in (3, 1, 7)] == [2, 4, 6]


def test_study_without_an_account_is_refused(ledger: Ledger) -> None:
    assert code_of(lambda: reserve(ledger, 1, study="b" * 64)) == RefusalCode.BUDGET_EXCEEDED
    assert code_of(lambda: reserve(ledger, 1, cohort="ward")) == RefusalCode.BUDGET_EXCEEDED


def test_same_study_granted_twice_changes_nothing(ledger: Ledger) -> None:
    reserve(ledger, 1)
    before = ledger.entries("icu")
    grant(ledger, rounds=100, spend=Spend(0.5, 1.0, 50))
    assert ledger.entries("icu") == before
    reserve(ledger, 2)
    reserve(ledger, 3)
    assert code_of(lambda: reserve(ledger, 4)) == RefusalCode.BUDGET_EXCEEDED


def test_study_above_the_limit_for_one_study_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    whole = epsilon_of([Spend(4.0, 1.0, 6)], DELTA)
    with pytest.raises(Refusal) as caught:
        grant(ledger, max_epsilon=whole - 0.001)
    assert caught.value.crossing() == f"budget_exceeded limit={whole - 0.001}"
    assert not ledger.entries("icu")
    grant(ledger, max_epsilon=whole)


def test_lifetime_counts_every_study_on_the_cohort(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite")
    two = epsilon_of([Spend(4.0, 1.0, 12)], 1e-3)
    grant(ledger, max_lifetime=two - 0.001)
    assert code_of(lambda: grant(ledger, "b" * 64, max_lifetime=two - 0.001)) == RefusalCode.BUDGET_EXCEEDED
    grant(ledger, "b" * 64, max_lifetime=two)
    assert len(ledger.entries("icu")) == 2


def test_lifetime_counts_granted_rounds_not_only_those_spent(tmp_path: Path) -> None:
    """Two studies that each fit alone cannot both be let in and then both be run to their end."""
    ledger = Ledger(tmp_path / "l.sqlite")
    one = epsilon_of([Spend(4.0, 1.0, 6)], 1e-3)
    grant(ledger, max_lifetime=one)
    assert ledger.spent("icu", DELTA) == 0
    assert code_of(lambda: grant(ledger, "b" * 64, max_lifetime=one)) == RefusalCode.BUDGET_EXCEEDED


def test_cohorts_have_accounts_of_their_own(ledger: Ledger) -> None:
    grant(ledger, cohort="ward")
    reserve(ledger, 1)
    assert reserve(ledger, 1, cohort="ward") == 2
    assert [entry.rounds for entry in ledger.entries("ward")] == [1]


def test_epsilon_is_that_of_what_was_reserved(ledger: Ledger) -> None:
    grant(ledger, "b" * 64, spend=Spend(3.0, 0.2, 5))
    assert ledger.spent("icu", DELTA) == 0
    reserve(ledger, 1)
    reserve(ledger, 2)
    reserve(ledger, 1, study="b" * 64)
    first, second = ledger.entries("icu")
    assert first.epsilon == epsilon_of([Spend(4.0, 1.0, 4)], DELTA)
    assert (first.rounds, first.steps, first.delta) == (2, 4, DELTA)
    assert second.epsilon == epsilon_of([Spend(3.0, 0.2, 5)], DELTA)
    assert ledger.spent("icu", DELTA) == epsilon_of([Spend(4.0, 1.0, 4), Spend(3.0, 0.2, 5)], DELTA)


def test_refused_reservation_leaves_no_lock_behind(ledger: Ledger) -> None:
    for _ in range(3):
        assert code_of(lambda: reserve(ledger, 1, study="b" * 64)) == RefusalCode.BUDGET_EXCEEDED
    assert reserve(ledger, 1) == 2


def race(path: Path, start: Any, outcomes: Any) -> None:
    ledger = Ledger(path)
    start.wait()
    try:
        outcomes.put(reserve(ledger, 1))
    except Refusal as refusal:
        outcomes.put(refusal.reason.value)


def test_two_processes_reserving_the_same_round_at_once_one_wins(tmp_path: Path, ledger: Ledger) -> None:
    context = multiprocessing.get_context("forkserver")
    start, outcomes = context.Barrier(2), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path / "ledger.sqlite", start, outcomes)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found, key=str) == [2, "round_replayed"]
    assert [entry.rounds for entry in ledger.entries("icu")] == [1]


def test_ledger_has_no_way_to_give_back() -> None:
    names = [name for name in vars(Ledger) if not name.startswith("_")]
    assert sorted(names) == ["entries", "grant", "reservations", "reserve", "spends", "spent"]


def test_reservation_carries_the_cost_that_was_granted(tmp_path: Path, ledger: Ledger) -> None:
    reserve(ledger, 1)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        rows = database.execute(
            "SELECT noise_multiplier, sampling_rate, steps, reserved_at FROM reservations"
        ).fetchall()
    database.close()
    assert rows == [(4.0, 1.0, 2, NOW)]
