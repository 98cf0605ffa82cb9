"""What the attacks are made of: pasts of a site, and honest messages changed in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedward_client.approvals import Approvals
from fedward_client.decisions import Decision
from fedward_common.signing import public_text, sign
from fedward_common.study import Study
from fedward_common.study_file import Signature
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.faults import flower_adapter as wire
from fedward_simulations.faults.attack import STUDY, Make
from fedward_simulations.faults.flower_adapter import Parcel
from fedward_simulations.faults.superlink import FOREIGN_RUN, Raw
from fedward_simulations.faults.target import COHORT, Target, hostile_study

__all__ = [
    "asking",
    "beside",
    "called",
    "closed_soon",
    "decided",
    "deep",
    "emptied",
    "first",
    "forged",
    "headed",
    "header",
    "headless",
    "inlined",
    "lied_about_bundle",
    "looser",
    "numbers",
    "rewritten",
    "signature",
    "signed",
    "swapped",
    "told",
    "trained",
    "treed",
    "vector",
    "with_value",
    "written",
]


def _accepted(target: Target, *contents: RecordDict) -> None:
    for content in contents:
        verdict = target.deliver(content)
        if verdict.code is not None:
            msg = f"an honest message is refused: {verdict.code}"
            raise AssertionError(msg)


def trained(*rounds: int) -> Callable[[Target], None]:
    """Return a past in which these rounds were trained."""
    return lambda target: _accepted(target, target.roll_call(), *(target.task(number) for number in rounds))


def decided(answer: Any, *, days_ago: float = 0.0, cohort: str = COHORT) -> Callable[[Target], None]:
    """Return a past in which the hospital's staff said so."""

    def prepare(target: Target) -> None:
        when = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="seconds")
        Approvals(target.home).propose(target.study)
        Approvals(target.home).decide(target.study, Decision(answer, "ann", when, cohort, target.fingerprint()))

    return prepare


def first(*past: Callable[[Target], object]) -> Callable[[Target], None]:
    """Return a past in which all of this happened, in this order."""

    def prepare(target: Target) -> None:
        for happen in past:
            happen(target)

    return prepare


def rewritten(target: Target) -> None:
    """Let the table have another value."""
    path = target.home / f"{COHORT}.csv"
    path.write_text(path.read_text(encoding="ascii").replace("18,", "19,", 1), encoding="ascii")


def lied_about_bundle(target: Target) -> None:
    """Let the SuperLink call foreign code by the pinned digest."""
    answer = wire.answer_run(FOREIGN_RUN, code_free_bundle().sha256)
    target.superlink.raw["get-run"] = Raw(answer)


def closed_soon() -> dict[str, tuple[str, ...]]:
    """Return working hours that are over, whatever time it is: two minutes, the day after tomorrow."""
    day = (datetime.now(UTC) + timedelta(days=2)).strftime("%a").lower()
    return {day: ("00:00-00:02",)}


def header(content: RecordDict, **changes: Any) -> RecordDict:
    """Return `content` with other entries in its header; None takes one out."""
    entries = {**content.config_records["fedward"], **changes}
    kept = ConfigRecord({key: value for key, value in entries.items() if value is not None})
    return RecordDict({**content, "fedward": kept})


def headed(**changes: Any) -> Make:
    """Return the maker of an honest task whose header is changed."""
    return lambda target: header(target.task(), **changes)


def called(**changes: Any) -> Make:
    """Return the maker of an honest roll call whose header is changed."""
    return lambda target: header(target.roll_call(), **changes)


def beside(**records: ArrayRecord | ConfigRecord | MetricRecord) -> Make:
    """Return the maker of an honest task with further records."""
    return lambda target: RecordDict({**target.task(), **records})


def told(**metadata: Any) -> Make:
    """Return the maker of an honest task under another announcement."""

    def make(target: Target) -> Parcel:
        sent = target.parcel(target.task())
        return replace(sent, metadata={**sent.metadata, **metadata})

    return make


def headless(target: Target) -> Parcel:
    """Return a task whose announcement says nothing of it."""
    return replace(target.parcel(target.task()), metadata={})


def asking(**changes: Any) -> Make:
    """Return the maker of a roll call for a study with other terms."""
    return lambda target: target.roll_call(hostile_study(**changes))


def written(change: Callable[[str], str | bytes]) -> Make:
    """Return the maker of a roll call whose study is another text."""
    return lambda target: header(target.roll_call(), study=change(STUDY.canonical().decode()))


def with_value(path: Sequence[str], value: Any) -> Make:
    """Return the maker of a roll call whose study has `value` at `path`."""

    def change(text: str) -> str:
        study = json.loads(text)
        part = study
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        return json.dumps(study)

    return written(change)


def signed(*signatures: Signature) -> Make:
    """Return the maker of a roll call with these signatures."""
    return lambda target: target.roll_call(signatures=signatures)


def vector(make: Callable[[bytes], object], **also: Any) -> Make:
    """Return the maker of a task whose model's bytes are changed, and other keys of its header."""

    def task(target: Target) -> RecordDict:
        content = target.task()
        raw = content.config_records["fedward"]["vector"]
        return header(content, vector=make(bytes(raw)), **also)  # type: ignore[arg-type]

    return task


def numbers(*values: float) -> Callable[[bytes], bytes]:
    """Return a change of a model's first numbers."""
    head = np.array(values, dtype="<f4").tobytes()
    return lambda raw: head + raw[len(head) :]


def forged(which: int, change: Callable[[bytes], bytes]) -> Make:
    """Return the maker of a task one of whose objects is changed, with every digest made to fit.

    Args:
        which: 0 the header, 1 the records, 2 the message.
        change: of the object's bytes.
    """

    def make(target: Target) -> Parcel:
        sent = target.parcel(target.task())
        name = wire.tree_ids(sent.tree)[which]
        return wire.with_object(sent, name, change(sent.objects[name]))

    return make


def emptied(target: Target) -> Parcel:
    """Return a task of which nothing is handed out but an empty object under the message's name."""
    sent = target.parcel(target.task())
    return replace(sent, objects=dict.fromkeys(wire.tree_ids(sent.tree)[-1:], b""))


def swapped(target: Target) -> Parcel:
    """Return a task whose header is another one's under its name."""
    sent, other = target.parcel(target.task()), target.parcel(target.roll_call())
    name, foreign = wire.tree_ids(sent.tree)[0], wire.tree_ids(other.tree)[0]
    return replace(sent, objects={**sent.objects, name: other.objects[foreign]})


def treed(change: Callable[[wire.Tree], wire.Tree | None]) -> Make:
    """Return the maker of a task that is announced with another tree of objects."""

    def make(target: Target) -> Parcel:
        sent = target.parcel(target.task())
        assert sent.tree is not None  # noqa: S101  (an honest parcel has a tree)
        return replace(sent, tree=change(sent.tree))

    return make


def deep(tree: wire.Tree) -> wire.Tree:
    """Return a tree within 60 others."""
    for _ in range(60):
        tree = (tree[0], (tree,))
    return tree


def signature(key: Ed25519PrivateKey, over: Study = STUDY) -> Signature:
    """Return a signature of these bytes under the key's own name."""
    return Signature(public_text(key.public_key()), sign(key, over.canonical()))


def looser(contract: Mapping[str, Any]) -> Make:
    """Return the maker of a roll call for a study with this contract."""
    return lambda target: target.roll_call(Study.of(contract))


def inlined(inline: bytes) -> Make:
    """Return the maker of an honest task with records within its announcement."""
    return lambda target: replace(target.parcel(target.task()), inline=inline)
