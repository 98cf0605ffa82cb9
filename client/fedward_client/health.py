"""What a daemon knows of itself, and what follows: is it alive, can it train. Pure: every `now` is an argument.

The daemon writes facts into one `Health`; whoever asks reads a `Facts`, a copy that no longer changes. Alive means that
the serving loop turns. Ready means that a round could be trained this minute: the coordinator knows the site, has just
accepted its signature, the policy is loaded, and a training step has worked since the last one that failed.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fedward_common.errors import RefusalCode

__all__ = ["BUCKETS_S", "OTHER", "Condition", "Facts", "Health", "alive", "conditions", "ready"]

BUCKETS_S: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0)
"""Upper bounds of the histogram of task seconds; a last bucket takes what is longer."""

OTHER: Final = "other"
"""Kind of every message that is no roll call and no round: the name of a kind comes from the network."""

_KINDS: Final[Mapping[str, str]] = {"query": "roll_call", "train": "round"}
_CODES: Final = frozenset(RefusalCode)


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold: `why` it does not, and the `remedy`, are empty when it is `met`."""

    name: str
    met: bool
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was known of a daemon at one moment. Times are seconds of a monotonic clock.

    Attributes:
        started: when the daemon began.
        due: when the serving loop turns again at the latest, as it has promised itself.
        registered: whether the coordinator has let this site in since the daemon began, and not shut it out since.
        accepted: when the coordinator last accepted a signed request; None before the first, and after a refused one.
        trouble: why there is no connection, and what to do; empty while there is one.
        policy: what is wrong with ``site.yaml``; empty when nothing is, None before it was read.
        training: what is wrong with training; empty when a step has worked, None before it was tried.
        messages: messages by kind: ``roll_call``, ``round`` or `OTHER`.
        refusals: answers that were a refusal, by code.
        rounds: rounds whose update was sent.
        received: bytes that came in.
        sent: bytes that went out.
        task_counts: tasks whose seconds fall into each of `BUCKETS_S`, and one bucket more.
        task_seconds: seconds of all tasks together.
    """

    started: float
    due: float
    registered: bool = False
    accepted: float | None = None
    trouble: tuple[str, str] = ("no connection was made yet", "wait a minute; fedward client doctor says what hinders")
    policy: tuple[str, str] | None = None
    training: str | None = None
    messages: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(("roll_call", "round", OTHER), 0))
    refusals: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 0
    received: int = 0
    sent: int = 0
    task_counts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    task_seconds: float = 0.0


class Health:
    """A daemon's facts, written by its threads and read by others; no call waits for anything but another call.

    Args:
        now: seconds of the monotonic clock that every other `now` is read from.
        within_s: the serving loop turns for the first time within so many seconds.
    """

    def __init__(self, now: float, within_s: float = 120.0) -> None:
        self._lock = threading.Lock()
        self._facts = Facts(started=now, due=now + within_s)

    def facts(self) -> Facts:
        """Return what is known now."""
        with self._lock:
            return self._facts

    def _set(self, **changes: Any) -> None:
        with self._lock:
            self._facts = replace(self._facts, **changes)

    def turn(self, now: float, within_s: float) -> None:
        """Note that the serving loop turns, and that it will again within `within_s` seconds."""
        self._set(due=now + within_s)

    def admitted(self, now: float) -> None:
        """Note that the coordinator has let this site in."""
        self._set(registered=True, accepted=now, trouble=("", ""))

    def heard(self, now: float) -> None:
        """Note that the coordinator has accepted a signed request."""
        self._set(accepted=now, trouble=("", ""))

    def unreachable(self, cause: str, remedy: str) -> None:
        """Note that the coordinator did not answer; how long ago it last did decides whether that matters."""
        self._set(trouble=(cause, remedy))

    def shut_out(self, cause: str, remedy: str, *, unknown: bool = False) -> None:
        """Note that the coordinator refused this site's signature; with `unknown`, that it does not know the site."""
        with self._lock:
            registered = self._facts.registered and not unknown
            self._facts = replace(self._facts, accepted=None, registered=registered, trouble=(cause, remedy))

    def policy_read(self, problem: str = "", remedy: str = "") -> None:
        """Note that ``site.yaml`` was read, or what is wrong with it."""
        self._set(policy=(problem, remedy))

    def probed(self, problem: str = "") -> None:
        """Note that a training step worked, or why it did not."""
        self._set(training=problem)

    def received(self, kind: str) -> None:
        """Note a message; `kind` is its Flower type, of which only what stands before the first dot counts."""
        name = _KINDS.get(kind.partition(".")[0], OTHER)
        with self._lock:
            messages = self._facts.messages
            self._facts = replace(self._facts, messages={**messages, name: messages[name] + 1})

    def answered(self, kind: str, seconds: float, refusal: str | None = None) -> None:
        """Note an answer after `seconds` of work; `refusal` begins with its code, and is None for an admitted task."""
        with self._lock:
            facts = self._facts
            counts = list(facts.task_counts)
            counts[bisect_left(BUCKETS_S, seconds)] += 1
            refusals = dict(facts.refusals)
            if refusal is not None:
                code = refusal.partition(" ")[0]
                code = code if code in _CODES else RefusalCode.INTERNAL.value
                refusals[code] = refusals.get(code, 0) + 1
            self._facts = replace(
                facts,
                refusals=refusals,
                rounds=facts.rounds + (refusal is None and _KINDS.get(kind.partition(".")[0]) == "round"),
                task_counts=tuple(counts),
                task_seconds=facts.task_seconds + seconds,
            )

    def transferred(self, received: int = 0, sent: int = 0) -> None:
        """Note bytes of request and answer bodies, without what TLS and HTTP add."""
        with self._lock:
            facts = self._facts
            self._facts = replace(facts, received=facts.received + received, sent=facts.sent + sent)


