"""What a cohort has spent: written and synced to disk before a noised step is taken, never given back.

SQLite in WAL mode with full synchronisation: a reservation that `Ledger.reserve` has returned survives a
crash of the process and a loss of power (SQLite documentation, "PRAGMA synchronous").
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedward_common.errors import Refusal, RefusalCode
from fedward_common.privacy import Spend, epsilon_of

__all__ = ["Entry", "Ledger"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS grants (
    cohort TEXT NOT NULL, study TEXT NOT NULL, rounds INTEGER NOT NULL,
    noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL, delta REAL NOT NULL,
    epsilon REAL NOT NULL, lifetime_epsilon REAL NOT NULL, granted_at TEXT NOT NULL,
    PRIMARY KEY (cohort, study)
) STRICT;
CREATE TABLE IF NOT EXISTS reservations (
    cohort TEXT NOT NULL, study TEXT NOT NULL, round INTEGER NOT NULL,
    noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL,
    reserved_at TEXT NOT NULL,
    PRIMARY KEY (cohort, study, round)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One study's account on one cohort."""

    study: str
    rounds: int
    steps: int
    epsilon: float
    delta: float


class Ledger:
    """The privacy account of a site's cohorts, one file.

    Args:
        path: the SQLite file; made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as database:
            database.executescript(_SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            yield database

    def grant(  # noqa: PLR0913  (an account entry has that many facts)
        self, *, cohort: str, study: str, rounds: int, spend: Spend, delta: float,
        max_epsilon: float, max_lifetime: float, lifetime_delta: float, now: str,
    ) -> None:  # fmt: skip
        """Open the study's account, if all its rounds fit the budget; the same study again changes nothing.

        Args:
            cohort: the cohort's identity.
            study: the study's digest.
            rounds: planned rounds.
            spend: cost of one round.
            delta: the study's δ.
            max_epsilon: the policy's limit for one study.
            max_lifetime: the policy's limit for all studies on this cohort together.
            lifetime_delta: δ at which the lifetime is accounted.
            now: time stamp, ISO 8601.

        Raises:
            Refusal: ``budget_exceeded``; nothing was written.
        """
        with self._transaction() as database:
            if database.execute("SELECT 1 FROM grants WHERE cohort = ? AND study = ?", (cohort, study)).fetchone():
                return
            whole = Spend(spend.noise_multiplier, spend.sampling_rate, spend.steps * rounds)
            epsilon = epsilon_of([whole], delta)
            lifetime = epsilon_of([*_planned(database, cohort), whole], lifetime_delta)
            if epsilon > max_epsilon or lifetime > max_lifetime:
                limit = max_epsilon if epsilon > max_epsilon else max_lifetime
                raise Refusal(
                    RefusalCode.BUDGET_EXCEEDED, "the study would pass the cohort's budget", fields={"limit": limit}
                )
            database.execute(
                "INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    cohort,
                    study,
                    rounds,
                    spend.noise_multiplier,
                    spend.sampling_rate,
                    spend.steps,
                    delta,
                    epsilon,
                    lifetime,
                    now,
                ),
            )

    def reserve(self, *, cohort: str, study: str, round_: int, now: str) -> int:
        """Debit one round, durably, and return the noised steps that the study has spent, this round included.

        Args:
            cohort: the cohort's identity.
            study: the study's digest.
            round_: 1-based.
            now: time stamp, ISO 8601.

        Raises:
            Refusal: ``round_replayed`` if this round was debited before, ``budget_exceeded`` if the account is
                not open or all its rounds are spent.
        """
        with self._transaction() as database:
            key = (cohort, study)
            granted = database.execute(
                "SELECT rounds, noise_multiplier, sampling_rate, steps FROM grants WHERE cohort = ? AND study = ?", key
            ).fetchone()
            rounds = [
                number
                for (number,) in database.execute("SELECT round FROM reservations WHERE cohort = ? AND study = ?", key)
            ]
            if round_ in rounds:
                raise Refusal(RefusalCode.ROUND_REPLAYED, "this round was debited before", fields={"round": round_})
            if granted is None or len(rounds) >= granted[0]:
                raise Refusal(
                    RefusalCode.BUDGET_EXCEEDED, "no round is left in the study's account", fields={"round": round_}
                )
            database.execute(
                "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?)", (cohort, study, round_, *granted[1:], now)
            )
            return int(granted[3]) * (len(rounds) + 1)

    def entries(self, cohort: str) -> list[Entry]:
        """Return what each study has spent on `cohort`, in the order in which the accounts were opened."""
        query = """
            SELECT g.study, COUNT(r.round), COALESCE(SUM(r.steps), 0), g.noise_multiplier, g.sampling_rate, g.delta
            FROM grants g LEFT JOIN reservations r ON r.cohort = g.cohort AND r.study = g.study
            WHERE g.cohort = ? GROUP BY g.study ORDER BY g.granted_at, g.rowid
        """
        with self._open() as database:
            rows = database.execute(query, (cohort,)).fetchall()
        return [
            Entry(study, rounds, steps, epsilon_of([Spend(sigma, rate, steps)], delta) if steps else 0.0, delta)
            for study, rounds, steps, sigma, rate, delta in rows
        ]

    def reservations(self) -> list[tuple[str, int]]:
        """Return (study, round) of every reservation."""
        with self._open() as database:
            return [(str(s), int(r)) for s, r in database.execute("SELECT study, round FROM reservations").fetchall()]

    def spends(self, cohort: str) -> list[Spend]:
        """Return what all granted studies may cost `cohort`, every planned round counted."""
        with self._open() as database:
            return _planned(database, cohort)

    def spent(self, cohort: str, delta: float) -> float:
        """Return ε, at `delta`, of every reservation that was ever made on `cohort`."""
        query = "SELECT noise_multiplier, sampling_rate, steps FROM reservations WHERE cohort = ?"
        with self._open() as database:
            return epsilon_of((Spend(*row) for row in database.execute(query, (cohort,)).fetchall()), delta)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


def _planned(database: sqlite3.Connection, cohort: str) -> list[Spend]:
    query = "SELECT noise_multiplier, sampling_rate, rounds * steps FROM grants WHERE cohort = ?"
    return [Spend(*row) for row in database.execute(query, (cohort,)).fetchall()]
