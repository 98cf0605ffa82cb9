"""What patients have spent: on disk before a noised step is taken, never given back, whatever their cohort is called.

The unit is the patient. A cohort comes as the identities of its patients; the ledger keeps each distinct set of them
(a snapshot) and charges a patient for every study in which it stood: under another name of the cohort, in another
export of the table, with another schema, beside other patients. Cohorts without a patient in common do not charge each
other.

A study has one account at a site, under its digest alone. When a patient opts out in its middle, when patients join or
when the cohort is registered anew, the account goes on: `rounds` counts every round that the study ever debited here,
on whatever set, and a round can be debited once. In the plan, those who joined are charged for all the rounds of the
study, and so are those who left: too much rather than too little. What is shown as spent counts for each patient the
rounds in which it stood. A study never starts afresh.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedward_client.books import (
    CLOSED,
    GRANTED,
    RECONCILED,
    RELEASED,
    RESERVED,
    Account,
    Books,
    Change,
    Limits,
    Terms,
)
from fedward_client.ledger_file import LedgerFile
from fedward_client.patient_sets import Identities
from fedward_common.audit_chain import GENESIS, Position
from fedward_common.audit_words import Value
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.privacy_groups import composed

__all__ = ["Entry", "Ledger", "Stamp", "Summary"]

NOWHERE: Final = Position(0, 0, GENESIS)


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a change is made, for people to read, and the last entry of the log of decisions at that moment."""

    at: str
    position: Position = NOWHERE


@dataclass(frozen=True, slots=True)
class Entry:
    """What one study has spent on the patients of one cohort who are worst off; `epsilon` at the study's δ."""

    study: str
    rounds: int
    steps: int
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One study's account: `rounds` granted, `reserved` debited, `released` let out; `epsilon` of what was debited."""

    study: str
    cohorts: tuple[str, ...]
    rounds: int
    reserved: int
    released: int
    epsilon: float
    granted_epsilon: float
    delta: float
    closed: bool


