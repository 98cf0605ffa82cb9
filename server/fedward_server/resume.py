"""Where a run stands when its coordinator starts: at the beginning, behind its last checkpoint, or at its end.

Three files in the run's folder say it. ``checkpoint.safetensors`` is the state after a committed round,
``journal.fedward`` the round that is open behind it, ``result.json`` the end. The checkpoint is replaced first and the
journal after it, so a journal of the checkpoint's own round is what a crash between the two leaves: it is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from fedward_common.errors import CoordinatorError, InstallationError, StudyError
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.paged import file_vector
from fedward_common.study import Study
from fedward_common.study_file import read_study_file
from fedward_common.wire import Update
from fedward_server.checkpoint import read_checkpoint, write_checkpoint
from fedward_server.journal import (
    Accepted,
    Begun,
    Progress,
    Record,
    Recovered,
    StoredUpdate,
    Story,
    Values,
    story_of,
)
from fedward_server.journal_file import Entry, JournalFile
from fedward_server.result import RunResult

__all__ = ["CHECKPOINT", "JOURNAL", "Logbook", "Standing", "beginning", "finished", "held", "standing"]

CHECKPOINT: Final = "checkpoint.safetensors"
JOURNAL: Final = "journal.fedward"
_OWN: Final = frozenset({"weights", "released", "tail_total"})
_FILES: Final = (CHECKPOINT, JOURNAL, "study.json", "model.safetensors", "privacy.json", "result.json")
_ITEM: Final = 8  # bytes of one int64

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the next round starts from.

    Attributes:
        progress: the rounds so far; those who enrolled, if the roll has been called.
        weights: the packed global model.
        arrays: of the checkpoint, empty before the first.
        recovered: the open round, if a task of it may have left.
        resumed: whether an earlier process has begun this run.
    """

    progress: Progress
    weights: npt.NDArray[np.float32]
    arrays: Arrays
    recovered: Recovered | None = None
    resumed: bool = False

    @property
    def released(self) -> npt.NDArray[np.float32] | None:
        """The model that the last committed round would release."""
        return self.arrays.get("released")

    @property
    def aggregator_state(self) -> dict[str, npt.NDArray[np.float64]]:
        """What the rule of aggregation carries from round to round."""
        return {name: array for name, array in self.arrays.items() if name not in _OWN}


class Logbook:
    """The run's checkpoint and journal, as they are written; a context manager that closes the latter.

    Args:
        folder: the run's.
        study: its digest.
        journal: of the open round; None keeps checkpoints alone, for runs whose sites end with this process, so that
            there is nothing to resume.
    """

    def __init__(self, folder: Path, study: str, journal: JournalFile | None) -> None:
        self._folder, self._study, self._journal = folder, study, journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, record: Record, values: Values | None = None) -> None:
        """See `RoundLog.write`: it is on the disk."""
        if self._journal is not None:
            self._journal.write(record, values)

    def store(self, update: Update, size: int, parts: Iterable[Values]) -> StoredUpdate | None:
        """See `RoundLog.store`: its values are on the disk, in the journal."""
        if self._journal is None:
            return None
        return StoredUpdate(update, self._journal.write_parts(Accepted.of(update), size, parts), size)

    def commit(self, arrays: Arrays, progress: Progress) -> None:
        """Put the state after a round on the disk and begin the journal of the next; a crash between is repaired.

        Raises:
            InstallationError: there is no space; the round is still in the journal.
        """
        round_ = len(progress.closed)
        _write_checkpoint(self._folder, self._study, arrays, progress)
        if self._journal is not None:
            self._journal.close()
            first = Begun(study=self._study, after=round_, started=progress.started)
            self._journal = JournalFile.create(self._folder / JOURNAL, first)

    def end(self) -> None:
        """Take the journal away, once the result is on the disk."""
        self._close()
        (self._folder / JOURNAL).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def _write_checkpoint(folder: Path, study: str, arrays: Arrays, progress: Progress) -> None:
    path = folder / CHECKPOINT
    try:
        write_checkpoint(
            path, study=study, round_=len(progress.closed), arrays=arrays, progress=progress.model_dump_json()
        )
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror}"
        raise InstallationError(msg, remedy="free space, then start again: the run goes on where it was") from error


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep every other coordinator out of the run's folder; a killed one lets go of it, and its half files go.

    Raises:
        InstallationError: another one is in it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        for name in _FILES:
            for half in folder.glob(f".{name}.*"):
                half.unlink()
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        msg = f"another coordinator works in {folder}"
        raise InstallationError(msg, remedy="wait for it, or end it") from error


def finished(folder: Path, study: Study) -> RunResult | None:
    """Return the result of a run that has ended, and take away what a crash right behind its end left; else None.

    Raises:
        CoordinatorError: the folder belongs to another study, or its result cannot be read.
    """
    _refuse_another_study(folder, study)
    path = folder / "result.json"
    try:
        result = RunResult.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        msg = f"{path} cannot be read"
        raise CoordinatorError(msg, remedy="restore it from a copy, or choose another folder") from error
    if result.study.digest != study.digest:
        raise _another_study(path)
    (folder / JOURNAL).unlink(missing_ok=True)
    return result


