"""What a coordinator writes down before it acts, and what follows from it: pure rules, no files.

A journal covers one open round, from the checkpoint before it (`Begun.after`) to the one behind it. Its records, in the
order in which they come:

=========  =======================================================================================
record     is on disk before
=========  =======================================================================================
begun      anything else: study and the round that the checkpoint beside it holds
enrolled   the first task is sent: who said yes at the roll call, and who is out and why
joined     a site that was away takes part: what it said to a later roll call
asking     a task leaves: its sites may have spent from now on; until when the round lasts
asked      a task leaves where the grid can name messages ahead, right after it where it cannot
accepted   an update is added; its values stand beside it
retried    the one more task of this round leaves, to a site that fell out
extended   the round lasts beyond its deadline, which came without a quorum
missed     another reply is looked at: this one was none, and is not waited for again
late       another reply is looked at: this one answers a round that had closed
=========  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, Literal, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fedward_common.errors import CoordinatorError
from fedward_common.wire import Enrolment, Update
from fedward_server.result import RoundResult

__all__ = [
    "Accepted",
    "Asked",
    "Asking",
    "Begun",
    "Body",
    "Enrolled",
    "Extended",
    "Joined",
    "Late",
    "Missed",
    "OpenRound",
    "Progress",
    "Record",
    "Recovered",
    "Retried",
    "RoundLog",
    "Seat",
    "StoredUpdate",
    "Story",
    "parse_record",
    "story_of",
    "time_left",
]

Values = npt.NDArray[np.int64]
_LEAST_S: Final = 30.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Seat(_Part):
    """One enrolment: the site, the node that it answered from, and what it said."""

    node: int
    site: str
    patients: int
    version: str

    @classmethod
    def of(cls, node: int, enrolment: Enrolment) -> Seat:
        """Return what a site said at the roll call, as it is stored."""
        return cls(node=node, site=enrolment.site, patients=enrolment.patients, version=enrolment.version)

    def enrolment(self, study: str) -> Enrolment:
        """Return it as the round loop knows it, for the study with this digest."""
        return Enrolment(self.site, study, self.patients, self.version)


class Begun(_Part):
    """The first record: a journal of this study's round ``after + 1``."""

    kind: Literal["begun"] = "begun"
    format: Literal[1] = 1
    study: str
    after: int = Field(ge=0)
    started: str


class Enrolled(_Part):
    """The roll has been called."""

    kind: Literal["enrolled"] = "enrolled"
    seats: tuple[Seat, ...]
    excluded: dict[str, str]
    away: tuple[str, ...] = ()


class Joined(_Part):
    """A site that was away answers a later roll call; `excluded` is why it was out until then, if it never was in."""

    kind: Literal["joined"] = "joined"
    round: int
    seat: Seat
    excluded: str = ""


class Asking(_Part):
    """These sites are about to be asked, possibly again; the round lasts until `until` (Unix seconds, 0: not known)."""

    kind: Literal["asking"] = "asking"
    round: int
    sites: tuple[str, ...]
    until: float = 0.0


class Asked(_Part):
    """The messages that ask: site by identifier; `lineage` says in which grid they can be found."""

    kind: Literal["asked"] = "asked"
    round: int
    lineage: str
    messages: dict[str, str]


class Accepted(_Part):
    """An update that the gatekeeper let through; its values are the record's body."""

    kind: Literal["accepted"] = "accepted"
    round: int
    site: str
    weight: int
    steps: int
    metrics: dict[str, float]

    @classmethod
    def of(cls, update: Update) -> Accepted:
        """Return all of an update but its values."""
        return cls(
            round=update.round, site=update.site, weight=update.weight, steps=update.steps, metrics=update.metrics
        )

    def update(self, study: str, values: Values) -> Update:
        """Return the update again."""
        return Update(self.site, study, self.round, self.weight, self.steps, values, dict(self.metrics))


class Retried(_Part):
    """A site fell out and is asked once more in this round."""

    kind: Literal["retried"] = "retried"
    round: int
    site: str
    reason: str


