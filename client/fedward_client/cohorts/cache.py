"""Encoded rows on the disk: each file bound to one cohort and schema, one state of the data, one opt-out list."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

__all__ = ["Key", "RowCache"]

_ROWS: Final = ".npz"
_PARTIAL: Final = ".part"
_FORSAKEN_S: Final = 3600.0

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Key:
    """What a file is bound to: digests in hexadecimal digits of the cohort and schema, the data, the opt-out list."""

    which: str
    data: str
    without: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.which[:16]}.{self.data}.{self.without[:16]}{_ROWS}"


class RowCache:
    """The folder ``cache`` of a site. Files are readable by their owner only.

    Args:
        home: the site's folder.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "cache"

    def read(self, key: Key, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]] | None:
        """Return the named arrays that are kept under `key`; None when they are not there, or damaged."""
        with (
            suppress(OSError, EOFError, ValueError, KeyError, BadZipFile),
            np.load(self._folder / key.name, allow_pickle=False) as arrays,
        ):
            return {name: arrays[name] for name in names}
        return None

    def write(self, key: Key, arrays: Arrays) -> None:
        """Keep `arrays` under `key`, whole or not at all; what they take the place of goes first.

        That is every file of the same cohort and schema, since rows that were taken out of the data are not to stay,
        and every file under another opt-out list.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = key.name
        for path in self._files():
            same, others = path.name.startswith(kept[:17]), not path.name.endswith(kept[-17 - len(_ROWS) :])
            if path.name != kept and (same or others):
                path.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=_PARTIAL)
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        Path(temporary).replace(self._folder / kept)

    def empty(self) -> None:
        """Remove all rows."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        """Yield every file with rows, and those that somebody who was killed did not finish."""
        yield from self._folder.glob(f"*{_ROWS}")
        for path in self._folder.glob(f"*{_PARTIAL}"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _FORSAKEN_S:
                    yield path
