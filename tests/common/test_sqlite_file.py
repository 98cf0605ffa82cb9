"""A change of the centre's SQLite files is there whole or not at all, and nobody writes in between."""

from __future__ import annotations

import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedward_common.sqlite_file import opened, prepare, transaction


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


SCHEMA = "CREATE TABLE IF NOT EXISTS t (n INTEGER) STRICT;"


def test_many_who_make_the_file_at_once_all_get_it(tmp_path: Path) -> None:
    for number in range(20):
        path, barrier = tmp_path / f"{number}.sqlite", threading.Barrier(6)

        def make(path: Path = path, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(30)
            prepare(path, SCHEMA, 30.0)

        with ThreadPoolExecutor(6) as pool:
            for made in [pool.submit(make) for _ in range(6)]:
                made.result(60)
        assert numbers(path) == []
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_in_the_file_stays(path: Path) -> None:
    with opened(path, 0.1) as database, transaction(database):
        database.execute("INSERT INTO t VALUES (7)")
    prepare(path, SCHEMA, 0.1)

    assert numbers(path) == [7]


def test_what_is_no_database_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        prepare(tmp_path / "file.sqlite", SCHEMA, 3600.0)
