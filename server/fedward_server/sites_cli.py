"""The centre's commands around its hospitals: ``fedward server init|sites …``."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Annotated

import typer

from fedward_common.certificates import fingerprint
from fedward_common.enrolment import days_left, instant
from fedward_common.errors import CoordinatorError
from fedward_common.signing import key_fingerprint
from fedward_common.study import SITE_NAME
from fedward_server.admission import counts
from fedward_server.centre import CONSOLE_PORT, INVITE_DAYS, create_centre, invitation, load_centre, roster_of
from fedward_server.roster import Entry
from fedward_server.studies.centre_log import note

__all__ = ["DEFAULT_CENTRE", "CentreHome", "init", "sites"]

init = typer.Typer(add_completion=False)
sites = typer.Typer(add_completion=False, no_args_is_help=True, help="The hospitals of this centre.")

CentreHome = Annotated[Path, typer.Option("--home", envvar="FEDWARD_CENTRE", help="The centre's folder")]
SiteName = Annotated[str, typer.Argument(metavar="SITE", help="The hospital's name in studies")]
DEFAULT_CENTRE = Path("/var/lib/fedward-centre")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@init.command()
def init_command(  # noqa: PLR0917  (each is an option of the command line)
    host: Annotated[str, typer.Argument(help="Name or address under which hospitals reach this centre")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the public listener")] = 8443,
    also: Annotated[list[str] | None, typer.Option(help="Another name or address for the certificate")] = None,
    bind: Annotated[str, typer.Option(help="Address to listen on")] = "0.0.0.0",  # noqa: S104  (hospitals reach it)
    private_port: Annotated[int, typer.Option(min=1, max=65535, help="The coordinator's port on loopback")] = 9094,
    study_key: Annotated[list[Path] | None, typer.Option(help="Public key file (.pub) that signs studies")] = None,
    console_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the console on loopback")] = CONSOLE_PORT,
    home: CentreHome = DEFAULT_CENTRE,
) -> None:
    """Make a centre: an authority, a certificate, a roster and the launcher's settings; nothing is overwritten."""
    keys = [path.read_text(encoding="ascii").strip() for path in study_key or ()]
    path = create_centre(
        home,
        host,
        port,
        _now(),
        other_hosts=also or (),
        bind=bind,
        private_port=private_port,
        study_keys=keys,
        console_port=console_port,
    )
    typer.echo(f"{path}: start it with  fedward server up --home {home}")
    typer.echo(f"{home / 'ca.key'}: whoever has it can be any server; keep a copy off this machine")
    typer.echo(f"CA fingerprint: {fingerprint((home / 'ca.pem').read_bytes())}")


@sites.command("invite")
def invite_command(
    site: SiteName,
    days: Annotated[int, typer.Option(min=1, max=90, help="Days that the invite can be used")] = INVITE_DAYS,
    home: CentreHome = DEFAULT_CENTRE,
) -> None:
    """Print one line that lets one hospital enrol, once; send it over a channel that you trust."""
    if not re.fullmatch(SITE_NAME, site):
        msg = f"{site!r} is no name for a site"
        raise CoordinatorError(msg, remedy="letters, digits, full stop, dash and underscore; at most 63")
    config = load_centre(home)
    note(home, "site invited", site=site, days=days)
    invite = invitation(config, site, _now(), days=days)
    typer.echo(invite.text())
    if any(counts(entry.row, _now()) for entry in roster_of(config).entries(site)):
        typer.echo(f"note: {site} is enrolled; once this is used, its present key counts no more", err=True)


@sites.command("list")
def list_command(home: CentreHome = DEFAULT_CENTRE) -> None:
    """List the hospitals: enrolled, invited, revoked."""
    roster, now = roster_of(load_centre(home)), _now()
    current = {entry.row.site: entry for entry in roster.entries()}
    current |= {entry.row.site: entry for entry in roster.entries() if counts(entry.row, now)}
    releases, outside = roster.releases(), roster.outside(now)
    for site, entry in sorted(current.items()):
        release = releases.get(entry.membership.node_key)
        runs = f", Fedward {release.version or 'of an unknown release'}" if release else ""
        typer.echo(f"{site:24s} {_standing(entry, now):10s} {_validity(entry, now)}{runs}")
        if site in outside:
            typer.echo(f"{'':24s} {outside[site]}")
    waiting = roster.waiting(now)
    for invite in waiting:
        typer.echo(f"{invite.site:24s} {'invited':10s} until {invite.expires_at[:16]}")
    if not current and not waiting:
        typer.echo("no site yet: fedward server sites invite SITE")


@sites.command("show")
def show_command(site: SiteName, home: CentreHome = DEFAULT_CENTRE) -> None:
    """Show a hospital's keys and what happened to it."""
    roster, now = roster_of(load_centre(home)), _now()
    entries, events = roster.entries(site), roster.events(site)
    if not entries and not events:
        msg = f"the roster knows no site {site!r}"
        raise CoordinatorError(msg, remedy="fedward server sites list shows all of them")
    for entry in entries:
        word = entry.membership
        typer.echo(f"{_standing(entry, now)}: {_validity(entry, now)}, node {word.node}")
        typer.echo(f"  audit key {word.audit_key}  {key_fingerprint(word.audit_key)}")
        typer.echo("".join(f"  {line}\n" for line in word.node_key.splitlines()), nl=False)
    for event in events:
        typer.echo(f"{event.at[:19]} {event.event:8s} {event.detail}")


@sites.command("revoke")
def revoke_command(site: SiteName, home: CentreHome = DEFAULT_CENTRE) -> None:
    """Shut a hospital out: its keys and invites count no more from this moment on."""
    roster = roster_of(load_centre(home))
    note(home, "site revoked", name=site)
    keys = roster.revoke(site, _now())
    typer.echo(f"{site} is revoked ({keys} keys); a running launcher takes it out within seconds")


def _standing(entry: Entry, now: dt.datetime) -> str:
    if entry.state == "active" and not counts(entry.row, now):
        return "expired" if now >= instant(entry.row.not_after) else "retired"
    return "enrolled" if entry.state == "active" else entry.state


def _validity(entry: Entry, now: dt.datetime) -> str:
    not_after = instant(entry.row.not_after)
    return f"key until {not_after.date()} ({days_left(not_after, now)} days)"
