"""A hospital's side of the contract: admit or refuse, debit, train, encode. One folder holds all of it.

::

    <home>/
      site.yaml         name, policy, register of cohorts
      studies/          what was proposed
      approvals.json    what was decided
      ledger.sqlite     what each cohort has spent
      audit.*           the log of decisions, its signed head, its key
      cache/            encoded tables
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedward_client.approvals import Approvals, Decision
from fedward_client.audit import AuditLog
from fedward_client.cohorts import Patients, TableEntry, open_cohort
from fedward_client.config import load_site
from fedward_client.ledger import Ledger
from fedward_client.policy import admit, admit_cohort
from fedward_common import __version__
from fedward_common.errors import FedwardError, LocalDataError, Refusal, RefusalCode, SchemaMismatchError
from fedward_common.fixed_point import encode_weighted
from fedward_common.privacy import round_spend
from fedward_common.study import DpSgd, Study
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


@dataclass(frozen=True, slots=True)
class _Work:
    """An admitted study with its cohort, opened."""

    study: Study
    cohort: str
    patients: Patients


class Site:
    """One hospital.

    Args:
        home: its folder.

    Raises:
        FedwardError: ``site.yaml`` is missing or wrong; the message names the key.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = load_site(home)
        self.ledger = Ledger(home / "ledger.sqlite")
        self.approvals = Approvals(home)
        self.audit = AuditLog(home)

    def registered(self, cohort: str) -> TableEntry:
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
            return write_enrolment(self.enrol(task.study)) if task.weights is None else write_update(self.train(task))
        except Refusal as error:
            refusal = error
        except SchemaMismatchError as error:
            refusal = Refusal(RefusalCode.COHORT_MISMATCH, error.message, fields={"rule_count": len(error.counts)})
        except LocalDataError as error:
            refusal = Refusal(RefusalCode.COHORT_MISSING, error.message)
        except FedwardError as error:
            refusal = Refusal(RefusalCode.INTERNAL, error.message)
        self.audit.append("refused", at=_now(), study=study, code=refusal.crossing())
        return write_refusal(self.config.site, refusal)

    def enrol(self, study: Study) -> Enrolment:
        """Return the site's yes to `study`, if policy, budget and cohort allow all of its rounds.

        Raises:
            Refusal: one of them does not.
            LocalDataError: the table is missing or breaks the schema.
        """
        work = self._admitted(study)
        spend = round_spend(study)
        if spend is not None and isinstance(study.privacy, DpSgd):
            self.ledger.grant(
                cohort=work.cohort,
                study=study.digest,
                rounds=study.training.rounds,
                spend=spend,
                delta=study.privacy.delta,
                max_epsilon=min(study.privacy.epsilon, self.config.policy.max_epsilon_per_study),
                max_lifetime=self.config.policy.max_epsilon_lifetime,
                lifetime_delta=self.config.policy.max_delta,
                now=_now(),
            )
        self.audit.append("enrolled", at=_now(), study=study.digest, cohort=work.cohort, patients=len(work.patients))
        return Enrolment(self.config.site, study.digest, len(work.patients), __version__)

    def train(self, task: Task) -> Update:
        """Return the site's update for one round: admitted, debited on disk, trained, encoded, in that order.

        Raises:
            Refusal: the policy, the ledger or the update's own bounds say no.
            LocalDataError: the table is missing or breaks the schema.
        """
        from fedward_client.trainer import train_round  # noqa: PLC0415  (torch: a roll call does without)

        work = self._admitted(task.study)
        steps = 0
        if isinstance(task.study.privacy, DpSgd):
            steps = self._debit(work, task.round)
        if task.weights is None:
            raise Refusal(RefusalCode.MESSAGE_INVALID, "a training task without a model")
        change, loss = train_round(task.study, work.patients, task.weights, site=self.config.site, round_=task.round)
        weight = self._weight(task.study, len(work.patients))
        values = _encoded(change, weight, task.study.aggregation.update_bound)
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        study = task.study.digest
        self.audit.append("released", at=_now(), study=study, round=task.round, sha256=digest, bytes=values.nbytes)
        return Update(
            site=self.config.site,
            digest=task.study.digest,
            round=task.round,
            weight=weight,
            steps=steps,
            values=values,
            metrics={} if math.isnan(loss) else {"loss": loss},
        )

    def _debit(self, work: _Work, round_: int) -> int:
        """Debit one round, in the ledger and then in the log; return the steps spent so far.

        What the log says was debited is therefore in the ledger, unless an old copy of the ledger was put back
        (`fedward_client.audit.missing_reservations`).
        """
        study = work.study.digest
        steps = self.ledger.reserve(cohort=work.cohort, study=study, round_=round_, now=_now())
        self.audit.append("reserved", at=_now(), study=study, cohort=work.cohort, round=round_, steps=steps)
        return steps

    def _admitted(self, study: Study) -> _Work:
        admit(study, self.config.site, self.config.policy)
        decision = self.approvals.decision(study.digest)
        if decision is None or decision.answer != "approved":
            if self.approvals.propose(study):
                self.audit.append("proposed", at=_now(), study=study.digest, name=study.name)
            raise Refusal(RefusalCode.AWAITING_APPROVAL)
        if decision.cohort not in self.config.cohorts:
            raise Refusal(RefusalCode.COHORT_MISSING)
        cohort = open_cohort(self.config.cohorts[decision.cohort], study.cohort, self.home)
        if cohort.fingerprint() != decision.fingerprint:
            raise Refusal(RefusalCode.AWAITING_APPROVAL, "the cohort changed since it was approved")
        patients = cohort.patients(study.cohort.max_rows_per_patient)
        admit_cohort(len(patients), self.config.policy)
        return _Work(study, decision.cohort, patients)

    @staticmethod
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