class Extended(_Part):
    """The deadline has come without a quorum; the round lasts until `until` (Unix seconds).

    `sites` may be back: each has to say who it is, and is then asked anew.
    """

    kind: Literal["extended"] = "extended"
    round: int
    until: float
    sites: tuple[str, ...]


class Missed(_Part):
    """A reply that was no update; `for_good`: the site is not asked in later rounds either."""

    kind: Literal["missed"] = "missed"
    round: int
    site: str
    reason: str
    for_good: bool


class Late(_Part):
    """In round `round` came a reply to round `of`, which had closed; it was not used."""

    kind: Literal["late"] = "late"
    round: int
    of: int = Field(ge=1)
    site: str
    reason: str


_InRound = Joined | Asking | Asked | Accepted | Retried | Extended | Missed | Late
Record = Annotated[Begun | Enrolled | _InRound, Field(discriminator="kind")]
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


class Progress(_Part):
    """All that a checkpoint holds beside its arrays: what the result of the run will say about the rounds so far."""

    started: str
    seats: tuple[Seat, ...] = ()
    excluded: dict[str, str] = {}
    away: tuple[str, ...] = ()
    missed: dict[str, str] = {}
    asked: dict[str, int] = {}
    steps: dict[str, int] = {}
    reported: dict[str, int] = {}
    closed: tuple[RoundResult, ...] = ()
    tail_count: int = 0

    def joined_by(self, records: Iterable[Joined]) -> Progress:
        """Return how the run stands once these sites, which were away, are back."""
        seats = {seat.site: seat for seat in self.seats}
        out, away, missed = dict(self.excluded), set(self.away), dict(self.missed)
        for record in records:
            site = record.seat.site
            seats[site] = record.seat
            away.discard(site)
            out.pop(site, None)
            if record.excluded:
                missed.setdefault(site, record.excluded)
        told = {"seats": tuple(seats.values()), "excluded": out, "away": tuple(sorted(away)), "missed": missed}
        return self.model_copy(update=told)


@dataclass(slots=True)
class OpenRound:
    """How far a round came: who was asked until when, which messages are out, who is settled and how."""

    round: int
    lineage: str = ""
    until: float = 0.0
    asked: set[str] = field(default_factory=set)
    waiting: dict[str, str] = field(default_factory=dict)
    accepted: dict[str, Accepted] = field(default_factory=dict)
    missed: dict[str, Missed] = field(default_factory=dict)
    retried: dict[str, str] = field(default_factory=dict)
    joined: dict[str, Joined] = field(default_factory=dict)
    late: list[Late] = field(default_factory=list)

    @property
    def settled(self) -> frozenset[str]:
        """Sites that are not asked again in this round."""
        return frozenset(self.accepted) | frozenset(self.missed)


@dataclass(slots=True)
class Story:
    """What a journal says."""

    begun: Begun
    enrolled: Enrolled | None = None
    open: OpenRound | None = None


