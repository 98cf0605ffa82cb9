"""Patients who do not want to take part: their records are left out, from the next round on.

``opt-out.txt`` in the site's folder: one identifier a line, as it stands in the cohorts' patient column; mode 0600. It
holds for every cohort of the site. A study's approval stays, since the hospital's data did not change; what changes is
which of them are used. The number of patients that a site tells the coordinator shrinks by those who left.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedward_client.cohorts.cache import RowCache
from fedward_common.errors import LocalDataError
from fedward_common.files import replace_file
from fedward_common.tables import identifier_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OptOuts", "without_opted_out"]


class OptOuts:
    """The opt-out list of one site.

    Args:
        home: the site's folder.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "opt-out.txt"

    def identifiers(self) -> frozenset[str]:
        """Return the identifiers of who opted out; empty when there is no list.

        Raises:
            LocalDataError: there is a list and it cannot be read, so nobody can say who may be used.
        """
        try:
            lines = self._path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            return frozenset()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{self._path.name} cannot be read ({type(error).__name__}), so no record may be used"
            raise LocalDataError(msg, remedy="one identifier a line, UTF-8, readable by the daemon's account") from None
        return frozenset(filter(None, map(identifier_text, lines)))

    def add(self, names: Iterable[str]) -> int:
        """Put `names` on the list and return how many were not on it."""
        with self._alone():
            before = self.identifiers()
            after = before | set(filter(None, map(identifier_text, names)))
            self._replace(after)
        return len(after) - len(before)

    def remove(self, names: Iterable[str]) -> int:
        """Take `names` off the list and return how many were on it."""
        with self._alone():
            before = self.identifiers()
            after = before - set(map(identifier_text, names))
            self._replace(after)
        return len(before) - len(after)

    def matched(self, cells: Iterable[object]) -> int:
        """Return how many of who opted out stand in `cells`, a patient column."""
        return len(self.identifiers() & set(map(identifier_text, cells)))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time change the list: nobody's wish is lost."""
        with os.fdopen(os.open(self._path.with_suffix(".lock"), os.O_CREAT | os.O_WRONLY, 0o600), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _replace(self, identifiers: frozenset[str]) -> None:
        """Write the list whole or not at all, readable by its owner only, and purge all encoded rows."""
        replace_file(self._path, "".join(f"{name}\n" for name in sorted(identifiers)).encode("utf-8"))
        RowCache(self._path.parent).empty()


def without_opted_out(frame: pd.DataFrame, patient: str, opted_out: frozenset[str]) -> pd.DataFrame:
    """Return the rows of `frame` whose patient, in the column `patient`, is not on the list."""
    if not opted_out or patient not in frame.columns:  # a column that is not there is the schema's to tell
        return frame
    gone = frame[patient].map(identifier_text, na_action="ignore").isin(opted_out)
    return frame.loc[~gone].reset_index(drop=True)
