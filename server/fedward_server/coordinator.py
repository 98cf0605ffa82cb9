"""One run, from the roll call to the released model, on any engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedward_common import __version__
from fedward_common.errors import CoordinatorError
from fedward_common.models import parameter_spec
from fedward_common.privacy import Spend, epsilon_of, epsilon_schedule, round_spend
from fedward_common.study import DpSgd, Study
from fedward_common.study_file import Signature, StudyFile
from fedward_common.wire import Enrolment, Update
from fedward_server.aggregation import aggregator_for
from fedward_server.checkpoint import encoded_tensors, write_atomically, write_pieces
from fedward_server.evaluation import HoldOut, Predictor, final_metrics, point_metrics, roc_curve
from fedward_server.journal import Accepted, Progress, Record, RoundLog, Seat, StoredUpdate, Values
from fedward_server.privacy_statement import dump_statement, statement_of
from fedward_server.result import Estimate, ModelFile, RoundResult, RunResult, SiteResult, StudyRef, with_late
from fedward_server.resume import Logbook, Standing, beginning, finished, held, standing
from fedward_server.root import RootTrainer, judged_part
from fedward_server.rounds import ClosedRound, Roster, RoundLoop

__all__ = ["Coordinator", "Listener", "TailMean", "dump", "write_result"]

Weights = npt.NDArray[np.float32]
Status = Literal["completed", "degraded", "interrupted", "failed"]
Listener = Callable[[RoundResult], None]


@dataclass
class TailMean:
    """The mean of the models of the study's last rounds; post-processing, so it costs no privacy."""

    first_round: int
    total: npt.NDArray[np.float64] | None = None
    count: int = 0

    @classmethod
    def of(cls, study: Study) -> TailMean:
        """Return the mean that the study asks for, before its first round."""
        return cls(1 + round(study.training.rounds * (1 - study.aggregation.average_last)))

    def take(self, round_: int, weights: Weights) -> Weights:
        """Return the model that this round would release."""
        if round_ < self.first_round:
            return weights
        self.total = weights.astype(np.float64) + (0 if self.total is None else self.total)
        self.count += 1
        mean: Weights = (self.total / self.count).astype(np.float32)
        return mean


@dataclass(frozen=True, slots=True)
class _Told:
    """A log that tells somebody what it has written."""

    log: RoundLog
    told: Callable[[Record], None]

    def write(self, record: Record, values: Values | None = None) -> None:
        """See `RoundLog.write`."""
        self.log.write(record, values)
        self.told(record)

    def store(self, update: Update, size: int, parts: Iterable[Values]) -> StoredUpdate | None:
        """See `RoundLog.store`."""
        stored = self.log.store(update, size, parts)
        if stored is not None:
            self.told(Accepted.of(update))
        return stored


