"""A hospital's side of the contract: admit or refuse, debit, train, encode. One folder holds all of it.

::

    <home>/
      site.yaml         name, policy, register of cohorts
      approvals.json    study digest -> cohort name
      ledger.sqlite     what each cohort has spent
      cache/            encoded tables
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import yaml
from flwr.app import RecordDict
from pydantic import Field

from fedward_client.cohort import Patients, TableCohort, TableEntry
from fedward_client.ledger import Ledger
from fedward_client.policy import Policy, admit, admit_cohort
from fedward_common import __version__
from fedward_common.contract import Contract, quantity, validated
from fedward_common.errors import FedwardError, LocalDataError, Refusal, RefusalCode, SchemaMismatchError
from fedward_common.fixed_point import encode_weighted
from fedward_common.privacy import round_spend
from fedward_common.study import SITE_NAME, DpSgd, Study
from fedward_common.wire import (
    Enrolment,
    Task,
    Update,
    read_task,
    write_enrolment,
    write_refusal,
    write_update,
)

__all__ = ["Site", "SiteConfig", "approve", "write_site"]


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class SiteConfig(Contract):
    """``site.yaml``."""

    site: str = quantity("the hospital's name in studies", pattern=SITE_NAME)
    policy: Policy = Policy()
    cohorts: dict[Annotated[str, Field(pattern=SITE_NAME)], TableEntry] = quantity(
        "registered tables, by name", default_factory=dict
    )


def write_site(home: Path, config: SiteConfig) -> None:
    """Write ``site.yaml`` of a new site into `home`, which is made with mode 0700."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "site.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def approve(home: Path, study: Study, cohort: str) -> None:
    """Record the hospital's yes to exactly this study on exactly this cohort."""
    path = home / "approvals.json"
    approvals = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(approvals | {study.digest: cohort}, indent=1), encoding="utf-8")


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
        path = home / "site.yaml"
        try:
            data = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506  (a safe loader, in C)
        except (OSError, yaml.YAMLError) as error:
            msg = f"{path} cannot be read"
            raise LocalDataError(msg, remedy="restore site.yaml; without a policy nothing is admitted") from error
        self.home = home
        self.config = validated(SiteConfig, data if isinstance(data, dict) else {}, where=str(path))
        self.ledger = Ledger(home / "ledger.sqlite")

    def answer(self, content: RecordDict) -> RecordDict:
        """Return the reply to one message of the centre: an enrolment, an update or a refusal.

        No error of Fedward's own leaves this method, and of a refusal only its code and allow-listed fields do.
        """
        try:
            task = read_task(content)
            return write_enrolment(self.enrol(task.study)) if task.weights is None else write_update(self.train(task))
        except Refusal as refusal:
            return write_refusal(self.config.site, refusal)
        except SchemaMismatchError as error:
            mismatch = Refusal(RefusalCode.COHORT_MISMATCH, error.message, fields={"rule_count": len(error.counts)})
            return write_refusal(self.config.site, mismatch)
        except LocalDataError as error:
            return write_refusal(self.config.site, Refusal(RefusalCode.COHORT_MISSING, error.message))
        except FedwardError as error:
            return write_refusal(self.config.site, Refusal(RefusalCode.INTERNAL, error.message))

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
            steps = self.ledger.reserve(cohort=work.cohort, study=task.study.digest, round_=task.round, now=_now())
        if task.weights is None:
            raise Refusal(RefusalCode.MESSAGE_INVALID, "a training task without a model")
        change, loss = train_round(task.study, work.patients, task.weights, site=self.config.site, round_=task.round)
        weight = self._weight(task.study, len(work.patients))
        return Update(
            site=self.config.site,
            digest=task.study.digest,
            round=task.round,
            weight=weight,
            steps=steps,
            values=_encoded(change, weight, task.study.aggregation.update_bound),
            metrics={} if math.isnan(loss) else {"loss": loss},
        )

    def _admitted(self, study: Study) -> _Work:
        admit(study, self.config.site, self.config.policy)
        path = self.home / "approvals.json"
        approvals = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        name = approvals.get(study.digest)
        if name is None:
            raise Refusal(RefusalCode.AWAITING_APPROVAL)
        if name not in self.config.cohorts:
            raise Refusal(RefusalCode.COHORT_MISSING)
        cohort = TableCohort(self.config.cohorts[name], study.cohort, self.home)
        patients = cohort.patients(study.cohort.max_rows_per_patient)
        admit_cohort(len(patients), self.config.policy)
        return _Work(study, name, patients)

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
