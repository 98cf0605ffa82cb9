"""What was proposed to a hospital, what it would cost, and what the hospital says to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedward_client.approvals import Approvals, Decision, Proposal
from fedward_client.audit import AuditLog
from fedward_client.cohorts import open_cohort
from fedward_client.commands.options import DEFAULT_HOME, By, Home, StudyName, now
from fedward_client.site import Site
from fedward_common.privacy import Spend, epsilon_of
from fedward_common.study import DpSgd, Study

__all__ = ["approve", "deny", "describe", "show", "studies", "withdraw"]


def studies(home: Home = DEFAULT_HOME) -> None:
    """List the studies that were proposed, and what was decided."""
    found = Approvals(home).proposals()
    for proposal in found:
        typer.echo(f"{proposal.study.digest[:12]}  {_state(proposal):10s} {proposal.study.name}")
    if not found:
        typer.echo("no study was proposed yet")


def show(study: StudyName, home: Home = DEFAULT_HOME) -> None:
    """Show what a study reads, what it sends and what it would cost from each cohort's budget."""
    site, proposal = Site(home), Approvals(home).find(study)
    for line in describe(site, proposal):
        typer.echo(line)


def approve(
    study: StudyName,
    cohort: Annotated[str, typer.Option(help="A registered cohort")],
    by: By,
    home: Home = DEFAULT_HOME,
) -> None:
    """Let a study train on a cohort as it is now; one changed byte of either and it waits again."""
    site, approvals = Site(home), Approvals(home)
    found = approvals.find(study).study
    fingerprint = open_cohort(site.registered(cohort), found.cohort, home).fingerprint()
    approvals.decide(found, Decision("approved", by, now(), cohort, fingerprint))
    AuditLog(home).append("approved", at=now(), study=found.digest, cohort=cohort, name=by)
    typer.echo(f"approved: {found.name} {found.digest[:12]} on {cohort}")


def deny(study: StudyName, by: By, home: Home = DEFAULT_HOME) -> None:
    """Say no to a study."""
    _decide("denied", study, by, home)


def withdraw(study: StudyName, by: By, home: Home = DEFAULT_HOME) -> None:
    """Take an approval back, from the next round on; what was spent stays spent."""
    _decide("withdrawn", study, by, home)


def _decide(answer: str, study: str, by: str, home: Path) -> None:
    approvals = Approvals(home)
    found = approvals.find(study).study
    approvals.decide(found, Decision("denied" if answer == "denied" else "withdrawn", by, now()))
    AuditLog(home).append(answer, at=now(), study=found.digest, name=by)
    typer.echo(f"{answer}: {found.name} {found.digest[:12]}")


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
