"""The log of decisions: ``fedward client audit …``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.audit import AuditLog, missing_reservations
from fedward_client.commands.options import DEFAULT_HOME, Home
from fedward_client.ledger import Ledger

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The log of decisions.")


@app.command("verify")
def audit_verify(home: Home = DEFAULT_HOME) -> None:
    """Check the log against its chain, its signed head and the ledger; exit code 1 when something is wrong."""
    log = AuditLog(home)
    findings = [f"entry {f.number}: {f.what}" if f.number else f.what for f in log.verify()]
    if not findings:
        reserved = Ledger(home / "ledger.sqlite").reservations()
        lost = missing_reservations(log.entries(), reserved)
        findings = [
            f"the ledger lacks round {number} of {study[:12]}: an old copy was put back" for study, number in lost
        ]
    for finding in findings:
        typer.echo(f"WRONG  {finding}")
    if not findings:
        typer.echo(f"good: {sum(1 for _ in log.entries())} entries, signed by {log.public_key()}")
    raise typer.Exit(1 if findings else 0)


@app.command("export")
def audit_export(
    file: Annotated[Path, typer.Argument(help="The evidence pack to write")], home: Home = DEFAULT_HOME
) -> None:
    """Write log, signed head and public key into one JSON file for an auditor."""
    log = AuditLog(home)
    pack = {"format": "fedward-audit-1", "key": log.public_key(), **log.export()}
    with file.open("x", encoding="utf-8") as handle:
        json.dump(pack, handle, indent=1)
    typer.echo(f"{file}: {len(pack['lines'])} entries")
