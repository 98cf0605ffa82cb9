"""The commands of a hospital: ``fedward client …``. Nothing here speaks to the network but ``run``."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedward_client.approvals import Approvals, Decision, Proposal
from fedward_client.audit import AuditLog, missing_reservations
from fedward_client.cohort import TableCohort, TableEntry
from fedward_client.ledger import Ledger
from fedward_client.readiness import assess
from fedward_client.site import Site, create_site, register_cohort
from fedward_common.privacy import Spend, epsilon_of
from fedward_common.study import DpSgd, Study

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="A hospital's side.")
cohort = typer.Typer(add_completion=False, no_args_is_help=True, help="The register of local tables.")
audit = typer.Typer(add_completion=False, no_args_is_help=True, help="The log of decisions.")
app.add_typer(cohort, name="cohort")
app.add_typer(audit, name="audit")

Home = Annotated[Path, typer.Option(envvar="FEDWARD_HOME", help="The site's folder")]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Its name, or the beginning of its digest")]
By = Annotated[str, typer.Option(help="Who decides", default_factory=getpass.getuser)]
DEFAULT_HOME = Path("/var/lib/fedward")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@app.command()
def init(
    site: Annotated[str, typer.Argument(help="The hospital's name in studies")], home: Home = DEFAULT_HOME
) -> None:
    """Make a site's folder with a commented policy and an audit key; nothing is overwritten."""
    create_site(home, site)
    log = AuditLog(home)
    log.append("site made", at=_now(), name=site)
    typer.echo(f"{home / 'site.yaml'}: read it, every limit has its comment")
    typer.echo(f"audit key: {log.public_key()}")


@app.command()
def run(home: Home = DEFAULT_HOME) -> None:
    """Run the daemon until it is told to stop."""
    from fedward_client.daemon import main  # noqa: PLC0415  (Flower's client, which no other command needs)

    raise typer.Exit(main(["--home", str(home)]))


@app.command()
def studies(home: Home = DEFAULT_HOME) -> None:
    """List the studies that were proposed, and what was decided."""
    found = Approvals(home).proposals()
    for proposal in found:
        typer.echo(f"{proposal.study.digest[:12]}  {_state(proposal):10s} {proposal.study.name}")
    if not found:
        typer.echo("no study was proposed yet")


@app.command()
def show(study: StudyName, home: Home = DEFAULT_HOME) -> None:
    """Show what a study reads, what it sends and what it would cost from each cohort's budget."""
    site, proposal = Site(home), Approvals(home).find(study)
    for line in describe(site, proposal):
        typer.echo(line)


@app.command()
def approve(
    study: StudyName,
    cohort: Annotated[str, typer.Option(help="A registered cohort")],
    by: By,
    home: Home = DEFAULT_HOME,
) -> None:
    """Let a study train on a cohort as it is now; one changed byte of either and it waits again."""
    site, approvals = Site(home), Approvals(home)
    found = approvals.find(study).study
    fingerprint = TableCohort(site.registered(cohort), found.cohort, home).fingerprint()
    approvals.decide(found, Decision("approved", by, _now(), cohort, fingerprint))
    AuditLog(home).append("approved", at=_now(), study=found.digest, cohort=cohort, name=by)
    typer.echo(f"approved: {found.name} {found.digest[:12]} on {cohort}")


@app.command()
def deny(study: StudyName, by: By, home: Home = DEFAULT_HOME) -> None:
    """Say no to a study."""
    _decide("denied", study, by, home)


@app.command()
def withdraw(study: StudyName, by: By, home: Home = DEFAULT_HOME) -> None:
    """Take an approval back, from the next round on; what was spent stays spent."""
    _decide("withdrawn", study, by, home)


def _decide(answer: str, study: str, by: str, home: Path) -> None:
    approvals = Approvals(home)
    found = approvals.find(study).study
    approvals.decide(found, Decision("denied" if answer == "denied" else "withdrawn", by, _now()))
    AuditLog(home).append(answer, at=_now(), study=found.digest, name=by)
    typer.echo(f"{answer}: {found.name} {found.digest[:12]}")


