"""The commands of whoever runs the centre's computer: ``fedward server up|down|status|access|audit``."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fedward_common.audit_chain import Finding
from fedward_common.errors import CoordinatorError
from fedward_common.files import write_new_json
from fedward_server.centre import load_centre
from fedward_server.sites_cli import DEFAULT_CENTRE, CentreHome
from fedward_server.studies.access import TOKEN_DAYS, Access, Role
from fedward_server.studies.audit_pack import build_pack, check_pack, read_pack
from fedward_server.studies.book import StudyBook
from fedward_server.studies.centre_log import centre_log, note, stamp
from fedward_server.studies.supervisor import main as supervise
from fedward_server.studies.supervisor import read_state, supervised

__all__ = ["access", "audit", "down", "status", "up"]

up = typer.Typer(add_completion=False)
down = typer.Typer(add_completion=False)
status = typer.Typer(add_completion=False)
access = typer.Typer(add_completion=False, no_args_is_help=True, help="Who may do what with this centre's studies.")
audit = typer.Typer(add_completion=False, no_args_is_help=True, help="The centre's log of decisions.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a person or a program")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")]
_DOWN: Final = 3
_LOOK_S: Final = 0.1


@up.command()
def up_command(home: CentreHome = DEFAULT_CENTRE) -> None:
    """Run the centre until it is told to stop: the launcher, the interface, and a process for each study."""
    load_centre(home)
    raise typer.Exit(supervise(["--home", str(home)]))


@down.command()
def down_command(
    home: CentreHome = DEFAULT_CENTRE,
    patience: Annotated[int, typer.Option(min=1, help="Seconds to wait for the end")] = 60,
) -> None:
    """Stop the centre; no run ends by that, each goes on with the next `up`."""
    load_centre(home)
    state = read_state(home)
    if state is None or not state["pid"]:
        msg = f"the centre in {home} is not up" if state is None else f"the centre in {home} is starting"
        raise CoordinatorError(msg, remedy="fedward server status shows what runs")
    os.kill(int(state["pid"]), signal.SIGTERM)
    until = time.monotonic() + patience
    while supervised(home):
        if time.monotonic() > until:
            msg = f"the centre does not stop within {patience} s"
            raise CoordinatorError(msg, remedy=f"look at process {state['pid']}")
        time.sleep(_LOOK_S)
    typer.echo("down; what was running goes on with the next fedward server up")


@status.command()
def status_command(home: CentreHome = DEFAULT_CENTRE, as_json: AsJson = False) -> None:
    """Say what runs, since when, and what failed last; exit code 3 where nothing does."""
    load_centre(home)
    state = read_state(home)
    entries = [entry for entry in StudyBook(home).entries() if entry.live]
    if as_json:
        live = [entry.model_dump(mode="json") for entry in entries]
        typer.echo(json.dumps({"up": state is not None, "supervisor": state, "studies": live}))
    else:
        typer.echo(_state(state))
        for entry in entries:
            pid = f"process {state['runs'][entry.id]}" if state and entry.id in state["runs"] else "no process"
            reason = f"  {entry.reason}" if entry.reason else ""
            typer.echo(f"  {entry.id} {entry.state:9s} {entry.name:24s} {pid}{reason}")
    raise typer.Exit(0 if state is not None else _DOWN)


def _state(state: dict[str, Any] | None) -> str:
    if state is None:
        return "down"
    lines = [f"up since {state['since']}, process {state['pid']}"]
    for name, service in state["services"].items():
        word = "answers" if service["ready"] else "starts" if service["pid"] else "is away"
        failed = f"; last error: {service['last_error']}" if service["last_error"] else ""
        lines.append(f"  {name:9s} {word} since {service['since']}, process {service['pid']}{failed}")
    return "\n".join(lines)


@access.command("issue")
def issue_command(
    name: Name,
    role: Annotated[Role, typer.Option(help="What they may do; see the guide")],
    days: Annotated[int, typer.Option(min=1, max=366, help="Days that the token is valid")] = TOKEN_DAYS,
    home: CentreHome = DEFAULT_CENTRE,
) -> None:
    """Print a new token, once; give it to its holder over a channel that you trust."""
    load_centre(home)

    def written() -> None:
        note(home, "access issued", name=name, role=role.value, days=days)

    typer.echo(Access(home).issue(name, role, _now(), days=days, before=written))


@access.command("list")
def list_command(home: CentreHome = DEFAULT_CENTRE) -> None:
    """List who has, or had, a token."""
    load_centre(home)
    grants = Access(home).grants()
    for grant in grants:
        until = f"until {grant.expires_at[:10]}" if grant.revoked_at is None else f"on {grant.revoked_at[:10]}"
        typer.echo(f"{grant.name:24s} {grant.role.value:10s} {grant.standing(_now()):8s} {until}")
    if not grants:
        typer.echo("nobody yet: fedward server access issue NAME --role ROLE")


@access.command("revoke")
def revoke_command(name: Name, home: CentreHome = DEFAULT_CENTRE) -> None:
    """Let a token count no more, from this moment on."""
    load_centre(home)
    Access(home).revoke(name, _now(), before=lambda: note(home, "access revoked", name=name))
    typer.echo(f"{name} is shut out from the next call on")


@audit.command("verify")
def verify_command(home: CentreHome = DEFAULT_CENTRE, as_json: AsJson = False) -> None:
    """Check the log against its chain and its signed head; exit code 1 when something is wrong."""
    load_centre(home)
    log = centre_log(home)
    findings = log.verify()
    _say(findings, sum(1 for _ in log.lines()) if not findings else 0, log.public_key(), as_json=as_json)


@audit.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="The file to write")], home: CentreHome = DEFAULT_CENTRE
) -> None:
    """Write the log into one signed file for an auditor."""
    pack = build_pack(centre_log(home), load_centre(home).advertised, stamp())
    write_new_json(file, pack)
    typer.echo(f"{file}: {len(pack['lines'])} entries, signed by {pack['key']}")


@audit.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(help="A file that `export` wrote")],
    key: Annotated[
        str | None, typer.Option(help="The centre's public audit key, as you have it from elsewhere")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an exported log, on any computer; exit code 1 when something is wrong."""
    pack = read_pack(file)
    _say(check_pack(pack, key), len(pack["lines"]), str(pack.get("key")), as_json=as_json)


def _say(findings: list[Finding], entries: int, key: str, *, as_json: bool) -> None:
    texts = [f"entry {found.number}: {found.what}" if found.number else found.what for found in findings]
    if as_json:
        typer.echo(json.dumps({"entries": entries, "key": key, "whole": not texts, "findings": texts}))
    else:
        for text in texts:
            typer.echo(f"WRONG  {text}")
        if not texts:
            typer.echo(f"good: {entries} entries, signed by {key}")
    raise typer.Exit(1 if texts else 0)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
