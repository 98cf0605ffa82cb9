"""The seam between deciding and computing: a site decides in one process, its worker opens the cohort and trains.

The worker gets no ledger, no approvals, no log, no key and no connection. `InProcessWorker` computes where it is called
(simulations, Ray, a stock SuperNode); `fedward_client.runner.Runner` forks a child for each session, in which an
`InProcessWorker` computes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fedward_client.cohorts import Cohort, CohortEntry, EncodedCohort, Patients, Source, source_of
from fedward_client.policy import Resources
from fedward_common.errors import LocalDataError, Refusal, RefusalCode
from fedward_common.study import Study

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Facts", "InProcessWorker", "Job", "Session", "Trained", "Worker", "fetch"]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told: whose cohort it opens, under which study, and the fingerprint that was approved.

    Attributes:
        home: the site's folder.
        site: its name.
        entry: the register's entry of the cohort.
        study: the contract.
        approved: the cohort's fingerprint when it was approved.
        resources: what the work may use; `InProcessWorker` keeps to `threads` of it and nothing else.
        fetched: digest of the source, if another process has read it into the cache (`fetch`); empty: read it.
        correction: what each step's gradient is corrected by, float32, shape (parameters,); None: nothing.
    """

    home: Path
    site: str
    entry: CohortEntry
    study: Study
    approved: str
    resources: Resources = field(default_factory=Resources)
    fetched: bytes = b""
    correction: npt.NDArray[np.float32] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the site decides on once the cohort is open.

    Attributes:
        fingerprint: see `Cohort.fingerprint`.
        identities: uint8, shape (patients, 16); see `Cohort.identities`.
    """

    fingerprint: str
    identities: npt.NDArray[np.uint8]

    @property
    def patients(self) -> int:
        """Number of patients in the cohort."""
        return len(self.identities)


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a round: the change of the weights, float32, shape (parameters,), and the mean loss or NaN."""

    change: npt.NDArray[np.float32]
    loss: float


class Session(Protocol):
    """An opened cohort, for one message."""

    @property
    def facts(self) -> Facts:
        """Fingerprint and patients; nothing was trained to learn them."""

    def train(self, round_: int, weights: npt.NDArray[np.float32]) -> Trained:
        """Train one round from the packed global model, shape (parameters,). Called once, after the debit.

        Raises:
            Refusal: a limit was passed, or whoever trained did not live to answer.
        """


class Worker(Protocol):
    """Whoever opens cohorts and trains."""

    def open(self, job: Job) -> AbstractContextManager[Session]:
        """Open the job's cohort; what was opened is gone when the context ends.

        Raises:
            LocalDataError: the table is missing or breaks the schema.
            Refusal: the cohort is not what was approved, a limit was passed, or whoever opened it did not live to
                answer.
        """


class InProcessWorker:
    """A `Worker` that computes where it is called."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """See `Worker.open`."""
        cohort = _approved(job, _Fetched(job.fetched) if job.fetched else source_of(job.entry, job.home))
        yield _InProcessSession(job, cohort, cohort.patients(job.study.cohort.max_rows_per_patient))


def fetch(job: Job) -> bytes:
    """Read the rows of the job's cohort into the site's cache, and return the digest of their source.

    Whoever then opens the same job with that digest reads the cache and nothing else: a database's rows are fetched
    by a process that may connect to it, and trained on by one that may not.

    Raises:
        LocalDataError: the rows cannot be read or break the schema.
        Refusal: the cohort is not what was approved.
    """
    source = source_of(job.entry, job.home)
    _approved(job, source).identities()
    return source.digest()


def _approved(job: Job, source: Source) -> EncodedCohort:
    cohort = EncodedCohort(source, job.entry, job.study.cohort, job.home)
    if cohort.fingerprint() != job.approved:
        raise Refusal(RefusalCode.AWAITING_APPROVAL, "the cohort changed since it was approved")
    return cohort


class _Fetched:
    """A `fedward_client.cohorts.Source` whose rows are in the cache already, and are nowhere else to be had."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def digest(self) -> bytes:
        return self._digest

    def frame(self) -> NoReturn:
        msg = "the rows that were fetched are no longer in the cache: somebody opted out meanwhile, or emptied it"
        raise LocalDataError(msg, remedy="nothing; the next message fetches them anew")

    def images(self, _: Collection[str]) -> None:
        return None

    def content(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame


class _InProcessSession:
    def __init__(self, job: Job, cohort: Cohort, patients: Patients) -> None:
        self._job = job
        self._patients = patients
        self.facts = Facts(job.approved, cohort.identities())

    def train(self, round_: int, weights: npt.NDArray[np.float32]) -> Trained:
        from fedward_client.trainer import train_round  # noqa: PLC0415  (torch: a roll call does without)

        job = self._job
        trained = train_round(
            job.study,
            self._patients,
            weights,
            site=job.site,
            round_=round_,
            threads=job.resources.threads,
            correction=job.correction,
        )
        return Trained(*trained)
