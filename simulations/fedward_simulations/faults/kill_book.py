"""What the books of a site must show after kills: the ledger's rows and the log's lines, read and added up anew.

Nothing here asks the code that keeps the books but for the signature under the log's head: the ledger is read with SQL,
the log as lines of JSON, the chain is hashed again. A book that was spoilt is found by one of `RULES`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedward_common.audit import AuditLog

__all__ = ["RULES", "Arrival", "Book", "Flaw", "Mark", "flaws_of_run", "flaws_of_site", "mark_of", "read_book"]

RULES: Final = (
    "double_spend", "unspent_release", "lost_approval", "broken_log", "books_disagree", "run_stopped",
)  # fmt: skip

_RESERVED: Final = "reserved"
_RELEASED: Final = "released"
_GENESIS: Final = "0" * 64


class Flaw(NamedTuple):
    """Something that must not be: which of `RULES` it breaks, at which site (or ``centre``), and what it is."""

    rule: str
    site: str
    what: str


class Line(NamedTuple):
    """One change of the ledger, as its journal or as the log has it."""

    entry: int
    event: str
    study: str
    round: int
    sha256: str


class Mark(NamedTuple):
    """Where the log's signed head stood at some moment: the number of entries, and the last one's hash."""

    number: int
    hash: str


class Arrival(NamedTuple):
    """An update that reached the centre, accepted or not; `steps` are those that the site says it has spent."""

    site: str
    study: str
    round: int
    steps: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Book:
    """What stands in a site's folder.

    Attributes:
        site: its name.
        journal: the ledger's changes.
        steps: noised steps of one round, by study.
        log: the log's lines, as bytes.
        head: the log's signed head as JSON values.
        size: the log's length in bytes.
        signature: what is wrong with the head's signature or with the log, by the production's own check.
        decisions: the staff's decisions, by study.
    """

    site: str
    journal: tuple[Line, ...]
    steps: Mapping[str, int]
    log: tuple[bytes, ...]
    head: Mapping[str, Any]
    size: int
    signature: tuple[str, ...]
    decisions: Mapping[str, list[Any]]

    def entries(self) -> list[Mapping[str, Any]]:
        """Return the log's entries as JSON values; a line that is none is left out."""
        return [value for value in map(_values, self.log) if isinstance(value.get("fields"), dict)]

    def logged(self) -> list[Line]:
        """Return the ledger's changes as the log has them."""
        return [
            Line(fields["entry"], entry["event"], str(fields.get("study", "")), int(fields.get("round", 0)),
                 str(fields.get("sha256", "")))
            for entry in self.entries() if "entry" in (fields := entry["fields"])
        ]  # fmt: skip


def mark_of(home: Path) -> Mark:
    """Return where the log's head stands now; (0, "") while there is none."""
    try:
        head = json.loads((home / "audit.head").read_bytes())
    except FileNotFoundError:
        return Mark(0, "")
    return Mark(head["n"], head["hash"])


def read_book(home: Path, site: str) -> Book:
    """Return what stands in a site's folder; its daemon must not run."""
    with closing(sqlite3.connect(home / "ledger.sqlite")) as database:
        rows = database.execute("SELECT entry, event, study, round, sha256 FROM journal ORDER BY entry").fetchall()
        steps = dict(database.execute("SELECT study, steps FROM accounts").fetchall())
    content = (home / "audit.jsonl").read_bytes()
    return Book(
        site=site,
        journal=tuple(Line(*row) for row in rows),
        steps=steps,
        log=tuple(content.split(b"\n")[:-1]),
        head=json.loads((home / "audit.head").read_bytes()),
        size=len(content),
        signature=tuple(finding.what for finding in AuditLog(home).verify()),
        decisions=json.loads((home / "approvals.json").read_bytes()) if (home / "approvals.json").exists() else {},
    )


