"""``fedward client cohort``: a data set is registered, checked and thinned out, and no screen shows a patient."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.cohorts import ImagesEntry, SqlEntry, TableEntry
from fedward_client.config import load_site
from fedward_common.audit import AuditLog
from fedward_common.errors import FedwardError, LocalDataError
from fedward_common.study import Study
from fedward_common.study_file import StudyFile
from tests.builders import small_study, table
from tests.pictures import digits_contract, digits_folder
from tests.postgres import READERS_WORD, Postgres, running

RUNNER = CliRunner()
SELECT = "SELECT age, pressure, sex, stage, outcome FROM visits"


def call(home: Path, *arguments: str | Path, stdin: str | None = None) -> Result:
    return RUNNER.invoke(app, ["cohort", *map(str, arguments), "--home", str(home)], input=stdin)


def done(home: Path, *arguments: str | Path, stdin: str | None = None) -> str:
    """Return what a command that worked printed."""
    result = call(home, *arguments, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(home: Path, *arguments: str | Path, stdin: str | None = None) -> LocalDataError:
    """Return why a command did nothing; the register is as it was."""
    before = (home / "site.yaml").read_bytes()
    result = call(home, *arguments, stdin=stdin)
    assert isinstance(result.exception, LocalDataError), (result.output, result.exception)
    assert (home / "site.yaml").read_bytes() == before
    return result.exception


def events(home: Path) -> list[tuple[str, dict[str, object]]]:
    return [(entry.event, dict(entry.fields)) for entry in AuditLog(home).entries()]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a new site without a cohort, beside the files of a hospital."""
    folder = tmp_path / "home"
    assert RUNNER.invoke(app, ["init", "north", "--home", str(folder)]).exit_code == 0
    table(60, seed=1, patients=40).to_csv(tmp_path / "chart.csv", index=False)
    connection = sqlite3.connect(tmp_path / "clinic.db")
    table(60, seed=1).to_sql("visits", connection, index=False)
    connection.close()
    digits_folder(tmp_path / "digits", 20)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as found:
        yield found


def study_file(folder: Path, study: Study) -> Path:
    path = folder / f"{study.name}.json"
    path.write_bytes(StudyFile(study).dump())
    return path


# ----------------------------------------------------------------------------------------------------------------- add
def test_a_table_is_registered_with_its_whole_path_and_what_was_seen(home: Path, tmp_path: Path) -> None:
    text = done(home, "add", "chart", tmp_path / "chart.csv", "--patient-column", "patient")

    entry = load_site(home).cohorts["chart"]
    assert entry == TableEntry(table=str(tmp_path / "chart.csv"), patient_column="patient")
    assert "60 rows in 6 columns" in text
    assert events(home)[-1] == ("cohort registered", {"cohort": "chart", "detail": "table"})


def test_site_yaml_keeps_its_comments_and_its_mode(home: Path, tmp_path: Path) -> None:
    before = (home / "site.yaml").read_text(encoding="utf-8")
    (home / "site.yaml").chmod(0o640)

    done(home, "add", "chart", tmp_path / "chart.csv")

    after = (home / "site.yaml").read_text(encoding="utf-8")
    assert after.startswith(before[: before.index("cohorts:")])
    assert stat.S_IMODE((home / "site.yaml").stat().st_mode) == 0o640
    assert "kind: table" in after


def test_a_file_without_header_is_registered_with_its_columns(home: Path, tmp_path: Path) -> None:
    table(5, seed=1).to_csv(tmp_path / "bare.csv", index=False, header=False)

    text = done(home, "add", "bare", tmp_path / "bare.csv", "--columns", "age,pressure,sex,stage,outcome")

    assert "5 rows in 5 columns" in text


def test_a_select_is_registered_and_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # as somebody would type a relative path
    text = done(home, "add", "visits", "--sql", SELECT, "--database", "sqlite:///clinic.db")

    assert load_site(home).cohorts["visits"] == SqlEntry(sql=SELECT, database=f"sqlite:///{tmp_path}/clinic.db")
    assert "60 rows in 5 columns" in text
    assert events(home)[-1][1]["detail"] == "sql"


def test_a_select_is_read_from_a_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "visits.sql").write_text(f"-- all visits\n{SELECT};\n", encoding="utf-8")

    done(home, "add", "visits", "--sql", f"@{tmp_path}/visits.sql", "--database", f"sqlite:///{tmp_path}/clinic.db")

    assert "registered" in str(events(home)[-1])


def test_a_select_in_postgres_is_registered_without_its_password(home: Path, tmp_path: Path, server: Postgres) -> None:
    with server.owner() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS people (age int); GRANT SELECT ON people TO reader")
    word = tmp_path / "word"
    word.write_text(READERS_WORD, encoding="utf-8")
    word.chmod(0o600)

    text = done(
        home, "add", "people", "--sql", "SELECT age FROM people", "--database", server.url(), "--password-file", word
    )

    assert "0 rows in 1 columns" in text
    assert not [path for path in home.rglob("*") if path.is_file() and READERS_WORD.encode() in path.read_bytes()]


