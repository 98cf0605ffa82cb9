"""Studies as a hospital's staff reads them in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from fedward_client.briefing import Briefing, Cost
from fedward_client.decisions import Standing
from fedward_client.review import Reviewed

if TYPE_CHECKING:
    from fedward_client.rehearsal import Rehearsal

__all__ = ["briefing_lines", "rehearsal_lines", "studies_lines"]

_INDENT = "    "


def studies_lines(found: Sequence[Reviewed]) -> Iterator[str]:
    """Yield one line for each study, a second one where there is a reason."""
    if not found:
        yield "no study was proposed yet"
        return
    width = max(len(entry.standing.words) for entry in found)
    for entry in found:
        study, stands = entry.proposal.study, entry.standing
        tail = f"  since {stands.since}" if stands.since else ""
        cohort = f"  on {stands.cohort}" if stands.cohort else ""
        yield f"{study.digest[:12]}  {stands.words:{width}s}  {study.name}{cohort}{tail}"
        if stands.reason:
            yield f"{'':14s}{stands.reason}"


def briefing_lines(found: Briefing) -> Iterator[str]:
    """Yield a study as a person reads it before deciding."""
    yield f"{found.name}  {found.digest}"
    if found.description:
        yield found.description
    yield f"state: {_state(found.standing)}"
    yield f"signed by: {_signers(found)}"
    yield from _reads(found)
    yield from _sends(found)
    yield f"works: {found.works}"
    yield "costs:"
    yield from (f"{_INDENT}cohort {cost.cohort}: {_cost(cost)}" for cost in found.costs)
    if not found.costs:
        yield f"{_INDENT}no cohort is registered: fedward client cohort add NAME FILE"
    yield from _changes(found)
    yield from _policy(found)


def _state(stands: Standing) -> str:
    parts = [stands.words]
    parts += [f"on {stands.cohort}"] if stands.cohort else []
    parts += [f"since {stands.since}"] if stands.since else []
    parts += [f"by {', '.join(stands.by)}"] if stands.by else []
    parts += [f"until {stands.expires}"] if stands.expires else []
    return " ".join(parts) + (f" ({stands.reason})" if stands.reason else "")


def _signers(found: Briefing) -> str:
    others = f"{found.other_signatures} that policy.signers does not name" if found.other_signatures else ""
    named = ", ".join(found.signed_by)
    return " and ".join(part for part in (named, others) if part) or "nobody"


def _reads(found: Briefing) -> Iterator[str]:
    features = sum(line.role == "feature" for line in found.reads)
    patient = " and the patient's identifier" if features + 1 < len(found.reads) else ""
    yield f"reads: {features} columns, the label{patient}; {found.rows}"
    width = min(30, max(len(line.name) for line in found.reads))
    for line in found.reads:
        role = f"{line.role}: " if line.role != "feature" else ""
        yield f"{_INDENT}{line.name:{width}s}  {role}{line.says}"


def _sends(found: Briefing) -> Iterator[str]:
    yield f"sends: {found.parameters} parameters"
    for message in found.sends:
        yield f"{_INDENT}{message.message}, {message.when}, about {_bytes(message.size)}: {message.holds}"
    yield f"{_INDENT}metrics beside an update: {', '.join(found.metrics) or 'none'}"
    yield f"{_INDENT}protection: {found.protection}"


def _bytes(size: int) -> str:
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} bytes"


def _cost(cost: Cost) -> str:
    if cost.problem:
        return cost.problem
    if cost.epsilon is None:
        return "no privacy budget is kept for such a study"
    verdict = "fits" if cost.fits else "DOES NOT FIT"
    life = f"lifetime {cost.lifetime:.3f} of {cost.limit:g}"
    return f"ε {cost.epsilon:g} at δ {cost.delta:g} for this study; {life}: {verdict}"


def _changes(found: Briefing) -> Iterator[str]:
    if not found.earlier:
        yield "changes: no other version of this study was ever approved here"
        return
    yield f"changes since {found.earlier[:12]}, the version that was approved last:"
    for group, changes in groupby(found.changes, key=lambda change: change.group):
        yield f"{_INDENT}{group}"
        for change in changes:
            yield f"{_INDENT}  {change.sentence()}" + (f"  ({change.meaning})" if change.meaning else "")


def _policy(found: Briefing) -> Iterator[str]:
    if not found.objections:
        yield "policy: nothing in site.yaml speaks against it"
        return
    yield "policy: THIS SITE REFUSES IT"
    for against in found.objections:
        yield f"{_INDENT}{against.code}: {against.message}"
        if against.remedy:
            yield f"{_INDENT}  remedy: {against.remedy}"


def rehearsal_lines(found: Rehearsal) -> Iterator[str]:
    """Yield what came of a rehearsal."""
    who = f"{found.patients} patients who do not exist, {found.rows} rows drawn from the declared schema"
    yield f"{found.name} {found.digest[:12]}: {who}; nothing was sent, nothing was spent"
    yield "would have sent:"
    for sent in found.messages:
        head = f"{_INDENT}{sent.message}" + (f" of round {sent.round}" if sent.round else "")
        if sent.refusal:
            yield f"{head}, {_bytes(sent.size)}: {sent.refusal}"
        elif sent.message == "update":
            metrics = f", with {', '.join(sent.metrics)}" if sent.metrics else ""
            pace = f"{sent.seconds:.3f} s, {sent.step_seconds:.4f} s a step"
            yield f"{head}, {_bytes(sent.size)}{metrics}, in {pace}, sha256 {sent.sha256}"
        else:
            yield f"{head}, {_bytes(sent.size)}"
    for against in found.objections:
        yield f"{_INDENT}policy: {against.message}"
    limits = found.resources
    slowest = max((sent.seconds for sent in found.messages), default=0.0)
    yield f"memory: {_bytes(found.memory_bytes)} of {limits.memory_gib:g} GiB that a task may hold"
    yield f"time: {slowest:.3f} s of {limits.wall_s:g} s that a task may take, on {limits.cpus} cores"
    yield "fits this site" if found.good else "DOES NOT RUN HERE"
