"""What was proposed to a hospital, what it would cost, and what the hospital says to it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import structlog
import typer

from fedward_client.approvals import Approvals
from fedward_client.commands.options import DEFAULT_HOME, AsJson, By, Home, StudyName, now
from fedward_client.commands.study_text import briefing_lines, rehearsal_lines, studies_lines
from fedward_client.config import load_site, trust_signers
from fedward_client.decisions import Answer, Decision, Rule, counts, standing
from fedward_client.policy import admit_use, objections
from fedward_client.review import fingerprint_of, proposed_or_filed, review, review_all
from fedward_client.site import Site
from fedward_common.audit import AuditLog
from fedward_common.errors import LocalDataError
from fedward_common.person import account
from fedward_common.signing import key_fingerprint

__all__ = ["approve", "deny", "rehearse", "show", "studies", "trust", "withdraw"]


def studies(home: Home = DEFAULT_HOME, *, as_json: AsJson = False) -> None:
    """List the studies that were proposed: name, digest, where each stands, since when and why."""
    found = review_all(Site(home), datetime.now(UTC))
    if as_json:
        rows = [{"name": r.proposal.study.name, "digest": r.proposal.study.digest} | asdict(r.standing) for r in found]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for line in studies_lines(found):
        typer.echo(line)


def show(study: StudyName, home: Home = DEFAULT_HOME, *, as_json: AsJson = False) -> None:
    """Show what a study reads and sends, what it would cost, who signed it, what changed, and what the policy says."""
    site = Site(home)
    found = review(site, proposed_or_filed(home, study), datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=2, ensure_ascii=False))
        return
    for line in briefing_lines(found):
        typer.echo(line)


def rehearse(
    study: StudyName,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds")] = 1,
    patients: Annotated[int, typer.Option(min=1, max=100_000, help="Synthetic patients, at least min_patients")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the synthetic cohort")] = 1,
    home: Home = DEFAULT_HOME,
    *,
    as_json: AsJson = False,
) -> None:
    """Run a study on synthetic patients of its declared schema: nothing is sent, nothing is spent."""
    from fedward_client.rehearsal import rehearse as play  # noqa: PLC0415  (the daemon's children: no other command has any)
    from fedward_client.runner import Runner  # noqa: PLC0415  (see above)

    config, proposal = load_site(home), proposed_or_filed(home, study)
    with _only_warnings(), closing(Runner()) as runner:
        runner.start()
        found = play(config, proposal, runner, rounds=rounds, patients=patients, seed=seed)
    if as_json:
        typer.echo(json.dumps(found.plain(), indent=2, ensure_ascii=False))
    else:
        for line in rehearsal_lines(found):
            typer.echo(line)
    raise typer.Exit(0 if found.good else 1)


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Leave the daemon's usual lines out of a command's output."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def trust(
    name: Annotated[str, typer.Argument(help="A name of yours for who signs")],
    key: Annotated[str, typer.Argument(help="A .pub file, its line ed25519:…, or the key's fingerprint sha256:…")],
    by: By,
    home: Home = DEFAULT_HOME,
) -> None:
    """Let a key sign studies for this site: it is written to policy.signers in site.yaml."""
    path = Path(key)
    text = path.read_text(encoding="utf-8").strip() if path.suffix == ".pub" and path.is_file() else key.strip()
    trust_signers(home, {name: text})
    print_ = key_fingerprint(text) if text.startswith("ed25519:") else text
    AuditLog(home).append("signer trusted", at=now(), name=f"{by} ({account()})", detail=f"{name} {print_}")
    typer.echo(f"{name} may sign studies: {print_}")
    typer.echo("compare the fingerprint with the signer by telephone; to end it, take the line out of site.yaml")


def approve(
    study: StudyName,
    cohort: Annotated[str, typer.Option(help="A registered cohort")],
    by: By,
    home: Home = DEFAULT_HOME,
) -> None:
    """Let a study train on a cohort as it is now; one changed byte of either and it waits again.

    A study file counts as if the centre had sent it, so that the first round need not wait for somebody.
    """
    site = Site(home)
    proposal = proposed_or_filed(home, study)
    found, policy, moment = proposal.study, site.config.policy, datetime.now(UTC)
    for refusal in objections(found, site.config.site, policy, signatures=proposal.signatures):
        raise refusal  # a yes to what the policy refuses would change nothing
    admit_use(found, cohort, policy)
    decision = _decision("approved", by, cohort, fingerprint_of(site, found, cohort))
    rule = Rule(policy.approvals_needed, policy.approval_days)
    if not counts(proposal.decisions, decision, rule, moment):
        msg = f"{decision.person} has approved this study already"
        raise LocalDataError(msg, remedy="somebody else has to, under an account of their own")
    stands = standing((*proposal.decisions, decision), rule, moment)
    count = {"detail": f"{len(stands.by)} of {stands.needed}"} if stands.needed > 1 else {}
    site.propose(found, proposal.signatures)
    site.audit.append("approved", at=decision.at, study=found.digest, cohort=cohort, name=_name(decision), **count)
    site.approvals.decide(found, decision)  # after the log: no approval is in force that is not in it
    typer.echo(f"{stands.words}: {found.name} {found.digest[:12]} on {cohort}")
    if stands.state == "approved":
        typer.echo(f"until {stands.expires}, or until the study or the cohort changes by one byte")
    else:
        typer.echo("a second person has to approve it, under an account of their own; until then it waits")


def deny(study: StudyName, by: By, home: Home = DEFAULT_HOME) -> None:
    """Say no to a study."""
    _decide("denied", study, by, home)


def withdraw(study: StudyName, by: By, home: Home = DEFAULT_HOME) -> None:
    """Take an approval back, from the next round on; what was spent stays spent."""
    _decide("withdrawn", study, by, home)


def _decide(answer: Answer, study: str, by: str, home: Path) -> None:
    approvals = Approvals(home)
    found = approvals.find(study).study
    decision = _decision(answer, by)
    approvals.decide(found, decision)  # before the log: a no holds even where the log is broken
    AuditLog(home).append(answer, at=decision.at, study=found.digest, name=_name(decision))
    typer.echo(f"{answer}: {found.name} {found.digest[:12]}")


def _decision(answer: Answer, by: str, cohort: str = "", fingerprint: str = "") -> Decision:
    return Decision(answer, by, now(), cohort, fingerprint, account())


def _name(decision: Decision) -> str:
    """Return the person for the log: the name that they gave, and the account that they were logged in with."""
    return decision.by if decision.by == decision.account else f"{decision.by} ({decision.account})"
