"""The privacy account of patients: on disk before anything is noised, once for each round, and never given back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client.books import Change, Limits, Terms
from fedward_client.ledger import Ledger, Stamp
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.privacy import Spend, epsilon_of
from tests.client.ledger_cases import (
    DELTA,
    ICU,
    LIFETIME_DELTA,
    LIMITS,
    NOW,
    SPEND,
    TERMS,
    WARD,
    A,
    B,
    C,
    code_of,
    people,
)

STAMP = Stamp(NOW)


def grant(ledger: Ledger, study: str = A, codes: Iterable[int] = ICU, **changes: Any) -> Change | None:
    values: dict[str, Any] = {"cohort": "icu", "terms": TERMS, "limits": LIMITS, "stamp": STAMP}
    return ledger.grant(study=study, identities=people(codes), **(values | changes))


def reserve(ledger: Ledger, round_: int, study: str = A, codes: Iterable[int] = ICU, **changes: Any) -> int:
    """Debit one round and return how many the study has debited."""
    values: dict[str, Any] = {"cohort": "icu", "limits": LIMITS, "stamp": STAMP}
    return ledger.reserve(study=study, round_=round_, identities=people(codes), **(values | changes))[1]


def commit(ledger: Ledger, round_: int, study: str = A) -> Change:
    return ledger.commit(cohort="icu", study=study, round_=round_, sha256="0" * 64, size=8, stamp=STAMP)


def lifetime(*rounds: int) -> float:
    """Return the lifetime's ε of so many rounds of `SPEND`."""
    return epsilon_of([Spend(4.0, 1.0, 2 * sum(rounds))], LIFETIME_DELTA)


def most(epsilon: float) -> Limits:
    return Limits(8.0, epsilon, LIFETIME_DELTA)


@pytest.fixture
def empty(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def ledger(empty: Ledger) -> Ledger:
    grant(empty)
    return empty


# --------------------------------------------------------------------------------------------- one study, one account


def test_reservation_survives_reopening(tmp_path: Path, ledger: Ledger) -> None:
    assert reserve(ledger, 1) == 1

    again = Ledger(tmp_path / "ledger.sqlite")

    assert [entry.rounds for entry in again.entries("icu")] == [1]
    assert code_of(lambda: reserve(again, 1)) == RefusalCode.ROUND_REPLAYED


CHILD = """
import sys
from pathlib import Path
from fedward_client.ledger import Ledger, Stamp
from tests.client.ledger_cases import A, ICU, LIMITS, NOW, people
ledger = Ledger(Path(sys.argv[1]))
ledger.reserve(cohort="icu", study=A, identities=people(ICU), round_=1, limits=LIMITS, stamp=Stamp(NOW))
print("reserved", flush=True)
sys.stdin.read()
"""


def test_reservation_survives_kill_9_right_after_it_returned(tmp_path: Path, ledger: Ledger) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "ledger.sqlite")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reserved\n"
        os.kill(child.pid, signal.SIGKILL)

    assert [(entry.rounds, entry.steps) for entry in ledger.entries("icu")] == [(1, 2)]
    assert code_of(lambda: reserve(ledger, 1)) == RefusalCode.ROUND_REPLAYED


def test_ledger_is_synced_to_disk_with_every_commit(ledger: Ledger) -> None:
    with ledger._file.reading() as database:
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
    assert [reserve(ledger, round_) for round_ in (1, 2, 3)] == [1, 2, 3]
    assert code_of(lambda: reserve(ledger, 4)) == RefusalCode.BUDGET_EXCEEDED


def test_rounds_may_come_with_gaps(ledger: Ledger) -> None:
    assert [reserve(ledger, round_) for round_ in (1, 3, 7)] == [1, 2, 3]


def test_stale_round_is_refused_though_it_was_never_debited(ledger: Ledger) -> None:
    reserve(ledger, 3)
    before = ledger.changes()

    assert code_of(lambda: reserve(ledger, 2)) == RefusalCode.ROUND_REPLAYED
    assert ledger.changes() == before