def test_a_folder_of_images_is_hashed_and_registered(home: Path, tmp_path: Path) -> None:
    text = done(home, "add", "digits", "--images", tmp_path / "digits", "--patient-column", "patient")

    entry = load_site(home).cohorts["digits"]
    assert isinstance(entry, ImagesEntry)
    assert (entry.images, entry.manifest) == (str(tmp_path / "digits"), str(tmp_path / "digits" / "manifest.csv"))
    assert "20 pictures hashed" in text
    assert len(json.loads((home / entry.seal).read_bytes())["files"]) == 20


def test_a_manifest_may_lie_elsewhere_and_name_its_columns(home: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "list.csv"
    text = (tmp_path / "digits" / "manifest.csv").read_text(encoding="utf-8")
    manifest.write_text(text.replace("file,", "picture,", 1), encoding="utf-8")

    refusal = refused(home, "add", "digits", "--images", tmp_path / "digits", "--manifest", manifest)
    assert "--file-columns" in refusal.remedy

    done(home, "add", "digits", "--images", tmp_path / "digits", "--manifest", manifest, "--file-columns", "picture")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing is given"),
        (["{}/chart.csv", "--images", "{}/digits"], "FILE and --images is given"),
        (["--sql", SELECT], "--sql needs --database"),
        (["{}/gone.csv"], "gone.csv cannot be read"),
        (["{}/chart.csv", "--patient-column", "mrn"], "no column 'mrn'"),
        (["{}/chart.csv", "--patient-column", ""], "patient_column"),
        (["--images", "{}/nowhere"], "cannot be read"),
        (["--sql", "DELETE FROM visits", "--database", "sqlite:///{}/clinic.db"], "no SELECT"),
        (["--sql", "SELECT a FROM nowhere", "--database", "sqlite:///{}/clinic.db"], "does not answer"),
        (["--sql", "@{}/gone.sql", "--database", "sqlite:///{}/clinic.db"], "gone.sql cannot be read"),
        (["--sql", SELECT, "--database", "postgresql://me:hush-4711@h/d"], "holds a password"),
        (["--sql", SELECT, "--database", "mysql://me@h/d"], "neither PostgreSQL nor SQLite"),
    ],
)
def test_what_cannot_be_opened_is_not_registered(home: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    refusal = refused(home, "add", "new", *(argument.replace("{}", str(tmp_path)) for argument in arguments))

    assert words in refusal.message
    assert "4711" not in refusal.diagnostics()
    assert "registered" not in str(events(home))


def test_a_name_is_given_once_and_nothing_of_the_second_is_read(home: Path, tmp_path: Path) -> None:
    done(home, "add", "digits", "--images", tmp_path / "digits")
    seal = (home / "seals" / "digits.json").read_bytes()

    refusal = refused(home, "add", "digits", "--images", tmp_path / "nowhere")

    assert "registered already" in refusal.message
    assert (home / "seals" / "digits.json").read_bytes() == seal


@pytest.mark.parametrize("name", ["../digits", "a/b", "", ".hidden"])
def test_a_name_that_is_a_path_is_refused_before_a_seal_is_written(home: Path, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))

    result = call(home, "add", name, "--images", tmp_path / "digits")

    assert isinstance(result.exception, FedwardError)
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------------------------- list
def test_list_shows_name_kind_and_place(home: Path, tmp_path: Path) -> None:
    assert "none is registered yet" in done(home, "list")
    done(home, "add", "chart", tmp_path / "chart.csv")
    done(home, "add", "digits", "--images", tmp_path / "digits")

    lines = [line.split() for line in done(home, "list").splitlines()]
    plain = json.loads(done(home, "list", "--json"))

    assert lines == [["chart", "table", f"{tmp_path}/chart.csv"], ["digits", "images", f"{tmp_path}/digits"]]
    assert plain["digits"] == {"kind": "images", "place": f"{tmp_path}/digits"}


# --------------------------------------------------------------------------------------------------------------- check
def test_check_without_a_study_counts_rows(home: Path, tmp_path: Path) -> None:
    done(home, "add", "chart", tmp_path / "chart.csv")

    assert done(home, "check", "chart").splitlines() == ["ok   60 rows in 6 columns"]


def test_check_under_a_study_s_file_says_what_is_wrong_and_ends_with_1(home: Path, tmp_path: Path) -> None:
    done(home, "add", "chart", tmp_path / "chart.csv")
    path = study_file(tmp_path, small_study())
    assert "have the outcome" in done(home, "check", "chart", "--study", path)
    table(60, seed=1).assign(age="987654").to_csv(tmp_path / "chart.csv", index=False)

    result = call(home, "check", "chart", "--study", path)

    assert result.exit_code == 1
    assert "fail age: above 100 years: 60 rows\n     remedy: " in result.output
    assert "987654" not in result.output


