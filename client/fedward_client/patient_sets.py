"""Sets of patients that a ledger can compare without knowing who they are; rules without I/O.

A patient is a tag: eight bytes of an HMAC-SHA-256 (RFC 2104) over the identity that the cohort gives, under a key of
the site's own. Tags of the same patient are equal in every cohort; without the key they say nothing. Two patients who
share a tag (among 100,000, with probability 3e-10) are charged for each other's studies too, never for fewer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "IDENTITY_BYTES",
    "KEY_BYTES",
    "Identities",
    "Numbers",
    "Tags",
    "distinct",
    "groups",
    "mark",
    "members",
    "numbered",
    "pack",
    "tags",
]

IDENTITY_BYTES: Final = 16
KEY_BYTES: Final = 32
_TAG_BYTES: Final = 8
_WORD: Final = 64

Identities = npt.NDArray[np.uint8]
Tags = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]


def distinct(identities: Identities) -> Identities:
    """Return each of `identities` once, in one order whatever theirs was, shape (patients, 16).

    Raises:
        ValueError: not uint8 of shape (patients, 16).
    """
    if identities.dtype != np.uint8 or identities.ndim != 2 or identities.shape[1] != IDENTITY_BYTES:  # noqa: PLR2004  (rows and bytes)
        msg = f"identities are uint8 of shape (patients, {IDENTITY_BYTES})"
        raise ValueError(msg)
    rows = np.ascontiguousarray(identities).view(f"V{IDENTITY_BYTES}").ravel()
    ordered = np.sort(rows)
    kept = np.ones(len(ordered), dtype=bool)
    kept[1:] = ordered[1:] != ordered[:-1]
    return ordered[kept].view(np.uint8).reshape(-1, IDENTITY_BYTES)


def mark(identities: Identities, key: bytes) -> bytes:
    """Return 32 bytes that are equal for equal sets of `distinct` identities under one key."""
    return hmac.digest(key, b"set\x00" + hashlib.sha256(identities.tobytes()).digest(), "sha256")


def tags(identities: Identities, key: bytes) -> Tags:
    """Return the tag of each of `distinct` identities, ascending and each once; uint64, shape (patients,)."""
    content = identities.tobytes()
    cuts = range(0, len(content), IDENTITY_BYTES)
    found = [hmac.digest(key, content[i : i + IDENTITY_BYTES], "sha256")[:_TAG_BYTES] for i in cuts]
    return np.unique(np.frombuffer(b"".join(found), dtype="<u8")).astype(np.uint64)


def numbered(wanted: Tags, known: Tags) -> tuple[Numbers, Tags]:
    """Return the numbers of the `wanted` tags and those among them that are new.

    A tag's number is its place in `known`, in the order in which patients were first seen; the new ones follow.

    Args:
        wanted: ascending, each once.
        known: each once, in any order.
    """
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, wanted, sorter=order)
    inside = place < len(known)
    found = np.full(len(wanted), -1, dtype=np.int64)
    found[inside] = order[place[inside]]
    found[inside] = np.where(known[found[inside]] == wanted[inside], found[inside], -1)
    new = found < 0
    found[new] = len(known) + np.arange(new.sum())
    return found, wanted[new]


def pack(numbers: Numbers) -> bytes:
    """Return a set of numbers as a bitmap, bit i of which is set where i is in it."""
    bits = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=np.uint8)
    bits[numbers] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def members(bitmap: bytes) -> Numbers:
    """Return the numbers in a bitmap made by `pack`, ascending."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little"))


def groups(numbers: Numbers, bitmaps: Sequence[bytes | None]) -> npt.NDArray[np.bool_]:
    """Return in which of the sets the patients `numbers` stand, each combination that occurs once.

    Args:
        numbers: of the patients who are asked about.
        bitmaps: the sets; None is the set of everybody.

    Returns:
        bool, shape (combinations, sets); no row where there are no patients.
    """
    inside = np.ones((len(numbers), len(bitmaps)), dtype=bool)
    for column, bitmap in enumerate(bitmaps):
        if bitmap is not None:
            bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little").astype(bool)
            within = numbers < len(bits)
            inside[~within, column] = False
            inside[within, column] = bits[numbers[within]]
    codes = np.zeros(len(numbers), dtype=np.int64)
    for start in range(0, len(bitmaps), _WORD):
        packed = np.packbits(inside[:, start : start + _WORD], axis=1)
        word = np.zeros((len(numbers), _WORD // 8), dtype=np.uint8)
        word[:, : packed.shape[1]] = packed
        _, inverse = np.unique(word.view(np.uint64).ravel(), return_inverse=True)
        _, codes = np.unique(codes * (int(inverse.max(initial=0)) + 1) + inverse, return_inverse=True)
    _, first = np.unique(codes, return_index=True)
    return inside[first]
