"""The rows of one SELECT, from an SQLite file and from a real PostgreSQL: read whole, and nothing is ever written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedward_client.cohorts import EncodedCohort, SqlEntry, SqlSource, TableEntry, open_cohort
from fedward_common.contract import validated
from fedward_common.errors import LocalDataError, SchemaMismatchError, StudyError
from fedward_common.tables import encode
from tests.builders import small_study, table
from tests.postgres import READERS_WORD, Postgres, running

SCHEMA = small_study(cohort={"patient": "patient"}).cohort
COLUMNS = ["age", "pressure", "sex", "stage", "outcome", "patient"]
QUERY = "SELECT age, pressure, sex, stage, outcome, patient FROM visits"
TURNED = "SELECT patient, outcome, stage, sex, pressure, age FROM visits"
BACKWARDS = "SELECT * FROM (SELECT age, pressure, sex, stage, outcome, patient FROM visits ORDER BY age DESC) v"
VARIABLE = "FEDWARD_TEST_DATABASE_PASSWORD"


@dataclass(frozen=True)
class Clinic:
    """A database with the table ``visits``, and how to change it behind the cohort's back."""

    home: Path
    facts: dict[str, Any]
    change: Callable[[str], None]

    def entry(self, sql: str = QUERY, **more: Any) -> SqlEntry:
        return validated(SqlEntry, {"sql": sql, **self.facts, **more})

    def cohort(self, sql: str = QUERY, **more: Any) -> EncodedCohort:
        return open_cohort(self.entry(sql, **more), SCHEMA, self.home)

    def rows(self, sql: str, **more: Any) -> pd.DataFrame:
        return SqlSource(self.entry(sql, **more), self.home).frame()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as found:
        yield found


def frame() -> pd.DataFrame:
    return table(40, seed=3, patients=25)


def sqlite_clinic(folder: Path) -> Clinic:
    path = folder / "clinic #1?.db"  # as somebody would name it

    def change(sql: str) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(sql)
        connection.close()

    connection = sqlite3.connect(path)
    frame().to_sql("visits", connection, index=False)
    connection.close()
    return Clinic(folder, {"database": f"sqlite:///{path}".replace("?", "%3F")}, change)


def postgres_clinic(folder: Path, server: Postgres) -> Clinic:
    def change(sql: str) -> None:
        with server.owner() as connection:
            connection.execute(sql)

    change("DROP TABLE IF EXISTS visits")
    change(f"CREATE TABLE visits ({', '.join(f'{name} text' for name in COLUMNS)})")
    with server.owner() as connection, connection.cursor() as cursor, cursor.copy("COPY visits FROM STDIN") as copy:
        for row in frame()[COLUMNS].itertuples(index=False):
            copy.write_row(row)
    change("GRANT SELECT ON visits TO reader")
    (folder / "word").write_text(READERS_WORD + "\n", encoding="utf-8")
    (folder / "word").chmod(0o600)
    return Clinic(folder, {"database": server.url(), "password_file": "word"}, change)


@pytest.fixture(params=["sqlite", "postgres"])
def clinic(request: pytest.FixtureRequest, tmp_path: Path) -> Clinic:
    if request.param == "sqlite":
        return sqlite_clinic(tmp_path)
    return postgres_clinic(tmp_path, request.getfixturevalue("server"))


@pytest.fixture
def postgres(tmp_path: Path, server: Postgres) -> Clinic:
    return postgres_clinic(tmp_path, server)


# --------------------------------------------------------------------------------------------------------- what is read
def test_rows_are_those_of_the_same_table_in_a_file(clinic: Clinic) -> None:
    frame().to_csv(clinic.home / "visits.csv", index=False)
    file = open_cohort(TableEntry(table="visits.csv"), SCHEMA, clinic.home).patients(1)

    rows = clinic.cohort("SELECT * FROM visits").patients(8)

    assert len(rows) == len(file) == frame()["patient"].nunique()
    np.testing.assert_array_equal(rows.mask.sum(axis=1), np.unique(frame()["patient"], return_counts=True)[1])
    expected = encode(frame(), SCHEMA)
    for code in range(len(rows)):
        got = rows.features[code][rows.mask[code] == 1]
        assert sorted(map(tuple, got)) == sorted(map(tuple, expected.features[expected.patients == code]))


