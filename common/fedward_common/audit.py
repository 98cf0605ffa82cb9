"""A log of decisions, a site's or the centre's: append-only, hash-chained, its head signed; never a patient's value.

One line of canonical JSON for each entry, with the SHA-256 of the line before. Three files::

    audit.jsonl    the lines; nothing is ever taken away but a line that no append has returned
    audit.head     number, hash and length of the log, and the ledger's count, signed with audit.key
    audit.next     the head that an append announces before it writes; renamed to audit.head afterwards

An append writes in this order, each step on the disk before the next: ``audit.next`` with its signature, the line, the
name ``audit.head``. Whatever ends the process or the power in between, what stands behind the signed head is then what
was announced, or a part of it; anything else was written by somebody else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedward_common.audit_chain import (
    LINE_BYTES,
    NO_ENTRIES,
    Entry,
    Finding,
    Head,
    Position,
    Tail,
    entry_of,
    head_of,
    judge_tail,
    stamp_after,
    walk,
)
from fedward_common.audit_words import SITE, Value, Vocabulary
from fedward_common.canonical import canonical_json
from fedward_common.errors import InstallationError, LocalDataError, Refusal, RefusalCode, SignatureError
from fedward_common.files import replace_file, sync_folder
from fedward_common.signing import create_key, load_private_key, public_text, sign, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["AuditLog", "Entry", "Finding", "Position"]

_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _State:
    """What is on the disk: the signed head, the announced one, the log's length, the bytes behind the head."""

    head: Head
    announced: Head | None
    size: int
    tail: bytes