def test_study_without_an_account_is_refused(ledger: Ledger) -> None:
    assert code_of(lambda: reserve(ledger, 1, study=B)) == RefusalCode.BUDGET_EXCEEDED


def test_same_study_granted_twice_changes_nothing(ledger: Ledger) -> None:
    reserve(ledger, 1)
    before = ledger.entries("icu"), ledger.changes()

    again = grant(ledger, terms=Terms(100, Spend(0.5, 1.0, 50), DELTA))

    assert again is None
    assert (ledger.entries("icu"), ledger.changes()) == before
    reserve(ledger, 2)
    reserve(ledger, 3)
    assert code_of(lambda: reserve(ledger, 4)) == RefusalCode.BUDGET_EXCEEDED


def test_study_above_the_limit_for_one_study_is_refused_and_nothing_is_written(empty: Ledger) -> None:
    whole = epsilon_of([Spend(4.0, 1.0, 6)], DELTA)

    with pytest.raises(Refusal) as caught:
        grant(empty, limits=Limits(whole - 0.001, 16.0, LIFETIME_DELTA))

    assert caught.value.crossing() == f"budget_exceeded limit={whole - 0.001}"
    assert (empty.entries("icu"), empty.changes(), empty.cohorts()) == ([], [], {})
    grant(empty, limits=Limits(whole, 16.0, LIFETIME_DELTA))


def test_lifetime_counts_every_study_on_the_patients(empty: Ledger) -> None:
    two = most(lifetime(3, 3) - 0.001)
    grant(empty, limits=two)

    assert code_of(lambda: grant(empty, B, limits=two)) == RefusalCode.BUDGET_EXCEEDED
    grant(empty, B, limits=most(lifetime(3, 3)))
    assert len(empty.entries("icu")) == 2


def test_lifetime_counts_granted_rounds_not_only_those_spent(empty: Ledger) -> None:
    """Two studies that each fit alone cannot both be let in and then both be run to their end."""
    one = most(lifetime(3))
    grant(empty, limits=one)

    assert empty.spent("icu", DELTA) == 0
    assert code_of(lambda: grant(empty, B, limits=one)) == RefusalCode.BUDGET_EXCEEDED


def test_policy_that_was_tightened_stops_the_next_round(ledger: Ledger) -> None:
    reserve(ledger, 1)

    assert code_of(lambda: reserve(ledger, 2, limits=most(lifetime(3) - 0.001))) == RefusalCode.BUDGET_EXCEEDED
    assert code_of(lambda: reserve(ledger, 2, limits=Limits(0.1, 16.0, LIFETIME_DELTA))) == RefusalCode.BUDGET_EXCEEDED
    assert reserve(ledger, 2) == 2


def test_epsilon_is_that_of_what_was_reserved(ledger: Ledger) -> None:
    grant(ledger, B, terms=Terms(3, Spend(3.0, 0.2, 5), DELTA))
    assert ledger.spent("icu", DELTA) == 0

    reserve(ledger, 1)
    reserve(ledger, 2)
    reserve(ledger, 1, study=B)

    first, second = ledger.entries("icu")
    assert (first.rounds, first.steps, first.delta) == (2, 4, DELTA)
    assert first.epsilon == epsilon_of([Spend(4.0, 1.0, 4)], DELTA)
    assert second.epsilon == epsilon_of([Spend(3.0, 0.2, 5)], DELTA)
    assert ledger.spent("icu", DELTA) == epsilon_of([Spend(4.0, 1.0, 4), Spend(3.0, 0.2, 5)], DELTA)
    assert ledger.planned("icu", DELTA) == epsilon_of([Spend(4.0, 1.0, 6), Spend(3.0, 0.2, 15)], DELTA)