def test_check_in_json_is_the_same_for_a_program(home: Path, tmp_path: Path) -> None:
    done(home, "add", "digits", "--images", tmp_path / "digits")
    path = study_file(tmp_path, small_study(cohort=digits_contract()))
    (tmp_path / "digits" / "part0" / "digit0000.png").unlink()

    result = call(home, "check", "digits", "--study", path, "--json")
    report = json.loads(result.output)

    assert result.exit_code == 1
    assert (report["cohort"], report["kind"], report["ready"]) == ("digits", "images", False)
    assert {"level", "what", "remedy"} == set(report["checks"][0])
    assert "digit0" not in result.output


def test_check_of_a_name_that_nobody_registered_lists_those_that_are(home: Path, tmp_path: Path) -> None:
    done(home, "add", "chart", tmp_path / "chart.csv")

    assert "there are: chart" in refused(home, "check", "charts").remedy


# ---------------------------------------------------------------------------------------------------------------- seal
def test_seal_takes_a_folder_as_it_is_now(home: Path, tmp_path: Path) -> None:
    done(home, "add", "digits", "--images", tmp_path / "digits")
    (tmp_path / "digits" / "part0" / "digit0000.png").unlink()
    manifest = tmp_path / "digits" / "manifest.csv"
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    manifest.write_text("".join([lines[0], *lines[2:]]), encoding="utf-8")
    assert call(home, "check", "digits").exit_code == 1

    assert "19 pictures hashed" in done(home, "seal", "digits")

    assert call(home, "check", "digits").exit_code == 0
    assert events(home)[-1] == ("cohort sealed", {"cohort": "digits"})


def test_seal_is_for_folders(home: Path, tmp_path: Path) -> None:
    done(home, "add", "chart", tmp_path / "chart.csv")

    assert "no folder of images" in refused(home, "seal", "chart").message


# ------------------------------------------------------------------------------------------------------------- opt-out
def test_opt_out_counts_and_names_nobody_but_when_asked(home: Path, tmp_path: Path) -> None:
    done(home, "add", "chart", tmp_path / "chart.csv", "--patient-column", "patient")
    done(home, "add", "bare", tmp_path / "chart.csv")

    text = done(home, "opt-out", "add", "p0001", "p0002", "p-with-a-typo")
    listed = done(home, "opt-out", "list")

    assert "3 added, 3 in all" in text
    assert "3 patients opted out" in listed
    for output in (text, listed):
        assert "chart: 2 of them are in it" in output
        assert "bare: which are in it depends on the study" in output
        assert "p0001" not in output
    assert done(home, "opt-out", "list", "--identifiers").split() == ["p-with-a-typo", "p0001", "p0002"]


def test_opt_out_reads_a_file_and_standard_input(home: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("p1\np2\n\n", encoding="utf-8")

    assert "2 added" in done(home, "opt-out", "add", "--from", tmp_path / "names.txt")
    assert "1 added, 3 in all" in done(home, "opt-out", "add", "--from", "-", stdin="p2\np3\n")
    assert "2 removed, 1 in all" in done(home, "opt-out", "remove", "p1", "p2", "p9")


@pytest.mark.parametrize(
    "arguments", [["add"], ["add", "p1", "--from", "-"], ["remove"], ["add", "--from", "/nowhere"]]
)
def test_opt_out_without_one_source_of_names_does_nothing(home: Path, arguments: list[str]) -> None:
    refused(home, "opt-out", *arguments)

    assert not (home / "opt-out.txt").exists()


def test_opt_out_is_in_the_log_with_counts_alone(home: Path) -> None:
    done(home, "opt-out", "add", "canary-4711", "p2")
    done(home, "opt-out", "remove", "canary-4711")

    assert events(home)[-2:] == [
        ("opt-out added", {"patients": 2, "detail": "2 in all"}),
        ("opt-out removed", {"patients": 1, "detail": "1 in all"}),
    ]
    assert "canary" not in (home / "audit.jsonl").read_text(encoding="utf-8")


def test_opt_out_in_a_folder_without_a_site_is_refused(tmp_path: Path) -> None:
    """A list that no daemon reads would keep nobody out."""
    result = call(tmp_path, "opt-out", "add", "p1")

    assert isinstance(result.exception, LocalDataError)
    assert not (tmp_path / "opt-out.txt").exists()


def test_a_cohort_that_cannot_be_read_does_not_hide_that_the_list_was_kept(home: Path, tmp_path: Path) -> None:
    done(home, "add", "chart", tmp_path / "chart.csv", "--patient-column", "patient")
    (tmp_path / "chart.csv").unlink()

    assert "chart: cannot be read" in done(home, "opt-out", "add", "p1")
