"""A hospital's yes or no to one study on one cohort, as its table was when somebody looked.

``studies/<digest>.json`` holds each study that was ever proposed, so that it can be read before it is approved;
``approvals.json`` holds every decision. `fedward_client.decisions` says what they come to. Whoever writes holds
``approvals.lock``; a file is replaced whole, so that a crash at any instant loses no decision that was acknowledged.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, get_args

from fedward_client.decisions import Answer, Decision
from fedward_common.errors import InstallationError, LocalDataError
from fedward_common.files import replace_file
from fedward_common.study import Study
from fedward_common.study_file import MAX_SIGNATURES, Signature, StudyFile, read_study_file

__all__ = ["MAX_WAITING", "Approvals", "Proposal"]

MAX_WAITING: Final = 64
"""Studies that may wait at a time; more are refused without being kept, so that nobody fills a hospital's disk."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A study, what signed it, and every decision on it, oldest first; none while it waits."""

    study: Study
    signatures: tuple[Signature, ...] = ()
    decisions: tuple[Decision, ...] = ()


class Approvals:
    """The decisions of one site.

    Args:
        home: the site's folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._studies = home / "studies"
        self._path = home / "approvals.json"

    def propose(self, study: Study, signatures: Sequence[Signature] = ()) -> bool:
        """Keep `study` for somebody to read; returns whether it is new.

        Returns False without keeping it where `MAX_WAITING` studies wait already. Signatures that a study which is
        there comes with for the first time are added to it, up to `MAX_SIGNATURES`.

        Args:
            study: the contract.
            signatures: those of them that were verified.
        """
        path = self._studies / f"{study.digest}.json"
        if path.exists() and not signatures:
            return False
        with self._exclusive():
            if path.exists():
                self._add_signatures(path, signatures)
                return False
            self._studies.mkdir(mode=0o700, exist_ok=True)
            decisions = self._decisions()
            waiting = sum(kept.stem not in decisions for kept in self._studies.glob("*.json"))
            if waiting >= MAX_WAITING:
                return False
            replace_file(path, StudyFile(study, tuple(signatures)).dump())
        return True

    def proposals(self) -> list[Proposal]:
        """Return every study that was proposed, by name and digest.

        Raises:
            StudyError: a kept study was changed on the disk; the message names its file.
            InstallationError: the decisions cannot be read.
        """
        decisions = self._decisions()
        files = [read_study_file(path) for path in sorted(self._studies.glob("*.json"))]
        found = [Proposal(file.study, file.signatures, decisions.get(file.study.digest, ())) for file in files]
        return sorted(found, key=lambda p: (p.study.name, p.study.digest))

    def find(self, prefix: str) -> Proposal:
        """Return the one study whose name is, or whose digest begins with, `prefix`.

        Raises:
            LocalDataError: none, or more than one.
        """
        found = [p for p in self.proposals() if p.study.name == prefix or p.study.digest.startswith(prefix)]
        if len(found) != 1:
            several = ": " + ", ".join(p.study.digest[:12] for p in found) if found else ""
            msg = f"{len(found)} studies are called {prefix!r}{several}"
            raise LocalDataError(msg, remedy="fedward client studies lists them; give more of the digest")
        return found[0]

    def decide(self, study: Study, decision: Decision) -> None:
        """Record `decision` after every earlier one; it is on the disk when this returns.

        Raises:
            LocalDataError: another account owns the site's folder; its daemon could not read what is written.
        """
        with self._exclusive():
            everything = self._decisions()
            everything[study.digest] = (*everything.get(study.digest, ()), decision)
            content = {digest: [asdict(each) for each in made] for digest, made in everything.items()}
            replace_file(self._path, json.dumps(content, indent=1).encode("utf-8"))

    def decisions(self, digest: str) -> tuple[Decision, ...]:
        """Return every decision on the study with this digest, oldest first; none while it waits.

        Raises:
            InstallationError: they cannot be read, so nothing is approved.
        """
        return self._decisions().get(digest, ())

    def _add_signatures(self, path: Path, signatures: Sequence[Signature]) -> None:
        kept = read_study_file(path)
        new = [signature for signature in signatures if signature not in kept.signatures]
        together = (*kept.signatures, *new)[:MAX_SIGNATURES]
        if together != kept.signatures:
            replace_file(path, replace(kept, signatures=together).dump())

    def _decisions(self) -> dict[str, tuple[Decision, ...]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            return {digest: tuple(map(_decision, made)) for digest, made in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            msg = f"{self._path} cannot be read, so nothing is approved"
            raise InstallationError(msg, remedy="restore it, or delete it and approve the studies again") from error

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock that commands and the daemon share, and clear away what a killed writer left half written."""
        owner = self._home.stat().st_uid
        if owner != os.geteuid():
            msg = f"{self._home} belongs to the account {_account(owner)}, whose daemon could not read what is written"
            raise LocalDataError(msg, remedy=f"sudo -u {_account(owner)} fedward client …")
        with (self._home / "approvals.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for folder, name in ((self._home, "approvals.json"), (self._studies, "*.json")):
                for leftover in folder.glob(f".{name}.*"):
                    leftover.unlink(missing_ok=True)
            yield


def _decision(value: dict[str, Any]) -> Decision:
    """Return one decision as it was written; ValueError or TypeError for what nobody wrote."""
    decision = Decision(**value)
    datetime.fromisoformat(decision.at)
    if decision.answer not in get_args(Answer):
        raise ValueError(decision.answer)
    return decision


def _account(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
