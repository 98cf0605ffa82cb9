"""The ledger and the log of decisions, kept in step: a debit is in both, or no further one is made.

Each change of the ledger is written there first and to the log second, under one lock. The ledger's line names the
entry with which the log ended; the log's signed head names the ledger's last line. So each shows that the other is the
one it was kept with, in a few reads, before every change:

==================================  =============================================================================
what happened                       what is done
==================================  =============================================================================
a crash between the two             the ledger is one line ahead: the line is logged, and work goes on
an old ledger was put back          it lacks lines that the log's head counts: ``budget_untrusted``
the ledger was deleted              the same
an old log was put back             it lacks the entry that the ledger names: ``budget_untrusted``
the log was written anew            the same, even with the site's key
both were put back as they once     not found here: only a copy kept elsewhere shows it
were, at one moment                 (`fedward_client.evidence`, ``fedward client audit verify --anchor``)
==================================  =============================================================================

`reconcile` is the way back: an operator lets what the log knows be entered again, and puts a name to it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from fedward_client.books import CLOSED, GRANTED, RECONCILED, RELEASED, RESERVED, Account, Change, Limits, Terms
from fedward_client.ledger import Ledger, Stamp
from fedward_client.ledger_file import set_aside_if_damaged
from fedward_client.patient_sets import Identities
from fedward_common.audit import AuditLog, Entry
from fedward_common.audit_chain import GENESIS, Head, Position
from fedward_common.audit_words import Value
from fedward_common.errors import InstallationError, LocalDataError, Refusal, RefusalCode, StudyError
from fedward_common.privacy import Spend, round_spend
from fedward_common.privacy_groups import composed
from fedward_common.study import DpSgd
from fedward_common.study_file import read_study_file

__all__ = ["Budget", "Reconciled", "reconcile", "restart_log"]

_EVENTS: Final = frozenset({GRANTED, RESERVED, RELEASED, CLOSED, RECONCILED})
_REMEDY: Final = "fedward client audit verify says what is missing; fedward client ledger reconcile enters it again"


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What `reconcile` did.

    Attributes:
        entered: changes entered into the ledger again.
        logged: changes logged that the log lacked.
        renewed: whether anything was done at all; a ledger in step with its log is left as it is.
    """

    entered: int
    logged: int
    renewed: bool


