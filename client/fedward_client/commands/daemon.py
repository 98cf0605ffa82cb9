"""A site from its first hour: make its folder, run its daemon."""

from __future__ import annotations

from typing import Annotated

import typer

from fedward_client.commands.options import DEFAULT_HOME, Home, now
from fedward_client.config import create_site
from fedward_common.audit import AuditLog

__all__ = ["init", "run"]


def init(
    site: Annotated[str, typer.Argument(help="The hospital's name in studies")], home: Home = DEFAULT_HOME
) -> None:
    """Make a site's folder with a commented policy and an audit key; nothing is overwritten."""
    create_site(home, site)
    log = AuditLog(home)
    log.append("site made", at=now(), name=site)
    typer.echo(f"{home / 'site.yaml'}: read it, every limit has its comment")
    typer.echo(f"audit key: {log.public_key()}")
    typer.echo("nobody may sign studies for this site yet: fedward client trust NAME KEY")


def run(home: Home = DEFAULT_HOME) -> None:
    """Run the daemon until it is told to stop."""
    from fedward_client.daemon import main  # noqa: PLC0415  (Flower's client, which no other command needs)

    raise typer.Exit(main(["--home", str(home)]))
