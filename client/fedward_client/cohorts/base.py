"""What every local data set of a hospital offers, whatever it is kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Cohort", "Patients"]


@dataclass(frozen=True, slots=True)
class Patients:
    """Records grouped by patient, padded to the most rows that one patient has.

    Attributes:
        features: float32, shape (patients, rows, features).
        labels: float32 0/1, shape (patients, rows).
        mask: float32, 1 where a row is there and 0 where it is padding, shape (patients, rows).
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of patients."""
        return len(self.features)


class Cohort(Protocol):
    """A local data set of one hospital."""

    def fingerprint(self) -> str:
        """Return a SHA-256 over the data and the schema; any change of either changes it."""

    def patients(self, limit: int) -> Patients:
        """Return the records, at most `limit` rows of each patient: the first ones in the table's order."""

    def identities(self) -> npt.NDArray[np.uint8]:
        """Return who the patients are, uint8, shape (patients, 16), in the order of `patients`; never leaves the site.

        The first 16 bytes of the SHA-256 of the patient's identifier, in the column that the hospital's register
        names as such, else the one that the study names. The same identifier gives the same bytes in any cohort and
        under any study. Without one, of all that the patient's row says, whatever the study reads of it, so that a
        new export of the same rows gives the same bytes, in any order and any format.

        What this cannot see without an identifier: a row that was edited, or exported with another set of columns,
        is somebody else; two rows of one patient are two; rows that say the same are one.
        """
