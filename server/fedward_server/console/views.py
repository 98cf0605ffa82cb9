"""What the pages about studies and sites show, from what the folders say. Pure: no file, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from fedward_common.enrolment import days_left, warning_due
from fedward_common.errors import FedwardError, RefusalCode
from fedward_common.signing import key_fingerprint, load_public_key, verify
from fedward_common.study import DpSgd, Study
from fedward_common.study_file import StudyFile
from fedward_server.admission import counts
from fedward_server.console.facts import RunFacts
from fedward_server.console.words import STATES, ago, moment, parsed, span
from fedward_server.report import explained, outcome
from fedward_server.roster import Entry, Waiting
from fedward_server.wording import number

__all__ = [
    "Approval",
    "Card",
    "Fact",
    "RunLine",
    "Signer",
    "SiteLine",
    "approvals",
    "cards",
    "certificate_line",
    "run_lines",
    "signers",
    "site_lines",
]

Tone = Literal["good", "wait", "bad", "plain"]
_TONES: Final[Mapping[str, Tone]] = {
    "running": "good", "completed": "good", "queued": "plain", "paused": "wait", "stopping": "wait",
    "degraded": "wait", "interrupted": "plain", "failed": "bad",
}  # fmt: skip
_LIVE: Final = ("running", "stopping", "paused", "queued")
_TERMS: Final[Mapping[str, str]] = {
    "schema_version": "Version of the contract", "name": "Name", "description": "Purpose", "task": "Task",
    "seed": "Seed", "sites": "Hospitals",
}  # fmt: skip
_PARTS: Final[Sequence[tuple[str, str, str]]] = (
    ("model", "Model", "what is trained"),
    ("training", "Training", "what each hospital computes in a round"),
    ("privacy", "Privacy", "what protects each patient"),
    ("aggregation", "Aggregation", "how the hospitals’ updates become one model"),
    ("evaluation", "Evaluation", "how the model is judged"),
)
_LONG: Final = 10_000
_APPROVE: Final = (RefusalCode.AWAITING_APPROVAL.value, "not_connected", "no_reply_before_the_deadline")


@dataclass(frozen=True, slots=True)
class RunLine:
    """One study in the list of all: `done` of `planned` rounds are closed."""

    id: str
    name: str
    state: str
    tone: Tone
    done: int
    planned: int
    sites: int
    trouble: int
    since: str
    ago: str
    who: str
    reason: str
    live: bool


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed a study: the key's fingerprint, whether the signature is right, whether the centre knows the key."""

    fingerprint: str
    valid: bool
    known: bool


@dataclass(frozen=True, slots=True)
class Approval:
    """How one hospital stands to a study; `awaiting` while its yes, or its connection, is missing."""

    site: str
    text: str
    detail: str
    tone: Tone
    awaiting: bool


@dataclass(frozen=True, slots=True)
class Fact:
    """A term of the contract and its value; `unit` where it has one."""

    term: str
    value: str


@dataclass(frozen=True, slots=True)
class Card:
    """One part of the contract."""

    title: str
    what: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class SiteLine:
    """One hospital of the roster, or one invite; `note` says what somebody should do."""

    site: str
    state: str
    tone: Tone
    until: str
    left: str
    note: str = ""


def run_lines(found: Iterable[RunFacts], now: datetime) -> list[RunLine]:
    """Return the studies, those that go on first, then the newest first."""
    newest = sorted(found, key=lambda facts: facts.line.submitted_at, reverse=True)
    order = {state: place for place, state in enumerate(_LIVE)}
    return [_run_line(facts, now) for facts in sorted(newest, key=lambda f: order.get(f.line.state, len(order)))]


def _run_line(facts: RunFacts, now: datetime) -> RunLine:
    line = facts.line
    since = line.ended_at or line.submitted_at
    return RunLine(
        id=line.id,
        name=line.name,
        state=STATES.get(line.state, line.state),
        tone=_TONES.get(line.state, "plain"),
        done=len(facts.closed),
        planned=facts.planned,
        sites=len(facts.sites),
        trouble=len(_outside(facts)),
        since=moment(since),
        ago=ago(since, now),
        who=line.submitted_by,
        reason=outcome(line.reason),
        live=line.state in _LIVE,
    )


def _outside(facts: RunFacts) -> set[str]:
    """Return the hospitals that are out for good, or not in yet."""
    if facts.result is not None:
        return {name for name, site in facts.result.sites.items() if site.status == "excluded"}
    told = set(facts.progress.excluded) & set(facts.sites) if facts.progress is not None else set()
    states = facts.status.sites if facts.status is not None else {}
    return told | {name for name, site in states.items() if site.state in {"absent", "excluded"}}


def signers(file: StudyFile | None, known: Iterable[str]) -> list[Signer]:
    """Return who signed a study.

    Args:
        file: the study; None gives nobody.
        known: public keys that the centre names to its hospitals.
    """
    trusted = set(known)
    if file is None:
        return []
    return [
        Signer(_fingerprint(s.key), _right(file.study, s.key, s.signature), s.key in trusted) for s in file.signatures
    ]


def _fingerprint(key: str) -> str:
    try:
        return key_fingerprint(key)
    except FedwardError:
        return "no key"


def _right(study: Study, key: str, signature: str) -> bool:
    try:
        verify(load_public_key(key), study.canonical(), signature)
    except FedwardError:
        return False
    return True


def approvals(facts: RunFacts, now: datetime) -> list[Approval]:
    """Return how each hospital stands to the study: those that somebody waits for first.

    A hospital decides in its own house; the centre knows only what it answered to the roll call.
    """
    lines = [_approval(facts, site, now) for site in facts.sites]
    return sorted(lines, key=lambda line: not line.awaiting)


