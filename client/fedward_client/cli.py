"""The commands of a hospital: ``fedward client …``.

Only ``run``, ``enroll``, ``renew``, ``connection`` and ``doctor`` speak to the network, and only to the centre.
"""

from __future__ import annotations

import typer

from fedward_client.commands import audit, cohorts, daemon, doctor, enrolment, ledger, studies

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="A hospital's side.")
for command in (
    daemon.init,
    enrolment.enroll,
    enrolment.renew,
    enrolment.connection,
    daemon.run,
    doctor.doctor,
    studies.studies,
    studies.show,
    studies.rehearse,
    studies.approve,
    studies.deny,
    studies.withdraw,
    studies.trust,
):
    app.command()(command)
app.add_typer(cohorts.app, name="cohort")
app.add_typer(ledger.app, name="ledger")
app.add_typer(audit.app, name="audit")
