"""One arithmetic for updates: 64-bit integers at a public scale, added modulo 2**64.

A sum of such vectors is exact, so it does not depend on the order of arrival, and adding a mask and taking
it off again changes nothing: the plain and the masked sum are the same code.

Headroom: |update| <= 2**6, weight <= 2**20, at most 2**12 sites and 24 fraction bits need 2**62 < 2**63.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["FRACTION_BITS", "SCALE", "decode_mean", "encode_weighted"]

FRACTION_BITS: Final = 24
SCALE: Final = 1 << FRACTION_BITS

Integers = npt.NDArray[np.int64]


def encode_weighted(update: npt.NDArray[np.float32], weight: int, *, bound: float) -> Integers:
    """Return ``weight * round(update * 2**24)`` as int64, the same shape.

    Args:
        update: change of each weight in a round.
        weight: what the update counts for, 1 to 2**20.
        bound: largest absolute change that is sent, at most 64.

    Raises:
        ValueError: an entry is not finite or above `bound`, or the weight is out of range.
    """
    if not 1 <= weight <= 1 << 20:
        msg = f"weight {weight} is not within 1 to 2**20"
        raise ValueError(msg)
    wide = update.astype(np.float64)
    if not np.isfinite(wide).all():
        msg = "the update is not finite"
        raise ValueError(msg)
    if np.abs(wide).max(initial=0.0) > bound:
        msg = f"the update exceeds the bound {bound:g}"
        raise ValueError(msg)
    return np.rint(wide * SCALE).astype(np.int64) * np.int64(weight)


def decode_mean(total: Integers, weight: int, *, out: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    """Return the weighted mean that an integer sum stands for: ``total / (weight * 2**24)``.

    Args:
        total: the sum.
        weight: what its updates counted for together.
        out: where the mean goes, the same shape; None: into fresh memory.

    Raises:
        ValueError: the weights sum to less than 1.
    """
    if weight < 1:
        msg = "the weights sum to less than 1"
        raise ValueError(msg)
    return np.divide(total, float(weight) * SCALE, out=out)
