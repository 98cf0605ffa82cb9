"""Keeps the book of studies and the processes of its runs together, step by step."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from pydantic import ValidationError

from fedward_server.result import RunResult
from fedward_server.run_status import read_status
from fedward_server.studies.book import StudyBook, StudyEntry
from fedward_server.studies.queue import Place, startable, why_waiting
from fedward_server.studies.restarts import Failures, judge

__all__ = ["Process", "Runs", "Start"]

_MISCONFIGURED: Final = 2
_NO_PROCESS: Final = 71  # EX_OSERR of sysexits.h
_STOP_S: Final = 120.0
_LOG: Final = "process.log"


class Process(Protocol):
    """A process of one run; `children.Child` is one."""

    def poll(self) -> int | None:
        """Return what it ended with, None while it lives."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def last_words(self) -> str:
        """Return what it wrote last in plain words."""
        ...

    def close(self) -> None:
        """Let go of it after its end."""
        ...


Start = Callable[[Path], Process]
Note = Callable[[str, StudyEntry, str], None]


@dataclass
class _Seat:
    """One run's process, and how its predecessors ended."""

    process: Process | None = None
    began: float = 0.0
    failures: Failures = field(default_factory=Failures)
    not_before: float = 0.0
    stop_seen: float | None = None


class Runs:
    """One process for each study that has begun and not ended.

    Args:
        book: of the centre.
        start: starts the process of the run in a folder.
        at_once: how many studies ask hospitals at the same time.
        share_sites: see `queue.startable`.
        note: told of what becomes of a run: an event, the study, a detail.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        book: StudyBook,
        start: Start,
        *,
        at_once: int,
        share_sites: bool = False,
        note: Note = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book, self._start, self._note, self._clock = book, start, note, clock
        self._at_once, self._share_sites = at_once, share_sites
        self._seats: dict[str, _Seat] = {}

    @property
    def processes(self) -> dict[str, Process]:
        """The living processes, by the number of their study."""
        return {id_: seat.process for id_, seat in self._seats.items() if seat.process is not None}

    def recover(self, reason: str) -> None:
        """Let nothing be said to run that has no process: those that ran take the first places in the queue."""
        for entry in self._book.entries():
            if entry.state == "running" and entry.id not in self.processes:
                self._book.died(entry.id, reason)

    def leave(self, reason: str) -> None:
        """Note that the processes are gone: those that ended with a result have ended, the others wait."""
        for id_, seat in self._seats.items():
            result = _result(self._book.folder(id_)) if seat.process and seat.process.poll() == 0 else None
            seat.process = None
            if result is not None:
                self._note("run ended", self._book.end(id_, result.status, result.reason, _now()), result.status)
        self.recover(reason)

    def step(self, *, admit: bool = True) -> None:
        """Look once at processes and book, and do what follows.

        Args:
            admit: whether processes may be started: not while the launcher is away.
        """
        for id_, seat in list(self._seats.items()):
            if seat.process is not None and (code := seat.process.poll()) is not None:
                self._bury(id_, seat, seat.process, code)
        entries = [entry for entry in self._book.entries() if entry.live]
        for entry in entries:
            self._book.tell(entry)
            self._press(entry)
        if not admit:
            return
        self._admit(entries)
        for entry in self._book.entries():
            if entry.live and entry.started_at is not None:
                self._provide(entry)

    def _bury(self, id_: str, seat: _Seat, process: Process, code: int) -> None:
        """Note the end of a process: the run's, where it left a result, or only its own."""
        words = process.last_words() if code == _MISCONFIGURED else ""
        process.close()
        seat.process, seat.stop_seen = None, None
        entry, result = self._book.entry(id_), _result(self._book.folder(id_))
        if not entry.live:
            del self._seats[id_]
        elif code == 0 and result is not None:
            self._end(entry, result)
        else:
            self._lost(entry, seat, code, words, result)

    def _lost(
        self, entry: StudyEntry, seat: _Seat, code: int, words: str = "", result: RunResult | None = None
    ) -> None:
        """Decide about a run whose process is gone and had work left."""
        verdict = judge(code, self._clock() - seat.began, seat.failures, stopping=entry.state == "stopping")
        if verdict.wait_s is not None:
            seat.failures, seat.not_before = verdict.failures, self._clock() + verdict.wait_s
            self._note("run restarted", self._book.died(entry.id, verdict.reason), verdict.reason)
        elif result is not None:
            self._end(entry, result)
        else:
            reason = words or f"{verdict.reason}; read {_LOG} in the folder of the run"
            self._note("run ended", self._book.give_up(entry.id, reason, _now()), reason)
            del self._seats[entry.id]

    def _end(self, entry: StudyEntry, result: RunResult) -> None:
        ended = self._book.end(entry.id, result.status, result.reason, _now())
        self._note("run ended", ended, result.status)
        del self._seats[entry.id]

    def _press(self, entry: StudyEntry) -> None:
        """Kill a process that was told to stop and has not done so for two minutes."""
        seat = self._seats.get(entry.id)
        if entry.state != "stopping" or seat is None or seat.process is None:
            return
        if seat.stop_seen is None:
            seat.stop_seen = self._clock()
        elif self._clock() - seat.stop_seen > _STOP_S:
            seat.process.kill()

    def _admit(self, entries: list[StudyEntry]) -> None:
        """Let those leave the queue who may, and say of the others why not."""
        busy = [_place(entry) for entry in entries if self._busy(entry)]
        taken = {place.id for place in busy}
        queue = [entry for entry in entries if entry.state == "queued" and entry.id not in taken]
        queue.sort(key=lambda entry: entry.started_at is None)  # stable: who has begun comes first
        waiting = [_place(entry) for entry in queue]
        at_once, share_sites = self._at_once, self._share_sites
        chosen = startable(waiting, busy, at_once=at_once, share_sites=share_sites)
        for id_ in chosen:
            self._note("run started", self._book.begin(id_, _now()), "")
        working = [*busy, *(place for place in waiting if place.id in chosen)]
        for number, place in enumerate(waiting):
            if place.id not in chosen:
                before = [other for other in waiting[:number] if other.id not in chosen]
                why = why_waiting(place, before, working, at_once=at_once, share_sites=share_sites)
                self._book.explain(place.id, why)

    def _busy(self, entry: StudyEntry) -> bool:
        """Whether a study asks hospitals, or will as soon as its process is back."""
        if entry.state == "paused":
            status = read_status(self._book.folder(entry.id))
            return entry.id in self.processes and status is not None and status.state not in {"paused", "starting"}
        seat = self._seats.get(entry.id)
        returning = seat is not None and seat.process is None and self._clock() < seat.not_before
        return entry.state in {"running", "stopping"} or (entry.state == "queued" and returning)

    def _provide(self, entry: StudyEntry) -> None:
        """Start the process of a study that has begun, where there is none and its time has come."""
        seat = self._seats.setdefault(entry.id, _Seat())
        if seat.process is None and entry.state == "queued":
            return  # it will be started when it leaves the queue
        if seat.process is None and self._clock() >= seat.not_before:
            seat.began = self._clock()
            try:
                seat.process = self._start(self._book.folder(entry.id))
            except OSError:
                self._lost(entry, seat, _NO_PROCESS)


def _place(entry: StudyEntry) -> Place:
    return Place(entry.id, entry.sites)


def _result(folder: Path) -> RunResult | None:
    try:
        return RunResult.model_validate_json((folder / "result.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