def test_what_a_further_study_would_come_to_is_told_without_granting_it(ledger: Ledger) -> None:
    more = Terms(5, SPEND, DELTA)

    assert ledger.planned("icu", LIFETIME_DELTA, study=B, terms=more) == lifetime(3, 5)
    assert ledger.planned("icu", LIFETIME_DELTA, study=A, terms=more) == lifetime(3)
    assert ledger.planned("never seen", LIFETIME_DELTA, study=B, terms=more) == lifetime(5)
    assert ledger.planned("never seen", LIFETIME_DELTA) == 0
    assert ledger.account(B) is None


def test_refused_reservation_leaves_no_lock_behind(ledger: Ledger) -> None:
    for _ in range(3):
        assert code_of(lambda: reserve(ledger, 1, study=B)) == RefusalCode.BUDGET_EXCEEDED

    assert reserve(ledger, 1) == 1


# ------------------------------------------------------------------------------------------- patients, not their names


def test_renamed_cohort_has_the_same_budget(empty: Ledger) -> None:
    one = most(lifetime(3))
    grant(empty, limits=one)

    assert code_of(lambda: grant(empty, B, cohort="intensive", limits=one)) == RefusalCode.BUDGET_EXCEEDED


def test_one_patient_more_or_fewer_is_no_fresh_budget(empty: Ledger) -> None:
    one = most(lifetime(3))
    grant(empty, limits=one)

    for codes in (range(41), range(39), range(5, 60), [0, *WARD]):
        refused = code_of(lambda codes=codes: grant(empty, B, codes, cohort="new", limits=one))  # type: ignore[misc]
        assert refused == RefusalCode.BUDGET_EXCEEDED


def test_rows_in_another_order_are_the_same_patients(empty: Ledger) -> None:
    one = most(lifetime(3))
    grant(empty, limits=one)

    assert code_of(lambda: grant(empty, B, reversed(ICU), limits=one)) == RefusalCode.BUDGET_EXCEEDED


def test_cohorts_without_a_patient_in_common_do_not_charge_each_other(empty: Ledger) -> None:
    one = most(lifetime(3))
    grant(empty, limits=one)
    reserve(empty, 1, limits=one)

    grant(empty, B, WARD, cohort="ward", limits=one)
    reserve(empty, 1, B, WARD, cohort="ward", limits=one)

    assert empty.spent("icu", LIFETIME_DELTA) == empty.spent("ward", LIFETIME_DELTA) == lifetime(1)
    assert [entry.study for entry in empty.entries("ward")] == [B]


def test_patient_in_three_cohorts_is_charged_for_three_studies_and_is_the_worst_off(empty: Ledger) -> None:
    for study, codes, name in ((A, range(10), "first"), (B, range(9, 20), "second"), (C, [9, *range(20, 30)], "third")):
        grant(empty, study, codes, cohort=name)
        reserve(empty, 1, study, codes, cohort=name)

    assert empty.spent("first", LIFETIME_DELTA) == empty.spent("third", LIFETIME_DELTA) == lifetime(3)
    assert [entry.study for entry in empty.entries("second")] == [A, B, C]


def test_study_that_has_spent_nothing_yet_is_listed_where_it_has_a_patient(empty: Ledger) -> None:
    grant(empty, A, range(10), cohort="first")
    grant(empty, B, range(9, 20), cohort="second")
    grant(empty, C, WARD, cohort="third")

    assert [(entry.study, entry.rounds) for entry in empty.entries("first")] == [(A, 0), (B, 0)]
    assert [entry.study for entry in empty.entries("third")] == [C]


def test_cohorts_that_overlap_pairwise_do_not_add_up_to_three(empty: Ledger) -> None:
    """No patient stands in all three studies, so nobody is charged for all three."""
    cohorts = ((A, [1, 2], "first"), (B, [2, 3], "second"), (C, [3, 1], "third"))
    for study, codes, name in cohorts:
        grant(empty, study, codes, cohort=name, limits=most(lifetime(3, 3)))
        reserve(empty, 1, study, codes, cohort=name, limits=most(lifetime(3, 3)))

    assert [empty.spent(name, LIFETIME_DELTA) for _, _, name in cohorts] == [lifetime(2)] * 3


