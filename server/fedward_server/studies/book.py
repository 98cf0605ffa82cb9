"""The book of the centre's studies: one SQLite file, and a folder for each study; what is in it survives a reboot.

The book says what a study is meant to do and what became of it; ``status.json`` in its folder says where it stands
at this moment, and the run's own files are its memory.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from fedward_common.errors import CoordinatorError, SignatureError, UnknownStudyError
from fedward_common.files import replace_file, sync_folder
from fedward_common.sqlite_file import opened, prepare, transaction
from fedward_common.study_file import StudyFile
from fedward_server.admission import counts
from fedward_server.centre import load_centre, roster_of
from fedward_server.run_status import read_wish, write_wish
from fedward_server.studies.lifecycle import LIVE, EndState, State, Wish, after_death, after_wish, given_up, run_wish

__all__ = ["StudyBook", "StudyEntry"]

_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS studies (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, state TEXT NOT NULL, submitted_by TEXT NOT NULL,
    submitted_at TEXT NOT NULL, started_at TEXT, ended_at TEXT, paused_by TEXT, reason TEXT, sites TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_live_study ON studies (digest)
    WHERE state IN ({", ".join(f"'{state}'" for state in sorted(LIVE))});
"""
_ID: Final = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
_BUSY_S: Final = 10.0
_REASON: Final = 500


