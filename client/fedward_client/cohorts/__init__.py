"""A hospital's local data sets: what is registered, and how each kind is opened."""

from __future__ import annotations

from pathlib import Path

from fedward_client.cohorts.base import Cohort, Patients
from fedward_client.cohorts.encoded import EncodedCohort, Source
from fedward_client.cohorts.entries import CohortEntry, ImagesEntry, SqlEntry, TableEntry
from fedward_client.cohorts.images import ImageSource
from fedward_client.cohorts.opt_out import OptOuts
from fedward_client.cohorts.sql import SqlSource
from fedward_client.cohorts.table import TableSource
from fedward_common.schema import CohortSchema

__all__ = [
    "Cohort",
    "CohortEntry",
    "EncodedCohort",
    "ImageSource",
    "ImagesEntry",
    "OptOuts",
    "Patients",
    "Source",
    "SqlEntry",
    "SqlSource",
    "TableEntry",
    "TableSource",
    "open_cohort",
    "source_of",
]


def open_cohort(entry: CohortEntry, schema: CohortSchema, home: Path) -> EncodedCohort:
    """Return the registered data set `entry` under a study's `schema`; nothing is read yet.

    Args:
        entry: the register's entry.
        schema: what the study declares.
        home: the site's folder.
    """
    return EncodedCohort(source_of(entry, home), entry, schema, home)


def source_of(entry: CohortEntry, home: Path) -> Source:
    """Return where the rows of `entry` come from; nothing is read yet."""
    match entry:
        case SqlEntry():
            return SqlSource(entry, home)
        case ImagesEntry():
            return ImageSource(entry, home)
        case TableEntry():
            return TableSource(entry, home)