def test_account_goes_on_when_a_patient_opts_out(ledger: Ledger) -> None:
    reserve(ledger, 1)

    assert reserve(ledger, 2, codes=range(39)) == 2
    assert reserve(ledger, 3, codes=range(38)) == 3
    assert code_of(lambda: reserve(ledger, 4, codes=range(37))) == RefusalCode.BUDGET_EXCEEDED
    assert code_of(lambda: reserve(ledger, 1, codes=range(37))) == RefusalCode.ROUND_REPLAYED


def test_account_goes_on_when_its_cohort_is_renamed(ledger: Ledger) -> None:
    reserve(ledger, 1)
    grant(ledger, cohort="intensive")

    assert code_of(lambda: reserve(ledger, 1, cohort="intensive")) == RefusalCode.ROUND_REPLAYED
    assert reserve(ledger, 2, cohort="intensive") == 2
    assert ledger.summaries()[0].cohorts == ("icu", "intensive")
    assert ledger.cohorts() == {"icu": 40, "intensive": 40}


def test_account_goes_on_with_patients_who_share_nothing_with_the_first(ledger: Ledger) -> None:
    """One site answers each round of a study once, whomever it trains on."""
    reserve(ledger, 1)

    assert code_of(lambda: reserve(ledger, 1, codes=WARD, cohort="ward")) == RefusalCode.ROUND_REPLAYED
    assert reserve(ledger, 2, codes=WARD, cohort="ward") == 2


def test_patient_who_joins_must_afford_the_whole_study(empty: Ledger) -> None:
    two = most(lifetime(3, 3) - 0.001)
    grant(empty, A, ICU, limits=two)
    grant(empty, B, WARD, cohort="ward", limits=two)
    reserve(empty, 1, A, ICU, limits=two)

    joined = [*ICU, WARD[0]]

    assert code_of(lambda: reserve(empty, 2, A, joined, limits=two)) == RefusalCode.BUDGET_EXCEEDED
    assert code_of(lambda: grant(empty, A, joined, limits=two)) == RefusalCode.BUDGET_EXCEEDED
    assert reserve(empty, 2, A, ICU, limits=two) == 2


def test_patient_who_joined_is_charged_in_the_next_study(empty: Ledger) -> None:
    grant(empty, A, ICU)
    reserve(empty, 1, A, [*ICU, 77])
    one = most(lifetime(3))

    assert code_of(lambda: grant(empty, B, [77, 78], cohort="new", limits=one)) == RefusalCode.BUDGET_EXCEEDED
    grant(empty, B, [78, 79], cohort="new", limits=one)


