"""``ledger.sqlite`` and ``ledger.key``: how the ledger is kept. Rows are only ever added; the file refuses all else.

SQLite in WAL mode with full synchronisation: a change whose transaction has ended survives a crash of the process and
a loss of power (SQLite documentation, "PRAGMA synchronous"). Patients are in it as tags and bitmaps
(`fedward_client.patient_sets`); the key that makes tags is in a file of its own, so that the ledger alone names nobody.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_client.books import CLOSED, GRANTED, RESERVED, Account, Books, Change, Terms
from fedward_client.patient_sets import KEY_BYTES, Identities, Numbers, Tags, distinct, mark, numbered, pack, tags
from fedward_common.audit_chain import Position
from fedward_common.errors import InstallationError, Refusal, RefusalCode
from fedward_common.files import sync_folder
from fedward_common.privacy import Spend
from fedward_common.sqlite_file import log_ahead, transaction

__all__ = ["LedgerFile", "set_aside_if_damaged"]

_BUSY_S: Final = 30.0
_VERSION: Final = 2
_TABLES: Final = {
    "keys": "generation INTEGER PRIMARY KEY, proof BLOB NOT NULL",
    "patients": "generation INTEGER NOT NULL, first INTEGER NOT NULL, tags BLOB NOT NULL, "
    "PRIMARY KEY (generation, first)",
    "snapshots": "id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, mark BLOB, patients INTEGER NOT NULL, "
    "members BLOB",
    "accounts": "study TEXT PRIMARY KEY, rounds INTEGER NOT NULL, noise_multiplier REAL NOT NULL, "
    "sampling_rate REAL NOT NULL, steps INTEGER NOT NULL, delta REAL NOT NULL, epsilon REAL NOT NULL",
    "journal": "entry INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL, study TEXT NOT NULL, "
    "round INTEGER NOT NULL, cohort TEXT NOT NULL, snapshot INTEGER NOT NULL, sha256 TEXT NOT NULL, "
    "bytes INTEGER NOT NULL, person TEXT NOT NULL, at TEXT NOT NULL, "
    "log_number INTEGER NOT NULL, log_offset INTEGER NOT NULL, log_hash TEXT NOT NULL",
}
_INDEXES: Final = """
CREATE UNIQUE INDEX one_mark ON snapshots (generation, mark);
CREATE UNIQUE INDEX one_debit ON journal (study, round) WHERE event = 'reserved';
CREATE UNIQUE INDEX one_release ON journal (study, round) WHERE event = 'released';
CREATE INDEX by_set ON journal (event, study, snapshot);
"""
_COLUMNS: Final = "event, study, round, cohort, snapshot, sha256, bytes, person, at, log_number, log_offset, log_hash"


class LedgerFile:
    """The file of one ledger, mode 0600.

    Args:
        path: the SQLite file; made when it is not there. ``ledger.key`` is made beside it on first use.

    Raises:
        InstallationError: it cannot be opened, or another version of Fedward made it.
        Refusal: ``budget_untrusted``: it is no SQLite file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key_path = path.with_name("ledger.key")
        with self._connected() as database:
            if _version(database) == _VERSION:
                return
        with self.writing(prepare=False) as database:
            tables = database.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]
            if not tables:
                self._make(database)
            elif _version(database) != _VERSION:
                msg = f"{path} was made by another version of Fedward"
                raise InstallationError(msg, remedy="install that version; a ledger is never thrown away")

    @staticmethod
    def _make(database: sqlite3.Connection) -> None:
        for name, columns in _TABLES.items():
            database.execute(f"CREATE TABLE {name} ({columns}) STRICT")
            for event in ("UPDATE", "DELETE"):
                database.execute(
                    f"CREATE TRIGGER {name}_{event} BEFORE {event} ON {name} "
                    "BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END"
                )
        for index in _INDEXES.strip().split("\n"):
            database.execute(index)
        database.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Open the file, as it is at one instant."""
        with self._connected() as database:
            database.execute("BEGIN")
            yield database
            database.execute("ROLLBACK")

    @contextmanager
    def writing(self, *, prepare: bool = True) -> Iterator[sqlite3.Connection]:
        """Open the file for one change: on the disk whole when this ends, not at all if it raises.

        Args:
            prepare: see to it that there is a key.
        """
        with self._connected() as database, transaction(database):
            if prepare:
                self._first_key(database)
            yield database

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as database:
                yield database
        except (OSError, sqlite3.OperationalError) as error:
            raise _unusable(self.path, error) from error
        except sqlite3.DatabaseError as error:
            what = f"{self.path.name} is damaged ({error})"
            raise _untrusted(what) from error

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        database = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        log_ahead(database, _BUSY_S)
        database.execute("PRAGMA synchronous = FULL")
        return database

    def _first_key(self, database: sqlite3.Connection) -> None:
        if not database.execute("SELECT 1 FROM keys").fetchone():
            if not self.key_path.exists() or self.key_path.stat().st_size != KEY_BYTES:
                self._make_key()
            self._add_generation(database)

    def _make_key(self) -> None:
        handle = os.open(self.key_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.key_path.parent)

    def _add_generation(self, database: sqlite3.Connection) -> None:
        proof = _proof(self.key_path.read_bytes())
        generation = _generation(database)[0] + 1
        database.execute("INSERT INTO keys VALUES (?, ?)", (generation, proof))

    def renew_key(self, database: sqlite3.Connection) -> bool:
        """Begin a new generation if the key is lost; whoever the old one tagged is everybody from now on.

        Returns:
            whether the key was lost.
        """
        generation, proof = _generation(database)
        if generation == 0 or (self.key_path.exists() and _proof(self.key_path.read_bytes()) == proof):
            return False
        if self.key_path.exists():
            self.key_path.replace(self.key_path.with_name(f"ledger.key.kept-{generation}"))
        self._make_key()
        self._add_generation(database)
        return True

    def key(self, database: sqlite3.Connection) -> bytes:
        """Return the key that makes tags.

        Raises:
            Refusal: ``budget_untrusted``: it is missing, or another ledger's.
        """
        try:
            found = self.key_path.read_bytes()
        except OSError:
            found = b""
        if _proof(found) != _generation(database)[1]:
            what = f"{self.key_path.name} is missing or another ledger's"
            raise _untrusted(what)
        return found

    def snapshot(self, database: sqlite3.Connection, identities: Identities) -> int:
        """Return the number of this set of patients; it is kept if it is new.

        Raises:
            Refusal: as `key`.
        """
        key, people = self.key(database), distinct(identities)
        generation, name = _generation(database)[0], mark(people, key)
        query = "SELECT id FROM snapshots WHERE generation = ? AND mark = ?"
        found = database.execute(query, (generation, name)).fetchone()
        if found:
            return int(found[0])
        known = _known(database, generation)
        numbers, new = numbered(tags(people, key), known)
        if len(new):
            content = new.astype("<u8").tobytes()
            database.execute("INSERT INTO patients VALUES (?, ?, ?)", (generation, len(known), content))
        return _add_snapshot(database, generation, name, numbers)

    def everybody(self, database: sqlite3.Connection, number: int) -> None:
        """Keep a set that is known by its number only: it is everybody."""
        if not database.execute("SELECT 1 FROM snapshots WHERE id = ?", (number,)).fetchone():
            database.execute("INSERT INTO snapshots VALUES (?, 0, NULL, 0, NULL)", (number,))

    def books(self, database: sqlite3.Connection) -> Books:
        """Return all accounts and all sets of patients."""
        generation = _generation(database)[0]
        snapshots = {
            int(number): bitmap if of == generation else None
            for number, of, bitmap in database.execute("SELECT id, generation, members FROM snapshots ORDER BY id")
        }
        query = "SELECT event, study, snapshot, COUNT(*) FROM journal WHERE snapshot > 0 GROUP BY 1, 2, 3"
        rows = database.execute(query).fetchall()
        attached = frozenset((study, snapshot) for event, study, snapshot, _ in rows if event in {GRANTED, RESERVED})
        reserved = {(study, snapshot): count for event, study, snapshot, count in rows if event == RESERVED}
        return Books(self.accounts(database), snapshots, attached, reserved, len(_known(database, generation)))

    @staticmethod
    def accounts(database: sqlite3.Connection) -> tuple[Account, ...]:
        """Return all accounts, in the order in which they were opened."""
        closed = {study for (study,) in database.execute("SELECT study FROM journal WHERE event = ?", (CLOSED,))}
        query = """
            SELECT study, rounds, delta, epsilon, noise_multiplier, sampling_rate, steps FROM accounts ORDER BY rowid
        """
        return tuple(
            Account(study, Terms(rounds, Spend(*spend), delta), epsilon, study in closed)
            for study, rounds, delta, epsilon, *spend in database.execute(query)
        )

    @staticmethod
    def add_account(database: sqlite3.Connection, account: Account) -> None:
        """Keep the terms of a study's account."""
        terms = account.terms
        spend = (terms.spend.noise_multiplier, terms.spend.sampling_rate, terms.spend.steps)
        row = (account.study, terms.rounds, *spend, terms.delta, account.epsilon)
        database.execute("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    @staticmethod
    def add(database: sqlite3.Connection, change: Change) -> Change:
        """Write one line of the journal and return it with its number."""
        where = change.position
        row = (
            change.event, change.study, change.round, change.cohort, change.snapshot, change.sha256, change.size,
            change.person, change.at, where.number, where.offset, where.hash,
        )  # fmt: skip
        marks = ", ".join("?" * len(row))
        query = f"INSERT INTO journal ({_COLUMNS}) VALUES ({marks})"  # noqa: S608  (columns and question marks)
        entry = database.execute(query, row).lastrowid
        return _change((entry, *row))

    @staticmethod
    def changes(database: sqlite3.Connection, after: int = 0) -> list[Change]:
        """Return the journal's lines whose number is above `after`, in order."""
        query = f"SELECT entry, {_COLUMNS} FROM journal WHERE entry > ? ORDER BY entry"  # noqa: S608  (names of columns)
        return [_change(row) for row in database.execute(query, (after,)).fetchall()]

    @staticmethod
    def count_from(database: sqlite3.Connection, entry: int) -> None:
        """Let the next line's number be above `entry`."""
        query = "UPDATE sqlite_sequence SET seq = MAX(seq, ?) WHERE name = 'journal'"
        if database.execute(query, (entry,)).rowcount == 0:
            database.execute("INSERT INTO sqlite_sequence VALUES ('journal', ?)", (entry,))


def set_aside_if_damaged(path: Path) -> Path | None:
    """Rename a ledger that SQLite cannot read whole, and return its new name; None where it is whole or not there."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path, timeout=30)) as database:
            whole = database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from error
    except sqlite3.DatabaseError:
        whole = False
    if whole:
        return None
    number = sum(1 for _ in path.parent.glob(f"{path.name}.kept-*")) + 1
    for tail in ("-wal", "-shm", ""):
        part = path.with_name(path.name + tail)
        if part.exists():
            part.replace(path.with_name(f"{path.name}.kept-{number}{tail}"))
    sync_folder(path.parent)
    return path.with_name(f"{path.name}.kept-{number}")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _change(row: tuple[Any, ...]) -> Change:
    entry, event, study, round_, cohort, snapshot, sha256, size, person, at, *where = row
    return Change(entry, event, study, round_, cohort, snapshot, sha256, size, person, at, Position(*where))


def _proof(key: bytes) -> bytes:
    return hmac.digest(key, b"proof", "sha256")


def _generation(database: sqlite3.Connection) -> tuple[int, bytes]:
    found = database.execute("SELECT generation, proof FROM keys ORDER BY generation DESC LIMIT 1").fetchone()
    return found or (0, b"")


def _known(database: sqlite3.Connection, generation: int) -> Tags:
    query = "SELECT tags FROM patients WHERE generation = ? ORDER BY first"
    parts = [row[0] for row in database.execute(query, (generation,))]
    return np.frombuffer(b"".join(parts), dtype="<u8").astype(np.uint64)


def _add_snapshot(database: sqlite3.Connection, generation: int, name: bytes, numbers: Numbers) -> int:
    query = "INSERT INTO snapshots (generation, mark, patients, members) VALUES (?, ?, ?, ?)"
    return int(database.execute(query, (generation, name, len(numbers), pack(numbers))).lastrowid or 0)


def _unusable(path: Path, error: Exception) -> InstallationError:
    reason = error.strerror if isinstance(error, OSError) else error
    return InstallationError(
        f"{path} cannot be used ({reason})", remedy="look at free space and at the owner of file and folder; then go on"
    )


def _untrusted(message: str) -> Refusal:
    return Refusal(
        RefusalCode.BUDGET_UNTRUSTED,
        message,
        remedy="restore ledger.sqlite and ledger.key as they last were, or: fedward client ledger reconcile",
    )