def _values(line: bytes) -> dict[str, Any]:
    """Return a line's values; none for a line that is no JSON object."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def flaws_of_site(
    book: Book, arrivals: Sequence[Arrival], approved: Mapping[str, list[Any]], marks: Sequence[Mark]
) -> list[Flaw]:
    """Return everything that is wrong at one site.

    Args:
        book: what stands in its folder, after the last kill.
        arrivals: the updates of all sites that reached the centre.
        approved: the staff's decisions before the first kill.
        marks: where the log's head stood at each kill.
    """
    mine = [arrival for arrival in arrivals if arrival.site == book.site]
    checks = {
        "double_spend": _double_spends(book, mine),
        "unspent_release": _unspent_releases(book, mine),
        "lost_approval": _lost_approvals(book, approved),
        "broken_log": _breaks(book, marks),
        "books_disagree": _disagreements(book),
    }
    return [Flaw(rule, book.site, what) for rule, found in checks.items() for what in found]


def _double_spends(book: Book, arrivals: Sequence[Arrival]) -> Iterator[str]:
    for name, lines in (("ledger", book.journal), ("log", book.logged())):
        counts = Counter((line.event, line.study, line.round) for line in lines)
        for (event, study, round_), count in counts.items():
            if event in {_RESERVED, _RELEASED} and count > 1:
                yield f"round {round_} of {study[:12]} is {event} {count} times in the {name}"
    made: dict[tuple[str, int], set[str]] = {}
    for arrival in arrivals:
        made.setdefault((arrival.study, arrival.round), set()).add(arrival.sha256)
    for (study, round_), digests in made.items():
        if len(digests) > 1:
            yield f"{len(digests)} different updates of round {round_} of {study[:12]} left"
    yield from _steps_too_few(book, arrivals, left=len(made))


def _steps_too_few(book: Book, arrivals: Sequence[Arrival], left: int) -> Iterator[str]:
    """Yield where fewer steps were debited than an update says, or than all updates together took."""
    debited: Counter[str] = Counter()
    spent: dict[tuple[str, int], int] = {}
    for line in book.journal:
        if line.event == _RESERVED:
            debited[line.study] += book.steps[line.study]
            spent[line.study, line.round] = debited[line.study]
    for arrival in arrivals:
        if arrival.steps != spent.get((arrival.study, arrival.round), 0):
            yield f"the update of round {arrival.round} says {arrival.steps} steps, the ledger another number"
    taken = left * max(book.steps.values(), default=0)
    if taken > sum(debited.values()):
        yield f"{left} updates left that took {taken} steps; {sum(debited.values())} were debited"
    for entry in book.entries():
        fields = entry["fields"]
        key = (str(fields.get("study")), int(fields.get("round", 0)))
        if entry["event"] == _RESERVED and fields.get("steps") != spent.get(key):
            yield f"the log says {fields.get('steps')} steps after round {key[1]}, the ledger another number"


def _unspent_releases(book: Book, arrivals: Sequence[Arrival]) -> Iterator[str]:
    for name, lines in (("ledger", book.journal), ("log", book.logged())):
        debits = {(line.study, line.round): line.entry for line in reversed(lines) if line.event == _RESERVED}
        released = {(line.study, line.round): line.sha256 for line in lines if line.event == _RELEASED}
        for line in lines:
            if line.event == _RELEASED and debits.get((line.study, line.round), line.entry) >= line.entry:
                yield f"round {line.round} of {line.study[:12]} was released without a debit before it in the {name}"
        for arrival in arrivals:
            key = (arrival.study, arrival.round)
            if key not in debits:
                yield f"an update of round {arrival.round} left; the {name} has no debit"
            if released.get(key) != arrival.sha256:
                yield f"an update of round {arrival.round} left; the {name} has no release of these bytes"


def _lost_approvals(book: Book, approved: Mapping[str, list[Any]]) -> Iterator[str]:
    for study, made in approved.items():
        if book.decisions.get(study, [])[: len(made)] != made:
            yield f"the decisions on {study[:12]} are not those that were made"
    for entry in book.entries():
        if entry["event"] == "proposed":
            yield f"a study is proposed again in entry {entry['n']}"
        if str(entry["fields"].get("code", "")).startswith("awaiting_approval"):
            yield f"an approved study waits in entry {entry['n']}"


def _breaks(book: Book, marks: Sequence[Mark]) -> Iterator[str]:
    yield from book.signature
    previous = _GENESIS
    hashes = [previous]
    for number, line in enumerate(book.log, start=1):
        value = _values(line)
        if value.get("n") != number or value.get("previous") != previous:
            yield f"the chain is broken at entry {number}"
        previous = hashlib.sha256(line).hexdigest()
        hashes.append(previous)
    if (book.head["n"], book.head["hash"], book.head["size"]) != (len(book.log), previous, book.size):
        yield f"the head says {book.head['n']} entries and {book.head['size']} bytes, the log ends elsewhere"
    for mark in marks:
        if mark.number and (mark.number >= len(hashes) or hashes[mark.number] != mark.hash):
            yield f"entry {mark.number} was confirmed before a kill and is gone or another"


def _disagreements(book: Book) -> Iterator[str]:
    ledger, log = Counter(book.journal), Counter(book.logged())
    for line in ledger - log:
        yield f"change {line.entry} ({line.event}, round {line.round}) is in the ledger and not in the log"
    for line in log - ledger:
        yield f"change {line.entry} ({line.event}, round {line.round}) is in the log and not in the ledger"
    if book.head["ledger"] != max((line.entry for line in book.journal), default=0):
        yield f"the log's head counts {book.head['ledger']} changes of the ledger"


def flaws_of_run(
    result: Mapping[str, Any], arrivals: Sequence[Arrival], *, rounds: int, checkpoint: int, last_kill: int
) -> list[Flaw]:
    """Return why a run did not go on until its end, or counts what did not come.

    Args:
        result: ``result.json``.
        arrivals: the updates that reached the centre.
        rounds: of the study.
        checkpoint: the round that the coordinator's checkpoint is of; 0 without one.
        last_kill: the round that was open at the last kill.
    """
    return [Flaw("run_stopped", "centre", what) for what in _stops(result, arrivals, rounds, checkpoint, last_kill)]


def _stops(
    result: Mapping[str, Any], arrivals: Sequence[Arrival], rounds: int, checkpoint: int, last_kill: int
) -> Iterator[str]:
    done = [entry["round"] for entry in result["rounds"]]
    if result["status"] not in {"completed", "degraded"}:
        yield f"the run is {result['status']}: {result['reason']}"
    if done != list(range(1, rounds + 1)) or checkpoint != rounds:
        yield f"{len(done)} of {rounds} rounds are committed, the checkpoint is of round {checkpoint}"
    if last_kill >= rounds:
        yield "the last kill left no round to go on with"
    came = {(arrival.site, arrival.round) for arrival in arrivals}
    for entry in result["rounds"]:
        for site in entry["sites"]:
            if (site, entry["round"]) not in came:
                yield f"round {entry['round']} counts {site}, whose update never came"
    for site in sorted(set(result["sites"]) - set(result["rounds"][-1]["sites"] if done else ())):
        yield f"in the last round there was no update of {site}: {result['sites'][site].get('reason')}"
