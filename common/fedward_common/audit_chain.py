"""What a log of decisions must look like: lines, chain and head, as rules without a file, a clock or a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final

from fedward_common.audit_words import TEXT_CHARACTERS, Value
from fedward_common.canonical import canonical_json

__all__ = [
    "GENESIS",
    "LINE_BYTES",
    "NO_ENTRIES",
    "Chain",
    "Entry",
    "Finding",
    "Head",
    "Position",
    "Tail",
    "entry_of",
    "head_of",
    "judge_tail",
    "stamp_after",
    "walk",
]

GENESIS: Final = "0" * 64
"""The hash before the first entry."""

LINE_BYTES: Final = 4096
"""No line is longer, its end included."""

_RACE: Final = timedelta(seconds=2)
_AT_ONCE: Final = 2


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
class Head:
    """Where a log ends, as its site signs it.

    Attributes:
        number: of the last entry, 0 before the first.
        hash: SHA-256 of the last line.
        size: length of the log in bytes.
        ledger: number of the ledger's last change that the log holds.
    """

    number: int
    hash: str
    size: int
    ledger: int

    def payload(self) -> bytes:
        """Return the bytes that are signed."""
        return canonical_json(self.values() | {"purpose": "fedward audit head 2"})

    def values(self) -> dict[str, Any]:
        """Return the head as plain JSON values."""
        return {"n": self.number, "hash": self.hash, "size": self.size, "ledger": self.ledger}

    def after(self, entries: Iterable[Entry]) -> Head:
        """Return the head once `entries` are written."""
        head = self
        for entry in entries:
            ledger = max(head.ledger, int(entry.fields.get("entry", 0)))
            head = Head(entry.number, entry.hash, head.size + len(entry.line()) + 1, ledger)
        return head


NO_ENTRIES: Final = Head(0, GENESIS, 0, 0)
"""The head of a log without an entry; nobody signs it."""


@dataclass(frozen=True, slots=True)
class Position:
    """One entry in a log: its number, where its line begins in bytes, and its hash; all zero before the first."""

    number: int
    offset: int
    hash: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a log, and at which entry (1-based; 0 where the whole is meant)."""

    number: int
    what: str


@dataclass(frozen=True, slots=True)
class Chain:
    """What the lines of a log come to: its head, and everything that is wrong in them."""

    head: Head
    findings: tuple[Finding, ...]


class Tail(Enum):
    """What stands in a log behind its signed head.

    Only an append that never returned leaves anything there, and it signs what it is about to write before it writes.
    """

    NOTHING = "the log ends as its head says"
    WHOLE = "what was announced stands there whole: a crash before the head was replaced"
    TORN = "a part of what was announced: a loss of power while it was written"
    FOREIGN = "nobody announced it, or something is missing"


def entry_of(line: bytes) -> Entry:
    """Return the entry whose `Entry.line` is exactly `line`.

    Raises:
        ValueError: there is none; other white space or another order of keys is not the same line.
    """
    if len(line) >= LINE_BYTES:
        msg = "too long"
        raise ValueError(msg)
    try:
        value = json.loads(line)
        entry = Entry(value["n"], value["at"], value["event"], value["fields"], value["previous"])
        texts = (entry.at, entry.event, entry.previous, *entry.fields)
        values = [type(item) in (str, int, float) for item in entry.fields.values()]
        whole = type(entry.number) is int and all(isinstance(text, str) for text in texts) and all(values)
        same = whole and entry.line() == line
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        msg = "no entry"
        raise ValueError(msg) from error
    if not same:
        msg = "not as it was written"
        raise ValueError(msg)
    return entry


def head_of(value: Mapping[str, Any]) -> Head:
    """Return the head in plain JSON values; its signature is not looked at.

    Raises:
        ValueError: the values are no head.
    """
    try:
        head = Head(value["n"], value["hash"], value["size"], value["ledger"])
    except (KeyError, TypeError) as error:
        msg = "no head"
        raise ValueError(msg) from error
    numbers = (head.number, head.size, head.ledger)
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(head.hash, str):
        msg = "no head"
        raise ValueError(msg)
    return head


def stamp_after(last: str | None, at: str) -> tuple[str, bool]:
    """Return the stamp of an entry made at `at` after one stamped `last`, and whether the clock was set back.

    Up to two seconds are two processes that looked at the clock before either wrote: the stamp is then the last one.

    Args:
        last: None before the first entry.
        at: ISO 8601 with a time zone, as `last`.

    Raises:
        ValueError: `at` is no such stamp.
    """
    now = datetime.fromisoformat(at)
    if now.tzinfo is None or len(at) > TEXT_CHARACTERS:
        msg = "a stamp without a time zone"
        raise ValueError(msg)
    behind = datetime.fromisoformat(last) - now if last else timedelta(0)
    if last and timedelta(0) < behind <= _RACE:
        return last, False
    return at, behind > _RACE


def walk(lines: Iterable[bytes]) -> Chain:
    """Return the head that `lines` come to, each with its end, and what is wrong in them.

    Found are: an entry changed, taken out, put in, moved or repeated, a line that is no entry, a line without its end.
    """
    head, findings = NO_ENTRIES, []
    for count, line in enumerate(lines, start=1):
        body, ledger = line.removesuffix(b"\n"), head.ledger
        try:
            entry = entry_of(body)
            if entry.number != count:
                findings.append(Finding(count, f"entry {entry.number} stands in place {count}"))
            if entry.previous != head.hash:
                findings.append(Finding(count, "the chain is broken before this entry"))
            ledger = max(ledger, int(entry.fields.get("entry", 0)))
        except ValueError as error:
            findings.append(Finding(count, f"line {count} is {error}"))
        if body == line:
            findings.append(Finding(count, f"line {count} has no end"))
        head = Head(count, hashlib.sha256(body).hexdigest(), head.size + len(line), ledger)
    return Chain(head, tuple(findings))


def judge_tail(head: Head, tail: bytes, announced: Head | None) -> Tail:
    """Return what `tail`, the bytes of the log behind `head`, is.

    Args:
        head: the signed head.
        tail: the bytes behind it.
        announced: the head that the last append signed before it wrote, None when there is none with a good signature;
            an append writes two entries at most.
    """
    if not tail:
        return Tail.NOTHING
    if announced is None or not 0 < announced.number - head.number <= _AT_ONCE:
        return Tail.FOREIGN
    if not len(tail) <= announced.size - head.size <= _AT_ONCE * LINE_BYTES:
        return Tail.FOREIGN
    try:
        entries = [entry_of(line) for line in tail.removesuffix(b"\n").split(b"\n")]
    except ValueError:
        return Tail.TORN
    previous = head.hash
    for entry in entries:
        if entry.previous != previous:
            return Tail.TORN
        previous = entry.hash
    return Tail.WHOLE if head.after(entries) == announced and tail.endswith(b"\n") else Tail.TORN
