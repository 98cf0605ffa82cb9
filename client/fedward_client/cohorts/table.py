"""A hospital's table, checked and encoded once, and read back by the training child in milliseconds."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedward_client.cohorts.base import Patients
from fedward_common.canonical import canonical_json
from fedward_common.contract import Contract, quantity
from fedward_common.errors import LocalDataError
from fedward_common.schema import CohortSchema
from fedward_common.tables import Rows, encode, read_table

__all__ = ["TableCohort", "TableEntry"]


class TableEntry(Contract):
    """A table in a site's register."""

    table: str = quantity("path of a CSV or Parquet file; relative to the site's home, or absolute", min_length=1)
    names: tuple[str, ...] | None = quantity("columns of a file without a header line", default=None)


class TableCohort:
    """A `Cohort` over a CSV or Parquet file.

    Args:
        entry: where the table is.
        schema: what the study declares.
        home: the site's folder; the encoded rows are kept in its ``cache`` (mode 0600) and nowhere else.
    """

    def __init__(self, entry: TableEntry, schema: CohortSchema, home: Path) -> None:
        self._path = home / entry.table
        self._names = entry.names
        self._schema = schema
        self._cache = home / "cache"

    def fingerprint(self) -> str:
        """See `Cohort.fingerprint`.

        Raises:
            LocalDataError: the file cannot be read.
        """
        try:
            content = self._path.read_bytes()
        except OSError as error:
            msg = f"{self._path.name} cannot be read ({type(error).__name__})"
            raise LocalDataError(msg, remedy="check the path in site.yaml and the file's permissions") from error
        schema = canonical_json([self._schema.model_dump(mode="json"), list(self._names or ())])
        return hashlib.sha256(hashlib.sha256(content).digest() + schema).hexdigest()

    def keep(self, rows: Rows) -> None:
        """Keep the encoded rows of the file as it is now, so that they are read back instead of checked again.

        Args:
            rows: what `encode` gives for this file and schema.
        """
        _write_privately(self._cache / f"{self.fingerprint()}.npz", rows)

    def patients(self, limit: int) -> Patients:
        """See `Cohort.patients`. The table is parsed and checked once for each fingerprint.

        Raises:
            SchemaMismatchError: the table breaks the schema.
            LocalDataError: the file cannot be read.
        """
        cached = self._cache / f"{self.fingerprint()}.npz"
        if not cached.exists():
            self.keep(encode(read_table(self._path, names=self._names), self._schema))
        with np.load(cached, allow_pickle=False) as arrays:
            return _grouped(arrays["features"], arrays["labels"], arrays["patients"], limit)


def _write_privately(path: Path, rows: Rows) -> None:
    """Write `path` whole or not at all, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        np.savez(file, features=rows.features, labels=rows.labels, patients=rows.patients)
    Path(temporary).replace(path)


def _grouped(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], patients: npt.NDArray[np.int64], limit: int
) -> Patients:
    order = np.argsort(patients, kind="stable")
    codes = patients[order]
    place = np.arange(len(codes)) - np.searchsorted(codes, codes)
    kept = place < limit
    order, codes, place = order[kept], codes[kept], place[kept]
    count, width = int(codes.max(initial=-1)) + 1, int(place.max(initial=-1)) + 1
    grouped = Patients(
        features=np.zeros((count, width, features.shape[1]), dtype=np.float32),
        labels=np.zeros((count, width), dtype=np.float32),
        mask=np.zeros((count, width), dtype=np.float32),
    )
    grouped.features[codes, place] = features[order]
    grouped.labels[codes, place] = labels[order]
    grouped.mask[codes, place] = 1.0
    return grouped
