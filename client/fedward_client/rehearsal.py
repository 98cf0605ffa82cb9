"""A study's real way through this site, on patients who do not exist: nothing is sent, nothing is spent.

A temporary folder gets the site's own policy, a synthetic cohort drawn from the declared schema, and an approval that
ends with it. There `fedward_client.site.Site` answers the messages that a coordinator would send, and its cohort is
opened and trained on in the children, sandbox and limits of the daemon. Of the real folder only ``site.yaml`` is read.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedward_client.approvals import Proposal
from fedward_client.briefing import Objection, objection, size_of
from fedward_client.cohorts import CohortEntry, ImagesEntry, TableEntry
from fedward_client.cohorts.seal import hash_folder, write_seal
from fedward_client.config import SiteConfig, write_site
from fedward_client.policy import Resources, objections
from fedward_client.site import Site, approve
from fedward_client.synthetic import Synthetic, synthetic_cohort
from fedward_client.worker import Job, Session, Trained, Worker
from fedward_common.errors import LocalDataError
from fedward_common.fixed_point import decode_mean
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.schema import CohortSchema
from fedward_common.wire import read_refusal, read_update, write_roll_call, write_task

__all__ = ["MeasuringWorker", "Rehearsal", "SentMessage", "rehearse"]

_COHORT: Final = "rehearsal"


class MeasuringWorker(Worker, Protocol):
    """A worker that says how much memory its tasks held at most: `fedward_client.runner.Runner`."""

    peak: int


@dataclass(frozen=True, slots=True)
class SentMessage:
    """One reply that would have left.

    Attributes:
        message: ``enrolment``, ``update`` or ``refusal``.
        round: 0 for the roll call.
        size: of its content, in bytes.
        sha256: of the numbers of an update, as the log of decisions notes it; empty otherwise.
        metrics: named numbers beside an update.
        seconds: from the message to the reply.
        step_seconds: of one step of training.
        refusal: the code and its fields; empty otherwise.
    """

    message: str
    round: int
    size: int
    sha256: str = ""
    metrics: tuple[str, ...] = ()
    seconds: float = 0.0
    step_seconds: float = 0.0
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came of it.

    Attributes:
        patients: who do not exist.
        rows: theirs.
        messages: that would have left, in order; it ends with a refusal if there is one.
        memory_bytes: the most that a task held for itself, libraries left out, as the daemon counts it.
        resources: what the policy gives a task.
        objections: of the policy to the study, in full.
    """

    name: str
    digest: str
    patients: int
    rows: int
    parameters: int
    messages: tuple[SentMessage, ...]
    memory_bytes: int
    resources: Resources
    objections: tuple[Objection, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was refused, neither by the policy nor for want of time or memory."""
        return all(message.message != "refusal" for message in self.messages)

    def plain(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self) | {"resources": self.resources.model_dump(mode="json"), "good": self.good}


def rehearse(
    config: SiteConfig,
    proposal: Proposal,
    worker: MeasuringWorker,
    *,
    rounds: int = 1,
    patients: int = 100,
    seed: int = 1,
) -> Rehearsal:
    """Rehearse a study with a site's policy; hours, the list of cohorts and the second approval do not count here.

    Args:
        config: what the site's ``site.yaml`` says.
        proposal: the study and what came with it.
        worker: who opens the synthetic cohort and trains on it.
        rounds: how many, at most those that the study has.
        patients: synthetic ones; the policy's minimum, if that is more.
        seed: of the synthetic cohort.

    Raises:
        LocalDataError: the study has fewer rounds.
        StudyError: the schema allows no value of a column.
    """
    study, policy = proposal.study, config.policy
    if rounds > study.training.rounds:
        msg = f"the study has {study.training.rounds} rounds, not {rounds}"
        raise LocalDataError(msg, remedy=f"--rounds {study.training.rounds} or fewer")
    count = max(patients, policy.min_patients)
    cohort = synthetic_cohort(study.cohort, patients=count, seed=seed)
    with tempfile.TemporaryDirectory(prefix="fedward-rehearsal-") as folder:
        home = Path(folder) / "site"
        _settle(home, config, study.cohort, cohort)
        approve(home, study, _COHORT, by="rehearsal")
        timed = _TimedWorker(worker)
        messages = tuple(_play(Site(home, timed), timed, proposal, rounds))
    against = objections(study, config.site, policy, signatures=proposal.signatures)
    return Rehearsal(
        name=study.name,
        digest=study.digest,
        patients=count,
        rows=len(cohort.frame),
        parameters=parameter_spec(study).size,
        messages=messages,
        memory_bytes=worker.peak,
        resources=policy.resources,
        objections=tuple(objection(refusal) for refusal in against),
    )


class _TimedWorker:
    """Lets `worker` compute, and notes how long the last training took."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.trained_s = 0.0

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        with self._worker.open(job) as session:
            yield _TimedSession(self, session)


class _TimedSession:
    def __init__(self, worker: _TimedWorker, session: Session) -> None:
        self._worker, self._session = worker, session
        self.facts = session.facts

    def train(self, round_: int, weights: npt.NDArray[np.float32]) -> Trained:
        started = time.perf_counter()
        try:
            return self._session.train(round_, weights)
        finally:
            self._worker.trained_s = time.perf_counter() - started


def _play(site: Site, worker: _TimedWorker, proposal: Proposal, rounds: int) -> Iterator[SentMessage]:
    """Ask what a coordinator would ask, and yield each reply; the next round starts from the site's own model."""
    study, signatures = proposal.study, proposal.signatures
    reply, seconds = _asked(site, write_roll_call(study, signatures))
    refusal = read_refusal(reply)
    message = "refusal" if refusal else "enrolment"
    yield SentMessage(message, 0, size_of(reply), seconds=seconds, refusal=refusal or "")
    weights = initial_weights(study)
    for number in range(1, rounds + 1):
        if refusal:
            return
        reply, seconds = _asked(site, write_task(study, number, weights, signatures))
        refusal = read_refusal(reply)
        if refusal:
            yield SentMessage("refusal", number, size_of(reply), seconds=seconds, refusal=refusal)
            return
        update = read_update(reply, size=len(weights))
        yield SentMessage(
            "update",
            number,
            size_of(reply),
            sha256=hashlib.sha256(update.values.tobytes()).hexdigest(),
            metrics=tuple(update.metrics),
            seconds=seconds,
            step_seconds=worker.trained_s / study.training.local_steps,
        )
        weights = (weights + decode_mean(update.values, update.weight)).astype(np.float32)


def _asked(site: Site, content: RecordDict) -> tuple[RecordDict, float]:
    started = time.perf_counter()
    reply = site.answer(content)
    return reply, time.perf_counter() - started


def _settle(home: Path, config: SiteConfig, schema: CohortSchema, cohort: Synthetic) -> None:
    """Make the temporary site: the same policy, but for what concerns the real cohorts, people and hours."""
    open_ = {"hours": {}, "cohort_studies": {}, "approvals_needed": 1}
    policy = config.policy.model_copy(update=open_)
    home.mkdir(mode=0o700)
    cohort.frame.to_parquet(home / "rows.parquet", index=False)
    entry: CohortEntry = TableEntry(table="rows.parquet")
    if cohort.images:
        folder = home / "pictures"
        folder.mkdir()
        for place, content in cohort.images.items():
            (folder / place).write_bytes(content)
        write_seal(home / "seal.json", hash_folder(folder))
        files = tuple(schema.images)
        entry = ImagesEntry(images="pictures", manifest="rows.parquet", file_columns=files, seal="seal.json")
    write_site(home, SiteConfig(site=config.site, policy=policy, cohorts={_COHORT: entry}))
