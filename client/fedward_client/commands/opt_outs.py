"""The patients who do not want to take part: ``fedward client cohort opt-out …``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.cohorts import OptOuts, source_of
from fedward_client.commands.options import DEFAULT_HOME, Home, now
from fedward_client.config import load_site
from fedward_common.audit import AuditLog
from fedward_common.errors import LocalDataError

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Patients who do not want to take part.")

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[IDENTIFIER]...", help="As in the cohorts' patient columns")
]
From = Annotated[Path | None, typer.Option("--from", help="A file with one identifier a line; - is standard input")]


@app.command("add")
def opt_out_add(names: Names = None, file: From = None, home: Home = DEFAULT_HOME) -> None:
    """Leave these patients' records out of every cohort, from the next round on; approvals stay as they are."""
    opt_outs = OptOuts(_site(home))
    count = opt_outs.add(_given(names, file))
    total = len(opt_outs.identifiers())
    AuditLog(home).append("opt-out added", at=now(), patients=count, detail=f"{total} in all")
    typer.echo(f"{count} added, {total} in all; from the next round on their records are not used")
    _say_matches(opt_outs, home)


@app.command("remove")
def opt_out_remove(names: Names = None, file: From = None, home: Home = DEFAULT_HOME) -> None:
    """Let these patients' records be used again, from the next round on."""
    opt_outs = OptOuts(_site(home))
    count = opt_outs.remove(_given(names, file))
    total = len(opt_outs.identifiers())
    AuditLog(home).append("opt-out removed", at=now(), patients=count, detail=f"{total} in all")
    typer.echo(f"{count} removed, {total} in all")


@app.command("list")
def opt_out_list(
    home: Home = DEFAULT_HOME, *, identifiers: Annotated[bool, typer.Option(help="Show who they are")] = False
) -> None:
    """Say how many patients opted out, and how many of them each cohort has."""
    opt_outs = OptOuts(_site(home))
    found = opt_outs.identifiers()
    if identifiers:
        for name in sorted(found):
            typer.echo(name)
        return
    typer.echo(f"{len(found)} patients opted out")
    _say_matches(opt_outs, home)


def _say_matches(opt_outs: OptOuts, home: Path) -> None:
    """Say how many of the identifiers a cohort has: an identifier with a typing error keeps nobody out."""
    for name, entry in load_site(home).cohorts.items():
        if entry.patient_column is None:
            typer.echo(f"  {name}: which are in it depends on the study; patient_column in site.yaml would tell")
            continue
        try:
            frame = source_of(entry, home).frame()
            cells = frame[entry.patient_column]
        except (LocalDataError, KeyError):
            typer.echo(f"  {name}: cannot be read; fedward client cohort check {name}")
            continue
        typer.echo(f"  {name}: {opt_outs.matched(cells)} of them are in it")


def _site(home: Path) -> Path:
    """Return `home` if a site is there: a list in another folder would keep nobody out."""
    load_site(home)
    return home


def _given(names: list[str] | None, file: Path | None) -> list[str]:
    if (names is None or not names) == (file is None):
        msg = "give identifiers, or a file with them"
        raise LocalDataError(msg, remedy="--from FILE keeps them out of the shell's history")
    if file is None:
        return list(names or ())
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file.name} cannot be read ({type(error).__name__})"
        raise LocalDataError(msg, remedy="one identifier a line, UTF-8") from None
    return text.splitlines()
