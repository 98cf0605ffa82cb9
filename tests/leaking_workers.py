"""Workers that let patients' values out by every way a library could: an error, a stream, a log, a reply."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import structlog

from fedward_client.cohorts import TableEntry
from fedward_client.worker import Facts, InProcessWorker, Job, Session, Trained


def rows(job: Job) -> pd.DataFrame:
    """Return the records as they stand in the file."""
    assert isinstance(job.entry, TableEntry)
    return pd.read_csv(job.entry.table)


class Raising:
    """Fails with a whole record in the error's text, its notes and its cause."""

    def open(self, job: Job) -> AbstractContextManager[Session]:
        """Fail."""
        record = rows(job).iloc[0].to_dict()
        error = ValueError(f"cannot train on {record}")
        error.add_note(str(record))
        raise error from KeyError(record["name"])


class Printing:
    """Prints, warns and logs records, on streams and on their descriptors, and then works as it should."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """Let the records out, and open the cohort."""
        text = rows(job).to_string()
        print(text)  # noqa: T201  (a library's own print)
        sys.stderr.write(text)
        for descriptor in (1, 2):
            os.write(descriptor, text.encode())
        logging.getLogger("library").critical("%s", text)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(text, stacklevel=1)
        with InProcessWorker().open(job) as session:
            yield session


class Telling:
    """Sends a patient's age as the loss, which leaves where a study without privacy asks for it."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """Open the cohort, and prepare to tell."""
        with InProcessWorker().open(job) as session:
            yield _Telling(session.facts, float(rows(job)["age"][0]))


@dataclass(frozen=True, slots=True)
class _Telling:
    facts: Facts
    age: float

    def train(self, _: int, weights: npt.NDArray[np.float32]) -> Trained:
        """Train nothing."""
        return Trained(np.zeros_like(weights), self.age)


class Logging:
    """Writes a name with Fedward's own log, which no worker may do."""

    @contextmanager
    def open(self, job: Job) -> Iterator[Session]:
        """Log, and open the cohort."""
        structlog.get_logger("fedward.worker").info("opened", patient=rows(job)["name"][0])
        with InProcessWorker().open(job) as session:
            yield session