def test_patients_of_a_database_are_those_of_the_file_it_was_exported_to(clinic: Clinic) -> None:
    frame().to_csv(clinic.home / "visits.csv", index=False)
    file = open_cohort(TableEntry(table="visits.csv"), SCHEMA, clinic.home)

    assert (clinic.cohort().identities() == file.identities()).all()


def test_values_of_every_kind_read_as_their_text(clinic: Clinic) -> None:
    bare = clinic.rows("SELECT 1 AS a, 2.5 AS b, NULL AS c, 'x' AS d, CAST('4.50' AS NUMERIC) AS e")

    assert [str(cell) for cell in bare.iloc[0][["a", "b", "d"]]] == ["1", "2.5", "x"]
    assert bare.loc[0, "c"] is None
    assert float(str(bare.loc[0, "e"])) == 4.5


def test_a_percent_sign_and_a_colon_in_a_text_are_no_placeholders(clinic: Clinic) -> None:
    assert len(clinic.rows("SELECT age FROM visits WHERE sex LIKE 'f%' OR sex = ':m'")) == (frame()["sex"] == "f").sum()


def test_null_is_missing(clinic: Clinic) -> None:
    clinic.change("UPDATE visits SET pressure = NULL")

    features = clinic.cohort().patients(8).features

    assert (features[..., 2][features.any(axis=-1)] == 1).all()  # "pressure missing"


def test_a_result_that_breaks_the_schema_is_counted_and_not_shown(clinic: Clinic) -> None:
    clinic.change("UPDATE visits SET age = '98765' WHERE sex = 'f'")

    with pytest.raises(SchemaMismatchError) as caught:
        clinic.cohort().patients(8)

    assert caught.value.counts == {"age: above 100 years": int((frame()["sex"] == "f").sum())}
    assert "98765" not in caught.value.diagnostics()


def test_an_empty_result_is_no_patient(clinic: Clinic) -> None:
    assert len(clinic.cohort(f"{QUERY} WHERE age = 'none'").patients(8)) == 0


def test_two_columns_of_one_name_are_refused_by_their_places(clinic: Clinic) -> None:
    with pytest.raises(LocalDataError, match="columns 1 and 3 have the same name"):
        clinic.rows("SELECT age, sex, stage AS age FROM visits")


# --------------------------------------------------------------------------------------------------------- how much
def test_more_rows_than_the_limit_are_refused_and_as_many_are_not(clinic: Clinic) -> None:
    assert len(clinic.rows(QUERY, max_rows=40)) == 40
    with pytest.raises(LocalDataError, match="more than 39 rows"):
        clinic.rows(QUERY, max_rows=39)


def test_a_result_without_end_is_cut_off_at_the_limit(clinic: Clinic) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"

    with pytest.raises(LocalDataError, match="more than 10 rows"):
        clinic.rows(endless, max_rows=10)


# ----------------------------------------------------------------------------------------------------- the fingerprint
def test_fingerprint_does_not_depend_on_the_order_of_rows_and_columns(clinic: Clinic) -> None:
    whole = clinic.cohort().fingerprint()

    assert clinic.cohort(BACKWARDS).fingerprint() == whole
    assert clinic.cohort(TURNED).fingerprint() == whole


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE visits SET stage = '3' WHERE patient = (SELECT min(patient) FROM visits WHERE stage <> '3')",
        "DELETE FROM visits WHERE patient = (SELECT min(patient) FROM visits)",
        "INSERT INTO visits SELECT * FROM visits WHERE patient = (SELECT min(patient) FROM visits)",
        "UPDATE visits SET pressure = NULL WHERE pressure = (SELECT min(pressure) FROM visits)",
    ],
    ids=["a cell", "a row less", "a row twice", "a cell gone"],
)
def test_fingerprint_changes_with_any_change_of_the_rows(clinic: Clinic, change: str) -> None:
    before = clinic.cohort().fingerprint()

    clinic.change(change)

    assert clinic.cohort().fingerprint() != before


def test_fingerprint_tells_a_word_for_nothing_from_nothing(clinic: Clinic) -> None:
    marks = {clinic.cohort(f"SELECT {cell} AS a").fingerprint() for cell in ("NULL", "'NA'", "''", "'1'", "'1.0'")}

    assert len(marks) == 5