class Budget:
    """The ledger and the log of one site. Several processes may use them; each waits for the others.

    Args:
        home: the site's folder; its ledger is opened when it is first asked for.
    """

    def __init__(self, home: Path) -> None:
        self.audit = AuditLog(home)
        self._home = home
        self._lock = home / "ledger.lock"

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger.

        Raises:
            InstallationError: it cannot be opened.
            Refusal: ``budget_untrusted``: it is damaged.
        """
        return Ledger(self._home / "ledger.sqlite")

    def grant(self, *, cohort: str, study: str, identities: Identities, terms: Terms, limits: Limits, now: str) -> None:
        """Open the study's account for these patients and log it; see `Ledger.grant`.

        Raises:
            Refusal: ``budget_exceeded``, ``budget_untrusted``, ``audit_untrusted``.
        """
        with self._in_step(now) as stamp:
            change = self.ledger.grant(
                cohort=cohort, study=study, identities=identities, terms=terms, limits=limits, stamp=stamp
            )
            if change is not None:
                self._log(change, now)

    def reserve(self, *, cohort: str, study: str, identities: Identities, round_: int, limits: Limits, now: str) -> int:
        """Debit one round and log it; return the noised steps that the study has spent here, this round's included.

        Raises:
            Refusal: ``round_replayed``, ``budget_exceeded``, ``budget_untrusted``, ``audit_untrusted``; see
                `Ledger.reserve`.
        """
        with self._in_step(now) as stamp:
            change, rounds = self.ledger.reserve(
                cohort=cohort, study=study, identities=identities, round_=round_, limits=limits, stamp=stamp
            )
            self._log(change, now)
            account = self.ledger.account(study)
        return rounds * (account.terms.spend.steps if account else 0)

    def commit(self, *, cohort: str, study: str, round_: int, sha256: str, size: int, now: str) -> None:
        """Note, in the ledger and in the log, that a debited round leaves; call it before it does.

        Raises:
            Refusal: ``round_replayed``, ``budget_untrusted``, ``audit_untrusted``; see `Ledger.commit`.
        """
        with self._in_step(now) as stamp:
            change = self.ledger.commit(
                cohort=cohort, study=study, round_=round_, sha256=sha256, size=size, stamp=stamp
            )
            self._log(change, now)

    def commit_again(self, *, cohort: str, study: str, round_: int, sha256: str, size: int, now: str) -> None:
        """Note that what a debited round came to leaves once more, byte for byte; call it before it does.

        Where nothing has left so far, because a crash came between, this is `commit`.

        Raises:
            Refusal: ``round_replayed`` if other bytes have left or the round was never debited, ``budget_exceeded`` if
                the account is not open, ``budget_untrusted``, ``audit_untrusted``.
        """
        with self._in_step(now) as stamp:
            left = self.ledger.left(study=study, round_=round_)
            if left == sha256:
                facts = {"study": study, "cohort": cohort, "sha256": sha256}
                self.audit.append("released again", at=now, round=round_, bytes=size, **facts)
            elif left:
                what = "other bytes have left for this round"
                raise Refusal(RefusalCode.ROUND_REPLAYED, what, fields={"round": round_})
            else:
                change = self.ledger.commit(
                    cohort=cohort, study=study, round_=round_, sha256=sha256, size=size, stamp=stamp
                )
                self._log(change, now)

    def close(self, *, study: str, person: str, now: str) -> bool:
        """End a study's account and log it; returns whether it was open. See `Ledger.close`."""
        with self._in_step(now) as stamp:
            change = self.ledger.close(study=study, person=person, stamp=stamp)
            if change is not None:
                self._log(change, now)
        return change is not None

    def check(self, now: str) -> None:
        """Return if ledger and log are in step, after a crash between the two was made good.

        Raises:
            Refusal: ``budget_untrusted`` or ``audit_untrusted``, with what is wrong and what to do.
        """
        with self._in_step(now):
            pass

    def doubts(self) -> list[str]:
        """Return why the budget is not to be trusted, change by change where that is known; nothing is written."""
        try:
            changes = []
            if (self._home / "ledger.sqlite").exists():
                self.ledger.check()
                changes = self.ledger.changes()
            doubt = self._doubt(self.audit.head(), changes[-1] if changes else None)
            lacking = [change for change, _ in _lacking(self._logged(), changes)]
        except (Refusal, LocalDataError) as error:
            return [error.message]
        found = [f"the ledger lacks {_described(change)}: an old copy was put back" for change in lacking]
        return found or ([doubt] if doubt else [])

    @contextmanager
    def _in_step(self, now: str) -> Iterator[Stamp]:
        with self._locked():
            head, last = self.audit.settle(now), self.ledger.last()
            self.ledger.check()
            if doubt := self._doubt(head, last):
                raise Refusal(RefusalCode.BUDGET_UNTRUSTED, doubt, remedy=_REMEDY)
            if last is not None and last.entry > head.ledger:
                self._log(last, now, detail="logged after a crash")
                head = self.audit.settle(now)
            yield Stamp(now, self.audit.position(head))

    def _doubt(self, head: Head, last: Change | None) -> str:
        """Return why ledger and log are not those that were kept together, empty if they are."""
        count = last.entry if last else 0
        if count < head.ledger:
            return f"the ledger has {count} changes, the log knows of {head.ledger}: an old ledger was put back"
        if count > head.ledger + 1:
            return f"the ledger has {count} changes, the log knows of {head.ledger}: an old log was put back"
        if last is not None and not self.audit.holds(last.position):
            number = last.position.number
            return f"entry {number} of the log is not the one that the ledger names: another log was put there"
        return ""

    def _log(self, change: Change, now: str, **more: Value) -> None:
        self.audit.append(change.event, at=now, **(self.ledger.log_fields(change) | more))

    def _logged(self) -> list[tuple[Change, Account | None]]:
        """Return the changes of the ledger that the log knows, with their accounts, oldest first."""
        entries = [entry for entry in self.audit.entries() if entry.event in _EVENTS and "entry" in entry.fields]
        accounts = {str(e.fields["study"]): _account_of(e) for e in reversed(entries) if e.event == GRANTED}
        return [(change := _change_of(entry), accounts.get(change.study)) for entry in entries]

    def _reconcile(self, person: str, now: str) -> Reconciled:
        with self._locked():
            if findings := self.audit.verify():
                remedy = "put back a good copy of audit.*; where there is none: fedward client audit restart"
                raise Refusal(RefusalCode.AUDIT_UNTRUSTED, findings[0].what, remedy=remedy)
            head, changes = self.audit.settle(now), self.ledger.changes()
            count = changes[-1].entry if changes else 0
            logged = self._logged()
            known = {change.identity() for change, _ in logged}
            lacking = [(change, self._terms(change, account)) for change, account in _lacking(logged, changes)]
            unlogged = [c for c in changes if c.identity() not in known and c.event != RECONCILED]
            if not lacking and not unlogged and not self.doubts():
                return Reconciled(0, 0, renewed=False)
            for change in unlogged:
                self._log(change, now, detail="the log lacked it")
            stamp = Stamp(now, self.audit.position(self.audit.settle(now)))
            made = self.ledger.reenter(lacking, above=max(count, head.ledger), person=person, stamp=stamp)
            self._log(made, now, detail=f"entered again: {len(lacking)}, logged again: {len(unlogged)}")
        return Reconciled(len(lacking), len(unlogged), renewed=True)

    def _terms(self, change: Change, account: Account | None) -> Account | None:
        """Return the account of a change that the ledger lacks: from the ledger, the log or the study itself."""
        if not change.study:
            return None
        found = self.ledger.account(change.study) or account
        return found or _account_in(self._home / "studies" / f"{change.study}.json")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            handle = os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            msg = f"{self._lock} cannot be opened ({type(error).__name__})"
            raise InstallationError(msg, remedy="look at the folder's owner and at free space") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def reconcile(home: Path, *, person: str, now: str) -> Reconciled:
    """Let ledger and log of a site be trusted again, after one of them was restored, deleted, damaged or lost its key.

    What the log knows and the ledger lacks is entered again, with the terms that the log names; where the ledger does
    not know the patients, it is charged to everybody. What the ledger knows and the log lacks is logged. A damaged
    ledger or a wrong key is kept beside the new one, never deleted. Nothing is done where the two are in step.

    Args:
        home: the site's folder.
        person: who decided it.
        now: time stamp, ISO 8601.

    Raises:
        Refusal: ``audit_untrusted``: the log is not whole, so it cannot say what was spent.
        LocalDataError: the terms of a study are neither in the log nor in ``studies``.
    """
    set_aside_if_damaged(home / "ledger.sqlite")
    return Budget(home)._reconcile(person, now)  # noqa: SLF001  (the same module)


