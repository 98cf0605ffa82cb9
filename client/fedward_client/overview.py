"""What a site's folder says now, read for display and changed by nothing here: studies, budgets, rounds, decisions.

Nothing of a patient is in it: names, digests, counts of rounds and bytes, ε, and who decided what. A part that cannot
be read becomes a `Problem`, and the others are still shown. No cohort is opened: that is the training child's.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from fedward_client.approvals import Approvals, Proposal
from fedward_client.budget import Budget
from fedward_client.config import SiteConfig, load_site
from fedward_client.decisions import Rule, Standing, standing
from fedward_client.enrolment import Expiry, expiries
from fedward_client.ledger import Ledger
from fedward_common.audit import AuditLog, Entry
from fedward_common.errors import FedwardError, LocalDataError
from fedward_common.study import DpSgd

__all__ = ["Account", "CohortBudget", "Overseer", "Overview", "Problem", "Round", "StudyLine"]

_ROUNDS_SHOWN: Final = 10
_DECISIONS_SHOWN: Final = 25
_VERIFY_S: Final = 600.0

T = TypeVar("T")
Signature = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the site's folder that is wrong, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class StudyLine:
    """A study that was proposed.

    Attributes:
        name: as its author calls it.
        digest: its SHA-256.
        standing: what the decisions on it come to; whether its cohort has changed since is not looked at here.
        epsilon: what it may spend on each patient; None for a study without privacy.
        delta: at this δ.
        rounds: rounds whose update left.
        planned: rounds that it has.
        stuck: whether it was refused as not approved after it was approved: its cohort has changed.
    """

    name: str
    digest: str
    standing: Standing
    epsilon: float | None
    delta: float | None
    rounds: int
    planned: int
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """What one study has spent on a cohort: ε at the study's δ, in so many rounds."""

    digest: str
    rounds: int
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class CohortBudget:
    """A cohort's privacy budget for life.

    Attributes:
        cohort: its name.
        spent: ε of every round that was ever debited.
        promised: ε if every round of every granted study is asked for as well, at least `spent`.
        limit: ε that the policy allows.
        delta: δ of the three.
        accounts: by study, in the order in which they were opened.
    """

    cohort: str
    spent: float
    promised: float
    limit: float
    delta: float
    accounts: tuple[Account, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """An update that left: when, for which study and round, how many bytes, with which SHA-256."""

    at: str
    digest: str
    number: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it; `decisions` and `rounds` hold the last ones, the newest first.

    `verified_s` is how many seconds ago log and ledger were last held against each other and their signatures.
    """

    site: str
    studies: tuple[StudyLine, ...] = ()
    budgets: tuple[CohortBudget, ...] = ()
    rounds: tuple[Round, ...] = ()
    decisions: tuple[Entry, ...] = ()
    entries: int = 0
    expiries: tuple[Expiry, ...] = ()
    problems: tuple[Problem, ...] = ()
    verified_s: float = 0.0


@dataclass(slots=True)
class _Tally:
    """What is taken from the log of decisions, which only grows: it is read on from where it was left."""

    number: int = 0
    hash: str = ""
    decisions: deque[Entry] = field(default_factory=lambda: deque(maxlen=_DECISIONS_SHOWN))
    rounds: deque[Round] = field(default_factory=lambda: deque(maxlen=_ROUNDS_SHOWN))
    released: Counter[str] = field(default_factory=Counter)
    last: dict[str, Entry] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        """Read one entry more."""
        self.number, self.hash = entry.number, entry.hash
        self.decisions.appendleft(entry)
        study = str(entry.fields.get("study", ""))
        self.last[study] = entry
        if entry.event == "released":
            self.released[study] += 1
            self.rounds.appendleft(_round(entry))


class Overseer:
    """Reads one site's folder, and reads again only what has changed since.

    Whether log and ledger are whole takes reading all of both: it is found out anew after ten minutes.

    Args:
        home: the site's folder.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._clock = clock
        self._kept: dict[str, tuple[Signature, Any]] = {}
        self._tally = _Tally()
        self._verified = clock()
        self._lock = threading.Lock()

    def look(self) -> Overview:
        """Return what the folder says now; never raises for what is wrong in it."""
        with self._lock:
            return self._look()

    def policy(self) -> tuple[str, str]:
        """Return what is wrong with ``site.yaml`` as it is now, by which the next message is judged, and the remedy.

        Both are empty when nothing is.
        """
        problems: list[Problem] = []
        with self._lock:
            self._config(problems)
        return (problems[0].what, problems[0].remedy) if problems else ("", "")

    def _config(self, problems: list[Problem]) -> SiteConfig | None:
        return self._part("policy", ("site.yaml",), lambda: load_site(self._home), problems)

    def _look(self) -> Overview:
        problems: list[Problem] = []
        self._part("log of decisions", ("audit.jsonl", "audit.head", "audit.key"), self._read_on, problems)
        problems += self._part("integrity", (), self._integrity, problems, within_s=_VERIFY_S) or []
        config = self._config(problems)
        proposals = self._part("studies", ("approvals.json", "studies"), self._proposals, problems)
        files = ("site.yaml", "ledger.sqlite", "ledger.sqlite-wal")
        budgets = self._part("ledger", files, lambda: self._budgets(config), problems)
        found = self._part("certificates", ("ca.pem", "server.pem", "enrolment.json"), self._expiries, problems)
        return Overview(
            site=config.site if config else self._home.name,
            studies=self._studies(proposals or [], config),
            budgets=budgets or (),
            rounds=tuple(self._tally.rounds),
            decisions=tuple(self._tally.decisions),
            entries=self._tally.number,
            expiries=found or (),
            problems=tuple(problems),
            verified_s=self._clock() - self._verified,
        )

    def _part(
        self,
        name: str,
        files: tuple[str, ...],
        read: Callable[[], T],
        problems: list[Problem],
        *,
        within_s: float | None = None,
    ) -> T | None:
        """Return what `read` gives, or gave while `files` were what they are and `within_s` seconds had not passed."""
        kept = self._kept.get(name)
        signature: Signature = tuple(_signature(self._home / file) for file in files)
        if within_s is not None:
            fresh = kept is not None and self._clock() - self._verified < within_s
            signature = kept[0] if kept is not None and fresh else (self._clock(),)
        if kept is not None and kept[0] == signature:
            return cast("T", kept[1])
        try:
            value = read()
        except FedwardError as error:
            problems.append(Problem(f"{name}: {error.message}", error.remedy or "fedward client doctor"))
        except (OSError, sqlite3.Error, ValueError) as error:
            problems.append(Problem(f"{name} cannot be read ({type(error).__name__})", "fedward client doctor"))
        else:
            self._kept[name] = (signature, value)
            return value
        return None

    def _read_on(self) -> None:
        log = AuditLog(self._home)
        if not log.path.exists():
            self._tally = _Tally()
            return
        self._require_key()
        seen = self._tally.number
        new = log.last(log.head().number - seen + 1) if 0 < seen <= log.head().number else []
        if new and new[0].hash == self._tally.hash:
            entries: Iterable[Entry] = new[1:]
        else:
            self._tally, entries = _Tally(), log.entries()  # the first look, or another log
        for entry in entries:
            self._tally.take(entry)

    def _require_key(self) -> None:
        """Return if the key of the log is there; whoever reads a log without one would make another."""
        if not (self._home / "audit.key").exists():
            msg = "audit.key is missing, so nobody can tell whether the log is whole"
            raise LocalDataError(msg, remedy="restore it from a backup; fedward client audit verify says the rest")

    def _integrity(self) -> list[Problem]:
        self._verified = self._clock()
        budget = Budget(self._home)
        if not budget.audit.path.exists():
            return []
        self._require_key()
        remedy = "keep a copy of the folder as evidence, then: fedward client audit verify"
        if findings := budget.audit.verify():
            where = f"entry {findings[0].number}, " if findings[0].number else ""
            return [Problem(f"the log of decisions is not whole: {where}{findings[0].what}", remedy)]
        return [Problem(f"the ledger is not to be trusted: {doubt}", remedy) for doubt in budget.doubts()[:1]]

    def _proposals(self) -> list[Proposal]:
        return Approvals(self._home).proposals()

    def _studies(self, proposals: list[Proposal], config: SiteConfig | None) -> tuple[StudyLine, ...]:
        rule = Rule(config.policy.approvals_needed, config.policy.approval_days) if config else Rule(1, 1)
        now = datetime.now(UTC)
        return tuple(self._study(proposal, standing(proposal.decisions, rule, now)) for proposal in proposals)

    def _study(self, proposal: Proposal, found: Standing) -> StudyLine:
        study, last = proposal.study, self._tally.last.get(proposal.study.digest)
        private = study.privacy if isinstance(study.privacy, DpSgd) else None
        refused = last is not None and last.event == "refused" and last.fields.get("code") == "awaiting_approval"
        return StudyLine(
            name=study.name,
            digest=study.digest,
            standing=found,
            epsilon=private.epsilon if private else None,
            delta=private.delta if private else None,
            rounds=self._tally.released.get(study.digest, 0),
            planned=study.training.rounds,
            stuck=found.state == "approved" and refused,
        )

    def _budgets(self, config: SiteConfig | None) -> tuple[CohortBudget, ...]:
        if config is None:
            return ()
        path = self._home / "ledger.sqlite"
        limit, delta = config.policy.max_epsilon_lifetime, config.policy.max_delta
        if not path.exists():
            return tuple(CohortBudget(name, 0.0, 0.0, limit, delta, ()) for name in config.cohorts)
        ledger = Ledger(path)
        budgets = []
        for name in config.cohorts:
            accounts = tuple(Account(e.study, e.rounds, e.epsilon, e.delta) for e in ledger.entries(name))
            spent, promised = ledger.spent(name, delta), ledger.planned(name, delta)
            budgets.append(CohortBudget(name, spent, max(spent, promised), limit, delta, accounts))
        return tuple(budgets)

    def _expiries(self) -> tuple[Expiry, ...]:
        return tuple(expiries(self._home))


def _round(entry: Entry) -> Round:
    fields = entry.fields
    return Round(entry.at, str(fields["study"]), int(fields["round"]), int(fields["bytes"]), str(fields["sha256"]))


def _signature(path: Path) -> tuple[int, int, int]:
    """Return what changes with a file's content: its number, size and time of change; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)
