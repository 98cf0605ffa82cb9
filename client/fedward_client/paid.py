"""The update of the last round that patients paid for, kept so that it can be said again and need not be paid again.

A centre may lose a reply that it had: its clock jumped, its disk was restored, the site was killed between the debit's
release and the outbox. Asked the same question once more, the site answers with the same bytes; whoever has both
answers knows no more than who has one, so nothing is spent. To any other question for that round the answer stays
``round_replayed``. One update is kept for a study, until the next round's takes its place::

    <home>/paid/<study digest>.npz    head: JSON, with the SHA-256 of the question; values: int64, shape (parameters,)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import structlog

from fedward_common.files import replaced_file
from fedward_common.wire import Task, Update

__all__ = ["PaidUpdate", "forget"]

_FOLDER: Final = "paid"
_KEPT_S: Final = 30 * 86_400.0
_log = structlog.get_logger("fedward.paid")


@dataclass(frozen=True, slots=True)
class PaidUpdate:
    """The place of one study's update.

    Attributes:
        path: its file.
        site: whose it is.
        task: the question that is asked now.
        asked: SHA-256 of the question, in hexadecimal digits: round, model and, for SCAFFOLD, the centre's variate.
    """

    path: Path
    site: str
    task: Task
    asked: str

    @classmethod
    def of(cls, home: Path, site: str, task: Task) -> Self:
        """Return the place for a task; nothing is read or written."""
        return cls(_path(home, task.study.digest), site, task, _asked(site, task))

    def read(self) -> tuple[Update, str] | None:
        """Return the update that this very question was answered with and the SHA-256 of its values.

        None where it was another question, where nothing is kept, or where that is damaged.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                head = json.loads(found["head"].tobytes())
                if head["asked"] != self.asked:
                    return None
                values = found["values"]
            sha256 = hashlib.sha256(values.data).hexdigest()
            sound = values.dtype == np.int64 and sha256 == head["sha256"]
            return (self._update(head, values), sha256) if sound else None
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def _update(self, head: dict[str, object], values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Update:
        weight, steps, metrics = head["weight"], head["steps"], head["metrics"]
        if not (isinstance(weight, int) and isinstance(steps, int) and isinstance(metrics, dict)):
            raise TypeError
        return Update(self.site, self.task.study.digest, self.task.round, weight, steps, values, metrics)

    def keep(self, update: Update, sha256: str) -> None:
        """Put an update, whose values have this SHA-256, on the disk in place of the former one, before it leaves.

        A full disk costs the second answer and not the first.
        """
        facts = {"weight": update.weight, "steps": update.steps, "metrics": update.metrics}
        head = {"asked": self.asked, "sha256": sha256, **facts}
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            with replaced_file(self.path) as file:
                np.savez(file, head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8), values=update.values)
        except OSError as error:
            _log.warning("update_not_kept", cause=error.strerror, remedy="is the disk of the site's folder full?")
        self._clear()

    def _clear(self) -> None:
        """Remove what studies left behind that nobody has asked for in thirty days."""
        oldest = time.time() - _KEPT_S
        with contextlib.suppress(OSError):
            for path in self.path.parent.iterdir():
                if path.stat().st_mtime < oldest:
                    path.unlink()


def forget(home: Path, study: str) -> None:
    """Remove what is kept for a study, if anything is: its account was closed."""
    _path(home, study).unlink(missing_ok=True)


def _path(home: Path, study: str) -> Path:
    return home / _FOLDER / f"{study}.npz"


def _asked(site: str, task: Task) -> str:
    digest = hashlib.sha256(f"{task.study.digest} {task.round} {task.counted.get(site, 0)} ".encode())
    for part in (task.weights, task.control):
        digest.update(b"" if part is None else part.data)
    return digest.hexdigest()
