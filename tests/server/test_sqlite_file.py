"""A change of the centre's SQLite files is there whole or not at all, and nobody writes in between."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fedward_server.sqlite_file import opened, transaction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with opened(tmp_path / "file.sqlite", 0.1) as database:
        database.execute("CREATE TABLE t (n INTEGER) STRICT")
    return tmp_path / "file.sqlite"


def numbers(path: Path) -> list[int]:
    with opened(path, 0.1) as database:
        return [n for (n,) in database.execute("SELECT n FROM t")]


def test_what_is_done_is_there(path: Path) -> None:
    with opened(path, 0.1) as database, transaction(database):
        database.execute("INSERT INTO t VALUES (1)")

    assert numbers(path) == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_is_raised_takes_everything_back(path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with opened(path, 0.1) as database, transaction(database):
            database.execute("INSERT INTO t VALUES (1)")
            raise error

    with pytest.raises(error):
        fail()
    assert numbers(path) == []


def test_a_second_writer_is_kept_out_from_the_beginning(path: Path) -> None:
    with (
        opened(path, 0.1) as first,
        transaction(first),
        opened(path, 0.1) as second,
        pytest.raises(sqlite3.OperationalError, match="locked"),
        transaction(second),
    ):
        pass


def test_a_commit_is_synced(path: Path) -> None:
    with opened(path, 0.1) as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
