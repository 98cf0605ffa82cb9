"""A site and its centre: ``fedward client enroll|renew|connection``."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.commands.options import DEFAULT_HOME, Home
from fedward_client.connection import load_connection, open_way
from fedward_client.diagnosis import clock_text
from fedward_client.enrolment import Detour, Enrolled, expiries, finish, load_admission
from fedward_client.enrolment import enroll as join
from fedward_client.enrolment import renew as replace_key
from fedward_client.enrolment_calls import reach
from fedward_common.certificates import fingerprint, issued_by
from fedward_common.enrolment import Invite, days_left, instant
from fedward_common.errors import FedwardError
from fedward_common.signing import key_fingerprint

__all__ = ["connection", "enroll", "renew"]

_INSPECTED = "TLS ends at a proxy of this hospital: whoever runs it reads what passes"
_SECONDS = 5.0


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def enroll(
    invite: Annotated[str, typer.Argument(help="The line that the centre sent")],
    proxy: Annotated[str, typer.Option(help="http://user@host:port; HTTPS_PROXY counts without it; or: direct")] = "",
    proxy_password_file: Annotated[Path | None, typer.Option(help="File with the proxy's password, mode 0600")] = None,
    extra_ca: Annotated[Path | None, typer.Option(help="CA file of a proxy that inspects TLS")] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace the membership that this site has")] = False,  # noqa: FBT002  (a flag)
    home: Home = DEFAULT_HOME,
) -> None:
    """Join a centre: pin its authority, register this site's keys, write connection.yaml. Only public keys leave."""
    detour = Detour(proxy, proxy_password_file, extra_ca)
    done = join(home, Invite.parse(invite), _now(), detour=detour, again=again)
    word = done.admission.membership
    typer.echo(f"enrolled as {word.site} at {load_connection(home).superlink}")
    _tell(done)
    for key in done.admission.study_keys:
        typer.echo(f"the centre signs studies with {key_fingerprint(key)}")
        typer.echo(f"  compare it by telephone, then: fedward client trust CENTRE {key} --home {home}")
    typer.echo(f"next: fedward client run --home {home}")


def renew(home: Home = DEFAULT_HOME) -> None:
    """Make a new node key and have it registered by the old one; a running daemon takes it up by itself."""
    done = replace_key(home, _now())
    typer.echo("renewed")
    _tell(done)


def connection(home: Home = DEFAULT_HOME) -> None:
    """Show how the coordinator is reached, until when, and whether it is now; exit code 1 if it is not."""
    finish(home)
    settings, admission, now = load_connection(home), load_admission(home), _now()
    way = open_way(settings, os.environ)
    typer.echo(f"coordinator  {settings.superlink}")
    if admission is not None:
        typer.echo(f"known as     {admission.membership.site}, node {admission.membership.node}")
    typer.echo(f"proxy        {way.proxy_name or 'none'}")
    typer.echo(f"CA           sha256 {fingerprint(settings.ca.read_bytes())}")
    for entry in expiries(home):
        left = days_left(entry.not_after, now)
        typer.echo(f"{entry.what}: until {entry.not_after.date()}, " + (f"{left} days" if left >= 0 else "EXPIRED"))
    try:
        answer = reach(settings.superlink, way)
    except FedwardError as error:
        typer.echo(f"reached      NO: {error.diagnostics()}")
        raise typer.Exit(1) from None
    typer.echo(f"reached      yes, in {answer.seconds:.2f} s")
    if answer.skew_s is not None and abs(answer.skew_s) > _SECONDS:
        typer.echo(f"clock        {clock_text(answer.skew_s)}")
    typer.echo(f"TLS          {'end to end' if issued_by(answer.peer, settings.ca.read_bytes()) else _INSPECTED}")


def _tell(done: Enrolled) -> None:
    until = instant(done.admission.membership.not_after)
    typer.echo(f"node key: until {until.date()} ({days_left(until, _now())} days)")
    if done.inspected:
        typer.echo(f"warning: {_INSPECTED}", err=True)
