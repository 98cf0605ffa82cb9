"""The site's log of decisions: append-only, hash-chained, its head signed; no value of a patient is ever in it.

One line of canonical JSON for each entry. Each carries the SHA-256 of the line before it, so an edit, a deletion or a
change of order breaks the chain; after each entry the head (number and hash) is signed with the site's key and
replaced atomically beside the log, so that a log cut at its end no longer fits its head. An old pair of log and head
does not fit the ledger, whose reservations are entries here (`missing_reservations`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedward_common.canonical import canonical_json
from fedward_common.errors import LocalDataError, SignatureError
from fedward_common.signing import create_key, load_private_key, load_public_key, public_text, sign, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["AuditLog", "Entry", "Finding", "missing_reservations"]

GENESIS: Final = "0" * 64
_FIELDS: Final = frozenset(
    {"study", "name", "cohort", "round", "steps", "code", "bytes", "sha256", "patients", "detail"}
)
_LINE_BYTES: Final = 4096

Value = str | int


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision."""

    number: int
    at: str
    event: str
    fields: Mapping[str, Value]
    previous: str

    def line(self) -> bytes:
        """Return the entry as it is stored, without the line's end."""
        return canonical_json(
            {
                "n": self.number,
                "at": self.at,
                "event": self.event,
                "fields": dict(self.fields),
                "previous": self.previous,
            }
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the stored line."""
        return hashlib.sha256(self.line()).hexdigest()


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a log, and at which entry (1-based; 0 where the whole is meant)."""

    number: int
    what: str


class AuditLog:
    """The log of one site: ``audit.jsonl``, ``audit.head`` and ``audit.key`` in its folder.

    Args:
        home: the site's folder; the key is made there on first use (mode 0600).
    """

    def __init__(self, home: Path) -> None:
        self.path = home / "audit.jsonl"
        self._head = home / "audit.head"
        self._key = home / "audit.key"
        self._lock = home / "audit.lock"

    def append(self, event: str, *, at: str, **fields: Value) -> Entry:
        """Write one entry, synced to disk before this returns, and return it.

        Args:
            event: what was decided, for example ``refused``.
            at: time stamp, ISO 8601.
            fields: names, digests, codes and counts; see `_FIELDS`.

        Raises:
            ValueError: a field that no entry has.
            LocalDataError: the log does not end as its head says; it is not written to any more.
        """
        unknown = set(fields) - _FIELDS
        if unknown:
            msg = f"no audit entry has {sorted(unknown)}"
            raise ValueError(msg)
        with self._exclusive():
            number, previous = self._end()
            entry = Entry(number + 1, at, event, fields, previous)
            with self.path.open("ab") as file:
                file.write(entry.line() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._write_head(entry)
        return entry

    def entries(self) -> Iterator[Entry]:
        """Yield the entries as they stand, unchecked.

        Raises:
            LocalDataError: a line is no entry.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                    yield Entry(value["n"], value["at"], value["event"], value["fields"], value["previous"])
                except (ValueError, KeyError, TypeError) as error:
                    msg = f"line {number} of {self.path.name} is no entry"
                    raise LocalDataError(msg) from error

    def verify(self) -> list[Finding]:
        """Return everything that is wrong with the log; an empty list means that it is whole.

        Found are: an entry changed, taken out, put in, moved or repeated; a log cut short or grown past its
        signed head; a head signed by another key.
        """
        findings: list[Finding] = []
        previous, count = GENESIS, 0
        try:
            for count, entry in enumerate(self.entries(), start=1):
                if entry.number != count:
                    findings.append(Finding(count, f"entry {entry.number} stands in place {count}"))
                if entry.previous != previous:
                    findings.append(Finding(count, "the chain is broken before this entry"))
                previous = entry.hash
        except LocalDataError as error:
            findings.append(Finding(count + 1, error.message))
        return [*findings, *self._check_head(count, previous)]

    def export(self) -> dict[str, Any]:
        """Return lines and signed head, for an auditor who has the public key."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return {"lines": lines, "head": json.loads(self._head.read_bytes()) if self._head.exists() else None}

    def public_key(self) -> str:
        """Return the public half of the site's audit key."""
        return public_text(self._signing_key().public_key())

    def _check_head(self, count: int, last: str) -> list[Finding]:
        if not self._head.exists():
            return [Finding(0, "the signed head is missing")] if count else []
        try:
            head = json.loads(self._head.read_bytes())
            stated = {"n": head["n"], "hash": head["hash"]}
            verify(load_public_key(self.public_key()), canonical_json(stated), head["signature"])
        except (ValueError, KeyError, TypeError, SignatureError):
            return [Finding(0, "the head is not signed by this site's key")]
        if stated != {"n": count, "hash": last}:
            return [Finding(0, f"the log has {count} entries, its signed head says {stated['n']}")]
        return []

    def _end(self) -> tuple[int, str]:
        """Return number and hash of the last entry, read from the end of the file and held against the head."""
        if not self.path.exists():
            return 0, GENESIS
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * _LINE_BYTES))
            lines = file.read().splitlines()
        number, last = (json.loads(lines[-1])["n"], hashlib.sha256(lines[-1]).hexdigest()) if lines else (0, GENESIS)
        head: dict[str, Any] = {"n": 0, "hash": GENESIS}
        if self._head.exists():
            head = json.loads(self._head.read_bytes())
        behind = number == head["n"] + 1 and json.loads(lines[-1])["previous"] == head["hash"]
        if (number, last) != (head["n"], head["hash"]) and not behind:  # a crash between the two leaves it one behind
            msg = f"{self.path.name} does not end as its signed head says"
            raise LocalDataError(msg, remedy="fedward client audit verify; somebody changed the log or restored a copy")
        return number, last

    def _write_head(self, entry: Entry) -> None:
        stated = {"n": entry.number, "hash": entry.hash}
        head = stated | {"signature": sign(self._signing_key(), canonical_json(stated))}
        handle, temporary = tempfile.mkstemp(dir=self._head.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(canonical_json(head))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(self._head)

    def _signing_key(self) -> Ed25519PrivateKey:
        return load_private_key(self._key) if self._key.exists() else create_key(self._key)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def missing_reservations(entries: Iterable[Entry], reserved: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the (study, round) pairs that the log says were debited and the ledger does not know.

    Such a pair means that an old copy of the ledger was put back: its budget is not to be trusted.
    """
    known = set(reserved)
    logged = [(str(e.fields["study"]), int(e.fields["round"])) for e in entries if e.event == "reserved"]
    return [pair for pair in logged if pair not in known]