class StudyEntry(BaseModel):
    """One study in the book.

    Attributes:
        id: sorts by time of submission.
        name: as the study calls itself.
        digest: SHA-256 of the study.
        state: see `lifecycle`.
        submitted_by: name of the caller.
        submitted_at: ISO 8601 in UTC.
        started_at: when its first process was started; None before.
        ended_at: None while it has not.
        paused_by: who paused it; None where it is not paused.
        reason: why it waits, or has ended as it did.
        sites: hospitals that the study names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    digest: str
    state: State
    submitted_by: str
    submitted_at: str
    started_at: str | None = None
    ended_at: str | None = None
    paused_by: str | None = None
    reason: str | None = None
    sites: tuple[str, ...]

    @property
    def live(self) -> bool:
        """Whether something may still become of it."""
        return self.state in LIVE


class StudyBook:
    """The book in a centre's folder, shared by interface, supervisor and commands.

    Args:
        home: the centre's folder; ``studies.sqlite`` is made there with mode 0600 when it is not there.

    Raises:
        InstallationError: the folder is no centre's.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        load_centre(home)
        self._path = home / "studies.sqlite"
        prepare(self._path, _SCHEMA, _BUSY_S)

    def entries(self) -> list[StudyEntry]:
        """Return all studies, in the order of their submission."""
        with self._open() as database:
            return [_entry(row) for row in database.execute("SELECT * FROM studies ORDER BY rowid")]

    def entry(self, id_: str) -> StudyEntry:
        """Return one study.

        Raises:
            UnknownStudyError: a `CoordinatorError`: there is none with this number.
        """
        with self._open() as database:
            return self._one(database, id_)

    def folder(self, id_: str) -> Path:
        """Return the folder of a study's run.

        Raises:
            UnknownStudyError: `id_` has not the form of a number; whether there is such a study is not looked up.
        """
        if not _ID.fullmatch(id_):
            raise _unknown(id_)
        return self._home / "runs" / id_

    def check(self, study_file: StudyFile, now: dt.datetime, hold_out: Path | None = None) -> None:
        """Return if `submit` would take the study at `now`.

        Raises:
            CoordinatorError: see `submit`.
            SignatureError: see `submit`.
        """
        config = load_centre(self._home)
        if not config.study_keys:
            msg = "this centre trusts no key that signs studies"
            raise SignatureError(msg, remedy='add the public key to "study_keys" in superlink.json')
        study_file.verify(config.study_keys)
        known = {entry.row.site for entry in roster_of(config).entries() if counts(entry.row, now)}
        missing = sorted(set(study_file.study.sites) - known)
        if missing:
            msg = f"the roster does not know {', '.join(missing)}"
            raise CoordinatorError(msg, remedy="fedward server sites invite SITE, and let it enrol")
        with self._open() as database:
            self._not_live(database, study_file.study.digest)
        if hold_out is not None and not (hold_out.is_file() and os.access(hold_out, os.R_OK)):
            msg = f"the hold-out {hold_out.name} cannot be read"
            raise CoordinatorError(
                msg, remedy=f"put the file into {hold_out.parent}, readable for the centre's account"
            )

    def submit(self, study_file: StudyFile, by: str, now: dt.datetime, hold_out: Path | None = None) -> StudyEntry:
        """Take a study into the queue: its folder with ``study.json`` and ``run.json`` first, then the book.

        Args:
            study_file: signed.
            by: name of the caller.
            now: aware.
            hold_out: file with central rows, on this computer.

        Raises:
            SignatureError: no key that the centre trusts has signed it.
            CoordinatorError: a hospital is not in the roster, the same study is live, or the hold-out cannot be read.
        """
        self.check(study_file, now, hold_out)
        utc = now.astimezone(dt.UTC)
        id_ = f"{utc:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        study = study_file.study
        folder = self.folder(id_)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        replace_file(folder / "study.json", study_file.dump())
        replace_file(folder / "run.json", _json({"hold_out": str(hold_out.resolve()) if hold_out else None}))
        sync_folder(folder.parent)
        with self._transaction() as database:
            self._not_live(database, study.digest)
            database.execute(
                "INSERT INTO studies (id, name, digest, state, submitted_by, submitted_at, sites)"
                " VALUES (?, ?, ?, 'queued', ?, ?, ?)",
                (id_, study.name, study.digest, by, _stamp(now), json.dumps(study.sites)),
            )
            return self._one(database, id_)

    def wish(self, id_: str, wish: Wish, by: str, now: dt.datetime) -> StudyEntry:
        """Note what a study shall do, and tell its process.

        Raises:
            UnknownStudyError: there is no such study.
            CoordinatorError: it has ended, or the wish has no meaning in its state.
        """
        with self._transaction() as database:
            entry = self._one(database, id_)
            state = after_wish(entry.state, wish, started=entry.started_at is not None)
            if state != entry.state:
                self._set(
                    database,
                    entry,
                    state=state,
                    reason=f"stopped by {by} before it started" if state == "interrupted" else None,
                    paused_by=by if state == "paused" else None,
                    ended_at=_stamp(now) if state == "interrupted" else None,
                )
            found = self._one(database, id_)
        self.tell(found)
        return found

    def tell(self, entry: StudyEntry) -> None:
        """Let the run's ``wish.json`` say what the book says, where it says something else."""
        folder, wish = self.folder(entry.id), run_wish(entry.state)
        if entry.live and read_wish(folder) != wish:
            write_wish(folder, wish)

    def begin(self, id_: str, now: dt.datetime) -> StudyEntry:
        """Note that a study leaves the queue, and tell its process, which the caller starts next."""
        with self._transaction() as database:
            entry = self._one(database, id_)
            if entry.state == "queued":
                self._set(database, entry, state="running", started_at=entry.started_at or _stamp(now), reason=None)
            found = self._one(database, id_)
        self.tell(found)
        return found

    def died(self, id_: str, reason: str) -> StudyEntry:
        """Note that a study's process is gone and will be started again."""
        with self._transaction() as database:
            entry = self._one(database, id_)
            if entry.live:
                self._set(database, entry, state=after_death(entry.state), reason=reason[:_REASON])
            found = self._one(database, id_)
        self.tell(found)
        return found

    def explain(self, id_: str, reason: str | None) -> None:
        """Note why a study waits in the queue, where that is news."""
        if self.entry(id_).reason == reason:
            return
        with self._transaction() as database:
            entry = self._one(database, id_)
            if entry.state == "queued":
                self._set(database, entry, reason=reason)

    def end(self, id_: str, state: EndState, reason: str | None, now: dt.datetime) -> StudyEntry:
        """Note what a study has ended as; one that has ended stays as it is."""
        with self._transaction() as database:
            entry = self._one(database, id_)
            if entry.live:
                reason = reason[:_REASON] if reason else None
                self._set(database, entry, state=state, reason=reason, paused_by=None, ended_at=_stamp(now))
            return self._one(database, id_)

    def give_up(self, id_: str, reason: str, now: dt.datetime) -> StudyEntry:
        """Note that a study's process is not started again."""
        return self.end(id_, given_up(self.entry(id_).state), reason, now)

    def _set(self, database: sqlite3.Connection, entry: StudyEntry, **changes: str | None) -> None:
        columns = ", ".join(f"{name} = ?" for name in changes)  # names are literals of this module
        database.execute(f"UPDATE studies SET {columns} WHERE id = ?", (*changes.values(), entry.id))  # noqa: S608  (see above)

    def _not_live(self, database: sqlite3.Connection, digest: str) -> None:
        marks = ", ".join("?" for _ in LIVE)
        row = database.execute(
            f"SELECT id, state FROM studies WHERE digest = ? AND state IN ({marks})",  # noqa: S608  (question marks)
            (digest, *sorted(LIVE)),
        ).fetchone()
        if row is not None:
            msg = f"the same study is {row['state']} as {row['id']}"
            raise CoordinatorError(msg, remedy="wait for it, or stop it first")

    def _one(self, database: sqlite3.Connection, id_: str) -> StudyEntry:
        row = database.execute("SELECT * FROM studies WHERE id = ?", (id_,)).fetchone()
        if row is None:
            raise _unknown(id_)
        return _entry(row)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with opened(self._path, _BUSY_S) as database:
            database.row_factory = sqlite3.Row
            yield database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database, transaction(database):
            yield database


def _entry(row: sqlite3.Row) -> StudyEntry:
    return StudyEntry.model_validate({**dict(row), "sites": tuple(json.loads(row["sites"]))})


def _unknown(id_: str) -> UnknownStudyError:
    shown = id_ if _ID.fullmatch(id_) else "with this number"
    msg = f"the book has no study {shown}"
    return UnknownStudyError(msg, remedy="fedward server study list")


def _stamp(now: dt.datetime) -> str:
    return now.astimezone(dt.UTC).isoformat(timespec="seconds")


def _json(value: object) -> bytes:
    return (json.dumps(value) + "\n").encode()