class Ledger:
    """The privacy account of a site's patients.

    Reading never changes it. Of the ways to change it, `fedward_client.budget` is the one to take: it keeps the log of
    decisions in step.

    Args:
        path: the SQLite file; made when it is not there, with ``ledger.key`` beside it.

    Raises:
        InstallationError: it cannot be opened, or another version of Fedward made it.
        Refusal: ``budget_untrusted``: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = LedgerFile(path)

    def grant(
        self, *, cohort: str, study: str, identities: Identities, terms: Terms, limits: Limits, stamp: Stamp
    ) -> Change | None:
        """Open the study's account for these patients, if all its rounds fit what each of them has left.

        The same study again keeps its terms; None where it had these patients under this name already.

        Args:
            cohort: its name in the register, for people to read.
            study: the study's digest.
            identities: uint8, shape (patients, 16); see `Cohort.identities`.
            terms: what the study asks for.
            limits: what the policy allows.
            stamp: when.

        Raises:
            Refusal: ``budget_exceeded``, ``budget_untrusted``; nothing was written.
        """
        with self._file.writing() as database:
            books, snapshot = self._with(database, identities)
            account = books.account(study)
            if account is None:
                account = Account(study, terms, composed([terms.times(terms.rounds)], terms.delta))
                books = _joined(books, account)
                self._file.add_account(database, account)
            _afford(books, account, snapshot, limits)
            if _named_before(database, study, snapshot, cohort):
                return None
            return self._file.add(database, _change(GRANTED, study, cohort, snapshot, stamp))

    def reserve(
        self, *, cohort: str, study: str, identities: Identities, round_: int, limits: Limits, stamp: Stamp
    ) -> tuple[Change, int]:
        """Debit one round, durably; return the change and the rounds that the study has debited, this one included.

        Args:
            cohort: as for `grant`.
            study: the study's digest.
            identities: of the patients who take part in this round; whoever opted out is not among them.
            round_: 1-based.
            limits: what the policy allows now.
            stamp: when.

        Raises:
            Refusal: ``round_replayed`` if this round or a later one was debited before, ``budget_exceeded`` if the
                account is not open, all its rounds are spent or a patient has not enough left, ``budget_untrusted``.
        """
        with self._file.writing() as database:
            books, snapshot = self._with(database, identities)
            debited = _rounds(database, RESERVED, study)
            if round_ <= max(debited, default=0):
                what = "this round, or a later one, was debited before"
                raise Refusal(RefusalCode.ROUND_REPLAYED, what, fields={"round": round_})
            account = books.account(study)
            if account is None or account.closed or len(debited) >= account.terms.rounds:
                what = "no round is left in the study's account"
                raise Refusal(RefusalCode.BUDGET_EXCEEDED, what, fields={"round": round_})
            _afford(books, account, snapshot, limits)
            change = _change(RESERVED, study, cohort, snapshot, stamp, round_=round_)
            return self._file.add(database, change), len(debited) + 1

    def commit(self, *, cohort: str, study: str, round_: int, sha256: str, size: int, stamp: Stamp) -> Change:
        """Note that a debited round leaves the site, before it does.

        Args:
            cohort: as for `grant`.
            study: the study's digest.
            round_: 1-based.
            sha256: digest of what leaves, 64 hexadecimal digits.
            size: of it, in bytes.
            stamp: when.

        Raises:
            Refusal: ``round_replayed`` if it has left already, ``budget_untrusted`` if it was never debited.
        """
        with self._file.writing() as database:
            if round_ not in _rounds(database, RESERVED, study):
                what = "a round that was never debited does not leave"
                raise Refusal(RefusalCode.BUDGET_UNTRUSTED, what, fields={"round": round_})
            if round_ in _rounds(database, RELEASED, study):
                raise Refusal(RefusalCode.ROUND_REPLAYED, "this round has left already", fields={"round": round_})
            change = _change(RELEASED, study, cohort, 0, stamp, round_=round_, sha256=sha256, size=size)
            return self._file.add(database, change)

    def left(self, *, study: str, round_: int) -> str:
        """Return the SHA-256 of what left for a debited round of an open account, empty if nothing has left.

        Raises:
            Refusal: ``round_replayed`` if the round was never debited, ``budget_exceeded`` if the account is not open.
        """
        with self._file.reading() as database:
            account = _account(self._file.accounts(database), study)
            if account is None or account.closed:
                what = "the study has no open account"
                raise Refusal(RefusalCode.BUDGET_EXCEEDED, what, fields={"round": round_})
            if round_ not in _rounds(database, RESERVED, study):
                raise Refusal(RefusalCode.ROUND_REPLAYED, "this round was never debited", fields={"round": round_})
            query = "SELECT sha256 FROM journal WHERE event = ? AND study = ? AND round = ?"
            found = database.execute(query, (RELEASED, study, round_)).fetchone()
        return str(found[0]) if found else ""

    def close(self, *, study: str, person: str, stamp: Stamp) -> Change | None:
        """End a study's account: no round follows, what was debited stays, the rest of the plan is no longer counted.

        None where it was closed or never opened.
        """
        with self._file.writing() as database:
            account = _account(self._file.accounts(database), study)
            if account is None or account.closed:
                return None
            return self._file.add(database, _change(CLOSED, study, "", 0, stamp, person=person))

    def reenter(self, changes: list[tuple[Change, Account | None]], *, above: int, person: str, stamp: Stamp) -> Change:
        """Write what the log of decisions knows and the ledger lacks, then that `person` had it done.

        A set of patients that the ledger does not have is everybody.

        Args:
            changes: with their accounts, oldest first.
            above: a number that no change of this ledger reached.
            person: who decided it.
            stamp: when.
        """
        with self._file.writing() as database:
            self._file.renew_key(database)
            self._file.count_from(database, above)
            books = self._file.books(database)
            for change, account in changes:
                if account is not None and books.account(account.study) is None:
                    self._file.add_account(database, account)
                    books = _joined(books, account)
                if change.snapshot:
                    self._file.everybody(database, change.snapshot)
                self._file.add(database, change)
            return self._file.add(database, _change(RECONCILED, "", "", 0, stamp, person=person))

    def check(self) -> None:
        """Return if the file can be read and its key belongs to it.

        Raises:
            Refusal: ``budget_untrusted``.
        """
        with self._file.reading() as database:
            if database.execute("SELECT 1 FROM keys").fetchone():
                self._file.key(database)

    def changes(self, after: int = 0) -> list[Change]:
        """Return the journal's lines whose number is above `after`, in order."""
        with self._file.reading() as database:
            return self._file.changes(database, after)

    def last(self) -> Change | None:
        """Return the journal's last line, None before the first."""
        with self._file.reading() as database:
            number = database.execute("SELECT COALESCE(MAX(entry), 0) FROM journal").fetchone()[0]
            found = self._file.changes(database, number - 1)
        return found[-1] if found else None

    def account(self, study: str) -> Account | None:
        """Return the account of the study with this digest, None if there is none."""
        with self._file.reading() as database:
            return _account(self._file.accounts(database), study)

    def log_fields(self, change: Change) -> dict[str, Value]:
        """Return the fields of the log's entry about a line of the journal."""
        with self._file.reading() as database:
            account = _account(self._file.accounts(database), change.study)
            query = "SELECT COUNT(*) FROM journal WHERE event = ? AND study = ? AND entry <= ?"
            rounds = database.execute(query, (RESERVED, change.study, change.entry)).fetchone()[0]
        return change.fields(account, rounds)

    def summaries(self) -> list[Summary]:
        """Return every study's account, in the order in which they were opened."""
        with self._file.reading() as database:
            accounts = self._file.accounts(database)
            query = "SELECT study, cohort, event, COUNT(*) FROM journal GROUP BY 1, 2, 3 ORDER BY MIN(entry)"
            rows = database.execute(query).fetchall()
        return [_summary(account, [row[1:] for row in rows if row[0] == account.study]) for account in accounts]

    def cohorts(self) -> dict[str, int]:
        """Return the names under which cohorts came, each with the number of patients it last had, 0: everybody."""
        with self._file.reading() as database:
            query = """
                SELECT j.cohort, s.patients FROM journal j JOIN snapshots s ON s.id = j.snapshot
                WHERE j.cohort <> '' ORDER BY j.entry
            """
            return {str(name): int(patients) for name, patients in database.execute(query)}

    def entries(self, cohort: str) -> list[Entry]:
        """Return what each study has spent on the patients that `cohort` last had, in the order of the accounts.

        A study of another cohort is among them if it has one of these patients.
        """
        books, snapshot = self._named(cohort)
        if not snapshot:
            return []
        people = books.numbers(snapshot)
        rounds, planned = (books.rounds(people, planned=plan).max(axis=0, initial=0).tolist() for plan in (False, True))
        attached = {study for study, number in books.attached if number == snapshot}
        found = []
        for account, count, plan in zip(books.accounts, rounds, planned, strict=True):
            if plan or account.study in attached:
                spend = account.terms.times(count)
                epsilon = composed([spend], account.terms.delta) if count else 0.0
                found.append(Entry(account.study, count, spend.steps, epsilon, account.terms.delta))
        return found

    def spent(self, cohort: str, delta: float) -> float:
        """Return ε, at `delta`, of all that was ever debited to the patients of `cohort` who are worst off."""
        books, snapshot = self._named(cohort)
        return books.worst(books.rounds(books.numbers(snapshot), planned=False), delta)[0] if snapshot else 0.0

    def planned(self, cohort: str, delta: float, *, study: str = "", terms: Terms | None = None) -> float:
        """Return ε, at `delta`, of all rounds of all open accounts, for the patients of `cohort` who are worst off.

        Args:
            cohort: its name; patients are those that it had when a study last used it.
            delta: of the answer.
            study: a study that is counted as if it were granted to them now.
            terms: what it asks for, where it has no account yet.
        """
        books, snapshot = self._named(cohort)
        if terms is not None and books.account(study) is None:
            books = _joined(books, Account(study, terms, 0.0))
        account = books.account(study)
        if not snapshot:
            return composed([account.terms.times(account.terms.rounds)], delta) if account else 0.0
        return books.worst(books.rounds(books.numbers(snapshot), planned=True, joining=study), delta)[0]

    def _named(self, cohort: str) -> tuple[Books, int]:
        with self._file.reading() as database:
            query = "SELECT snapshot FROM journal WHERE cohort = ? AND snapshot > 0 ORDER BY entry DESC LIMIT 1"
            found = database.execute(query, (cohort,)).fetchone()
            return self._file.books(database), int(found[0]) if found else 0

    def _with(self, database: sqlite3.Connection, identities: Identities) -> tuple[Books, int]:
        snapshot = self._file.snapshot(database, identities)
        return self._file.books(database), snapshot