def alive(facts: Facts, now: float) -> Condition:
    """Return whether the serving loop turns as it has promised."""
    late = now - facts.due
    if late <= 0:
        return Condition("serving", met=True)
    why = f"the serving loop should have turned {late:.0f} s ago"
    return Condition("serving", met=False, why=why, remedy="restart the daemon; its log says what it was doing")


def conditions(facts: Facts, now: float, *, stale_s: float) -> tuple[Condition, ...]:
    """Return the four conditions of being ready, in the order in which they can be mended.

    Args:
        facts: what is known.
        now: seconds of the facts' clock.
        stale_s: for how many seconds an accepted signature counts.
    """
    return (_policy(facts), _training(facts), _registered(facts), _authenticated(facts, now, stale_s))


def ready(facts: Facts, now: float, *, stale_s: float) -> bool:
    """Return whether a round could be trained now: alive, and all of `conditions`."""
    return alive(facts, now).met and all(condition.met for condition in conditions(facts, now, stale_s=stale_s))


def _policy(facts: Facts) -> Condition:
    if facts.policy is None:
        return Condition("policy", met=False, why="site.yaml was not read yet", remedy="wait until the daemon is up")
    problem, remedy = facts.policy
    return Condition("policy", met=not problem, why=problem, remedy=remedy if problem else "")


def _training(facts: Facts) -> Condition:
    if facts.training is None:
        return Condition("training", met=False, why="no step was tried yet", remedy="wait until the daemon is up")
    remedy = "fedward client doctor tries a step and shows what hinders it" if facts.training else ""
    return Condition("training", met=not facts.training, why=facts.training, remedy=remedy)


def _registered(facts: Facts) -> Condition:
    if facts.registered:
        return Condition("registered", met=True)
    cause, remedy = facts.trouble
    why = "the coordinator has not let this site in" + (f": {cause}" if cause else "")
    return Condition("registered", met=False, why=why, remedy=remedy)


def _authenticated(facts: Facts, now: float, stale_s: float) -> Condition:
    cause, remedy = facts.trouble
    if facts.accepted is None:
        why = cause or "the coordinator has accepted no signature yet"
        return Condition("authenticated", met=False, why=why, remedy=remedy)
    age = now - facts.accepted
    if age <= stale_s:
        return Condition("authenticated", met=True)
    why = f"the last accepted signature is {age:.0f} s old" + (f": {cause}" if cause else "")
    return Condition("authenticated", met=False, why=why, remedy=remedy or "fedward client doctor")
