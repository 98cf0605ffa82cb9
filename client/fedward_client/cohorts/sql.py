"""Rows of one SELECT, over a connection that can do nothing but read."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fedward_client.cohorts.entries import SqlEntry
from fedward_client.cohorts.identity import exact_digests
from fedward_client.cohorts.statement import dialect_of, is_ordered, require_select
from fedward_common.errors import LocalDataError
from fedward_common.tables import refuse_repeated

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import URL, Connection, Engine

__all__ = ["SqlSource"]

_CONNECT_S: Final = 15
_STATEMENT_S: Final = 600
_AT_ONCE: Final = 5_000
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HINTS: Final = {
    "InvalidPassword": "check the password in the file or variable that the entry names",
    "InvalidAuthorizationSpecification": "check the user in the database's address",
    "InvalidCatalogName": "check the database's name in its address",
    "UndefinedTable": "check the tables' names, and their schema",
    "UndefinedColumn": "check the columns' names",
    "InsufficientPrivilege": "grant the database's user SELECT on what the statement reads",
    "ReadOnlySqlTransaction": "the statement calls something that writes: give one that only reads",
    "QueryCanceled": f"the statement took more than {_STATEMENT_S} s: add an index, or read from a table made ahead",
    "SQLITE_ERROR": "check the tables' and the columns' names",
    "SQLITE_READONLY": "the statement calls something that writes: give one that only reads",
    "SQLITE_CANTOPEN": "check the path of the database's file and its permissions",
    "SQLITE_INTERRUPT": f"the statement took more than {_STATEMENT_S} s: add an index, or read from a table made ahead",
}


class SqlSource:
    """A `fedward_client.cohorts.encoded.Source` over one statement, which runs once for each object of this class.

    A statement without ORDER BY at its end gives its rows in an order that follows from what they say, so that the
    first rows of a patient are the same ones each time. No message of the database is repeated: it may quote a cell.

    Args:
        entry: which statement, where.
        home: the site's folder.
    """

    def __init__(self, entry: SqlEntry, home: Path) -> None:
        self._entry = entry
        self._home = home
        self._dialect = dialect_of(entry.database)
        self._fetched: pd.DataFrame | None = None

    def digest(self) -> bytes:
        """Return a SHA-256 over the columns' names and the rows; see `Source.digest`.

        Independent of the rows' order where the statement does not say one.
        """
        frame = self.frame()
        rows = exact_digests(frame)
        if not is_ordered(self._entry.sql, self._dialect):
            rows = sorted(rows)
        head = "\n".join(sorted(map(str, frame.columns))).encode()
        return hashlib.sha256(hashlib.sha256(head).digest() + b"".join(rows)).digest()

    def frame(self) -> pd.DataFrame:
        """See `Source.frame`; the same object each time."""
        if self._fetched is None:
            self._fetched = self._fetch()
        return self._fetched

    def images(self, _: Collection[str]) -> None:
        """Return nothing: no cell of a database names a file; see `Source.images`."""

    def content(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows as they are; see `Source.content`."""
        return frame

    def _fetch(self) -> pd.DataFrame:
        import pandas as pd  # noqa: PLC0415  (see fedward_common.tables.read_table)

        require_select(self._entry.sql, self._dialect)
        with self._connected() as connection, connection.exec_driver_sql(self._entry.sql) as result:
            names, rows = list(result.keys()), []
            refuse_repeated(names, "the result of the SQL")
            for part in result.partitions(_AT_ONCE):
                rows += [tuple(row) for row in part]
                if len(rows) > self._entry.max_rows:
                    msg = f"the SQL gives more than {self._entry.max_rows} rows"
                    raise LocalDataError(msg, remedy="select fewer, or raise max_rows of the cohort in site.yaml")
        frame = pd.DataFrame(rows, columns=names, dtype=object)
        if is_ordered(self._entry.sql, self._dialect):
            return frame
        digests = exact_digests(frame)
        return frame.iloc[sorted(range(len(frame)), key=digests.__getitem__)].reset_index(drop=True)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Yield a connection in one transaction that only reads; it is rolled back and closed afterwards."""
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  (cohorts in files do without)
        from sqlalchemy.pool import NullPool  # noqa: PLC0415  (see above)

        engine = None
        try:
            engine = _postgres(self._url(), NullPool) if self._dialect == "postgres" else _sqlite(self._url(), NullPool)
            options: dict[str, Any] = {"stream_results": True, "yield_per": _AT_ONCE, "no_parameters": True}
            if self._dialect == "postgres":
                options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
            with engine.connect().execution_options(**options) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _explained(error) from None
        finally:
            if engine is not None:
                engine.dispose()

    def _url(self) -> URL:
        from sqlalchemy import make_url  # noqa: PLC0415  (cohorts in files do without)

        url = make_url(self._entry.database)
        return url if self._dialect == "sqlite" else url.set(password=self._password())

    def _password(self) -> str | None:
        """Return the password, or None where the database asks for none.

        Raises:
            LocalDataError: the file or variable is not there, or others may read the file.
        """
        entry = self._entry
        if entry.password_variable is not None:
            if entry.password_variable not in os.environ:
                msg = f"the environment variable {entry.password_variable} is not set"
                raise LocalDataError(msg, remedy="set it for the daemon's account, or use password_file")
            return os.environ[entry.password_variable]
        return None if entry.password_file is None else _read_secret(self._home / entry.password_file)


def _read_secret(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_mode & 0o077:
                msg = f"{path.name} holds a password and others may read it"
                raise LocalDataError(msg, remedy=f"chmod 600 {path}")
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path.name}, the password's file, cannot be read ({type(error).__name__})"
        raise LocalDataError(msg, remedy="check password_file in site.yaml and the file's permissions") from None


def _postgres(url: URL, pool: Any) -> Engine:
    """Return an engine whose sessions only read, wait for nobody's lock and end by themselves.

    To another computer the connection is encrypted, unless the address says ``sslmode`` otherwise.
    """
    from sqlalchemy import create_engine  # noqa: PLC0415  (cohorts in files do without)

    settings = {
        "default_transaction_read_only": "on",
        "statement_timeout": f"{_STATEMENT_S}s",
        "lock_timeout": f"{_CONNECT_S}s",
        "idle_in_transaction_session_timeout": f"{_STATEMENT_S}s",
    }
    arguments: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "application_name": "fedward",
        "options": " ".join(f"-c {key}={value}" for key, value in settings.items()),
    }
    elsewhere = url.host is not None and url.host not in _LOOPBACK and not url.host.startswith("/")
    if elsewhere and "sslmode" not in url.query:
        arguments["sslmode"] = "require"
    return create_engine(url.set(drivername="postgresql+psycopg"), connect_args=arguments, poolclass=pool)


def _sqlite(url: URL, pool: Any) -> Engine:
    """Return an engine over a file that is opened for reading alone."""
    from sqlalchemy import URL, create_engine, event  # noqa: PLC0415  (cohorts in files do without)

    path = Path(url.database or "")
    if not path.is_absolute():
        msg = "the SQLite file's path is relative"
        raise LocalDataError(msg, remedy="write the address with four slashes: sqlite:////path/file.db")
    only = URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
    engine = create_engine(only, poolclass=pool)

    def only_read(connection: Any, _: object) -> None:
        ends = time.monotonic() + _STATEMENT_S
        connection.execute("PRAGMA query_only = ON")
        connection.set_progress_handler(lambda: time.monotonic() > ends, 100_000)

    event.listen(engine, "connect", only_read)
    return engine


def _explained(error: Any) -> LocalDataError:
    """Return what the database said without its words: the class of the error, and what to do about it."""
    cause = getattr(error, "orig", None) or error
    name = getattr(cause, "sqlite_errorname", None) or type(cause).__name__
    hint = next((hint for key, hint in _HINTS.items() if str(name).startswith(key)), "")
    return LocalDataError(
        f"the database does not answer the SQL ({name})",
        remedy=hint or "check that the database runs, its address in site.yaml and the statement, with psql or sqlite3",
    )