steps_ = st.lists(
    st.tuples(
        st.sampled_from(["grant", "reserve", "close"]),
        st.sampled_from([A, B, C]),
        st.sampled_from(["icu", "ward"]),
        st.sets(st.integers(0, 5), min_size=1),
        st.integers(1, 4),
        st.sampled_from([lifetime(3), lifetime(3, 2), lifetime(3, 3, 3)]),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(steps_)
def test_no_order_of_requests_takes_a_patient_past_the_limit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str, set[int], int, float]]
) -> None:
    """Whatever is asked for: a debit that is accepted leaves each of its patients within the limit of that moment."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")
    charged: dict[int, int] = dict.fromkeys(range(6), 0)
    debited: set[tuple[str, int]] = set()

    for what, study, cohort, codes, round_, limit in steps:
        try:
            if what == "grant":
                grant(ledger, study, codes, cohort=cohort, limits=most(limit))
            elif what == "close":
                ledger.close(study=study, person="ann", stamp=STAMP)
            else:
                reserve(ledger, round_, study, codes, cohort=cohort, limits=most(limit))
                assert (study, round_) not in debited
                debited.add((study, round_))
                for code in codes:
                    charged[code] += 1
                    assert lifetime(charged[code], 0) <= limit
        except Refusal:
            continue

    for name in ledger.cohorts():
        assert ledger.spent(name, LIFETIME_DELTA) <= max(lifetime(rounds) for rounds in charged.values())


# --------------------------------------------------------------------------------------------------------- let out, end


def test_round_that_leaves_is_noted_with_its_digest(ledger: Ledger) -> None:
    reserve(ledger, 1)

    change = commit(ledger, 1)

    assert (change.event, change.round, change.sha256, change.size) == ("released", 1, "0" * 64, 8)
    assert [(one.rounds, one.reserved, one.released) for one in ledger.summaries()] == [(3, 1, 1)]


def test_round_never_leaves_twice_and_never_without_a_debit(ledger: Ledger) -> None:
    assert code_of(lambda: commit(ledger, 1)) == RefusalCode.BUDGET_UNTRUSTED
    reserve(ledger, 1)
    commit(ledger, 1)

    assert code_of(lambda: commit(ledger, 1)) == RefusalCode.ROUND_REPLAYED
    assert code_of(lambda: commit(ledger, 2)) == RefusalCode.BUDGET_UNTRUSTED


def test_debit_of_a_round_that_never_left_stays(ledger: Ledger) -> None:
    reserve(ledger, 1)
    reserve(ledger, 2)
    commit(ledger, 2)

    assert ledger.spent("icu", LIFETIME_DELTA) == lifetime(2)


def test_closed_account_frees_what_it_never_used_and_nothing_else(empty: Ledger) -> None:
    limits = most(lifetime(3, 1))
    grant(empty, limits=limits)
    reserve(empty, 1, limits=limits)
    assert code_of(lambda: grant(empty, B, limits=limits)) == RefusalCode.BUDGET_EXCEEDED

    empty.close(study=A, person="ann", stamp=STAMP)

    assert code_of(lambda: reserve(empty, 2, limits=limits)) == RefusalCode.BUDGET_EXCEEDED
    assert code_of(lambda: grant(empty, limits=limits)) == RefusalCode.BUDGET_EXCEEDED
    assert empty.spent("icu", LIFETIME_DELTA) == empty.planned("icu", LIFETIME_DELTA) == lifetime(1)
    grant(empty, B, limits=limits)
    assert empty.planned("icu", LIFETIME_DELTA) == lifetime(1, 3)


def test_account_is_closed_once(ledger: Ledger) -> None:
    assert ledger.close(study=A, person="ann", stamp=STAMP) is not None
    assert ledger.close(study=A, person="ann", stamp=STAMP) is None
    assert ledger.close(study=B, person="ann", stamp=STAMP) is None


@pytest.mark.parametrize("table", ["journal", "accounts", "snapshots", "patients", "keys"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid + 100"])
def test_file_itself_refuses_to_forget(tmp_path: Path, ledger: Ledger, table: str, statement: str) -> None:
    reserve(ledger, 1)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database, pytest.raises(sqlite3.Error, match="only grows"):
        database.execute(statement.format(table))
    database.close()


# ------------------------------------------------------------------------------------------------ order, clock, several


def test_order_is_a_count_and_not_the_clock(ledger: Ledger) -> None:
    """The clock goes back by years between two rounds; order, replay and budget are what they would have been."""
    reserve(ledger, 1, stamp=Stamp("2026-11-23T12:00:00+00:00"))
    reserve(ledger, 2, stamp=Stamp("1970-01-01T00:00:00+00:00"))
    reserve(ledger, 3, stamp=Stamp("2099-01-01T00:00:00+00:00"))

    assert [(change.entry, change.round) for change in ledger.changes()] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert code_of(lambda: reserve(ledger, 1, stamp=Stamp("1980-01-01T00:00:00+00:00"))) == RefusalCode.ROUND_REPLAYED
    assert ledger.spent("icu", LIFETIME_DELTA) == lifetime(3)


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

    assert sorted(found, key=str) == [1, "round_replayed"]
    assert [entry.rounds for entry in ledger.entries("icu")] == [1]
