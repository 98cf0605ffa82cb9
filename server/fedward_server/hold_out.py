"""The centre's own rows, on which the global model is judged: read from one table, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedward_common.errors import LocalDataError
from fedward_common.study import Study
from fedward_common.tables import complete_rows, encode, read_table
from fedward_server.evaluation import HoldOut

__all__ = ["read_hold_out"]


def read_hold_out(path: Path, study: Study) -> HoldOut:
    """Return the rows of the table at `path`, encoded by the study's schema, as those of one centre.

    Raises:
        LocalDataError: the table cannot be read, breaks the schema, or has no usable row.
    """
    if study.cohort.images:
        msg = "a study of pictures has no central table"
        raise LocalDataError(msg, remedy="submit it without a hold-out")
    frame = complete_rows(read_table(path), study.cohort)
    if not len(frame):
        msg = f"{path.name} has no usable row"
        raise LocalDataError(msg, remedy="give rows that the study's schema lets in")
    rows = encode(frame, study.cohort)
    return HoldOut(rows, np.zeros(len(rows.labels), dtype=np.int64), (path.stem,))
