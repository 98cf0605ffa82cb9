"""What a hospital's decisions on one study come to, as pure rules: no file, and `now` is an argument.

A decision is bound to the study's digest and the cohort's fingerprint. The last no, or the last withdrawal, ends every
yes before it; a yes holds for the policy's days; and where the policy asks for two persons, two accounts must have said
yes to the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

__all__ = ["Answer", "Decision", "Rule", "Standing", "State", "changed_cohort", "changed_study", "counts", "standing"]

Answer = Literal["approved", "denied", "withdrawn"]
State = Literal["waiting", "incomplete", "approved", "denied", "withdrawn", "changed", "expired"]
_AHEAD = timedelta(days=1)
"""A decision may be this much ahead of the clock; one that is more so does not count: the clock was set back."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Who said what, when, about which cohort with which fingerprint.

    Attributes:
        by: the person, as the log names them.
        at: time stamp, ISO 8601 with an offset.
        account: the computer's account that the person was logged in with; empty: `by` stands for it.
    """

    answer: Answer
    by: str
    at: str
    cohort: str = ""
    fingerprint: str = ""
    account: str = ""

    @property
    def person(self) -> str:
        """Who counts as one person."""
        return self.account or self.by


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a study stands at a hospital.

    Attributes:
        state: ``incomplete`` is approved by fewer than the policy asks for; only ``approved`` lets it train.
        since: when it came to stand so, as the decision's time stamp; empty while nobody has decided.
        reason: why it does not stand approved although somebody said yes; empty otherwise.
        by: who said what counts now.
        needed: how many must approve.
        cohort: what the last yes was about; empty without one.
        fingerprint: of that cohort, then.
        expires: when the approval ends, as a time stamp; empty where there is none.
    """

    state: State
    since: str = ""
    reason: str = ""
    by: tuple[str, ...] = ()
    needed: int = 1
    cohort: str = ""
    fingerprint: str = ""
    expires: str = ""

    @property
    def words(self) -> str:
        """The state as people read it."""
        return f"approved {len(self.by)} of {self.needed}" if self.state == "incomplete" else self.state


@dataclass(frozen=True, slots=True)
class Rule:
    """What the policy asks of approvals: `needed` persons, and none of their approvals older than `days` days."""

    needed: int
    days: int


def standing(decisions: Sequence[Decision], rule: Rule, now: datetime) -> Standing:
    """Return what `decisions` on one digest, oldest first, come to by `rule` at the time `now` (with an offset)."""
    needed, days = rule.needed, rule.days
    if not decisions:
        return Standing("waiting", needed=needed)
    last = decisions[-1]
    if last.answer != "approved":
        return Standing(last.answer, since=last.at, by=(last.by,), needed=needed)
    asked = Standing("incomplete", needed=needed, cohort=last.cohort, fingerprint=last.fingerprint)
    votes = _votes(decisions, last)
    held = timedelta(days=days)
    valid = [vote for vote in votes if -_AHEAD <= now - _instant(vote) < held]
    if not valid:
        return _ended(asked, last, now, held)
    by, since = tuple(vote.by for vote in valid), valid[-1].at
    if len(valid) >= needed:
        ends = (_instant(valid[-needed]) + held).isoformat(timespec="seconds")
        return replace(asked, state="approved", since=since, by=by, expires=ends)
    lost = len(votes) - len(valid)
    reason = f"an approval holds for {days} days; {lost} of them has ended" if lost else ""
    return replace(asked, since=since, by=by, reason=reason)


def counts(decisions: Sequence[Decision], vote: Decision, rule: Rule, now: datetime) -> bool:
    """Return whether a yes brings the study nearer to being approved, or renews that: one person twice is not two."""
    before, after = standing(decisions, rule, now), standing((*decisions, vote), rule, now)
    same = (before.cohort, before.fingerprint) == (after.cohort, after.fingerprint)
    return after.state == "approved" or before.state != "incomplete" or not same or len(after.by) > len(before.by)


def _ended(asked: Standing, last: Decision, now: datetime, held: timedelta) -> Standing:
    ends = _instant(last) + held
    if now < ends:
        reason = f"it was approved on {last.at}, which is still to come: the clock of this computer was set back"
        return replace(asked, state="expired", since=last.at, reason=reason)
    since = ends.isoformat(timespec="seconds")
    return replace(asked, state="expired", since=since, reason=f"an approval holds for {held.days} days")


def _votes(decisions: Sequence[Decision], last: Decision) -> list[Decision]:
    """Return each person's last yes to what `last` is about, oldest first, since the last no or withdrawal."""
    votes: dict[str, Decision] = {}
    for decision in decisions:
        if decision.answer != "approved":
            votes.clear()
        elif (decision.cohort, decision.fingerprint) == (last.cohort, last.fingerprint):
            votes.pop(decision.person, None)
            votes[decision.person] = decision
    return sorted(votes.values(), key=_instant)


def changed_cohort(found: Standing, fingerprint: str | None) -> Standing:
    """Return how an approved study stands now that its cohort has this fingerprint; None: it cannot be read.

    One changed byte, and the study waits again.
    """
    if found.state not in {"approved", "incomplete"} or fingerprint == found.fingerprint:
        return found
    what = "changed" if fingerprint else "is gone or cannot be read"
    reason = f"the cohort {found.cohort} {what} since it was approved"
    return replace(found, state="changed", reason=reason, by=(), expires="")


def changed_study(found: Standing, earlier: str | None) -> Standing:
    """Return how a waiting study stands when another version of the same name, `earlier`, was approved."""
    if found.state != "waiting" or not earlier:
        return found
    return replace(found, state="changed", reason=f"it is not the version {earlier[:12]} that was approved")


def _instant(decision: Decision) -> datetime:
    moment = datetime.fromisoformat(decision.at)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
