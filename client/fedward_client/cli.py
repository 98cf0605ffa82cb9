"""The commands of a hospital: ``fedward client …``. Nothing here speaks to the network but ``run``."""

from __future__ import annotations

import typer

from fedward_client.commands import audit, cohorts, daemon, ledger, studies

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="A hospital's side.")
for command in (
    daemon.init,
    daemon.run,
    studies.studies,
    studies.show,
    studies.approve,
    studies.deny,
    studies.withdraw,
    ledger.ledger,
):
    app.command()(command)
app.add_typer(cohorts.app, name="cohort")
app.add_typer(audit.app, name="audit")
