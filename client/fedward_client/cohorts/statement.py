"""What a statement and a database's address must be before anything is connected: rules, no database.

The parser is the first of two locks. The second is the connection, which can only read
(`fedward_client.cohorts.sql`); no rule here is the only thing between a typing error and a hospital's records.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from fedward_common.errors import LocalDataError

if TYPE_CHECKING:
    from sqlglot.expressions import Expr

__all__ = ["dialect_of", "is_ordered", "refuse_secrets", "require_select"]

_DIALECTS: Final = {"postgresql": "postgres", "postgresql+psycopg": "postgres", "sqlite": "sqlite"}
_HARMLESS: Final = frozenset(
    {"age", "concat_ws", "date_part", "instr", "julianday", "justify_days", "make_date", "make_interval", "now",
     "printf", "to_date", "to_number", "total", "unixepoch", "width_bucket"}
)  # fmt: skip
"""Functions that the parser does not know by itself and that only compute."""
_SECRETS: Final = frozenset({"password", "passfile", "sslpassword", "sslkey"})

logging.getLogger("sqlglot").setLevel(logging.CRITICAL + 1)  # what it logs quotes the statement


def dialect_of(database: str) -> str:
    """Return the SQL dialect of a database's URL, as sqlglot calls it.

    Raises:
        LocalDataError: it is no URL, or of a database whose connection cannot be kept from writing here.
    """
    scheme = database.partition("://")[0].lower() if "://" in database else ""
    if scheme not in _DIALECTS:
        msg = "the database is neither PostgreSQL nor SQLite"
        remedy = "write postgresql://user@host/name or sqlite:////path/file.db; export the rows of any other to Parquet"
        raise LocalDataError(msg, remedy=remedy)
    return _DIALECTS[scheme]


def refuse_secrets(database: str) -> None:
    """Return if the URL of a database holds no password.

    Raises:
        LocalDataError: it does; the message does not show it.
    """
    from sqlalchemy import make_url  # noqa: PLC0415  (cohorts in files do without)
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415  (see above)

    try:
        url = make_url(database)
    except (ArgumentError, ValueError):
        msg = "the database's address is no URL"
        raise LocalDataError(msg, remedy="write it as postgresql://user@host:5432/name") from None
    if url.password is not None or _SECRETS & {key.lower() for key in url.query}:
        msg = "the database's address holds a password"
        remedy = "leave it out, and name a file of mode 0600 (password_file) or a variable (password_variable)"
        raise LocalDataError(msg, remedy=remedy)


def require_select(sql: str, dialect: str) -> None:
    """Return if `sql` is one statement that reads and does nothing else.

    Args:
        sql: the statement.
        dialect: as `dialect_of` gives it.

    Raises:
        LocalDataError: naming the first thing that is more than reading.
    """
    problem = _problem(sql, dialect)
    if problem:
        msg = f"the SQL is refused: {problem}"
        raise LocalDataError(msg, remedy="give one SELECT (or WITH … SELECT); what it cannot do, a view can")


@lru_cache(maxsize=64)
def is_ordered(sql: str, dialect: str) -> bool:
    """Return whether the statement says in which order its rows come."""
    import sqlglot  # noqa: PLC0415  (cohorts in files do without)

    return sqlglot.parse_one(sql, read=dialect).args.get("order") is not None


@lru_cache(maxsize=64)
def _problem(sql: str, dialect: str) -> str:
    """Return what `sql` is or does besides reading; empty when nothing."""
    import sqlglot  # noqa: PLC0415  (cohorts in files do without)
    from sqlglot import exp  # noqa: PLC0415  (see above)
    from sqlglot.errors import SqlglotError  # noqa: PLC0415  (see above)

    try:
        statements = [s for s in sqlglot.parse(sql, read=dialect) if s is not None]
    except (SqlglotError, RecursionError):
        return "it cannot be parsed"
    if len(statements) != 1:
        return f"there are {len(statements)} statements"
    if not isinstance(statements[0], exp.Select | exp.SetOperation):
        return "it is no SELECT"
    return next(filter(None, map(_problem_of, statements[0].walk())), "")


def _problem_of(node: Expr) -> str:
    from sqlglot import exp  # noqa: PLC0415  (cohorts in files do without)

    if isinstance(node, exp.DML | exp.DDL | exp.Into | exp.Command | exp.Copy | exp.Drop | exp.Set):
        return "it writes, or may"
    if isinstance(node, exp.Lock):
        return "it locks rows (FOR UPDATE, FOR SHARE)"
    if isinstance(node, exp.Placeholder | exp.Parameter):
        return "it has a placeholder, for which there is no value"
    if isinstance(node, exp.Anonymous) and node.name.lower() not in _HARMLESS:
        return f"it calls the function {node.name}, of which is not known that it only computes"
    return ""
