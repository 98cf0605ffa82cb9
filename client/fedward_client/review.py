"""What a site's folder knows of the studies that were proposed to it, brought together for the person who decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedward_client.approvals import Approvals, Proposal
from fedward_client.books import Terms
from fedward_client.briefing import Briefing, Cost, brief
from fedward_client.cohorts import open_cohort
from fedward_client.decisions import Rule, Standing, changed_cohort, changed_study, standing
from fedward_client.policy import admit_use
from fedward_client.site import Site
from fedward_common.errors import FedwardError, LocalDataError, Refusal
from fedward_common.privacy import round_spend
from fedward_common.study import DpSgd, Study
from fedward_common.study_file import read_study_file

__all__ = ["Reviewed", "fingerprint_of", "proposed_or_filed", "review", "review_all"]


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A study that was proposed, and where it stands."""

    proposal: Proposal
    standing: Standing


def review_all(site: Site, now: datetime) -> list[Reviewed]:
    """Return where every proposed study stands, by name and digest. Cohorts of approved studies are hashed anew."""
    proposals = site.approvals.proposals()
    return [Reviewed(proposal, _standing(site, proposal, proposals, now)) for proposal in proposals]


def review(site: Site, proposal: Proposal, now: datetime) -> Briefing:
    """Return everything that a person must know of one study before saying yes."""
    proposals = site.approvals.proposals()
    earlier = _approved_last(proposal, proposals)
    study, policy = proposal.study, site.config.policy
    return brief(
        study,
        site.config.site,
        policy,
        standing=_standing(site, proposal, proposals, now),
        signatures=proposal.signatures,
        costs=[_cost(site, study, cohort) for cohort in site.config.cohorts],
        earlier=earlier.study if earlier else None,
    )


def proposed_or_filed(home: Path, name: str) -> Proposal:
    """Return the proposed study of this name or beginning of a digest; or the one in a study file, if `name` is one.

    Raises:
        FedwardError: no study is called so, or several are, or the file is no study file.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        file = read_study_file(path)
        return Proposal(file.study, file.signatures, Approvals(home).decisions(file.study.digest))
    return Approvals(home).find(name)


def fingerprint_of(site: Site, study: Study, cohort: str) -> str:
    """Return the fingerprint of a registered cohort as it is now.

    Raises:
        LocalDataError: it is not registered, or cannot be read.
    """
    return open_cohort(site.registered(cohort), study.cohort, site.home).fingerprint()


def _standing(site: Site, proposal: Proposal, proposals: Sequence[Proposal], now: datetime) -> Standing:
    policy = site.config.policy
    found = standing(proposal.decisions, Rule(policy.approvals_needed, policy.approval_days), now)
    if found.state in {"approved", "incomplete"}:
        try:
            return changed_cohort(found, fingerprint_of(site, proposal.study, found.cohort))
        except (LocalDataError, OSError):
            return changed_cohort(found, None)
    earlier = _approved_last(proposal, proposals)
    return changed_study(found, earlier.study.digest if earlier else None)


def _approved_last(proposal: Proposal, proposals: Sequence[Proposal]) -> Proposal | None:
    """Return the other version of the study's name that somebody said yes to last."""
    others = [p for p in proposals if p.study.name == proposal.study.name and p.study.digest != proposal.study.digest]
    said_yes = [(d.at, other) for other in others for d in other.decisions if d.answer == "approved"]
    return max(said_yes, key=lambda pair: pair[0])[1] if said_yes else None


def _cost(site: Site, study: Study, cohort: str) -> Cost:
    try:
        admit_use(study, cohort, site.config.policy)
    except Refusal as refusal:
        return Cost(cohort, problem=refusal.message)
    if not isinstance(study.privacy, DpSgd):
        return Cost(cohort)
    try:
        spend = round_spend(study)
        terms = Terms(study.training.rounds, spend, study.privacy.delta) if spend else None
        policy = site.config.policy
        lifetime = site.ledger.planned(cohort, policy.max_delta, study=study.digest, terms=terms)
    except FedwardError as error:  # the noise is not calibrated, or the ledger is damaged
        return Cost(cohort, problem=error.message)
    privacy = study.privacy
    return Cost(cohort, privacy.epsilon, privacy.delta, lifetime=lifetime, limit=policy.max_epsilon_lifetime)
