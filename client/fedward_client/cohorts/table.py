"""Rows of a CSV, TSV or Parquet file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from fedward_client.cohorts.entries import TableEntry
from fedward_common.errors import LocalDataError
from fedward_common.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TableSource"]


class TableSource:
    """A `fedward_client.cohorts.encoded.Source` over one file.

    Args:
        entry: which file.
        home: the site's folder.
    """

    def __init__(self, entry: TableEntry, home: Path) -> None:
        self._path = home / entry.table
        self._names = entry.names

    def digest(self) -> bytes:
        """Return the SHA-256 of the file's bytes; see `Source.digest`."""
        try:
            with self._path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            msg = f"{self._path.name} cannot be read ({type(error).__name__})"
            raise LocalDataError(msg, remedy="check the path in site.yaml and the file's permissions") from error

    def frame(self) -> pd.DataFrame:
        """See `Source.frame`."""
        return read_table(self._path, names=self._names)

    def images(self, _: Collection[str]) -> None:
        """Return nothing: no cell of a table names a file; see `Source.images`."""

    def content(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows as they are; see `Source.content`."""
        return frame
