"""What each cohort has spent."""

from __future__ import annotations

import typer

from fedward_client.commands.options import DEFAULT_HOME, Home
from fedward_client.site import Site

__all__ = ["ledger"]


def ledger(home: Home = DEFAULT_HOME) -> None:
    """Show what each cohort has spent, by study, and what its lifetime budget still holds."""
    site = Site(home)
    for name in site.config.cohorts:
        spent = site.ledger.spent(name, site.config.policy.max_delta)
        limit = site.config.policy.max_epsilon_lifetime
        typer.echo(f"{name}: ε {spent:.3f} of {limit:g} spent at δ {site.config.policy.max_delta:g}")
        for entry in site.ledger.entries(name):
            typer.echo(f"  {entry.study[:12]}  ε {entry.epsilon:.3f} at δ {entry.delta:g}, {entry.rounds} rounds")