def test_fingerprint_tells_two_schemas_and_two_patient_columns_apart(clinic: Clinic) -> None:
    plain = open_cohort(clinic.entry(), small_study().cohort, clinic.home)

    assert (
        len({plain.fingerprint(), clinic.cohort().fingerprint(), clinic.cohort(patient_column="sex").fingerprint()})
        == 3
    )


def test_order_by_decides_which_rows_of_a_patient_are_the_first(clinic: Clinic) -> None:
    oldest = clinic.cohort(f"{QUERY} ORDER BY CAST(age AS INTEGER) DESC").patients(1)
    youngest = clinic.cohort(f"{QUERY} ORDER BY CAST(age AS INTEGER)").patients(1)
    ages = frame()["age"].astype(int).groupby(frame()["patient"])

    assert ((oldest.features[:, 0, 0] * 82 + 118) / 2).round().tolist() == ages.max().tolist()
    assert ((youngest.features[:, 0, 0] * 82 + 118) / 2).round().tolist() == ages.min().tolist()


def test_without_order_by_the_same_rows_are_the_first_ones_each_time(clinic: Clinic) -> None:
    one = clinic.cohort().patients(1)
    backwards = clinic.cohort(BACKWARDS).patients(1)

    assert (one.features == backwards.features).all()


def test_one_cohort_sees_one_state_of_the_database(clinic: Clinic) -> None:
    cohort = clinic.cohort()
    mark = cohort.fingerprint()

    clinic.change("DELETE FROM visits")

    assert len(cohort.patients(8)) == frame()["patient"].nunique()
    assert cohort.fingerprint() == mark != clinic.cohort().fingerprint()


# ------------------------------------------------------------------------------------------------------ nothing written
def hostile(source: SqlSource, monkeypatch: pytest.MonkeyPatch) -> SqlSource:
    """Return the source without the parser in its way: what is left is the connection."""
    monkeypatch.setattr("fedward_client.cohorts.sql.require_select", lambda *_: None)
    return source


@pytest.mark.parametrize(
    "sql",
    ["DELETE FROM visits", "DROP TABLE visits", "UPDATE visits SET age = '1'", "CREATE TABLE copy AS SELECT 1 AS a"],
)
def test_the_connection_refuses_to_write_even_what_no_parser_stopped(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    entry = clinic.entry().model_copy(update={"sql": sql})

    with pytest.raises(LocalDataError, match="does not answer the SQL"):
        hostile(SqlSource(entry, clinic.home), monkeypatch).frame()

    assert len(clinic.rows(QUERY)) == 40


@pytest.mark.parametrize(
    "sql",
    [
        "WITH gone AS (DELETE FROM visits RETURNING age) SELECT * FROM gone",
        "SELECT nextval('numbers')",
        "SELECT set_config('transaction_read_only', 'off', true), wipe()",
        "SELECT 1; COMMIT; DELETE FROM visits",
        "SELECT age FROM visits FOR UPDATE",
    ],
    ids=["a writing WITH", "a sequence", "read-only turned off", "a second statement", "a lock"],
)
def test_postgres_itself_refuses_what_a_select_can_do_besides_reading(
    postgres: Clinic, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """Even with all rights, and with no parser in the way."""
    postgres.change("CREATE SEQUENCE IF NOT EXISTS numbers; GRANT ALL ON visits, numbers TO reader")
    postgres.change(
        "CREATE OR REPLACE FUNCTION wipe() RETURNS int LANGUAGE plpgsql AS 'BEGIN DELETE FROM visits; RETURN 1; END'"
    )
    entry = postgres.entry().model_copy(update={"sql": sql})

    with pytest.raises(LocalDataError, match="does not answer the SQL"):
        hostile(SqlSource(entry, postgres.home), monkeypatch).frame()

    assert len(postgres.rows(QUERY)) == 40


def test_a_session_ends_by_itself_and_waits_for_nobody(postgres: Clinic) -> None:
    names = ("default_transaction_read_only", "transaction_read_only", "statement_timeout", "lock_timeout")

    settings = postgres.rows("SELECT name, setting FROM pg_settings").set_index("name")["setting"]

    found = {name: settings[name] for name in names}

    assert found == {
        "default_transaction_read_only": "on",
        "transaction_read_only": "on",
        "statement_timeout": "600000",
        "lock_timeout": "15000",
    }


def test_reading_leaves_an_sqlite_file_as_it_was(tmp_path: Path) -> None:
    clinic = sqlite_clinic(tmp_path)
    path = tmp_path / "clinic #1?.db"
    before = path.read_bytes()

    clinic.cohort().patients(8)

    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "cache"}


# ----------------------------------------------------------------------------------------------------- what is not told
def test_no_word_of_the_database_is_repeated(postgres: Clinic, capfd: pytest.CaptureFixture[str]) -> None:
    """Its message would be: invalid input syntax for type integer: "canary-4711"."""
    postgres.change("UPDATE visits SET age = 'canary-4711'")

    with pytest.raises(LocalDataError) as caught:
        postgres.rows("SELECT CAST(age AS integer) FROM visits")

    out, err = capfd.readouterr()
    assert "InvalidTextRepresentation" in caught.value.message
    assert "canary" not in caught.value.diagnostics() + out + err
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("sql", "words"),
    [("SELECT a FROM nowhere", "tables' names"), ("SELECT nothing FROM visits", "columns' names")],
)
def test_a_wrong_name_is_told_with_a_remedy(clinic: Clinic, sql: str, words: str) -> None:
    with pytest.raises(LocalDataError) as caught:
        clinic.rows(sql)

    assert words in caught.value.remedy or "tables' and the columns' names" in caught.value.remedy


