"""The log of decisions: ``fedward client audit …``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.budget import Budget, restart_log
from fedward_client.commands.options import DEFAULT_HOME, AsJson, By, Home, now
from fedward_client.config import load_site
from fedward_client.evidence import build_pack, check_pack, compare, read_anchor, read_pack
from fedward_common.audit import AuditLog, Finding
from fedward_common.errors import LocalDataError
from fedward_common.files import write_new_json

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The log of decisions.")


@app.command("verify")
def audit_verify(
    anchor: Annotated[
        list[Path] | None,
        typer.Option(help="A copy kept elsewhere: an evidence pack, audit.head, or what a syslog receiver wrote down"),
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002  (a flag of the command line)
    home: Home = DEFAULT_HOME,
) -> None:
    """Check the log against its chain, its signed head, the ledger and copies; exit code 1 when something is wrong."""
    log = AuditLog(home)
    known = [read_anchor(path) for path in anchor or []]
    findings = log.verify()
    findings += [Finding(0, doubt) for doubt in Budget(home).doubts()] if not findings else []
    for copy in known:
        findings += compare(log.lines(), copy)
    facts: dict[str, int | str] = {
        "entries": sum(1 for _ in log.lines()),
        "key": log.public_key(),
        "copies": sum(map(len, known)),
    }
    _say(findings, facts, as_json=as_json)


@app.command("export")
def audit_export(
    file: Annotated[Path, typer.Argument(help="The evidence pack to write")], home: Home = DEFAULT_HOME
) -> None:
    """Write log, head, key, ledger and version into one signed file, for an auditor; it holds nothing of a patient."""
    pack = build_pack(Budget(home), load_site(home), now=now())
    write_new_json(file, pack)
    typer.echo(f"{file}: {len(pack['lines'])} entries, signed by {pack['key']}")
    typer.echo(f"whoever gets it checks it with: fedward client audit check {file.name} --key {pack['key']}")


@app.command("check")
def audit_check(
    pack: Annotated[Path, typer.Argument(help="An evidence pack")],
    key: Annotated[str | None, typer.Option(help="The site's public key, or a file with it (audit.pub)")] = None,
    as_json: AsJson = False,  # noqa: FBT002  (a flag of the command line)
) -> None:
    """Check an evidence pack, on any computer, without a network; exit code 1 when something is wrong."""
    content = read_pack(pack)
    findings = check_pack(content, _key_in(key))
    facts: dict[str, int | str] = {
        "entries": len(content["lines"]),
        "site": str(content.get("site")),
        "key": str(content.get("key")),
    }
    _say(findings, facts, as_json=as_json)


@app.command("head")
def audit_head(home: Home = DEFAULT_HOME) -> None:
    """Print the signed head, one line to keep elsewhere: `verify --anchor` later shows whether the log still has it."""
    head = AuditLog(home).signed_head()
    if head is None:
        msg = "the log has no entry yet"
        raise LocalDataError(msg)
    typer.echo(json.dumps(head))


@app.command("restart")
def audit_restart(by: By, home: Home = DEFAULT_HOME) -> None:
    """Put a log that is not whole aside, and begin a new one whose first entry names you and the old log's SHA-256."""
    kept = restart_log(home, person=by, now=now())
    typer.echo(f"the old log is {kept}: keep it as evidence; what was spent stays spent")


def _key_in(key: str | None) -> str | None:
    if key is None or key.startswith("ed25519:"):
        return key
    try:
        return Path(key).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        msg = f"{key} holds no public key"
        raise LocalDataError(msg, remedy="give ed25519:… or the file audit.pub of the site") from error


def _say(findings: list[Finding], facts: dict[str, int | str], *, as_json: bool) -> None:
    texts = [f"entry {found.number}: {found.what}" if found.number else found.what for found in findings]
    if as_json:
        typer.echo(json.dumps(facts | {"whole": not texts, "findings": texts}))
    else:
        for text in texts:
            typer.echo(f"WRONG  {text}")
        if not texts:
            typer.echo(f"good: {facts['entries']} entries, signed by {facts['key']}")
    raise typer.Exit(1 if texts else 0)
