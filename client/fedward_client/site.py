"""A hospital's side of the contract: admit or refuse, debit, train, encode. One folder holds all of it.

::

    <home>/
      site.yaml         name, policy, register of cohorts
      studies/          what was proposed
      approvals.json    what was decided
      ledger.*          what each patient has spent, and the key that hides who that is
      audit.*           the log of decisions, its signed head, its key
      local/            the parameters that stay here under FedBN, by study
      variates/         the control variates of SCAFFOLD, by study
      paid/             the last update that was paid for, by study, to be said again
      cache/            encoded tables
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedward_client.approvals import Approvals
from fedward_client.books import Limits, Terms
from fedward_client.budget import Budget
from fedward_client.cohorts import CohortEntry, open_cohort
from fedward_client.config import load_site, local_time
from fedward_client.decisions import Decision, Rule, standing
from fedward_client.ledger import Ledger
from fedward_client.local_part import LocalPart
from fedward_client.paid import PaidUpdate
from fedward_client.policy import UNTRUSTED, admit, admit_cohort, admit_steps, admit_use, metrics_that_leave, signers_of
from fedward_client.variates import Variate
from fedward_client.worker import InProcessWorker, Job, Session, Worker
from fedward_common import __version__
from fedward_common.errors import FedwardError, LocalDataError, Refusal, RefusalCode, refusal_of
from fedward_common.fixed_point import decode_mean, encode_weighted
from fedward_common.models import parted, whole
from fedward_common.normalised import normaliser
from fedward_common.privacy import round_spend
from fedward_common.study import DpSgd, Study
from fedward_common.study_file import Signature
from fedward_common.wire import (
    Enrolment,
    Task,
    Update,
    read_task,
    write_enrolment,
    write_refusal,
    write_update,
)

__all__ = ["Site", "approve"]


def approve(home: Path, study: Study, cohort: str, *, by: str = "simulation") -> None:
    """Record the hospital's yes to exactly this study on this cohort as it is now."""
    site, approvals = Site(home), Approvals(home)
    approvals.propose(study)
    fingerprint = open_cohort(site.registered(cohort), study.cohort, home).fingerprint()
    approvals.decide(study, Decision("approved", by, _now(), cohort, fingerprint))


