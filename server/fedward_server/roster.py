"""The centre's roster: which hospital is known by which key. One SQLite file; every entry is signed.

Only hashes of invites' tokens are kept. An entry binds a site's name, its number at the SuperLink, its node key and the
key of its audit log; a site gets it with its signature. What an entry is worth (its state) is sealed with the same key,
so that an entry that was changed by other hands counts for nothing.
"""

from __future__ import annotations

import datetime as dt
import hmac
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.canonical import canonical_json
from fedward_common.enrolment import (
    EnrolRequest,
    Membership,
    RenewRequest,
    instant,
    new_token,
    refused,
    token_hash,
)
from fedward_common.errors import CoordinatorError, EnrolmentCode, SignatureError
from fedward_common.protocol import OURS, Release, compatible
from fedward_common.signing import public_text, sign, verify
from fedward_common.sqlite_file import opened, prepare, transaction
from fedward_server.admission import (
    KEY_DAYS,
    OVERLAP,
    InviteRow,
    KeyRow,
    State,
    check_invite,
    check_renewed_key,
    counts,
)

__all__ = ["Entry", "Event", "Roster", "Waiting"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS invites (
    number TEXT PRIMARY KEY, site TEXT NOT NULL, token_hash TEXT NOT NULL,
    created_at TEXT NOT NULL, expires_at TEXT NOT NULL, used_by TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS keys (
    node_key TEXT PRIMARY KEY, site TEXT NOT NULL, membership TEXT NOT NULL, signature TEXT NOT NULL,
    state TEXT NOT NULL, first_used TEXT NOT NULL, retire_at TEXT NOT NULL, seal TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS releases (
    node_key TEXT PRIMARY KEY, version TEXT NOT NULL, oldest INTEGER NOT NULL, newest INTEGER NOT NULL, at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    at TEXT NOT NULL, event TEXT NOT NULL, site TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
"""
_COLUMNS: Final = "membership, signature, state, first_used, retire_at, seal"
_RELEASES: Final = "SELECT node_key, version, oldest, newest FROM releases"
_REMEMBERED: Final = 1024
_BUSY_S: Final = 30.0
_UPSERT: Final = """
INSERT INTO keys (node_key, site, membership, signature, state, first_used, retire_at, seal)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node_key) DO UPDATE SET membership = excluded.membership,
signature = excluded.signature, state = excluded.state, first_used = excluded.first_used,
retire_at = excluded.retire_at, seal = excluded.seal
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of one site.

    Args:
        membership: what the centre signed.
        signature: the roster key's signature over it.
        state: active; retired, once its successor was used; or revoked.
        first_used: when the site first used it; empty before.
        retire_at: when its successor takes over; empty while it has none.
    """

    membership: Membership
    signature: str
    state: State
    first_used: str = ""
    retire_at: str = ""

    @property
    def row(self) -> KeyRow:
        """What of it decides whether it counts."""
        word = self.membership
        return KeyRow(word.site, int(word.node), word.audit_key, self.state, word.not_after, self.retire_at)

    def sealed(self) -> bytes:
        """Return the bytes that the roster's key seals."""
        state = [self.signature, self.state, self.first_used, self.retire_at]
        return b"fedward roster state\x00" + canonical_json(state)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An invite that was not used yet."""

    number: str
    site: str
    expires_at: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed the roster."""

    at: str
    event: str
    site: str
    detail: str


class Roster:
    """The roster in one file, shared by the launcher and the commands.

    Args:
        path: the SQLite file; made with mode 0600 when it is not there.
        key: the key that signs entries: the centre's study key, or one of the roster's own.
    """

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        self._path = path
        self._key = key
        self._unsealed_before: dict[tuple[str, str, State, str, str, str], Entry] = {}
        prepare(path, _SCHEMA, _BUSY_S)

    @cached_property
    def public_key(self) -> str:
        """The public half of the key that signs entries, as text."""
        return public_text(self._key.public_key())

    def invite(self, site: str, now: dt.datetime, *, days: int) -> str:
        """Note an invite for `site` and return its token, which is kept nowhere.

        Former invites of this site that were not used are void from now on.
        """
        number, token = new_token()
        expires = (now + dt.timedelta(days=days)).isoformat()
        with self._transaction() as database:
            database.execute("DELETE FROM invites WHERE site = ? AND used_by = ''", (site,))
            database.execute(
                "INSERT INTO invites VALUES (?, ?, ?, ?, ?, '')",
                (number, site, token_hash(token), now.isoformat(), expires),
            )
            _note(database, now, "invited", site, f"until {expires}")
        return token

    def check(self, request: EnrolRequest, node_key: str, now: dt.datetime) -> None:
        """Return if `enrol` would succeed at this moment.

        Raises:
            EnrolmentError: see `enrol`.
        """
        with self._open() as database:
            self._enrollable(database, request, node_key, now)

    def enrol(
        self, request: EnrolRequest, node_key: str, node: int, now: dt.datetime, *, days: int = KEY_DAYS
    ) -> Entry:
        """Use an invite up and return the site's entry; the same site asking again gets the same one.

        Former keys of the site are revoked: a hospital that lost its keys is invited and enrolled anew.

        Args:
            request: whose signatures have been checked.
            node_key: its node key in the form that is registered.
            node: the site's number at the SuperLink.
            now: aware.
            days: how long the key is valid.

        Raises:
            EnrolmentError: the invite is unknown, used, expired or another site's, or the key is known already.
        """
        with self._transaction() as database:
            known = self._enrollable(database, request, node_key, now)
            if known is not None:
                return known
            number = request.token.partition(".")[0]
            for former in self._entries(database, request.site):
                self._store(database, _changed(former, state="revoked"))
            database.execute("UPDATE invites SET used_by = ? WHERE number = ?", (node_key, number))
            entry = self._signed(request.site, node, node_key, request.audit_key, now, days)
            self._store(database, entry)
            _note(database, now, "enrolled", request.site, f"node {node}")
            return entry

    def renew(self, request: RenewRequest, old: str, new: str, now: dt.datetime, *, days: int = KEY_DAYS) -> Entry:
        """Return the entry of a site's new key, which counts at once; the old one counts until the new one was used.

        Asked again, with the same two keys, it returns the same entry. A new key that was never used is replaced.

        Args:
            request: whose signatures have been checked.
            old: the node key that the site is known by.
            new: the node key that it wants to be known by.
            now: aware.
            days: how long the new key is valid.

        Raises:
            EnrolmentError: the old key does not count, or the new one is known already.
        """
        with self._transaction() as database:
            former = self._find(database, old)
            check_renewed_key(former.row if former else None, request.site, now)
            known = self._find(database, new)
            if known is not None and known.state == "active" and known.row.site == request.site and former is not None:
                return known
            if known is not None or former is None:
                raise refused(EnrolmentCode.KEY_KNOWN)
            for other in self._entries(database, request.site):
                if other.state == "active" and not other.first_used and other.membership.node_key != old:
                    self._store(database, _changed(other, state="retired"))
            word = former.membership
            entry = self._signed(word.site, int(word.node), new, word.audit_key, now, days)
            self._store(database, entry)
            _note(database, now, "renewed", word.site, f"until {entry.membership.not_after}")
            return entry

    def revoke(self, site: str, now: dt.datetime) -> int:
        """Let no key of `site` count any more, nor an invite of it; return how many keys that were.

        Raises:
            CoordinatorError: the roster does not know the site.
        """
        with self._transaction() as database:
            entries = self._entries(database, site)
            void = database.execute("DELETE FROM invites WHERE site = ? AND used_by = ''", (site,)).rowcount
            if not entries and not void:
                msg = f"the roster knows no site {site!r}"
                raise CoordinatorError(msg, remedy="fedward server sites list shows all of them")
            living = [entry for entry in entries if entry.state != "revoked"]
            for entry in living:
                self._store(database, _changed(entry, state="revoked"))
            _note(database, now, "revoked", site, f"{len(living)} keys, {void} invites")
            return len(living)

    def admitted(self, node_key: bytes, now: dt.datetime) -> int | None:
        """Return the SuperLink's number of the site that this key stands for, or None if it does not count at `now`.

        The first use of a key retires its predecessors, `OVERLAP` later.
        """
        with self._open() as database:
            entry = self._find(database, node_key.decode("ascii", "replace"))
        if entry is None or not counts(entry.row, now):
            return None
        if not entry.first_used:
            self._first_use(entry.membership.node_key, now)
        return entry.row.node

    def move(self, node_key: str, node: int, now: dt.datetime) -> None:
        """Give a site another number: the SuperLink has lost its own register."""
        with self._transaction() as database:
            entry = self._find(database, node_key)
            if entry is not None:
                word = entry.membership.model_copy(update={"node": str(node)})
                moved = Entry(word, sign(self._key, word.payload()), entry.state, entry.first_used, entry.retire_at)
                self._store(database, moved)
                _note(database, now, "moved", word.site, f"node {node}")

    def entries(self, site: str | None = None) -> list[Entry]:
        """Return the entries of one site, or of all, the oldest first within each; unsealed ones are left out."""
        with self._open() as database:
            return self._entries(database, site)

    def waiting(self, now: dt.datetime) -> list[Waiting]:
        """Return the invites that can still be used."""
        query = "SELECT number, site, expires_at FROM invites WHERE used_by = '' ORDER BY site"
        with self._open() as database:
            rows = [Waiting(*row) for row in database.execute(query)]
        return [row for row in rows if now < instant(row.expires_at)]

    def events(self, site: str) -> list[Event]:
        """Return what happened to a site, the oldest first."""
        query = "SELECT at, event, site, detail FROM events WHERE site = ? ORDER BY rowid"
        with self._open() as database:
            return [Event(*row) for row in database.execute(query, (site,))]

    def nodes(self, now: dt.datetime) -> dict[int, str]:
        """Return the sites that count at `now`, by their numbers at the SuperLink: a coordinator's roster."""
        return {entry.row.node: entry.row.site for entry in self.entries() if counts(entry.row, now)}

    def heard(self, node_key: bytes, release: Release, now: dt.datetime) -> None:
        """Note which release the site with this key (PEM) runs; what it says of itself, and no more."""
        values = (node_key.decode("ascii", "replace"), release.version, release.oldest, release.newest, now.isoformat())
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?, ?)", values)

    def releases(self) -> dict[str, Release]:
        """Return which release each node key was last heard to run; a key that was never heard is left out."""
        with self._open() as database:
            return {key: Release(*said) for key, *said in database.execute(_RELEASES)}

    def outside(self, now: dt.datetime, *, ours: Release = OURS) -> dict[str, str]:
        """Return the sites that count at `now` and speak no protocol with this centre, each with what to upgrade."""
        releases = self.releases()
        found: dict[str, str] = {}
        for entry in self.entries():
            theirs = releases.get(entry.membership.node_key)
            if theirs is not None and counts(entry.row, now):
                why = compatible(ours, theirs, us="the centre", them=f"the site {entry.row.site}")
                if why is None:
                    found.pop(entry.row.site, None)
                else:
                    found[entry.row.site] = f"{EnrolmentCode.PROTOCOL_MISMATCH}: {why}"
        return found

    def departed(self, now: dt.datetime) -> tuple[set[int], set[int]]:
        """Return the numbers that no key stands for at `now`: those of revoked sites, and those of expired keys."""
        entries = self.entries()
        living = {entry.row.node for entry in entries if counts(entry.row, now)}
        states: dict[int, set[State]] = {}
        for entry in entries:
            states.setdefault(entry.row.node, set()).add(entry.state)
        revoked = {node for node, found in states.items() if "revoked" in found} - living
        return revoked, set(states) - revoked - living

    def _first_use(self, node_key: str, now: dt.datetime) -> None:
        with self._transaction() as database:
            entry = self._find(database, node_key)
            if entry is None or entry.first_used:
                return
            self._store(database, _changed(entry, first_used=now.isoformat()))
            for other in self._entries(database, entry.row.site):  # the oldest first
                if other.membership.node_key == node_key:
                    return
                if other.state == "active" and not other.retire_at:
                    self._store(database, _changed(other, retire_at=(now + OVERLAP).isoformat()))

    def _enrollable(
        self, database: sqlite3.Connection, request: EnrolRequest, node_key: str, now: dt.datetime
    ) -> Entry | None:
        number = request.token.partition(".")[0]
        query = "SELECT number, site, token_hash, expires_at, used_by FROM invites WHERE number = ?"
        row = database.execute(query, (number,)).fetchone()
        check_invite(InviteRow(*row) if row else None, request, node_key, now)
        known = self._find(database, node_key)
        if known is None:
            return None
        word = known.membership
        same = row[4] == node_key and hmac.compare_digest(word.audit_key, request.audit_key)
        if known.state == "revoked":
            raise refused(EnrolmentCode.SITE_REVOKED)
        if not same or word.site != request.site:
            raise refused(EnrolmentCode.KEY_KNOWN)
        return known

    def _signed(self, site: str, node: int, node_key: str, audit_key: str, now: dt.datetime, days: int) -> Entry:
        word = Membership(
            site=site,
            node=str(node),
            node_key=node_key,
            audit_key=audit_key,
            not_before=now.isoformat(),
            not_after=(now + dt.timedelta(days=days)).isoformat(),
        )
        return Entry(word, sign(self._key, word.payload()), "active")

    def _store(self, database: sqlite3.Connection, entry: Entry) -> None:
        word, seal = entry.membership, sign(self._key, entry.sealed())
        values = (word.model_dump_json(), entry.signature, entry.state, entry.first_used, entry.retire_at, seal)
        database.execute(_UPSERT, (word.node_key, word.site, *values))

    def _find(self, database: sqlite3.Connection, node_key: str) -> Entry | None:
        query = f"SELECT {_COLUMNS} FROM keys WHERE node_key = ?"  # noqa: S608  (a constant)
        row = database.execute(query, (node_key,)).fetchone()
        entry = self._unsealed(row) if row else None
        return entry if entry and entry.membership.node_key == node_key else None

    def _entries(self, database: sqlite3.Connection, site: str | None) -> list[Entry]:
        query = f"SELECT {_COLUMNS} FROM keys WHERE ? IS NULL OR site = ? ORDER BY site, rowid"  # noqa: S608  (a constant)
        found = [self._unsealed(row) for row in database.execute(query, (site, site))]
        return [entry for entry in found if entry is not None and site in {None, entry.membership.site}]

    def _unsealed(self, row: tuple[str, str, State, str, str, str]) -> Entry | None:
        """Return a row as an entry, or None if this roster's key has not sealed exactly that."""
        if (known := self._unsealed_before.get(row)) is not None:
            return known
        try:
            entry = Entry(Membership.model_validate_json(row[0]), *row[1:5])
            verify(self._key.public_key(), entry.membership.payload(), entry.signature)
            verify(self._key.public_key(), entry.sealed(), row[5])
        except (ValueError, SignatureError):
            return None
        if len(self._unsealed_before) >= _REMEMBERED:
            self._unsealed_before.clear()
        self._unsealed_before[row] = entry
        return entry

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with opened(self._path, _BUSY_S) as database:
            yield database

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database, transaction(database):
            yield database


def _changed(entry: Entry, *, state: State | None = None, first_used: str = "", retire_at: str = "") -> Entry:
    return Entry(
        entry.membership,
        entry.signature,
        state or entry.state,
        first_used or entry.first_used,
        retire_at or entry.retire_at,
    )


def _note(database: sqlite3.Connection, now: dt.datetime, event: str, site: str, detail: str) -> None:
    database.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (now.isoformat(), event, site, detail))
