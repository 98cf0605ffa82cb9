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