@app.command()
def ledger(home: Home = DEFAULT_HOME) -> None:
    """Show what each cohort has spent, by study, and what its lifetime budget still holds."""
    site = Site(home)
    for name in site.config.cohorts:
        spent = site.ledger.spent(name, site.config.policy.max_delta)
        limit = site.config.policy.max_epsilon_lifetime
        typer.echo(f"{name}: ε {spent:.3f} of {limit:g} spent at δ {site.config.policy.max_delta:g}")
        for entry in site.ledger.entries(name):
            typer.echo(f"  {entry.study[:12]}  ε {entry.epsilon:.3f} at δ {entry.delta:g}, {entry.rounds} rounds")


@cohort.command("add")
def cohort_add(
    name: Annotated[str, typer.Argument(help="A name of yours for the cohort")],
    table: Annotated[Path, typer.Argument(help="CSV or Parquet file")],
    columns: Annotated[str | None, typer.Option(help="Column names of a file without a header, a,b,c")] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Register a table; nothing is read from it yet."""
    entry = TableEntry(table=str(table.resolve()), names=tuple(columns.split(",")) if columns else None)
    register_cohort(home, name, entry)
    AuditLog(home).append("cohort registered", at=_now(), cohort=name)
    typer.echo(f"registered {name}; fedward client cohort check {name} --study STUDY says whether it is fit")


@cohort.command("list")
def cohort_list(home: Home = DEFAULT_HOME) -> None:
    """List the registered tables."""
    for name, entry in Site(home).config.cohorts.items():
        typer.echo(f"{name}  {entry.table}")


@cohort.command("check")
def cohort_check(
    name: Annotated[str, typer.Argument(help="A registered cohort")],
    study: Annotated[str, typer.Option(help="A proposed study whose schema counts")],
    home: Home = DEFAULT_HOME,
) -> None:
    """Say whether a table is fit for a study: sizes, balance, missing and impossible values. Nothing is sent."""
    readiness = assess(Site(home).registered(name), Approvals(home).find(study).study.cohort, home)
    for check in readiness.checks:
        typer.echo(f"{check.level:4s} {check.what}" + (f"\n     remedy: {check.remedy}" if check.remedy else ""))
    raise typer.Exit(0 if readiness.ready else 1)


@audit.command("verify")
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


@audit.command("export")
def audit_export(
    file: Annotated[Path, typer.Argument(help="The evidence pack to write")], home: Home = DEFAULT_HOME
) -> None:
    """Write log, signed head and public key into one JSON file for an auditor."""
    log = AuditLog(home)
    pack = {"format": "fedward-audit-1", "key": log.public_key(), **log.export()}
    with file.open("x", encoding="utf-8") as handle:
        json.dump(pack, handle, indent=1)
    typer.echo(f"{file}: {len(pack['lines'])} entries")


def _state(proposal: Proposal) -> str:
    return proposal.decision.answer if proposal.decision else "waiting"


def describe(site: Site, proposal: Proposal) -> list[str]:
    """Return what a person must know of a study before saying yes."""
    study = proposal.study
    lines = [f"{study.name}  {study.digest}", study.description, f"state: {_state(proposal)}"]
    lines.append(f"reads: {', '.join([*study.cohort.columns, study.cohort.label.column])}")
    lines.append(
        "sends: the cohort's number of patients; each round, the change of the model's weights" + _noise(study)
    )
    lines.append(f"works: {study.training.rounds} rounds of {study.training.local_steps} steps")
    return [*lines, *(f"cohort {name}: {_cost(site, study, name)}" for name in site.config.cohorts)]


def _noise(study: Study) -> str:
    if isinstance(study.privacy, DpSgd):
        return f", clipped to {study.privacy.clip_norm:g} and noised {study.privacy.noise_multiplier:g} times that"
    return " WITHOUT noise, and the mean loss"


def _cost(site: Site, study: Study, cohort_name: str) -> str:
    if not isinstance(study.privacy, DpSgd) or study.privacy.noise_multiplier is None:
        return "no privacy budget is kept for such a study"
    policy = site.config.policy
    whole = Spend(study.privacy.noise_multiplier, study.training.sampling_rate, study.total_steps)
    after = epsilon_of([*site.ledger.spends(cohort_name), whole], policy.max_delta)
    limit = policy.max_epsilon_lifetime
    verdict = "fits" if after <= limit else "DOES NOT FIT"
    return f"ε {study.privacy.epsilon:g} for this study; lifetime {after:.3f} of {limit:g}: {verdict}"
