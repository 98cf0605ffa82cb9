"""The parameters that stay at a site under FedBN: neither sent nor overwritten, kept from round to round.

A round that is asked again, because it was killed on the way, begins where it began before, so two are kept::

    <home>/local/<study digest>.npz    before, after: float32, shape (local parameters,); round: int64
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fedward_common.errors import Refusal, RefusalCode
from fedward_common.files import replace_file
from fedward_common.models import initial_weights, parted, whole
from fedward_common.study import FedBN, Study

__all__ = ["LocalPart"]

_FOLDER = "local"


@dataclass(frozen=True, slots=True)
class LocalPart:
    """A site's own parameters at the beginning of a round.

    Attributes:
        path: their file.
        round: the round that begins.
        values: the parameters, packed, shape (local parameters,).
    """

    path: Path
    round: int
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, home: Path, study: Study, round_: int) -> Self | None:
        """Return the site's own part for a round; None where all parameters are shared. Nothing is written.

        A site that has no file yet, in whatever round, begins as the model does.

        Raises:
            Refusal: ``model_mismatch``: the file cannot be read, or is of a later round.
        """
        if not isinstance(study.aggregation, FedBN):
            return None
        path = home / _FOLDER / f"{study.digest}.npz"
        first = parted(study, whole(study, initial_weights(study)))[1]
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
                kept, values = int(found["round"]), found["before" if found["round"] == round_ else "after"]
        except FileNotFoundError:
            return cls(path, round_, first)
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise _refused(path, round_, "cannot be read") from error
        if kept > round_ or values.shape != first.shape or values.dtype != np.float32:
            raise _refused(path, round_, f"is of round {kept}")
        return cls(path, round_, values)

    def keep(self, change: npt.NDArray[np.float32]) -> None:
        """Put what training made of the part on the disk, beside what it was."""
        content = io.BytesIO()
        np.savez(content, before=self.values, after=self.values + change, round=np.int64(self.round))
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(self.path, content.getvalue())


def _refused(path: Path, round_: int, why: str) -> Refusal:
    msg = f"{path} {why}; round {round_} is asked for"
    remedy = "restore the file as it was before that round, or take it away: the part then begins anew"
    return Refusal(RefusalCode.MODEL_MISMATCH, msg, remedy=remedy, fields={"key": "local", "asked": round_})
