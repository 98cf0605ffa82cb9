"""Who is charged for what: held against a count by hand, patient by patient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.books import CLOSED, GRANTED, RESERVED, Account, Books, Change, Terms
from fedward_client.patient_sets import pack
from fedward_common.audit_chain import GENESIS, Position
from fedward_common.privacy import Spend, epsilon_of

DELTA = 1e-4
SPENDS = [Spend(4.0, 1.0, 2), Spend(9.0, 1.0, 5), Spend(4.0, 1.0, 3)]
PEOPLE = 12


def account(place: int, *, closed: bool = False) -> Account:
    return Account(f"study {place}", Terms(10 + place, SPENDS[place], DELTA), 1.0, closed)


def bitmap(people: set[int]) -> bytes:
    return pack(np.array(sorted(people), dtype=np.int64))


@st.composite
def books_(draw: st.DrawFn) -> tuple[Books, dict[int, set[int] | None]]:
    """Return books of three studies over up to five sets, and the sets; None is everybody."""
    sets = {n: draw(st.none() | st.sets(st.integers(0, PEOPLE - 1))) for n in range(1, draw(st.integers(1, 5)) + 1)}
    pairs = [(f"study {place}", number) for place in range(3) for number in sets]
    attached = draw(st.sets(st.sampled_from(pairs)))
    reserved = {pair: draw(st.integers(1, 3)) for pair in sorted(attached) if draw(st.booleans())}
    accounts = tuple(account(place, closed=draw(st.booleans())) for place in range(3))
    bitmaps = {number: None if people is None else bitmap(people) for number, people in sets.items()}
    return Books(accounts, bitmaps, frozenset(attached), reserved, PEOPLE), sets


def by_hand(books: Books, sets: dict[int, set[int] | None], person: int, *, planned: bool, joining: str) -> list[int]:
    """Return the rounds of each account that one patient is charged for."""
    mine = {number for number, people in sets.items() if people is None or person in people}
    found = []
    for one in books.accounts:
        rounds = sum(
            count for (study, number), count in books.reserved.items() if study == one.study and number in mine
        )
        member = any((one.study, number) in books.attached for number in mine) or one.study == joining
        found.append(max(rounds, one.terms.rounds) if planned and member and not one.closed else rounds)
    return found


@given(made=books_(), planned=st.booleans(), joining=st.sampled_from(["", "study 1"]))
def test_each_group_is_charged_as_its_patients_are_by_hand(
    *, made: tuple[Books, dict[int, set[int] | None]], planned: bool, joining: str
) -> None:
    books, sets = made
    people = np.arange(PEOPLE + 1)

    found = {tuple(row) for row in books.rounds(people, planned=planned, joining=joining).tolist()}

    assert found == {tuple(by_hand(books, sets, p, planned=planned, joining=joining)) for p in people.tolist()}


@given(made=books_(), planned=st.booleans())
def test_worst_is_the_epsilon_of_the_patient_who_is_worst_off(
    *, made: tuple[Books, dict[int, set[int] | None]], planned: bool
) -> None:
    books, sets = made
    people = np.arange(PEOPLE + 1)

    epsilon, spends = books.worst(books.rounds(people, planned=planned), DELTA)

    by_patient = []
    for person in people.tolist():
        rounds = by_hand(books, sets, person, planned=planned, joining="")
        charged = zip(books.accounts, rounds, strict=True)
        by_patient.append(epsilon_of([one.terms.times(count) for one, count in charged if count], DELTA))
    assert epsilon == pytest.approx(max(by_patient))
    assert epsilon_of(spends, DELTA) == pytest.approx(epsilon)


def test_everybody_has_one_patient_more_than_were_ever_seen() -> None:
    """A patient who comes tomorrow is charged for what is charged to everybody, and for nothing else."""
    books = Books((account(0), account(1)), {1: bitmap({0, 1}), 2: None}, frozenset({("study 0", 1)}), {}, 2)
    charged = replace(books, attached=books.attached | {("study 1", 2)})

    rounds = charged.rounds(charged.numbers(2), planned=True)

    assert sorted(rounds.tolist()) == [[0, 11], [10, 11]]


def test_nobody_is_charged_where_there_are_no_accounts() -> None:
    books = Books((), {1: bitmap({0})}, frozenset(), {}, 1)

    assert books.worst(books.rounds(books.numbers(1), planned=True), DELTA) == (0.0, ())


def change(event: str, **changes: object) -> Change:
    whole = Change(7, event, "a" * 64, 0, "icu", 3, "", 0, "", "2026-01-01T00:00:00+00:00", Position(1, 0, GENESIS))
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_log_of_a_grant_holds_all_that_opens_the_account_again() -> None:
    one = account(1)

    fields = change(GRANTED).fields(one, 0)

    expected = {"entry": 7, "study": "a" * 64, "cohort": "icu", "snapshot": 3, "rounds": 11, "steps": 5}
    assert fields == expected | {"noise": 9.0, "rate": 1.0, "delta": DELTA, "epsilon": 1.0}


def test_log_of_a_debit_holds_the_steps_so_far() -> None:
    fields = change(RESERVED, round=4).fields(account(1), 3)

    assert (fields["round"], fields["steps"], fields["epsilon"]) == (4, 15, 1.0)


def test_two_changes_are_the_same_if_event_study_and_round_are() -> None:
    assert change(RESERVED, round=4).identity() == change(RESERVED, round=4, entry=9, snapshot=5).identity()
    assert change(RESERVED, round=4).identity() != change(RESERVED, round=5).identity()
    assert change(GRANTED).identity() != change(GRANTED, snapshot=4).identity()
    assert change(GRANTED).identity() != change(CLOSED).identity()
