"""What the folder of a run says, read without touching it: files that other processes replace whole.

Nothing here is needed by a run. A file that is missing or that cannot be read is None, and `unreadable` names it.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedward_common.errors import StudyError
from fedward_common.study_file import StudyFile, read_study_file
from fedward_server.console.seams import StudyLine
from fedward_server.journal import Progress
from fedward_server.result import RoundResult, RunResult
from fedward_server.resume import CHECKPOINT
from fedward_server.run_status import RunStatus, Wish, read_status, read_wish

__all__ = ["DOWNLOADS", "Download", "RunFacts", "read_facts", "read_progress"]

DOWNLOADS: Final = {
    "report.html": "The report, for people",
    "result.json": "Every figure, for programs",
    "privacy.json": "The privacy statement",
    "study.json": "The signed study",
    "model.safetensors": "The model’s weights",
}
"""What may be taken from a run's folder, and what it is."""

_LENGTH: Final = 8
_LONGEST_HEAD: Final = 64 << 20
_LONGEST_RESULT: Final = 256 << 20
_KEPT: Final = 256
_Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Download:
    """A file of a run that somebody may take: its name, what it is, its bytes."""

    name: str
    what: str
    size: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A study of the centre and what its run has left so far.

    Attributes:
        line: what the book says.
        file: the study and its signatures.
        status: where its process says that it stands.
        wish: what it is told to do.
        progress: of the last checkpoint.
        result: of a run that is over.
        downloads: files that are there.
        unreadable: files that are there and are not what they should be.
    """

    line: StudyLine
    file: StudyFile | None = None
    status: RunStatus | None = None
    wish: Wish = "run"
    progress: Progress | None = None
    result: RunResult | None = None
    downloads: tuple[Download, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def closed(self) -> tuple[RoundResult, ...]:
        """The committed rounds, in order."""
        if self.result is not None:
            return self.result.rounds
        return self.progress.closed if self.progress is not None else ()

    @property
    def planned(self) -> int:
        """How many rounds the study has; 0 where nothing says it."""
        if self.file is not None:
            return self.file.study.training.rounds
        return self.status.rounds if self.status is not None else 0

    @property
    def sites(self) -> tuple[str, ...]:
        """The hospitals of the study, in its order."""
        return self.file.study.sites if self.file is not None else tuple(self.line.sites)


def read_facts(line: StudyLine, folder: Path) -> RunFacts:
    """Return what `folder` says about the study `line`."""
    file = _cached(_study, folder / "study.json")
    progress = _cached(_progress, folder / CHECKPOINT)
    result = _cached(_result, folder / "result.json")
    found = {"study.json": file, CHECKPOINT: progress, "result.json": result}
    return RunFacts(
        line=line,
        file=file if isinstance(file, StudyFile) else None,
        status=read_status(folder),
        wish=read_wish(folder),
        progress=progress if isinstance(progress, Progress) else None,
        result=result if isinstance(result, RunResult) else None,
        downloads=tuple(_downloads(folder)),
        unreadable=tuple(name for name, value in found.items() if value is None and (folder / name).exists()),
    )


def read_progress(path: Path) -> Progress | None:
    """Return what a checkpoint says of the rounds so far; its head alone is read, never the model.

    The checkpoint's digest is not verified: whoever goes on from it does that.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_LENGTH), "little")
            head = file.read(size) if size <= _LONGEST_HEAD else b""
        return Progress.model_validate_json(json.loads(head)["__metadata__"]["progress"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _downloads(folder: Path) -> list[Download]:
    found = []
    for name, what in DOWNLOADS.items():
        try:
            state = (folder / name).stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(state.st_mode):
            found.append(Download(name, what, state.st_size))
    return found


def _cached(read: Callable[[Path, _Version], object], path: Path) -> object:
    """Return what `read` makes of a file, read again only when it was replaced; None where it is not there."""
    try:
        state = path.stat()
    except OSError:
        return None
    return read(path, (state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=_KEPT)
def _study(path: Path, _: _Version) -> object:
    try:
        return read_study_file(path)
    except StudyError:
        return None


@lru_cache(maxsize=_KEPT)
def _progress(path: Path, _: _Version) -> object:
    return read_progress(path)


@lru_cache(maxsize=_KEPT)
def _result(path: Path, version: _Version) -> object:
    if version[-1] > _LONGEST_RESULT:
        return None
    try:
        return RunResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
