"""A hospital's local data sets: what is registered, and how each kind is opened."""

from __future__ import annotations

from pathlib import Path

from fedward_client.cohorts.base import Cohort, Patients
from fedward_client.cohorts.table import TableCohort, TableEntry
from fedward_common.schema import CohortSchema

__all__ = ["Cohort", "Patients", "TableCohort", "TableEntry", "open_cohort"]


def open_cohort(entry: TableEntry, schema: CohortSchema, home: Path) -> Cohort:
    """Return the registered data set `entry` under a study's `schema`; nothing is read yet.

    Args:
        entry: the register's entry.
        schema: what the study declares.
        home: the site's folder.
    """
    return TableCohort(entry, schema, home)