def test_a_database_that_is_not_there_is_told_with_a_remedy(tmp_path: Path) -> None:
    for database in (f"sqlite:///{tmp_path}/nowhere.db", f"postgresql://reader@/clinic?host={tmp_path}"):
        entry = SqlEntry(sql="SELECT 1 AS a", database=database)
        with pytest.raises(LocalDataError, match="does not answer") as caught:
            SqlSource(entry, tmp_path).frame()
        assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_rights_that_the_reader_lacks_are_told(postgres: Clinic) -> None:
    postgres.change("REVOKE SELECT ON visits FROM reader")

    with pytest.raises(LocalDataError, match="InsufficientPrivilege") as caught:
        postgres.rows(QUERY)

    assert "grant" in caught.value.remedy


# -------------------------------------------------------------------------------------------------------- the password
def test_password_comes_from_a_variable(postgres: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, READERS_WORD)

    assert len(postgres.rows(QUERY, password_file=None, password_variable=VARIABLE)) == 40


def test_variable_that_is_not_set_is_named(postgres: Clinic) -> None:
    assert VARIABLE not in os.environ
    with pytest.raises(LocalDataError, match=f"{VARIABLE} is not set"):
        postgres.rows(QUERY, password_file=None, password_variable=VARIABLE)


def test_wrong_password_is_refused_and_not_repeated(postgres: Clinic) -> None:
    (postgres.home / "word").write_text("hush-4711", encoding="utf-8")

    with pytest.raises(LocalDataError) as caught:
        postgres.rows(QUERY)

    assert "hush" not in caught.value.diagnostics()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_password_file_that_others_may_read_is_refused(postgres: Clinic, mode: int) -> None:
    (postgres.home / "word").chmod(mode)

    with pytest.raises(LocalDataError, match="others may read it") as caught:
        postgres.rows(QUERY)

    assert "chmod 600" in caught.value.remedy


def test_password_file_that_is_not_there_is_named(postgres: Clinic) -> None:
    with pytest.raises(LocalDataError, match="gone, the password's file, cannot be read"):
        postgres.rows(QUERY, password_file="gone")


# -------------------------------------------------------------------------------------------------------- the register
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sql": "DELETE FROM visits"}, "no SELECT"),
        ({"sql": ""}, "sql"),
        ({"database": "mysql://me@h/d"}, "neither PostgreSQL nor SQLite"),
        ({"database": "postgresql://me:hush-4711@h/d"}, "holds a password"),
        ({"password_file": "a", "password_variable": "B"}, "not both"),
        ({"max_rows": 0}, "max_rows"),
        ({"max_row": 5}, "max_rows"),
    ],
)
def test_entry_that_could_not_work_is_refused_when_site_yaml_is_read(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words) as caught:
        validated(SqlEntry, {"sql": "SELECT 1", "database": "sqlite:////srv/c.db"} | change)

    assert "4711" not in caught.value.diagnostics()


def test_relative_path_of_an_sqlite_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalDataError, match="relative"):
        SqlSource(SqlEntry(sql="SELECT 1", database="sqlite:///clinic.db"), tmp_path).frame()