def beginning(study: Study, folder: Path | None = None) -> Standing:
    """Return where a run stands before anything; a large model is kept in `folder`."""
    return Standing(Progress(started=datetime.now(UTC).isoformat(timespec="seconds")), _first(study, folder), {})


def _first(study: Study, folder: Path | None) -> npt.NDArray[np.float32]:
    return initial_weights(study, file_vector(parameter_spec(study).size, folder))


def standing(folder: Path, study: Study) -> tuple[Standing, Logbook]:
    """Return where the run in `folder` stands and the logbook to go on with.

    Raises:
        CoordinatorError: a file is damaged, belongs to another study, or is of another moment than its neighbour.
        InstallationError: a file cannot be read or written.
    """
    path, checkpoint = folder / JOURNAL, folder / CHECKPOINT
    if not path.exists():
        if checkpoint.exists():
            msg = f"{path} is missing beside {checkpoint.name}"
            raise CoordinatorError(msg, remedy="restore it from a copy, or choose another folder")
        start = beginning(study, folder)
        first = Begun(study=study.digest, after=0, started=start.progress.started)
        return start, Logbook(folder, study.digest, JournalFile.create(path, first))
    with contextlib.ExitStack() as stack:
        journal, entries = JournalFile.reopen(path, body=parameter_spec(study).size * _ITEM)
        stack.callback(journal.close)
        story = story_of(entry.record for entry in entries)
        before = _before(checkpoint, study, story)
        round_ = len(before.progress.closed)
        if round_ > story.begun.after:  # killed between checkpoint and journal
            first = Begun(study=study.digest, after=round_, started=story.begun.started)
            return before, Logbook(folder, study.digest, JournalFile.create(path, first))
        stack.pop_all()
    return _with_open_round(before, story, journal, entries), Logbook(folder, study.digest, journal)


def _before(path: Path, study: Study, story: Story) -> Standing:
    """Return how the run stood after its last committed round.

    Raises:
        CoordinatorError: checkpoint and journal do not belong together.
    """
    after = story.begun.after
    if story.begun.study != study.digest:
        raise _another_study(path.with_name(JOURNAL))
    if not path.exists() and not after:
        return Standing(Progress(started=story.begun.started), _first(study, path.parent), {}, resumed=True)
    found = read_checkpoint(path)
    if found.study != study.digest:
        raise _another_study(path)
    try:
        progress = Progress.model_validate_json(found.progress)
    except ValidationError as error:
        msg = f"{path} was written by another version of Fedward"
        raise CoordinatorError(msg, remedy="go on with the version that began the run") from error
    if found.round != len(progress.closed) or found.round not in {after, after + 1}:
        msg = f"{path} is of round {found.round}, the journal beside it goes on after round {after}"
        raise CoordinatorError(msg, remedy="restore both files from one copy")
    size = parameter_spec(study).size
    if any(found.arrays.get(name, np.zeros(0)).shape != (size,) for name in ("weights", "released")):
        msg = f"{path} holds no model of {size} parameters"
        raise CoordinatorError(msg, remedy="go on with the version that began the run")
    return Standing(progress, found.arrays["weights"], found.arrays, resumed=True)


def _with_open_round(before: Standing, story: Story, journal: JournalFile, entries: list[Entry]) -> Standing:
    progress = before.progress
    if story.enrolled is not None:
        enrolled = story.enrolled
        told = {"seats": enrolled.seats, "excluded": dict(enrolled.excluded), "away": enrolled.away}
        progress = progress.model_copy(update=told)
    if story.open is None:
        return Standing(progress, before.weights, before.arrays, resumed=True)
    asked = progress.asked | dict.fromkeys(story.open.asked, story.open.round)
    recovered = Recovered(story.open, _updates(story.begun.study, journal, entries))
    progress = progress.model_copy(update={"asked": asked}).joined_by(story.open.joined.values())
    return Standing(progress, before.weights, before.arrays, recovered, resumed=True)


def _updates(study: str, journal: JournalFile, entries: list[Entry]) -> Iterator[StoredUpdate]:
    for entry in entries:
        if entry.record.kind == "accepted":
            head = entry.record.update(study, np.zeros(0, dtype=np.int64))
            yield StoredUpdate(head, journal.body(entry), entry.size // _ITEM)


def _refuse_another_study(folder: Path, study: Study) -> None:
    path = folder / "study.json"
    try:
        digest = read_study_file(path).study.digest if path.exists() else study.digest
    except StudyError as error:
        msg = f"{path} cannot be read"
        raise CoordinatorError(msg, remedy="restore it from a copy, or choose another folder") from error
    if digest != study.digest:
        raise _another_study(path)


def _another_study(path: Path) -> CoordinatorError:
    return CoordinatorError(f"{path} belongs to another study", remedy="choose an empty folder for this one")