def _approval(facts: RunFacts, site: str, now: datetime) -> Approval:
    reason = _reason(facts, site)
    if reason is None:
        if _took_seat(facts, site):
            return Approval(site, "approved", _patients(facts, site), "good", awaiting=False)
        return Approval(site, "not asked yet", "", "plain", awaiting=False)
    code = reason.split(":")[0].split(" ")[0]
    sentence, _ = explained(reason)
    waiting = facts.result is None and (code in _APPROVE or not reason)
    if not waiting:
        return Approval(site, "does not take part", sentence, "bad", awaiting=False)
    since = parsed(facts.line.submitted_at)
    lasting = f", {span((now - since) / timedelta(seconds=1))}" if since else ""
    return Approval(site, f"awaiting {site}{lasting}", sentence, "wait", awaiting=True)


def _reason(facts: RunFacts, site: str) -> str | None:
    """Return why a hospital is not in; an empty text where it has not said; None where it is in, or was not asked."""
    if facts.result is not None:
        found = facts.result.sites.get(site)
        return (found.reason or "") if found is not None and found.status == "excluded" else None
    if facts.status is not None and (told := facts.status.sites.get(site)) is not None:
        if told.state in {"absent", "excluded"}:
            return told.reason or ""
        if told.state == "waiting" and facts.status.round == 0:
            return ""
    return facts.progress.excluded.get(site) if facts.progress is not None else None


def _took_seat(facts: RunFacts, site: str) -> bool:
    if facts.result is not None:
        return facts.result.sites.get(site) is not None
    if facts.progress is not None and any(seat.site == site for seat in facts.progress.seats):
        return True
    return facts.status is not None and site in facts.status.sites


def _patients(facts: RunFacts, site: str) -> str:
    if facts.result is not None and (found := facts.result.sites.get(site)) is not None:
        return f"{found.patients:,} patients" if found.patients is not None else ""
    seats = facts.progress.seats if facts.progress is not None else ()
    return next((f"{seat.patients:,} patients" for seat in seats if seat.site == site), "")


def cards(study: Study) -> list[Card]:
    """Return the contract, part by part, every default written out; the cohort's columns are a table of their own."""
    contract = study.contract()
    found = [Card("Study", "who, what and for what", tuple(Fact(_TERMS[k], _shown(contract[k])) for k in _TERMS))]
    cohort = {key: value for key, value in contract["cohort"].items() if key != "columns"}
    found.append(Card("Cohort", "which patients, under which schema", tuple(_facts(cohort))))
    for key, title, what in _PARTS:
        value = contract.get(key)
        facts = tuple(_facts(value)) if value else (Fact(title, "none"),)
        found.append(Card(title, what, facts))
    if isinstance(study.privacy, DpSgd):
        return found
    return [c if c.title != "Privacy" else Card(c.title, "this study gives no guarantee", c.facts) for c in found]


def _facts(value: Mapping[str, Any], above: str = "") -> Iterable[Fact]:
    for key, inner in value.items():
        term = f"{above}{key.strip('_').replace('_', ' ')}"
        if isinstance(inner, Mapping) and inner:
            yield from _facts(inner, f"{term}: ")
        else:
            yield Fact(term[:1].upper() + term[1:], _shown(inner))


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join("(empty)" if item == "" else _shown(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, trim=True)
    if isinstance(value, int):
        return f"{value:,}" if value >= _LONG else str(value)
    return "none" if value in {None, ""} else str(value)


def site_lines(entries: Sequence[Entry], waiting: Sequence[Waiting], now: datetime) -> list[SiteLine]:
    """Return the hospitals by name, each with the key that counts, or with its last one where none does."""
    current = {entry.row.site: entry for entry in entries}
    current |= {entry.row.site: entry for entry in entries if counts(entry.row, now)}
    lines = [_site_line(entry, now) for entry in current.values()]
    lines += [
        SiteLine(
            w.site, "invited", "wait", moment(w.expires_at), _left(w.expires_at, now), "the invite was not used yet"
        )
        for w in waiting
    ]
    return sorted(lines, key=lambda line: (line.site, line.state))


def _site_line(entry: Entry, now: datetime) -> SiteLine:
    until = entry.row.not_after
    left = _left(until, now)
    if entry.state == "revoked":
        return SiteLine(entry.row.site, "revoked", "bad", moment(until), "", "its key counts no more")
    if not counts(entry.row, now):
        return SiteLine(entry.row.site, "expired", "bad", moment(until), left, "invite the hospital again")
    due = _due(until, now)
    note = "the hospital renews it: fedward client renew" if due else ""
    return SiteLine(entry.row.site, "enrolled", "wait" if due else "good", moment(until), left, note)


def certificate_line(what: str, until: datetime, now: datetime, note: str) -> SiteLine:
    """Return what a certificate of the centre is worth; `note` is what helps once it runs out."""
    text = until.isoformat()
    due = _due(text, now)
    state = "expired" if until <= now else "expires soon" if due else "valid"
    tone: Tone = "bad" if until <= now else "wait" if due else "good"
    return SiteLine(what, state, tone, moment(text), _left(text, now), note if due else "")


def _due(until: str, now: datetime) -> bool:
    found = parsed(until)
    return found is None or warning_due(found, now) is not None


def _left(until: str, now: datetime) -> str:
    found = parsed(until)
    if found is None:
        return ""
    days = days_left(found, now)
    return "over" if days < 0 else "today" if days == 0 else "1 day left" if days == 1 else f"{days:,} days left"
