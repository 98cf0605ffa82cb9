"""The audit trail as a page shows it: filtered, in leaves, with the state of its chain. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from fedward_common.audit import Entry, Finding
from fedward_server.console.words import moment

__all__ = ["PER_LEAF", "Filter", "Leaf", "TrailLine", "leaf"]

PER_LEAF: Final = 50
_FIRST: Final = ("action", "site", "study")
_ALREADY_SHOWN: Final = ("person", "name", "role")


@dataclass(frozen=True, slots=True)
class Filter:
    """What is looked for; an empty field lets all pass. `text` is sought in every field, in any case."""

    event: str = ""
    text: str = ""
    page: int = 1

    def passes(self, entry: Entry) -> bool:
        """Return whether an entry is looked for."""
        if self.event and entry.event != self.event:
            return False
        sought = self.text.casefold()
        return not sought or any(sought in str(value).casefold() for value in (entry.event, *entry.fields.values()))

    def query(self, page: int) -> str:
        """Return the address's query of another leaf under the same filter."""
        fields = {"event": self.event, "text": self.text, "page": str(page) if page > 1 else ""}
        return urlencode({key: value for key, value in fields.items() if value})


@dataclass(frozen=True, slots=True)
class TrailLine:
    """One entry: who in which role, what, and the rest of its fields."""

    number: int
    at: str
    event: str
    who: str
    details: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A part of the trail, the last entry first; `page` of `pages`, 1-based, whatever was asked for.

    `findings` is what is wrong with the chain: empty where it is whole.
    """

    lines: tuple[TrailLine, ...]
    page: int
    pages: int
    matching: int
    entries: int
    events: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def whole(self) -> bool:
        """Whether chain and signed head are verified."""
        return not self.findings


def leaf(entries: Iterable[Entry], findings: Sequence[Finding], wanted: Filter, *, per_leaf: int = PER_LEAF) -> Leaf:
    """Return the entries that `wanted` asks for.

    Args:
        entries: of the log, oldest first.
        findings: of its verification.
        wanted: the filter and which leaf; one that is not there is the nearest.
        per_leaf: entries on one.
    """
    everything = list(entries)
    matching = [entry for entry in reversed(everything) if wanted.passes(entry)]
    pages = max(1, -(-len(matching) // per_leaf))
    page = min(max(1, wanted.page), pages)
    shown = matching[(page - 1) * per_leaf : page * per_leaf]
    events = tuple(sorted({entry.event for entry in everything}))
    return Leaf(
        tuple(_line(entry) for entry in shown), page, pages, len(matching), len(everything), events, tuple(findings)
    )


def _line(entry: Entry) -> TrailLine:
    fields = {key: str(value) for key, value in entry.fields.items()}
    who = fields.get("person") or fields.get("name", "")
    role = f" ({fields['role']})" if who and fields.get("role") else ""
    shown = (
        {key for key in _ALREADY_SHOWN if fields.get(key) and (key != "name" or fields["name"] == who)}
        if who
        else set()
    )
    details = tuple(
        (key, _short(key, value))
        for key, value in sorted(fields.items(), key=lambda item: (item[0] not in _FIRST, item[0]))
        if key not in shown and value and (key, value) != ("code", "ok")
    )
    return TrailLine(entry.number, moment(entry.at), entry.event, f"{who}{role}", details)


def _short(key: str, value: str) -> str:
    return f"{value[:12]}…" if key in {"study", "sha256"} and len(value) > 12 else value  # noqa: PLR2004  (as everywhere)
