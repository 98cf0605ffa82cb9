"""The register of local data sets: ``fedward client cohort …``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fedward_client.cohorts import CohortEntry, ImagesEntry, ImageSource, SqlEntry, TableEntry
from fedward_client.commands import opt_outs
from fedward_client.commands.options import DEFAULT_HOME, AsJson, Home, now
from fedward_client.config import load_site, register_cohort, require_free
from fedward_client.readiness import assess, opened
from fedward_client.review import proposed_or_filed
from fedward_client.site import Site
from fedward_common.audit import AuditLog
from fedward_common.contract import Contract, validated
from fedward_common.errors import LocalDataError, StudyError

__all__ = ["app"]

E = TypeVar("E", bound=Contract)

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The register of local data sets.")
app.add_typer(opt_outs.app, name="opt-out")


@app.command("add")
def cohort_add(  # noqa: PLR0913  (one parameter for each option)
    name: Annotated[str, typer.Argument(help="A name of yours for the cohort")],
    table: Annotated[Path | None, typer.Argument(help="CSV or Parquet file")] = None,
    *,
    columns: Annotated[str | None, typer.Option(help="Column names of a file without a header, a,b,c")] = None,
    sql: Annotated[str | None, typer.Option(help="One SELECT instead of a file; @FILE reads it from a file")] = None,
    database: Annotated[str | None, typer.Option(help="Its database: postgresql://user@host/name, sqlite:///F")] = None,
    password_file: Annotated[Path | None, typer.Option(help="File with the password, mode 0600")] = None,
    password_variable: Annotated[str | None, typer.Option(help="Environment variable with the password")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of PNG, JPEG or DICOM files instead of a file")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Its CSV file [default: manifest.csv in the folder]")] = None,
    file_columns: Annotated[str, typer.Option(help="Columns of the manifest that name files, a,b")] = "file",
    patient_column: Annotated[str | None, typer.Option(help="Column that identifies the patient")] = None,
    opt_outs_at_source: Annotated[
        bool, typer.Option("--opt-outs-at-source", help="Who opted out is not in the data")
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Register a table, a SELECT or a folder of images, after it was opened once. Nothing is sent."""
    common: dict[str, Any] = {"patient_column": patient_column, "opt_outs_at_source": opt_outs_at_source}
    chosen = [kind for kind, value in (("FILE", table), ("--sql", sql), ("--images", images)) if value is not None]
    if len(chosen) != 1:
        msg = f"{' and '.join(chosen) or 'nothing'} is given: say where the data are, once"
        raise LocalDataError(msg, remedy="give a FILE, or --sql with --database, or --images")
    require_free(load_site(home), name)
    if table is not None:
        names = tuple(columns.split(",")) if columns else None
        entry: CohortEntry = _made(TableEntry, {"table": str(table.resolve()), "names": names, **common})
    elif sql is not None:
        secret = {"password_file": _absolute(password_file), "password_variable": password_variable}
        entry = _made(SqlEntry, {"sql": _statement(sql), "database": _address(database), **secret, **common})
    else:
        entry = _images_entry(name, images or Path(), manifest, file_columns, common)
    if isinstance(entry, ImagesEntry):
        typer.echo(f"{ImageSource(entry, home).seal()} pictures hashed")
    rows, width = opened(entry, home)
    register_cohort(home, name, entry)
    AuditLog(home).append("cohort registered", at=now(), cohort=name, detail=entry.kind)
    typer.echo(f"registered {name}: {rows} rows in {width} columns")
    typer.echo(f"fedward client cohort check {name} --study STUDY says whether it is fit")


@app.command("seal")
def cohort_seal(name: Annotated[str, typer.Argument(help="A folder of images")], home: Home = DEFAULT_HOME) -> None:
    """Take the pictures of a folder as they are now for those that are registered; its studies wait again."""
    entry = Site(home).registered(name)
    if not isinstance(entry, ImagesEntry):
        msg = f"{name} is no folder of images"
        raise LocalDataError(msg, remedy="a table or a SELECT needs no seal: its rows are hashed each time")
    count = ImageSource(entry, home).seal()
    AuditLog(home).append("cohort sealed", at=now(), cohort=name)
    typer.echo(f"{count} pictures hashed")


@app.command("list")
def cohort_list(home: Home = DEFAULT_HOME, *, as_json: AsJson = False) -> None:
    """List the registered data sets: name, kind, and where the data are."""
    found = load_site(home).cohorts
    if as_json:
        typer.echo(json.dumps({n: {"kind": e.kind, "place": e.place()} for n, e in found.items()}, indent=2))
        return
    width = max(map(len, found), default=0)
    for name, entry in found.items():
        typer.echo(f"{name:{width}s}  {entry.kind:6s}  {entry.place()}")
    if not found:
        typer.echo("none is registered yet: fedward client cohort add NAME FILE")


@app.command("check")
def cohort_check(
    name: Annotated[str, typer.Argument(help="A registered cohort")],
    study: Annotated[str | None, typer.Option(help="A proposed study, or its file, whose schema counts")] = None,
    home: Home = DEFAULT_HOME,
    *,
    as_json: AsJson = False,
) -> None:
    """Say whether a data set is fit for a study; without one, whether it opens. Nothing is sent.

    Exit code 1 when it is not.
    """
    entry = Site(home).registered(name)
    schema = proposed_or_filed(home, study).study.cohort if study is not None else None
    readiness = assess(entry, schema, home)
    if as_json:
        head = {"cohort": name, "kind": entry.kind, "study": study}
        typer.echo(json.dumps(head | readiness.as_json(), indent=2, ensure_ascii=False))
    else:
        for check in readiness.checks:
            typer.echo(f"{check.level:4s} {check.what}" + (f"\n     remedy: {check.remedy}" if check.remedy else ""))
    raise typer.Exit(0 if readiness.ready else 1)


def _images_entry(
    name: str, folder: Path, manifest: Path | None, file_columns: str, common: dict[str, Any]
) -> ImagesEntry:
    whole = folder.resolve()
    listed = manifest.resolve() if manifest is not None else whole / "manifest.csv"
    places = {"images": str(whole), "manifest": str(listed), "seal": f"seals/{name}.json"}
    return _made(ImagesEntry, {**places, "file_columns": tuple(file_columns.split(",")), **common})


def _made(kind: type[E], values: dict[str, Any]) -> E:
    """Return an entry of the register.

    Raises:
        LocalDataError: a value is not possible: a SELECT does more than read, an address holds a password, …
    """
    try:
        return validated(kind, values)
    except StudyError as error:
        raise LocalDataError(error.message.removeprefix("study: ")) from None


def _statement(sql: str) -> str:
    if not sql.startswith("@"):
        return sql
    try:
        return Path(sql[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{sql[1:]} cannot be read ({type(error).__name__})"
        raise LocalDataError(msg, remedy="name a text file after the @") from None


def _address(database: str | None) -> str:
    """Return a database's address, an SQLite file's with its whole path."""
    if database is None:
        msg = "--sql needs --database"
        raise LocalDataError(msg, remedy="postgresql://user@host/name, or sqlite:///file.db")
    scheme, _, path = database.partition(":///")
    return f"{scheme}:///{Path(path).resolve()}" if scheme == "sqlite" and path else database


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())
