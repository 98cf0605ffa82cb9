"""A hospital's yes or no to one study on one cohort, as its table was when somebody looked.

``studies/<digest>.json`` holds each study that was ever proposed, so that it can be read before it is approved;
``approvals.json`` holds the decisions. A decision is bound to the study's digest and to the cohort's fingerprint: one
changed byte of either, and the study waits again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from fedward_common.errors import InstallationError, LocalDataError
from fedward_common.study import Study
from fedward_common.study_file import StudyFile, read_study_file

__all__ = ["Approvals", "Decision", "Proposal"]

MAX_WAITING: Final = 64
"""Studies that may wait at a time; more are refused without being kept, so that nobody fills a hospital's disk."""

State = Literal["waiting", "approved", "denied", "withdrawn", "changed"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Who said what, when, about which cohort with which fingerprint."""

    answer: Literal["approved", "denied", "withdrawn"]
    by: str
    at: str
    cohort: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A study and the last decision on it; None while it waits."""

    study: Study
    decision: Decision | None


class Approvals:
    """The decisions of one site.

    Args:
        home: the site's folder.
    """

    def __init__(self, home: Path) -> None:
        self._studies = home / "studies"
        self._path = home / "approvals.json"

    def propose(self, study: Study) -> bool:
        """Keep `study` for somebody to read; returns whether it is new.

        Returns False without keeping it where `MAX_WAITING` studies wait already.
        """
        path = self._studies / f"{study.digest}.json"
        if path.exists():
            return False
        self._studies.mkdir(mode=0o700, exist_ok=True)
        decisions = self._decisions()
        waiting = sum(kept.stem not in decisions for kept in self._studies.glob("*.json"))
        if waiting >= MAX_WAITING:
            return False
        path.write_bytes(StudyFile(study).dump())
        return True

    def proposals(self) -> list[Proposal]:
        """Return every study that was proposed, by name and digest."""
        decisions = self._decisions()
        files = [read_study_file(path) for path in sorted(self._studies.glob("*.json"))]
        found = [Proposal(file.study, decisions.get(file.study.digest)) for file in files]
        return sorted(found, key=lambda p: (p.study.name, p.study.digest))

    def find(self, prefix: str) -> Proposal:
        """Return the one study whose name is, or whose digest begins with, `prefix`.

        Raises:
            LocalDataError: none, or more than one.
        """
        found = [p for p in self.proposals() if p.study.name == prefix or p.study.digest.startswith(prefix)]
        if len(found) != 1:
            msg = f"{len(found)} studies are called {prefix!r}"
            raise LocalDataError(msg, remedy="fedward client studies lists them; give more of the digest")
        return found[0]

    def decide(self, study: Study, decision: Decision) -> None:
        """Record `decision`, over any earlier one."""
        everything = self._decisions() | {study.digest: decision}
        self._path.write_text(json.dumps({k: asdict(v) for k, v in everything.items()}, indent=1), encoding="utf-8")

    def decision(self, digest: str) -> Decision | None:
        """Return the last decision on the study with this digest, or None while it waits."""
        return self._decisions().get(digest)

    def _decisions(self) -> dict[str, Decision]:
        if not self._path.exists():
            return {}
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return {digest: Decision(**value) for digest, value in content.items()}
        except (ValueError, TypeError, AttributeError) as error:
            msg = f"{self._path.name} cannot be read, so nothing is approved"
            raise InstallationError(msg, remedy="restore it, or delete it and approve the studies again") from error
