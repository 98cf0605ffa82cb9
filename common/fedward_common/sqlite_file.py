"""SQLite files that several processes share: every change is on the disk when it is done, whole or not at all."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

__all__ = ["log_ahead", "opened", "prepare", "transaction"]

_LOOK_S: Final = 0.01


def prepare(path: Path, schema: str, busy_s: float) -> None:
    """Make the file, mode 0600, and its tables where they are not there; several processes may do so at once.

    Args:
        path: of the file.
        schema: statements that change nothing the second time.
        busy_s: seconds to wait for others.
    """
    path.touch(mode=0o600)
    with opened(path, busy_s) as database:
        log_ahead(database, busy_s)
        database.executescript(schema)


def log_ahead(database: sqlite3.Connection, busy_s: float) -> None:
    """Let the file be one with a write-ahead log; where others are at it, wait `busy_s` seconds: SQLite does not."""
    until = time.monotonic() + busy_s
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_LOOK_S)
        else:
            return


@contextmanager
def opened(path: Path, busy_s: float) -> Iterator[sqlite3.Connection]:
    """Yield a connection that waits `busy_s` seconds for others and begins no transaction by itself."""
    with closing(sqlite3.connect(path, timeout=busy_s, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = FULL")
        yield database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Keep other writers out from the beginning; commit at the end, or take everything back if anything is raised."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
