"""The patients of the attacks: real records that scikit-learn carries, scaled to [-1, 1] as a cohort's are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["DIGIT_SHAPE", "Pool", "digit_pool", "digits", "tumours"]

DIGIT_SHAPE: Final = (8, 8)
_DIGIT_MAXIMUM: Final = 16.0
_FIRST_HIGH_DIGIT: Final = 5


@dataclass(frozen=True, slots=True)
class Pool:
    """Everybody who may be in a cohort.

    Attributes:
        rows: encoded records, one for each patient, shape (patients, features).
        labels: 0/1, shape (patients,).
        suspects: whose membership is guessed, indices into the patients; the others only take part.
    """

    rows: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    suspects: npt.NDArray[np.int64]


@lru_cache(maxsize=1)
def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return 1,797 pictures of 8 × 8 pixels, shape (1797, 64), and 1 for 5 to 9 (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  (a second of imports)

    found = load_digits()
    rows = (found.data / (_DIGIT_MAXIMUM / 2) - 1).astype(np.float32)
    return rows, (found.target >= _FIRST_HIGH_DIGIT).astype(np.int64)


def tumours(patients: int, *, mislabelled: int = 0, seed: int = 0) -> Pool:
    """Return a random part of the Wisconsin breast cancer data (569 tumours, 30 features; Street et al. 1993).

    Args:
        patients: how many.
        mislabelled: so many of them get the wrong label and alone are suspects: a model must learn them by heart. They
            are the worst case that an average over patients hides (Aerni, Zhang & Tramèr 2024). None: all are suspects.
        seed: of who.
    """
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415  (a second of imports)

    found = load_breast_cancer()
    low, high = found.data.min(axis=0), found.data.max(axis=0)
    rows = (2 * (found.data - low) / (high - low) - 1).astype(np.float32)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:patients]
    labels, order = found.target[chosen].astype(np.int64), np.random.default_rng(seed).permutation(patients)
    suspects = np.sort(order[:mislabelled]) if mislabelled else np.arange(patients)
    if mislabelled:
        labels[suspects] = 1 - labels[suspects]
    return Pool(rows[chosen], labels, suspects)


def digit_pool(patients: int, *, seed: int = 0) -> Pool:
    """Return a random part of `digits`, all of them suspects."""
    rows, labels = digits()
    chosen = np.random.default_rng(seed).permutation(len(rows))[:patients]
    return Pool(rows[chosen], labels[chosen], np.arange(patients))