class Site:
    """One hospital: decides here, and lets `worker` open cohorts and train.

    Args:
        home: its folder.
        worker: who computes; this process itself by default.

    Raises:
        FedwardError: ``site.yaml`` is missing or wrong; the message names the key.
    """

    def __init__(self, home: Path, worker: Worker | None = None) -> None:
        self.home = home
        self.config = load_site(home)
        self.budget = Budget(home)
        self.approvals = Approvals(home)
        self.audit = self.budget.audit
        self._worker = worker or InProcessWorker()

    @property
    def ledger(self) -> Ledger:
        """The site's ledger; see `Budget.ledger`."""
        return self.budget.ledger

    def registered(self, cohort: str) -> CohortEntry:
        """Return the register's entry for `cohort`.

        Raises:
            LocalDataError: there is none.
        """
        try:
            return self.config.cohorts[cohort]
        except KeyError:
            msg = f"no cohort {cohort!r} is registered"
            remedy = f"fedward client cohort add {cohort} FILE; there are: {', '.join(self.config.cohorts) or 'none'}"
            raise LocalDataError(msg, remedy=remedy) from None

    def answer(self, content: RecordDict) -> RecordDict:
        """Return the reply to one message of the centre: an enrolment, an update or a refusal.

        No error of Fedward's own leaves this method, and of a refusal only its code and allow-listed fields do.
        """
        study = ""
        try:
            task = read_task(content)
            study = task.study.digest
            if task.weights is None:
                return write_enrolment(self.enrol(task), protocol=task.protocol)
            return write_update(self.train(task), protocol=task.protocol)
        except FedwardError as error:
            refusal = refusal_of(error)
        return self.refuse(refusal, study)

    def refuse(self, refusal: Refusal, study: str = "") -> RecordDict:
        """Note a refusal in the audit log and return it as a reply.

        Args:
            refusal: what is said; of it only the code and the allow-listed fields are noted and sent.
            study: the study's digest, empty where none was read.
        """
        self.audit.append("refused", at=_now(), study=study, code=refusal.crossing())
        return write_refusal(self.config.site, refusal)

    def enrol(self, task: Task) -> Enrolment:
        """Return the site's yes to a study, if policy, budget and cohort allow all of its rounds.

        Raises:
            Refusal: one of them does not.
            LocalDataError: the table is missing or breaks the schema.
        """
        study = task.study
        cohort, approved = self._permit(task)
        with self._opened(study, cohort, approved) as session:
            identities = session.facts.identities
        patients, spend = len(identities), round_spend(study)
        if spend is not None and isinstance(study.privacy, DpSgd):
            terms = Terms(study.training.rounds, spend, study.privacy.delta)
            limits = self._limits(study.privacy)
            self.budget.grant(
                cohort=cohort, study=study.digest, identities=identities, terms=terms, limits=limits, now=_now()
            )
        self.audit.append("enrolled", at=_now(), study=study.digest, cohort=cohort, patients=patients)
        return Enrolment(self.config.site, study.digest, patients, __version__)

    def train(self, task: Task) -> Update:
        """Return the site's update for one round: admitted, debited on disk, trained, encoded, in that order.

        What was paid for is said again to whoever asks the same again, and not made again.

        Raises:
            Refusal: the policy, the ledger or the update's own bounds say no.
            LocalDataError: the table is missing or breaks the schema.
        """
        study, weights = task.study, task.weights
        if weights is None:
            raise Refusal(RefusalCode.MESSAGE_INVALID, "a training task without a model")
        cohort, approved = self._permit(task)
        paid = PaidUpdate.of(self.home, self.config.site, task) if isinstance(study.privacy, DpSgd) else None
        if paid and (kept := paid.read()):
            return self._said_again(study, cohort, *kept)
        variate = Variate.of(self.home, self.config.site, task)
        with self._opened(study, cohort, approved, variate.correction if variate else None) as session:
            steps = self._debit(study, cohort, session.facts.identities, task.round)
            local = LocalPart.of(self.home, study, task.round)
            trained = session.train(task.round, whole(study, weights, local.values if local else None))
        measured = {} if math.isnan(trained.loss) else {"loss": trained.loss}
        weight = _weight(study, session.facts.patients)
        shared, own = parted(study, trained.change)
        change = shared * np.float32(normaliser(study, session.facts.patients))
        values = _encoded(change, weight, study.aggregation.update_bound)
        if local:
            local.keep(own)
        if variate:
            variate.keep(decode_mean(values, weight))
        update = Update(
            site=self.config.site,
            digest=study.digest,
            round=task.round,
            weight=weight,
            steps=steps,
            values=values,
            metrics=metrics_that_leave(study, self.config.policy, measured),
        )
        sha256 = hashlib.sha256(values.data).hexdigest()
        if paid:
            paid.keep(update, sha256)
        self._release(study, cohort, task.round, sha256, values.nbytes)
        return update

    def _said_again(self, study: Study, cohort: str, update: Update, sha256: str) -> Update:
        """Return what was paid for once more, as policy and register allow it now; no data is opened."""
        self._entry(cohort)
        self.budget.commit_again(
            cohort=cohort, study=study.digest, round_=update.round, sha256=sha256, size=update.values.nbytes, now=_now()
        )
        return replace(update, metrics=metrics_that_leave(study, self.config.policy, update.metrics))

    def _debit(self, study: Study, cohort: str, identities: npt.NDArray[np.uint8], round_: int) -> int:
        """Debit one round, in the ledger and in the log; return the noised steps spent so far, 0 without privacy."""
        if not isinstance(study.privacy, DpSgd):
            return 0
        limits = self._limits(study.privacy)
        return self.budget.reserve(
            cohort=cohort, study=study.digest, identities=identities, round_=round_, limits=limits, now=_now()
        )

    def _release(self, study: Study, cohort: str, round_: int, sha256: str, size: int) -> None:
        """Note what leaves, before it does: in the ledger and in the log, without privacy in the log alone."""
        digest = study.digest
        if isinstance(study.privacy, DpSgd):
            self.budget.commit(cohort=cohort, study=digest, round_=round_, sha256=sha256, size=size, now=_now())
        else:
            facts = {"study": digest, "cohort": cohort, "sha256": sha256}
            self.audit.append("released", at=_now(), round=round_, bytes=size, **facts)

    def _limits(self, privacy: DpSgd) -> Limits:
        policy = self.config.policy
        epsilon = min(privacy.epsilon, policy.max_epsilon_per_study)
        return Limits(epsilon=epsilon, lifetime=policy.max_epsilon_lifetime, delta=policy.max_delta)

    def _permit(self, task: Task) -> tuple[str, str]:
        """Return the cohort that the study was approved for and its fingerprint then; no data is opened.

        Raises:
            Refusal: the policy or the hospital's staff says no, or has not said yes.
        """
        study, policy, now = task.study, self.config.policy, datetime.now(UTC)
        try:
            admit(study, self.config.site, policy, signatures=task.signatures, now=local_time(policy, now))
        except Refusal as refusal:
            if refusal.reason not in UNTRUSTED:
                self.propose(study, task.signatures)
            raise
        rule = Rule(policy.approvals_needed, policy.approval_days)
        found = standing(self.approvals.decisions(study.digest), rule, now)
        if found.state != "approved":
            self.propose(study, task.signatures)
            raise Refusal(RefusalCode.AWAITING_APPROVAL, found.reason)
        admit_use(study, found.cohort, policy)
        return found.cohort, found.fingerprint

    def propose(self, study: Study, signatures: Sequence[Signature]) -> None:
        """Keep a study of somebody trusted, with those of its signatures that count here, for the staff to look at."""
        trusted = self.config.policy.signers
        if self.approvals.propose(study, [s for s in signatures if signers_of(study, [s], trusted)]):
            self.audit.append("proposed", at=_now(), study=study.digest, name=study.name)

    def _entry(self, cohort: str) -> CohortEntry:
        """Return an approved cohort's entry; one that has left the register is refused."""
        if cohort not in self.config.cohorts:
            raise Refusal(RefusalCode.COHORT_MISSING)
        return self.config.cohorts[cohort]

    @contextmanager
    def _opened(
        self, study: Study, cohort: str, approved: str, correction: npt.NDArray[np.float32] | None = None
    ) -> Iterator[Session]:
        """Open the cohort, if it is what was approved and large enough; for `correction` see `Job`."""
        entry, resources = self._entry(cohort), self.config.policy.resources
        job = Job(self.home, self.config.site, entry, study, approved, resources, correction=correction)
        with self._worker.open(job) as session:
            if session.facts.fingerprint != approved:
                raise Refusal(RefusalCode.AWAITING_APPROVAL, "the cohort changed since it was approved")
            admit_cohort(session.facts.patients, self.config.policy)
            admit_steps(study, session.facts.patients, self.config.policy)
            yield session


def _weight(study: Study, patients: int) -> int:
    return min(patients, study.aggregation.max_weight) if study.aggregation.weighting == "patients" else 1


def _encoded(change: npt.NDArray[np.float32], weight: int, bound: float) -> npt.NDArray[np.int64]:
    """Return the change as it leaves: bounded, then in fixed point."""
    if not np.isfinite(change).all():
        raise Refusal(RefusalCode.UPDATE_NOT_FINITE)
    if np.abs(change.astype(np.float64)).max(initial=0.0) > bound:
        raise Refusal(RefusalCode.UPDATE_OUT_OF_BOUNDS, fields={"limit": bound})
    return encode_weighted(change, weight, bound=bound)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
