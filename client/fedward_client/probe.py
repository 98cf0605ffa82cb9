"""Can this computer train? One private step on eight rows that are nobody's, by the worker that trains on patients."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedward_client.cohorts import TableEntry, open_cohort
from fedward_client.worker import Job, Worker
from fedward_common.errors import FedwardError
from fedward_common.models import initial_weights
from fedward_common.study import Study

__all__ = ["training_problem"]

_ROWS: Final = "x,y\n" + "".join(f"{number},{'yes' if number % 2 else 'no'}\n" for number in range(8))
_STUDY: Final[dict[str, Any]] = {
    "name": "probe",
    "sites": ["probe", "nobody"],
    "cohort": {
        "columns": {"x": {"kind": "numeric", "unit": "1", "minimum": 0, "maximum": 8}},
        "label": {"column": "y", "vocabulary": ["no", "yes"], "positive": ["yes"]},
    },
    "model": {"name": "linear"},
    "training": {"rounds": 1, "local_steps": 1, "sampling_rate": 1.0, "learning_rate": 0.1},
    "privacy": {"mechanism": "dp_sgd", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "noise_multiplier": 1.0},
    "aggregation": {"rule": "fedavg"},
}


def training_problem(worker: Worker) -> str:
    """Let `worker` open a cohort and train a step, in a folder that is deleted; return what hindered it, or nothing.

    No study, cohort, ledger or log of the site is touched. The text is for the site's own eyes.
    """
    study = Study.of(_STUDY)
    try:
        with tempfile.TemporaryDirectory(prefix="fedward-probe-") as folder:
            home, entry = Path(folder), TableEntry(table="rows.csv")
            (home / entry.table).write_text(_ROWS, encoding="ascii")
            fingerprint = open_cohort(entry, study.cohort, home).fingerprint()
            weights = initial_weights(study)
            with worker.open(Job(home, "probe", entry, study, fingerprint)) as session:
                change = session.train(1, weights).change
    except FedwardError as error:
        return error.message
    except OSError as error:
        return f"no folder for eight rows: {type(error).__name__}"
    if change.shape != weights.shape or not np.isfinite(change).all() or not change.any():
        return "a step was trained, and its result is not what it must be"
    return ""
