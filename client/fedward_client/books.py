"""What a ledger's rows come to: who is charged for what; rules without I/O.

An account belongs to a study; it is charged to every patient who stood in one of the sets (snapshots) that the study
was granted or trained on. Two studies charge each other only where they share patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_client.patient_sets import Numbers, groups, members
from fedward_common.audit_chain import Position
from fedward_common.audit_words import Value
from fedward_common.privacy import Mechanism, Spend
from fedward_common.privacy_groups import worst_epsilon

__all__ = ["CLOSED", "GRANTED", "RECONCILED", "RELEASED", "RESERVED", "Account", "Books", "Change", "Limits", "Terms"]

GRANTED: Final = "granted"
RESERVED: Final = "reserved"
RELEASED: Final = "released"
CLOSED: Final = "closed"
RECONCILED: Final = "reconciled"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a study asks for: so many `rounds` at `spend` each, promised at `delta`."""

    rounds: int
    spend: Spend
    delta: float

    def times(self, rounds: int) -> Spend:
        """Return what `rounds` of its rounds cost."""
        return Spend(self.spend.noise_multiplier, self.spend.sampling_rate, self.spend.steps * rounds)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a policy allows: ε of one study at its own δ, ε of a patient's lifetime at `delta`."""

    epsilon: float
    lifetime: float
    delta: float


@dataclass(frozen=True, slots=True)
class Account:
    """One study's account. `epsilon` is that of all its rounds at its δ; a closed account has no further round."""

    study: str
    terms: Terms
    epsilon: float
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the ledger's journal; `entry` counts them and never goes back, whatever the clock does.

    Attributes:
        entry: 1-based.
        event: one of the five constants of this module.
        study: its digest; empty for ``reconciled``.
        round: 1-based; 0 where no round is meant.
        cohort: the name that the cohort had in the register.
        snapshot: the set of patients; 0 where none is meant.
        sha256: of what left, for ``released``.
        size: of what left, in bytes.
        person: who decided it, where a person did.
        at: time stamp; for people to read, nothing is decided on it.
        position: the entry with which the log of decisions ended when this was written.
    """

    entry: int
    event: str
    study: str
    round: int
    cohort: str
    snapshot: int
    sha256: str
    size: int
    person: str
    at: str
    position: Position

    def identity(self) -> tuple[str, str, int, int]:
        """Return what makes this change another than all others, without its number."""
        return (self.event, self.study, self.round, self.snapshot if self.event == GRANTED else 0)

    def fields(self, account: Account | None, rounds: int) -> dict[str, Value]:
        """Return the fields of the log's entry about this change.

        Args:
            account: of the study.
            rounds: that the study has reserved up to here.
        """
        found: dict[str, Value] = {"entry": self.entry}
        texts = {"study": self.study, "cohort": self.cohort, "sha256": self.sha256, "person": self.person}
        counts = {"round": self.round, "snapshot": self.snapshot, "bytes": self.size}
        found |= {name: text for name, text in texts.items() if text}
        found |= {name: count for name, count in counts.items() if count}
        if account is None:
            return found
        spend = account.terms.spend
        if self.event == GRANTED:
            found |= {"rounds": account.terms.rounds, "steps": spend.steps, "noise": spend.noise_multiplier}
            found |= {"rate": spend.sampling_rate, "delta": account.terms.delta, "epsilon": account.epsilon}
        elif self.event == RESERVED:
            found |= {"steps": spend.steps * rounds, "epsilon": account.epsilon}
        return found


@dataclass(frozen=True, slots=True)
class Books:
    """All accounts and all sets of patients of a site.

    Attributes:
        accounts: in the order in which they were opened.
        snapshots: bitmap of each set by its number (`fedward_client.patient_sets`), None for everybody.
        attached: (study, snapshot) that the study was granted or trained on.
        reserved: rounds debited, by (study, snapshot).
        known: number of patients ever seen.
    """

    accounts: tuple[Account, ...]
    snapshots: Mapping[int, bytes | None]
    attached: frozenset[tuple[str, int]]
    reserved: Mapping[tuple[str, int], int]
    known: int

    def numbers(self, snapshot: int) -> Numbers:
        """Return the patients of a set; of everybody, those ever seen and one more."""
        bitmap = self.snapshots[snapshot]
        return np.arange(self.known + 1) if bitmap is None else members(bitmap)

    def account(self, study: str) -> Account | None:
        """Return the account of `study`, None if there is none."""
        return next((account for account in self.accounts if account.study == study), None)

    def rounds(self, numbers: Numbers, *, planned: bool, joining: str = "") -> Numbers:
        """Return how many rounds of each account each group of patients is charged for.

        Args:
            numbers: the patients.
            planned: count every round of an open account, not only those debited.
            joining: a study whose account they all take part in from now on.

        Returns:
            int64, shape (groups, accounts); each combination of sets that occurs among the patients is a group.
        """
        inside = groups(numbers, list(self.snapshots.values())).astype(np.float64)  # exact, and ten times as fast
        studies = [account.study for account in self.accounts]
        spent = (inside @ self._matrix(self.reserved, studies)).astype(np.int64)
        if not planned:
            return spent
        member = inside @ self._matrix(dict.fromkeys(self.attached, 1), studies) > 0
        member |= np.array([study == joining for study in studies], dtype=bool)
        whole = np.array([account.terms.rounds for account in self.accounts], dtype=np.int64)
        opened = np.array([not account.closed for account in self.accounts], dtype=bool)
        return np.where(member & opened, np.maximum(whole, spent), spent)

    def worst(self, rounds: Numbers, delta: float, *, enough: float = 0.0) -> tuple[float, tuple[Spend, ...]]:
        """Return the ε of the patients who are worst off, and what they stood in.

        Args:
            rounds: as `rounds` returns them.
            delta: of the answer.
            enough: a limit below which any bound will do (`fedward_common.privacy_groups.worst_epsilon`).
        """
        kinds: dict[Mechanism, int] = {}
        columns = [kinds.setdefault(_mechanism(account.terms), len(kinds)) for account in self.accounts]
        counts = np.zeros((len(rounds), len(kinds)), dtype=np.int64)
        for place, (column, account) in enumerate(zip(columns, self.accounts, strict=True)):
            counts[:, column] += rounds[:, place] * account.terms.spend.steps
        epsilon, row = worst_epsilon(counts, list(kinds), delta, enough=enough)
        if not len(counts):
            return 0.0, ()
        found = zip(kinds, counts[row].tolist(), strict=True)
        return epsilon, tuple(Spend(sigma, rate, steps) for (sigma, rate), steps in found if steps)

    def _matrix(self, values: Mapping[tuple[str, int], int], studies: Sequence[str]) -> npt.NDArray[np.float64]:
        found = np.zeros((len(self.snapshots), len(studies)))
        row = {snapshot: place for place, snapshot in enumerate(self.snapshots)}
        column = {study: place for place, study in enumerate(studies)}
        for (study, snapshot), value in values.items():
            found[row[snapshot], column[study]] = value
        return found


def _mechanism(terms: Terms) -> Mechanism:
    return terms.spend.noise_multiplier, terms.spend.sampling_rate