@dataclass
class Coordinator:
    """The centre's side of one run.

    Args:
        study: the contract, its noise calibrated.
        hold_out: central rows; None: the model is not judged.
        predictor: gives probabilities for the hold-out.
        folder: where ``study.json``, ``checkpoint.safetensors``, ``model.safetensors``, ``privacy.json`` and
            ``result.json`` go, and ``journal.fedward`` until the run has ended.
        engine: its name, for the result.
        listener: told of every round as soon as it is committed.
        told: told of every step as soon as it is on the disk.
        clock: monotonic seconds, for the rounds' deadlines.
        wall: Unix seconds, for the deadline of a round that another process opened.
        signatures: over the study, as its file has them; every site is sent them.
        resumable: keep a journal, so that another process goes on where this one is killed. False where the sites end
            with this process.
        unfit: sites that are not asked to take part at all, each with the reason: those of releases that do not work
            with this one (`fedward_server.roster.Roster.outside`).
        call_roll: lets a loop that nobody has enrolled with call the roll, once or until the quorum is there.
        patient: see `RoundLoop`.
        root: trains on the root rows of FLTrust (`root_rows`). Their patients are taken out of `hold_out` here.

    Raises:
        StudyError: the hold-out is too small for the study's `root_share`.
    """

    study: Study
    hold_out: HoldOut | None
    predictor: Predictor | None
    folder: Path
    engine: str
    listener: Listener = lambda _: None
    result: RunResult | None = None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    signatures: tuple[Signature, ...] = ()
    resumable: bool = True
    unfit: Mapping[str, str] = field(default_factory=dict)
    told: Callable[[Record], None] = lambda _: None
    root: RootTrainer | None = None
    call_roll: Callable[[RoundLoop], None] = RoundLoop.enrol
    patient: bool = False
    _began: float = 0.0
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _released: Weights | None = None
    _closed: list[RoundResult] = field(default_factory=list)
    _steps: dict[str, int] = field(default_factory=dict)
    _reported: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hold_out is not None and self.predictor is not None:
            self.hold_out, self.predictor = judged_part(self.study, self.hold_out, self.predictor)

    def server_app(self, roster: Roster | None, *, poll_seconds: float = 0.05) -> ServerApp:
        """Return this run as an ordinary Flower ServerApp; `result` is set when it returns."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  (Flower's signature)
            self.run(grid, roster, poll_seconds=poll_seconds)

        return app

    def run(self, grid: Grid, roster: Roster | None, *, poll_seconds: float = 0.05) -> RunResult:
        """Run the study to its end and return the result, which is also written.

        A run that an earlier process began in this folder goes on: no committed round is repeated, no site is asked
        again for an update that was accepted, and the model is the one that the earlier process would have made of the
        same updates. A run that has ended is not run again.

        Never raises for a site's failure or a lost quorum: the result says ``failed`` and why. Ctrl-C ends the
        run after the last committed round, with the result that there is.

        Raises:
            CoordinatorError: the folder belongs to another study, or what is in it is damaged.
            InstallationError: another coordinator works in the folder, or it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            if not self.resumable:
                start, book = beginning(self.study, self.folder), Logbook(self.folder, self.study.digest, None)
            else:
                stack.enter_context(held(self.folder))
                self.result = finished(self.folder, self.study)
                if self.result is not None:
                    return self.result
                start, book = standing(self.folder, self.study)
            stack.enter_context(book)
            self.result = self._run(grid, roster, start, book, poll_seconds)
            write_result(self.folder, self.study, self.result)
            book.end()
        return self.result

    def _run(self, grid: Grid, roster: Roster | None, start: Standing, book: Logbook, poll_seconds: float) -> RunResult:
        self._began, self._started = time.monotonic(), datetime.fromisoformat(start.progress.started)
        write_atomically(self.folder / "study.json", StudyFile(self.study, self.signatures).dump())
        loop = RoundLoop(
            self.study,
            grid,
            roster,
            aggregator_for(
                self.study,
                start.aggregator_state,
                after=len(start.progress.closed),
                root=self.root,
                folder=self.folder,
            ),
            poll_seconds=poll_seconds,
            clock=self.clock,
            wall=self.wall,
            signatures=self.signatures,
            log=_Told(book, self.told),
            patient=self.patient,
        )
        status: Status = "completed"
        reason: str | None = None
        try:
            self._train(loop, start, book)
        except KeyboardInterrupt:
            status, reason = "interrupted", "stopped by the operator"
        except CoordinatorError as error:
            status, reason = "failed", error.message
        if status == "completed" and (loop.excluded or loop.missed):
            status = "degraded"
            strangers = sorted(set(loop.excluded) - set(self.study.sites))
            reason = "; ".join(f"{name}: {loop.excluded[name]}" for name in strangers) or None
        lasted = time.monotonic() - self._began
        if start.resumed:
            lasted = (datetime.now(UTC) - self._started).total_seconds()
        return self._result(loop, status, reason, lasted)

    def _train(self, loop: RoundLoop, start: Standing, book: Logbook) -> None:
        """Run the rounds; each one is judged, committed, releasable and told, in that order."""
        tail = self._restore(loop, start)
        spend = round_spend(self.study)
        delta = self.study.privacy.delta if isinstance(self.study.privacy, DpSgd) else 0.0
        schedule = epsilon_schedule(spend, delta) if spend else None
        epsilons = islice(schedule, len(self._closed), None) if schedule else None
        self._take_seats(loop, start)
        first = len(self._closed) + 1
        for closed in loop.rounds(start.weights, first=first, recovered=start.recovered):
            released = tail.take(closed.round, closed.weights)
            entry = RoundResult(
                round=closed.round,
                sites=closed.accepted,
                missing=closed.missing,
                statuses=closed.statuses,
                seconds=round(closed.seconds, 4),
                epsilon=next(epsilons) if epsilons else None,
                loss=closed.loss,
                central=self._judged(released),
            )
            self._commit(loop, closed, entry, tail, released, book)
            self._released = released
            self.listener(entry)

    def _judged(self, weights: Weights) -> dict[str, float]:
        if self.hold_out is None or self.predictor is None:
            return {}
        return dict(point_metrics(self.study, self.hold_out, self.predictor(weights)))

    def _restore(self, loop: RoundLoop, start: Standing) -> TailMean:
        """Take over what an earlier process knew, the roll call aside; return the mean of the last models."""
        known = start.progress
        loop.excluded, loop.missed, loop.asked = dict(known.excluded), dict(known.missed), dict(known.asked)
        loop.away = set(known.away)
        loop.counted = {site: entry.round for entry in known.closed for site in entry.sites}
        self._steps, self._reported = dict(known.steps), dict(known.reported)
        self._closed, self._released = list(known.closed), start.released
        tail = TailMean.of(self.study)
        tail.total, tail.count = start.arrays.get("tail_total"), known.tail_count
        return tail

    def _take_seats(self, loop: RoundLoop, start: Standing) -> None:
        """Call the roll if nobody has; of a run whose rounds are over, nobody is asked anything.

        The time that a run takes counts from the roll on: hospitals may have taken days to approve it.
        """
        seats = start.progress.seats
        if not seats:
            loop.excluded |= {site: why for site, why in self.unfit.items() if site in self.study.sites}
            self.call_roll(loop)
            self._began, self._started = time.monotonic(), datetime.now(UTC)
        elif len(self._closed) < self.study.training.rounds:
            loop.seat(seats)
        else:
            loop.enrolments = {seat.node: seat.enrolment(self.study.digest) for seat in seats}

    def _commit(
        self,
        loop: RoundLoop,
        closed: ClosedRound,
        entry: RoundResult,
        tail: TailMean,
        released: Weights,
        book: Logbook,
    ) -> None:
        """Put a round on the disk, whole; it counts from then on, here as well."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "weights": closed.weights,
            "released": released,
            **loop.aggregator.state(),
        }
        if tail.total is not None:
            arrays["tail_total"] = tail.total
        steps = self._steps | closed.steps
        reported = self._reported | dict.fromkeys(closed.steps, closed.round)
        progress = Progress(
            started=self._started.isoformat(timespec="seconds"),
            seats=tuple(Seat.of(node, enrolment) for node, enrolment in loop.enrolments.items()),
            excluded=loop.excluded,
            away=tuple(sorted(loop.away)),
            missed=loop.missed,
            asked=loop.asked,
            steps=steps,
            reported=reported,
            closed=(*self._marked(loop), entry),
            tail_count=tail.count,
        )
        book.commit(arrays, progress)
        self._steps, self._reported = steps, reported
        self._closed.append(entry)

    def _marked(self, loop: RoundLoop) -> list[RoundResult]:
        """Mark what came late in the closed rounds, and return them."""
        self._closed = list(with_late(self._closed, ((late.of, late.site, late.reason) for late in loop.late)))
        return self._closed

    def _result(self, loop: RoundLoop, status: Status, reason: str | None, seconds: float) -> RunResult:
        central, roc, model, released = {}, {}, None, self._released
        if released is not None and self.hold_out is not None and self.predictor is not None:
            scores = self.predictor(released)
            central = {k: Estimate.of(v) for k, v in final_metrics(self.study, self.hold_out, scores).items()}
            roc = dict(
                zip(
                    ("false_positive_rate", "true_positive_rate"),
                    map(tuple, roc_curve(self.hold_out, scores)),
                    strict=True,
                )
            )
        if released is not None:
            model = self._release(released)
        privacy = self.study.privacy
        seated = {enrolment.site: enrolment for enrolment in loop.enrolments.values()}
        return RunResult(
            study=StudyRef(name=self.study.name, digest=self.study.digest, description=self.study.description),
            engine=self.engine,
            seed=self.study.seed,
            status=status,
            reason=reason,
            started_at=self._started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            versions=_versions(private=isinstance(privacy, DpSgd)),
            privacy=privacy.model_dump(mode="json") if privacy else None,
            sites={site: self._site(loop, site, seated.get(site)) for site in self.study.sites},
            rounds=tuple(self._marked(loop)),
            central=central,
            roc=roc,
            model=model,
        )

    def _release(self, weights: Weights) -> ModelFile:
        spec = parameter_spec(self.study)
        pieces = encoded_tensors(spec.split(weights), {"study": self.study.digest, "format": "fedward-1"})
        sha256 = write_pieces(self.folder / "model.safetensors", pieces)
        return ModelFile(file="model.safetensors", sha256=sha256, parameters=spec.size)

    def _site(self, loop: RoundLoop, site: str, enrolment: Enrolment | None) -> SiteResult:
        rounds = sum(site in entry.sites for entry in self._closed)
        missed = loop.missed.get(site)
        reason = loop.excluded.get(site) or missed
        status: Literal["completed", "degraded", "excluded"] = "completed"
        if enrolment is None or site in loop.excluded:
            status = "excluded"
        elif missed:
            status = "degraded"
        steps, epsilon, delta = self._spent(loop, site)
        return SiteResult(
            patients=enrolment.patients if enrolment else None,
            weight=None if enrolment is None else self._weight(enrolment.patients),
            rounds=rounds,
            steps=steps,
            epsilon=epsilon,
            delta=delta,
            status=status,
            reason=reason,
        )

    def _weight(self, patients: int) -> int:
        rule = self.study.aggregation
        return min(patients, rule.max_weight) if rule.weighting == "patients" else 1

    def _spent(self, loop: RoundLoop, site: str) -> tuple[int | None, float | None, float | None]:
        """Return a site's steps, ε and δ: what its ledger reported, and every later round that it was asked for.

        A round that was asked and not answered may have been debited; it counts as spent.
        """
        spend = round_spend(self.study)
        if spend is None or not isinstance(self.study.privacy, DpSgd):
            return None, None, None
        reported = self._reported.get(site, 0)
        unanswered = sum(entry.round > reported and site in entry.missing for entry in self._closed)
        unanswered += loop.asked.get(site, 0) > len(self._closed)
        steps = self._steps.get(site, 0) + unanswered * spend.steps
        delta = self.study.privacy.delta
        spends = [Spend(spend.noise_multiplier, spend.sampling_rate, steps)] if steps else []
        return steps, epsilon_of(spends, delta), delta


def _versions(*, private: bool) -> dict[str, str]:
    accountant = {"dp-accounting": metadata.version("dp-accounting")} if private else {}
    return {"fedward": __version__, "flwr": metadata.version("flwr"), "torch": metadata.version("torch")} | accountant


def write_result(folder: Path, study: Study, result: RunResult) -> None:
    """Write ``privacy.json`` and then ``result.json``, each whole or not at all: where a result is, a statement is."""
    write_atomically(folder / "privacy.json", dump_statement(statement_of(study, result)))
    write_atomically(folder / "result.json", dump(result))


def dump(result: RunResult) -> bytes:
    """Return ``result.json`` as bytes, ending in a new line."""
    return (result.model_dump_json(indent=2) + "\n").encode("utf-8")
