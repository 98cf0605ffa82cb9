"""A site's control variate (SCAFFOLD), kept from round to round; it never leaves the site.

The variate is computed from the update as it was sent, so it says nothing that the update did not. The one that the
centre reckons with is that of the last round whose update counted there: a round that was killed, late or refused must
not move it. The centre says which round that was, so two are kept, the last one that counted and the newest::

    <home>/variates/<study digest>.npz    settled, pending: float64, shape (parameters,); rounds: int64, their rounds
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fedward_common.control import variate_change
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.files import replace_file
from fedward_common.study import Study
from fedward_common.wire import Task

__all__ = ["Variate"]

Vector = npt.NDArray[np.float64]

_FOLDER = "variates"


@dataclass(frozen=True, slots=True)
class Variate:
    """A site's variate at the beginning of a round.

    Attributes:
        path: its file.
        study: the contract.
        round: the round that begins.
        counted: the last round whose update counted, 0 for none.
        settled: c_i after that round; zero before the first.
        control: the centre's c.
    """

    path: Path
    study: Study
    round: int
    counted: int
    settled: Vector
    control: npt.NDArray[np.float32]

    @classmethod
    def of(cls, home: Path, site: str, task: Task) -> Self | None:
        """Return the site's variate for a task; None where the study has none. Nothing is written.

        Raises:
            Refusal: ``model_mismatch``: the file cannot be read, or has not the round that counted at the centre.
        """
        if task.control is None:
            return None
        path, counted = home / _FOLDER / f"{task.study.digest}.npz", task.counted.get(site, 0)
        return cls(path, task.study, task.round, counted, _settled(path, counted, len(task.control)), task.control)

    @property
    def correction(self) -> npt.NDArray[np.float32]:
        """What each step's gradient is corrected by: c - c_i."""
        return (self.control - self.settled).astype(np.float32)

    def keep(self, change: Vector) -> None:
        """Put the variate that follows from this round's update on the disk, beside the one that counted.

        Args:
            change: the update as it will be sent, decoded.
        """
        content = io.BytesIO()
        pending = self.settled + variate_change(self.study, change, self.control)
        np.savez(content, settled=self.settled, pending=pending, rounds=np.array([self.counted, self.round]))
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(self.path, content.getvalue())


def _settled(path: Path, counted: int, size: int) -> Vector:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            kept = dict(zip(found["rounds"].tolist(), (found["settled"], found["pending"]), strict=True))
    except FileNotFoundError:
        kept = {0: np.zeros(size)}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _refused(path, counted, "cannot be read") from error
    variate: Vector | None = kept.get(counted)
    if variate is None or variate.shape != (size,) or variate.dtype != np.float64:
        rounds = ", ".join(map(str, sorted(kept)))
        raise _refused(path, counted, f"is of the rounds {rounds}")
    return variate


def _refused(path: Path, counted: int, why: str) -> Refusal:
    msg = f"{path} {why}; at the centre this site's update of round {counted} counted last"
    remedy = "restore the file as it was after that round; without it this site cannot go on with the study"
    return Refusal(RefusalCode.MODEL_MISMATCH, msg, remedy=remedy, fields={"key": "variates", "asked": counted})