def restart_log(home: Path, *, person: str, now: str) -> Path:
    """Put a log that is not whole aside and begin a new one, under a ledger that is; return where the old one is.

    Args:
        home: the site's folder.
        person: who decided it; the new log's first entry says so, and the SHA-256 of the old log.
        now: time stamp, ISO 8601.

    Raises:
        LocalDataError: the log is whole.
        Refusal: ``budget_untrusted``: the ledger lacks what the old log's signed head counts.
    """
    budget = Budget(home)
    with budget._locked():  # noqa: SLF001  (the same module)
        last = budget.ledger.last()
        count = last.entry if last else 0
        if not budget.audit.verify() and (last is None or budget.audit.holds(last.position)):
            msg = "the log is whole: nothing is put aside"
            raise LocalDataError(msg)
        budget.ledger.check()
        if budget.audit.counted() > count:
            msg = "neither the log nor the ledger is whole, so nobody knows what was spent"
            raise Refusal(
                RefusalCode.BUDGET_UNTRUSTED, msg, remedy="put back a good copy of ledger.sqlite or of audit.*"
            )
        kept = budget.audit.restart(now, person=person, ledger=count)
        stamp = Stamp(now, budget.audit.position(budget.audit.settle(now)))
        made = budget.ledger.reenter([], above=count, person=person, stamp=stamp)
        budget._log(made, now, detail="the log was restarted")  # noqa: SLF001  (the same module)
    return kept


def _lacking(logged: list[tuple[Change, Account | None]], changes: list[Change]) -> list[tuple[Change, Account | None]]:
    known = {change.identity() for change in changes} | {(RECONCILED, "", 0, 0)}
    return [(change, account) for change, account in logged if change.identity() not in known]


def _described(change: Change) -> str:
    what = {GRANTED: "the account", RESERVED: f"round {change.round}", RELEASED: f"the release of round {change.round}"}
    return f"{what.get(change.event, 'the close of the account')} of {change.study[:12]}"


def _change_of(entry: Entry) -> Change:
    def text(name: str) -> str:
        return str(entry.fields.get(name, ""))

    def count(name: str) -> int:
        return int(entry.fields.get(name, 0))

    facts = (entry.event, text("study"), count("round"), text("cohort"), count("snapshot"))
    nowhere = Position(0, 0, GENESIS)
    return Change(count("entry"), *facts, text("sha256"), count("bytes"), text("person"), entry.at, nowhere)


def _account_of(entry: Entry) -> Account:
    fields = entry.fields
    spend = Spend(float(fields["noise"]), float(fields["rate"]), int(fields["steps"]))
    terms = Terms(int(fields["rounds"]), spend, float(fields["delta"]))
    return Account(str(fields["study"]), terms, float(fields["epsilon"]))


def _account_in(path: Path) -> Account:
    try:
        study = read_study_file(path).study
        spend = round_spend(study)
    except StudyError as error:
        msg = f"the terms of study {path.stem[:12]} are neither in the log nor in {path.parent}"
        raise LocalDataError(msg, remedy="put the study's file there and try again") from error
    if spend is None or not isinstance(study.privacy, DpSgd):
        msg = f"study {path.stem[:12]} has no privacy section, and yet it was debited"
        raise LocalDataError(msg, remedy="restore the studies folder")
    terms = Terms(study.training.rounds, spend, study.privacy.delta)
    return Account(study.digest, terms, composed([terms.times(terms.rounds)], terms.delta))
