"""The centre's SQLite files: every change is on the disk when it is done, whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

__all__ = ["opened", "transaction"]


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
