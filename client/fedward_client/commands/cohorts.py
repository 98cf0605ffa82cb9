"""The register of local data sets: ``fedward client cohort …``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward_client.approvals import Approvals
from fedward_client.audit import AuditLog
from fedward_client.cohorts import TableEntry
from fedward_client.commands.options import DEFAULT_HOME, Home, now
from fedward_client.config import register_cohort
from fedward_client.readiness import assess
from fedward_client.site import Site

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The register of local tables.")


@app.command("add")
def cohort_add(
    name: Annotated[str, typer.Argument(help="A name of yours for the cohort")],
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file")],
    columns: Annotated[str | None, typer.Option(help="Column names of a file without a header, a,b,c")] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Register a table; nothing is read from it yet."""
    entry = TableEntry(table=str(table.resolve()), names=tuple(columns.split(",")) if columns else None)
    register_cohort(home, name, entry)
    AuditLog(home).append("cohort registered", at=now(), cohort=name)
    typer.echo(f"registered {name}; fedward client cohort check {name} --study STUDY says whether it is fit")


@app.command("list")
def cohort_list(home: Home = DEFAULT_HOME) -> None:
    """List the registered tables."""
    for name, entry in Site(home).config.cohorts.items():
        typer.echo(f"{name}  {entry.table}")


@app.command("check")
def cohort_check(
    name: Annotated[str, typer.Argument(help="A registered cohort")],
    study: Annotated[str, typer.Option(help="A proposed study whose schema counts")],
    home: Home = DEFAULT_HOME,
) -> None:
    """Say whether a table is fit for a study: sizes, balance, missing and impossible values. Nothing is sent."""
    readiness = assess(Site(home).registered(name), Approvals(home).find(study).study.cohort, home)
    for check in readiness.checks:
        typer.echo(f"{check.level:4s} {check.what}" + (f"\n     remedy: {check.remedy}" if check.remedy else ""))
    raise typer.Exit(0 if readiness.ready else 1)
