"""Vectors that live in a file, so that a large model is in memory only where it is being looked at.

The kernel loads a page of such a vector when it is touched and may drop it at any time; `let_go` drops all of them at
once. Small vectors stay in memory.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "LARGE", "blocks", "file_vector", "let_go", "mapped"]

BLOCK: Final = 1 << 20
"""Numbers that are worked on at a time."""

LARGE: Final = 16 << 20
"""Bytes from which on a vector is worth a file."""


def blocks(size: int, block: int = BLOCK) -> Iterator[slice]:
    """Yield the slices of at most `block` numbers that a vector of `size` consists of."""
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))


def file_vector(size: int, folder: Path | None) -> npt.NDArray[np.float32]:
    """Return a vector of zeros, shape (size,): in a nameless file of `folder` if it is large, else in memory.

    The file's space is free again once the vector is, or the process has ended.

    Raises:
        OSError: the file cannot be made.
    """
    dtype = np.dtype(np.float32)
    if folder is None or size * dtype.itemsize < LARGE:
        return np.zeros(size, dtype=dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size * dtype.itemsize)
        return np.frombuffer(mmap.mmap(file.fileno(), size * dtype.itemsize), dtype=dtype)


def mapped(path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the array that stands at byte `offset` of a file, whole pages of it in memory as they are touched.

    The file may be replaced, and not shortened. What is written into the array does not reach it.
    """
    count = int(np.prod(shape))
    if not count:
        return np.zeros(shape, dtype=dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        length = offset - start + count * dtype.itemsize
        view = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
    return np.frombuffer(view, dtype=dtype, count=count, offset=offset - start).reshape(shape)


def let_go(array: npt.NDArray[Any]) -> None:
    """Drop the pages of a vector of `file_vector` or `mapped` from memory; its values stay. Others are left alone."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
