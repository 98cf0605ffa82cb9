"""A registered data set, read, checked and encoded once, and read back by the training child in milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fedward_client.cohorts.base import Patients
from fedward_client.cohorts.cache import Key, RowCache
from fedward_client.cohorts.entries import CohortEntry
from fedward_client.cohorts.identity import identities_of_content, identities_of_names
from fedward_client.cohorts.opt_out import OptOuts, without_opted_out
from fedward_common.canonical import canonical_json
from fedward_common.errors import LocalDataError
from fedward_common.schema import CohortSchema
from fedward_common.tables import Rows, complete_rows, encode, identifier_text

if TYPE_CHECKING:
    import pandas as pd

    from fedward_common.images import ImageFolder

__all__ = ["EncodedCohort", "Loaded", "Source", "judged_schema", "usable_rows"]


class Source(Protocol):
    """Where a cohort's rows come from: a file, a database, a folder of images."""

    def digest(self) -> bytes:
        """Return a SHA-256 over all that the rows are made of.

        Raises:
            LocalDataError: it cannot be read.
        """

    def frame(self) -> pd.DataFrame:
        """Return the rows as they are.

        Raises:
            LocalDataError: they cannot be read.
        """

    def images(self, columns: Collection[str]) -> ImageFolder | None:
        """Return what opens the files that these columns of the rows name; None where rows name none.

        Raises:
            LocalDataError: the register does not let one of the columns name files.
        """

    def content(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return what some of the rows say: a file's name replaced by what tells the file's content."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read of a cohort.

    Attributes:
        frame: the rows of all patients who did not opt out, as they are.
        rows: the same as numbers; incomplete ones left out, where the schema allows that.
        identities: who the patients of `rows` are, uint8, shape (patients, 16).
        opted_out: rows left out because of the opt-out list.
    """

    frame: pd.DataFrame
    rows: Rows
    identities: npt.NDArray[np.uint8]
    opted_out: int


class EncodedCohort:
    """A `fedward_client.cohorts.Cohort` over any source of rows, as they are when the first of its methods is called.

    The encoded rows are kept in the folder ``cache`` of the site's home (mode 0600) and nowhere else. A file there is
    bound to the data, the schema and the opt-out list; when one of them changes, the old file goes.

    Args:
        source: where the rows come from.
        entry: what the register says of it.
        schema: what the study declares.
        home: the site's folder.
    """

    def __init__(self, source: Source, entry: CohortEntry, schema: CohortSchema, home: Path) -> None:
        self._source = source
        self._entry = entry
        self._declared = schema
        self._cache = RowCache(home)
        self._opt_outs = OptOuts(home)

    def fingerprint(self) -> str:
        """See `Cohort.fingerprint`.

        Raises:
            LocalDataError: the data cannot be read.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self._fingerprint_now()

    def _fingerprint_now(self) -> str:
        said = canonical_json([self._declared.model_dump(mode="json"), *self._entry.facts()])
        return hashlib.sha256(self._source.digest() + said).hexdigest()

    @cached_property
    def _opted_out(self) -> frozenset[str]:
        return self._opt_outs.identifiers()

    def patients(self, limit: int) -> Patients:
        """See `Cohort.patients`. The data are parsed and checked once for each fingerprint and opt-out list.

        Raises:
            SchemaMismatchError: the data break the schema.
            LocalDataError: the data cannot be read, or nobody can say which rows are of patients who opted out.
        """
        arrays = self._encoded("features", "labels", "patients")
        return _grouped(arrays["features"], arrays["labels"], arrays["patients"], limit)

    def identities(self) -> npt.NDArray[np.uint8]:
        """See `Cohort.identities`; raises what `patients` raises."""
        return self._encoded("identities")["identities"]

    def load(self) -> Loaded:
        """Return the rows, read and checked now; nothing is kept. Raises what `patients` raises."""
        schema, frame = judged_schema(self._declared, self._entry.patient_column), self._source.frame()
        used = usable_rows(frame, self._declared, self._entry, self._opted_out)
        rows = encode(used, schema, self._source.images(schema.images) if schema.images else None)
        if rows.identifiers is not None:
            identities = identities_of_names(rows.identifiers)
        else:
            identities = identities_of_content(self._source.content(complete_rows(used, schema)))
        return Loaded(used, rows, identities, len(frame) - len(used))

    def keep(self, rows: Rows, identities: npt.NDArray[np.uint8]) -> None:
        """Keep the encoded rows of the data as they are now, so that they are read back instead of checked again.

        Args:
            rows: what `encode` gives for these data and this schema.
            identities: who their patients are, uint8, shape (patients, 16).
        """
        self._cache.write(self._key, _arrays(rows, identities))

    def _encoded(self, *names: str) -> dict[str, npt.NDArray[Any]]:
        """Return some of the arrays that are kept, made anew where they are not."""
        kept = self._cache.read(self._key, names)
        if kept is not None:
            return kept
        loaded = self.load()
        if self._fingerprint_now() != self._fingerprint:
            msg = "the data changed while they were read"
            raise LocalDataError(msg, remedy="try again when the export is complete")
        arrays = _arrays(loaded.rows, loaded.identities)
        self._cache.write(self._key, arrays)
        return {name: arrays[name] for name in names}

    @property
    def _key(self) -> Key:
        which = canonical_json([self._entry.model_dump(mode="json"), self._declared.model_dump(mode="json")])
        without = "\n".join(sorted(self._opted_out)).encode("utf-8")
        return Key(hashlib.sha256(which).hexdigest(), self._fingerprint, hashlib.sha256(without).hexdigest())


def _arrays(rows: Rows, identities: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    return {
        "features": rows.features, "labels": rows.labels, "patients": rows.patients, "identities": identities,
    }  # fmt: skip


def judged_schema(schema: CohortSchema, patient_column: str | None) -> CohortSchema:
    """Return `schema` with the patient that the hospital's register knows, if it names one, instead of the study's.

    Raises:
        LocalDataError: the study reads that column as a feature or as its label.
    """
    if patient_column is None or patient_column == schema.patient:
        return schema
    if patient_column in {*schema.columns, schema.label.column}:
        msg = f"patient_column {patient_column!r} is a feature or the label of the study"
        raise LocalDataError(msg, remedy="the study would train on who somebody is: tell its author")
    return schema.model_copy(update={"patient": patient_column})


def usable_rows(
    frame: pd.DataFrame, schema: CohortSchema, entry: CohortEntry, opted_out: frozenset[str]
) -> pd.DataFrame:
    """Return the rows of patients who did not opt out.

    Raises:
        LocalDataError: who opted out cannot be told, or one patient of the study's column is several of the register's.
    """
    patient = entry.patient_column or schema.patient
    if patient is None:
        if opted_out and not entry.opt_outs_at_source:
            msg = "there is an opt-out list, but no column says which rows belong to whom"
            remedy = (
                "set patient_column in the cohort's entry of site.yaml, or opt_outs_at_source if the data are clean"
            )
            raise LocalDataError(msg, remedy=remedy)
        return frame
    if schema.patient not in {None, patient} and {schema.patient, patient} <= set(frame.columns):
        pairs = frame[[schema.patient, patient]].map(identifier_text).drop_duplicates()
        split = int((pairs[schema.patient].value_counts() > 1).sum())
        if split:
            msg = f"{split} identifiers in {schema.patient!r} belong to several patients in {patient!r}"
            raise LocalDataError(msg, remedy="patient_column in site.yaml must name the person, not the visit")
    return without_opted_out(frame, patient, opted_out)


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