class Body(Protocol):
    """The values of an update that are on the disk."""

    def read_into(self, values: Values, first: int) -> None:
        """Fill a vector with those from number `first` on."""


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update whose values are on the disk: `head` has none, `body` has them all, `size` is how many."""

    head: Update
    body: Body
    size: int

    def whole(self) -> Update:
        """Return the update with its values, in memory."""
        values = np.empty(self.size, dtype=np.int64)
        self.body.read_into(values, 0)
        return replace(self.head, values=values)


@dataclass(frozen=True, slots=True)
class Recovered:
    """An open round and its accepted updates."""

    open: OpenRound
    updates: Iterator[StoredUpdate]


class RoundLog(Protocol):
    """Where the round loop writes."""

    def write(self, record: Record, values: Values | None = None) -> None:
        """Return once the record is where a killed process finds it again."""

    def store(self, update: Update, size: int, parts: Iterable[Values]) -> StoredUpdate | None:
        """Write an accepted update part by part, as they come; return it once it is where it is found again.

        An error that `parts` raises passes through, and leaves nothing of the record. None where no updates are
        kept; no part has been looked at then.
        """


def parse_record(content: bytes) -> Record:
    """Return a record from its JSON.

    Raises:
        ValueError: it is none.
    """
    return _RECORD.validate_json(content)


def story_of(records: Iterable[Record]) -> Story:
    """Return what the records come to, whose bytes have been verified.

    Raises:
        CoordinatorError: no coordinator writes them in this order.
    """
    rest = iter(records)
    first = next(rest, None)
    if not isinstance(first, Begun):
        _contradict("it does not begin with its study")
    story = Story(first)
    for record in rest:
        match record:
            case Begun():
                _contradict("it begins twice")
            case Enrolled():
                story.enrolled = record
            case _:
                _tell(story, record)
    return story


def _tell(story: Story, record: _InRound) -> None:
    number = story.begun.after + 1
    if record.round != number:
        _contradict(f"a record of round {record.round} in the journal of round {number}")
    if story.open is None:
        story.open = OpenRound(number)
    told = story.open
    match record:
        case Asking() | Asked():
            _tell_question(told, record)
        case Accepted() | Retried() | Missed():
            _tell_answer(told, record)
        case Joined():
            if record.seat.site in told.asked:
                _contradict(f"{record.seat.site} joins a round that it was asked for")
            told.joined[record.seat.site] = record
        case Extended():
            _tell_extension(told, record)
        case Late():
            if record.of >= number:
                _contradict(f"a reply to round {record.of} is late in round {number}")
            told.late.append(record)


def _tell_question(told: OpenRound, record: Asking | Asked) -> None:
    if isinstance(record, Asking):
        if told.accepted.keys() & set(record.sites):
            _contradict("a site whose update was accepted is asked again")
        told.asked |= set(record.sites)
        told.until = record.until or told.until
        told.waiting = {key: site for key, site in told.waiting.items() if site not in record.sites}
    else:
        if told.lineage != record.lineage:
            told.lineage, told.waiting = record.lineage, {}
        told.waiting |= {key: site for key, site in record.messages.items() if key}


def _tell_extension(told: OpenRound, record: Extended) -> None:
    if told.accepted.keys() & set(record.sites):
        _contradict("a site whose update was accepted is waited for")
    told.until, told.retried = record.until, {}
    told.missed = {site: missed for site, missed in told.missed.items() if site not in record.sites}
    told.waiting = {key: site for key, site in told.waiting.items() if site not in record.sites}
    told.asked -= set(record.sites)


def _tell_answer(told: OpenRound, record: Accepted | Retried | Missed) -> None:
    if record.site not in told.asked - told.settled:
        _contradict(f"{record.site} answers a second time, or was not asked")
    told.waiting = {key: site for key, site in told.waiting.items() if site != record.site}
    match record:
        case Accepted():
            told.accepted[record.site] = record
        case Missed():
            told.missed[record.site] = record
        case Retried():
            if record.site in told.retried:
                _contradict(f"{record.site} is asked once more for the second time")
            told.retried[record.site] = record.reason


def _contradict(what: str) -> NoReturn:
    msg = f"journal.fedward contradicts itself: {what}"
    raise CoordinatorError(msg, remedy="restore the run's folder from a copy; without it the run ends here")


def time_left(until: float, now: float, whole: float) -> float:
    """Return how many seconds an open round still has for a process that takes it over.

    Args:
        until: when it ends, as the process before wrote it (Unix seconds); 0 where it did not.
        now: Unix seconds by this process's clock.
        whole: the study's deadline in seconds.

    Never more than `whole`, and never less than a tenth of it or 30 s, whichever is more: the clock may have been set
    meanwhile, and sites that have answered, or were not asked yet, get their chance in any case.
    """
    least = min(whole, max(whole / 10, _LEAST_S))
    return whole if not until else min(whole, max(least, until - now))