class AuditLog:
    """The log of one site, or of the centre: ``audit.jsonl``, ``audit.head`` and ``audit.key`` in its folder.

    Several processes may write to one log; each waits for the others. All files have mode 0600.

    Args:
        home: the folder; the key is made there on first use.
        words: what entries may say.
    """

    def __init__(self, home: Path, words: Vocabulary = SITE) -> None:
        self.path = home / "audit.jsonl"
        self._home = home
        self._words = words
        self._head = home / "audit.head"
        self._next = home / "audit.next"
        self._key = home / "audit.key"
        self._lock = home / "audit.lock"
        self._signer: Ed25519PrivateKey | None = None
        self._known = b""

    def append(self, event: str, *, at: str, **fields: Value) -> Entry:
        """Write one entry, synced to disk before this returns, and return it.

        An entry stamped before the one that stands last is preceded by an entry ``clock set back``. What a crash left
        of an append that never returned is made good first: a whole line stays, a torn one is cut off and an entry
        ``torn line removed`` says how long it was.

        Args:
            event: what was decided, for example ``refused``.
            at: time stamp, ISO 8601 with a time zone.
            fields: names, digests, codes and counts, as the log's `Vocabulary` has them.

        Raises:
            ValueError: an event or field that no entry has, or of another form.
            Refusal: ``audit_untrusted``: the log does not end as its head says; it is not written to any more.
            InstallationError: the disk does not take it; nothing was decided.
        """
        kept = self._words.checked(event, fields)
        stamp_after(None, at)
        with self._exclusive():
            head = self._settled(at)
            return self._extend(head, [(event, at, kept)])[-1]

    def settle(self, at: str) -> Head:
        """Return the signed head, after what a crash left behind it was made good as by `append`.

        Raises:
            Refusal: ``audit_untrusted``, as `append`.
        """
        with self._exclusive():
            return self._settled(at)

    def position(self, head: Head) -> Position:
        """Return where the last entry of `head` stands; (0, 0, zeros) for a log without one."""
        return Position(head.number, head.size - len(self._last_line(head)), head.hash)

    def holds(self, position: Position) -> bool:
        """Return whether the entry at `position` is still there as it was; one line is read, not the log."""
        if not position.number:
            return True
        try:
            with self.path.open("rb") as file:
                file.seek(position.offset)
                line = file.read(LINE_BYTES).partition(b"\n")[0]
            return entry_of(line).number == position.number and hashlib.sha256(line).hexdigest() == position.hash
        except (OSError, ValueError):
            return False

    def entries(self) -> Iterator[Entry]:
        """Yield the entries as they stand, unchecked but for their form.

        Raises:
            LocalDataError: a line is no entry.
        """
        for number, line in enumerate(self.lines(), start=1):
            try:
                yield entry_of(line)
            except ValueError as error:
                msg = f"line {number} of {self.path.name} is {error}"
                raise LocalDataError(msg, remedy=self._words.verify) from error

    def lines(self) -> Iterator[bytes]:
        """Yield the lines up to the signed head, without their ends; a line being written now is not among them."""
        with self._shared():
            end = self._look().head.size
        if not end:
            return
        with self.path.open("rb") as file:
            while file.tell() < end and (line := file.readline(LINE_BYTES + 1)):
                yield line.removesuffix(b"\n")

    def following(self, position: Position, most: int) -> list[tuple[Position, bytes]] | None:
        """Return the lines behind `position`, `most` at most and none behind the signed head, each with its place.

        None where the entry at `position` is not in the log.
        """
        if not self.holds(position):
            return None
        with self._shared():
            end = self._look().head.size
        found: list[tuple[Position, bytes]] = []
        if not end:
            return found
        with self.path.open("rb") as file:
            file.seek(position.offset)
            number, place = position.number, position.offset + (len(file.readline()) if position.number else 0)
            while place < end and len(found) < most:
                line, number = file.readline(LINE_BYTES).removesuffix(b"\n"), number + 1
                found.append((Position(number, place, hashlib.sha256(line).hexdigest()), line))
                place += len(line) + 1
        return found

    def last(self, count: int) -> list[Entry]:
        """Return the last `count` entries, oldest first; reads the end of the log only.

        Raises:
            LocalDataError: a line is no entry.
        """
        with self._shared():
            end = self._look().head.size
        wanted = b""
        while end and wanted.count(b"\n") <= count:
            start = max(0, end - _BLOCK)
            wanted, end = self._read(start, end) + wanted, start
        lines = wanted.split(b"\n")[:-1][-count:] if count > 0 else []
        try:
            return [entry_of(line) for line in lines]
        except ValueError as error:
            msg = f"{self.path.name} holds a line that is {error}"
            raise LocalDataError(msg, remedy=self._words.verify) from error

    def verify(self) -> list[Finding]:
        """Return everything that is wrong with the log; an empty list means that it is whole.

        Found are: an entry changed in one byte, taken out, put in, moved or repeated; a log cut short or grown past
        its signed head; a head signed by another key. Not found here: log and head put back together as they once
        were (`fedward_client.budget` compares them with the ledger, `fedward_client.evidence` with a copy elsewhere).
        """
        try:
            with self._shared():
                state = self._look()
        except Refusal as refusal:
            return [*walk(self._raw(None)).findings, Finding(0, refusal.message)]
        chain = walk(self._raw(state.head.size))
        if chain.head != state.head:
            what = f"the log has {chain.head.number} entries, its signed head says {state.head.number}"
            return [*chain.findings, Finding(0, what if chain.head.number != state.head.number else _OTHER_END)]
        if judge_tail(state.head, state.tail, state.announced) is Tail.FOREIGN:
            return [*chain.findings, Finding(0, f"{state.size - state.head.size} bytes stand behind the signed head")]
        return list(chain.findings)

    def head(self) -> Head:
        """Return the signed head as it stands; nothing is made good.

        Raises:
            Refusal: ``audit_untrusted``: it is not signed by this site's key.
        """
        with self._shared():
            return self._look().head

    def counted(self) -> int:
        """Return how many of the ledger's changes the signed head counts, whatever became of the lines; 0 without."""
        with self._shared():
            head = self._signed(self._head)
        return head.ledger if head else 0

    def signed_head(self) -> dict[str, Any] | None:
        """Return the head with its signature as it stands; None for a log without an entry.

        Raises:
            Refusal: ``audit_untrusted``: it is not signed by this site's key.
        """
        with self._shared():
            self._look()
            return json.loads(self._head.read_bytes()) if self._head.exists() else None

    def public_key(self) -> str:
        """Return the public half of the site's audit key."""
        with self._exclusive():
            return public_text(self._signing_key().public_key())

    def signature(self, payload: bytes) -> str:
        """Return the site's signature over `payload`, which names what it is for."""
        with self._exclusive():
            return sign(self._signing_key(), payload)

    def restart(self, at: str, *, person: str, ledger: int) -> Path:
        """Put a log that cannot be trusted aside, whole, and begin a new one whose first entry says so.

        Args:
            at: time stamp.
            person: who decided it.
            ledger: the ledger's count, which the new head takes over.

        Returns:
            The file that the old log is kept in, beside the new one; it is never deleted.
        """
        with self._exclusive():
            number = sum(1 for _ in self._home.glob("audit.jsonl.kept-*")) + 1
            kept = self.path.with_name(f"audit.jsonl.kept-{number}")
            content = self.path.read_bytes() if self.path.exists() else b""
            for path in (self._head, self._next):
                if path.exists():
                    path.replace(path.with_name(f"{path.name}.kept-{number}"))
            if self.path.exists():
                self.path.replace(kept)
            sync_folder(self._home)
            fields: dict[str, Value] = {
                "person": person, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
                "detail": kept.name, "entry": ledger,
            }  # fmt: skip
            self._extend(NO_ENTRIES, [("log restarted", at, self._words.checked("log restarted", fields))])
        return kept

    def _settled(self, at: str) -> Head:
        state = self._look()
        match judge_tail(state.head, state.tail, state.announced):
            case Tail.NOTHING if self._ends_as(state):
                return state.head
            case Tail.WHOLE if state.announced is not None:
                self._next.replace(self._head)
                return state.announced
            case Tail.TORN:
                return self._without_tail(state, at)
            case _:
                msg = f"{self.path.name} does not end as its signed head says"
                raise self._untrusted(msg)

    def _ends_as(self, state: _State) -> bool:
        last = self._last_line(state.head).removesuffix(b"\n")
        return not state.head.number or hashlib.sha256(last).hexdigest() == state.head.hash

    def _without_tail(self, state: _State, at: str) -> Head:
        replace_file(self.path.with_name(f"audit.torn-{state.head.number + 1}"), state.tail)
        with self.path.open("r+b") as file:
            file.truncate(state.head.size)
            os.fsync(file.fileno())
        fields: dict[str, Value] = {"bytes": len(state.tail), "sha256": hashlib.sha256(state.tail).hexdigest()}
        return state.head.after(self._extend(state.head, [("torn line removed", at, fields)]))

    def _extend(self, head: Head, items: list[tuple[str, str, dict[str, Value]]]) -> list[Entry]:
        """Announce, write and confirm entries behind `head`; the caller holds the lock."""
        last = entry_of(self._last_line(head).removesuffix(b"\n")).at if head.number else None
        entries: list[Entry] = []
        for event, at, fields in items:
            stamp, back = stamp_after(last, at)
            if back:
                told = f"the entry before was stamped {last}"
                entries.append(_next_entry(head.after(entries), stamp, "clock set back", {"detail": told}))
            entries.append(_next_entry(head.after(entries), stamp, event, fields))
            last = stamp
        self._announce(head.after(entries))
        with open(self.path, "ab", opener=_private) as file:
            file.write(b"".join(entry.line() + b"\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        self._next.replace(self._head)
        return entries

    def _announce(self, head: Head) -> None:
        content = canonical_json(head.values() | {"signature": sign(self._signing_key(), head.payload())})
        with open(self._next, "wb", opener=_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._home)
        self._known = content

    def _look(self) -> _State:
        """Return what is on the disk; the caller holds the lock.

        Raises:
            Refusal: ``audit_untrusted``: the head is missing from a log that had one, or another key signed it.
        """
        announced = self._signed(self._next)
        head = NO_ENTRIES
        if self._head.exists():
            found = self._signed(self._head)
            if found is None:
                msg = f"the head is not signed by {self._words.owner}'s key"
                raise self._untrusted(msg)
            head = found
        size = self.path.stat().st_size if self.path.exists() else 0
        if size and not self._head.exists() and announced is None:
            raise self._untrusted(_NO_HEAD)
        if size < head.size:
            what = f"the log was cut: {size} bytes, its signed head says {head.size}"
            raise self._untrusted(what)
        limit = 2 * LINE_BYTES + 1
        return _State(head, announced, size, self._read(head.size, min(size, head.size + limit)))

    def _signed(self, path: Path) -> Head | None:
        """Return the head in `path`, None if there is none with this site's signature in exactly these bytes."""
        try:
            content = path.read_bytes()
            value = json.loads(content)
            head = head_of(value)
            if canonical_json(head.values() | {"signature": value["signature"]}) != content:
                return None
            if content != self._known:
                verify(self._signing_key().public_key(), head.payload(), value["signature"])
                self._known = content
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SignatureError):
            return None
        return head

    def _last_line(self, head: Head) -> bytes:
        """Return the last line of a log that ends as `head` says, with its end."""
        window = self._read(max(0, head.size - LINE_BYTES), head.size)
        return window[window.removesuffix(b"\n").rfind(b"\n") + 1 :]

    def _read(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _raw(self, end: int | None) -> Iterator[bytes]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            while (end is None or file.tell() < end) and (line := file.readline(_BLOCK)):
                yield line

    def _signing_key(self) -> Ed25519PrivateKey:
        """Return the audit key; it is made when there is none and nothing was signed yet."""
        if self._signer is None:
            fresh = not self._head.exists() and not self.path.exists()
            if fresh and not self._finished_key():
                for path in (self._key, self._key.with_suffix(".pub")):
                    path.unlink(missing_ok=True)
                self._signer = create_key(self._key)
            else:
                self._signer = load_private_key(self._key)
        return self._signer

    def _finished_key(self) -> bool:
        """Return whether both halves of a key are there and whole; a crash while they are made leaves less."""
        public = self._key.with_suffix(".pub")
        return self._key.exists() and b"-----END" in self._key.read_bytes() and public.exists() and _ends(public)

    def _untrusted(self, message: str) -> Refusal:
        remedy = f"{self._words.verify}; somebody changed the log, or restored a copy of one of its files"
        return Refusal(RefusalCode.AUDIT_UNTRUSTED, message, remedy=remedy)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _shared(self) -> Iterator[None]:
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        try:
            with open(self._lock, "ab", opener=_private) as file:
                fcntl.flock(file, kind)
                yield
        except OSError as error:
            msg = f"{self.path} cannot be used ({type(error).__name__}: {os.strerror(error.errno or 0)})"
            raise InstallationError(msg, remedy="look at free space and at the folder's owner; then go on") from error


_OTHER_END: Final = "the last entry is not the one that the signed head names"
_NO_HEAD: Final = "the signed head is missing"


def _next_entry(head: Head, at: str, event: str, fields: dict[str, Value]) -> Entry:
    entry = Entry(head.number + 1, at, event, fields, head.hash)
    if len(entry.line()) >= LINE_BYTES:
        msg = f"an entry of {len(entry.line())} bytes"
        raise ValueError(msg)
    return entry


def _ends(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