def _afford(books: Books, account: Account, snapshot: int, limits: Limits) -> None:
    """Return if the account fits the limits for each patient of the set, everything granted counted."""
    if account.epsilon > limits.epsilon:
        raise _exceeded(limits.epsilon)
    if account.closed:
        raise _exceeded(0)
    rounds = books.rounds(books.numbers(snapshot), planned=True, joining=account.study)
    if books.worst(rounds, limits.delta, enough=limits.lifetime)[0] > limits.lifetime:
        raise _exceeded(limits.lifetime)


def _exceeded(limit: float) -> Refusal:
    what = "the study would pass the budget of a patient of this cohort"
    return Refusal(RefusalCode.BUDGET_EXCEEDED, what, fields={"limit": limit})


def _joined(books: Books, account: Account) -> Books:
    return replace(books, accounts=(*books.accounts, account))


def _account(accounts: tuple[Account, ...], study: str) -> Account | None:
    return next((account for account in accounts if account.study == study), None)


def _summary(account: Account, rows: list[tuple[str, str, int]]) -> Summary:
    """Return an account's summary from (cohort, event, count) of its changes, oldest first."""
    reserved, released = (sum(count for _, of, count in rows if of == event) for event in (RESERVED, RELEASED))
    terms = account.terms
    return Summary(
        account.study,
        cohorts=tuple(dict.fromkeys(cohort for cohort, _, _ in rows if cohort)),
        rounds=terms.rounds,
        reserved=reserved,
        released=released,
        epsilon=composed([terms.times(reserved)], terms.delta) if reserved else 0.0,
        granted_epsilon=account.epsilon,
        delta=terms.delta,
        closed=account.closed,
    )


def _rounds(database: sqlite3.Connection, event: str, study: str) -> set[int]:
    query = "SELECT round FROM journal WHERE event = ? AND study = ?"
    return {int(number) for (number,) in database.execute(query, (event, study))}


def _named_before(database: sqlite3.Connection, study: str, snapshot: int, cohort: str) -> bool:
    query = "SELECT 1 FROM journal WHERE event = ? AND study = ? AND snapshot = ? AND cohort = ?"
    return database.execute(query, (GRANTED, study, snapshot, cohort)).fetchone() is not None


def _change(  # noqa: PLR0913  (a line of the journal has that many facts)
    event: str, study: str, cohort: str, snapshot: int, stamp: Stamp, *,
    round_: int = 0, sha256: str = "", size: int = 0, person: str = "",
) -> Change:  # fmt: skip
    return Change(0, event, study, round_, cohort, snapshot, sha256, size, person, stamp.at, stamp.position)
