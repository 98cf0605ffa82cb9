"""Mutations of an honest message, drawn by hypothesis: of its records, of its bytes, of its announcement.

A mutation is drawn without looking at the site, so that a failure is found again from its draw.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

from fedward_common.wire import PROTOCOL
from fedward_simulations.faults import flower_adapter as wire
from fedward_simulations.faults.flower_adapter import Parcel, Tree
from fedward_simulations.faults.superlink import FOREIGN_RUN

__all__ = ["Mutation", "mutations"]

Records = dict[str, Any]
OnRecords = Callable[[Records], None]
OnBytes = Callable[[Parcel], Parcel]


@dataclass(frozen=True, slots=True)
class Mutation:
    """What becomes of an honest roll call, or of an honest task.

    Attributes:
        task: whether it is a task.
        names: what is done, for people to read.
        on_records: changes of the records, in order.
        on_bytes: changes of objects, tree and announcement, in order.
    """

    task: bool
    names: tuple[str, ...]
    on_records: tuple[OnRecords, ...]
    on_bytes: tuple[OnBytes, ...]

    def __repr__(self) -> str:
        return f"{'task' if self.task else 'roll call'}: {'; '.join(self.names)}"

    def apply(self, content: RecordDict, pack: Callable[[RecordDict], Parcel]) -> tuple[Parcel, Parcel]:
        """Return the honest `content` after all that is done to it, packed in between; and as it is announced.

        The second one has every object whole that the first one's tree announces and that was there when it was
        packed: a site that had such an object in its cache never asks for it again.
        """
        records: Records = dict(content)
        for change in self.on_records:
            change(records)
        sent = pack(RecordDict({name: record for name, record in records.items() if record is not None}))
        whole = dict(sent.objects)
        for alter in self.on_bytes:
            sent = alter(sent)
        return sent, replace(sent, objects={**sent.objects, **whole})


# ---------------------------------------------------------------------------------------------------------- records
KEYS: Final = ["protocol", "study", "round", "dtype", "length", "vector", "signatures"]
_integers = st.integers(-(1 << 63), (1 << 63) - 1)
_near = st.sampled_from([-1, 0, 1, 2, 3, PROTOCOL - 1, PROTOCOL + 1, 10_000, 10_001, 1 << 31, (1 << 63) - 1])
_texts = st.text(max_size=40) | st.sampled_from(["", "0", "<f8", ">f4", "k s", "\x00", "../../x", "[" * 3000])
_scalars = st.booleans() | _integers | _near | st.floats() | _texts | st.binary(max_size=40)
_lists = st.lists(_integers, max_size=3) | st.lists(st.floats(), max_size=3) | st.lists(_texts, max_size=12)
_values: st.SearchStrategy[Any] = _scalars | _lists
_names = st.sampled_from([*KEYS, "part-1", "code", "sites", "privacy"]) | st.text(min_size=1, max_size=12)
_arrays = st.builds(
    lambda dtype, shape: Array(np.zeros(shape, dtype=dtype)),
    st.sampled_from(["<f4", "<i8", "?", "S3"]),
    st.lists(st.integers(0, 5), max_size=2).map(tuple),
)
_numbers: st.SearchStrategy[Any] = _integers | st.floats() | st.lists(_integers, max_size=3)
_records: st.SearchStrategy[Any] = (
    st.builds(ConfigRecord, st.dictionaries(_names, _values, max_size=3))
    | st.builds(MetricRecord, st.dictionaries(_names, _numbers, max_size=3))
    | st.builds(ArrayRecord, st.dictionaries(_names, _arrays, max_size=2))
)


def _on_header(change: Callable[[dict[str, Any]], None]) -> OnRecords:
    def apply(records: Records) -> None:
        if not isinstance(records.get("fedward", ConfigRecord()), ConfigRecord):
            return  # another mutation has put another kind of record there
        header = dict(records.get("fedward") or {})
        change(header)
        records["fedward"] = ConfigRecord({key: value for key, value in header.items() if value is not None})

    return apply


def _set(key: str, value: Any) -> OnRecords:
    return _on_header(lambda header: header.__setitem__(key, value))


def _put(name: str, record: Any) -> OnRecords:
    return lambda records: records.__setitem__(name, record)


def _move(name: str) -> OnRecords:
    return lambda records: records.__setitem__(name, records.pop("fedward", None))


def _on_text(change: Callable[[str], str]) -> OnRecords:
    def apply(header: dict[str, Any]) -> None:
        if isinstance(header.get("study"), str):
            header["study"] = change(header["study"])

    return _on_header(apply)


def _on_leaf(at: int, change: Callable[[Any, Any], None]) -> OnRecords:
    """Return a change of the study's `at`-th entry, counted through the whole tree."""

    def apply(text: str) -> str:
        try:
            study = json.loads(text)
        except ValueError:
            return text
        places = list(_places(study))
        if places:
            change(*places[at % len(places)])
        return json.dumps(study)

    return _on_text(apply)


def _places(part: Any) -> list[tuple[Any, Any]]:
    keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
    return [place for key in keys for place in [(part, key), *_places(part[key])]]


def _drop(part: Any, key: Any) -> None:
    del part[key]


def _twin(part: Any, key: Any) -> None:
    if isinstance(part, dict):
        part[f"{key}_"] = part[key]
    else:
        part.append(part[key])


_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_texts, inner, max_size=2),
    max_leaves=4,
)


def _splice(at: int, cut: int, text: str) -> Callable[[str], str]:
    def change(study: str) -> str:
        place = at % (len(study) + 1)
        return study[:place] + text + study[place + cut :]

    return change


def _on_vector(change: Callable[[bytes], Any]) -> OnRecords:
    def apply(header: dict[str, Any]) -> None:
        if isinstance(header.get("vector"), bytes):
            header["vector"] = change(header["vector"])

    return _on_header(apply)


def _bits(at: int, word: int) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        place = 4 * (at % max(len(raw) // 4, 1))
        return raw[:place] + word.to_bytes(4, "little") + raw[place + 4 :]

    return change


_text = st.text(max_size=3) | st.sampled_from(["}", '"', "\\u0000", "\\ud800", "NaN", "1e999", "0" * 5000, " "])
_draws_on_records: st.SearchStrategy[tuple[str, OnRecords]] = st.one_of(
    st.tuples(st.sampled_from(KEYS), _values).map(lambda d: (f"{d[0]} is {d[1]!r:.40}", _set(*d))),
    st.sampled_from(KEYS).map(lambda key: (f"no {key}", _set(key, None))),
    st.tuples(_names, _values).map(lambda d: (f"further key {d[0]!r}", _set(*d))),
    st.tuples(_names, _records).map(lambda d: (f"further record {d[0]!r}", _put(*d))),
    _records.map(lambda record: (f"header is {type(record).__name__}", _put("fedward", record))),
    _names.map(lambda name: (f"header called {name!r}", _move(name))),
    st.tuples(st.integers(0, 400), _JSON).map(
        lambda d: (f"study entry {d[0]} is {d[1]!r:.40}", _on_leaf(d[0], lambda part, key: part.__setitem__(key, d[1])))
    ),
    st.integers(0, 400).map(lambda at: (f"no study entry {at}", _on_leaf(at, _drop))),
    st.integers(0, 400).map(lambda at: (f"study entry {at} twice", _on_leaf(at, _twin))),
    st.tuples(st.integers(0, 3000), st.integers(0, 4), _text).map(
        lambda d: (f"study text at {d[0]}: {d[1]} out, {d[2]!r:.20} in", _on_text(_splice(*d)))
    ),
    st.tuples(st.integers(0, 9), st.integers(0, (1 << 32) - 1) | st.sampled_from([0x7FC00000, 0x7F800000])).map(
        lambda d: (f"model entry {d[0]} is {d[1]:08x}", _on_vector(_bits(*d)))
    ),
    st.integers(0, 40).map(lambda n: (f"model of {n} bytes", _on_vector(lambda raw: raw[:n]))),
    st.binary(min_size=1, max_size=9).map(lambda more: ("longer model", _on_vector(lambda raw: raw + more))),
)


# ------------------------------------------------------------------------------------------------------------ bytes
def _name(sent: Parcel, which: int) -> str | None:
    names = [name for name in wire.tree_ids(sent.tree) if name in sent.objects]
    return names[which % len(names)] if names else None


def _on_object(which: int, change: Callable[[bytes], bytes], *, fitting: bool) -> OnBytes:
    """Return a change of one object's bytes; `fitting`: with all digests above made to fit."""

    def apply(sent: Parcel) -> Parcel:
        name = _name(sent, which)
        if name is None:
            return sent
        content = change(sent.objects[name])
        if fitting:
            return wire.with_object(sent, name, content)
        return replace(sent, objects={**sent.objects, name: content})

    return apply


def _flipped(at: int, bit: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        if not content:
            return b"\x00"
        place = at % len(content)
        return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]

    return change


def _headed(kind: bytes) -> Callable[[bytes], bytes]:
    return lambda content: kind + content[content.find(b" ") :]


def _losing(which: int) -> OnBytes:
    def apply(sent: Parcel) -> Parcel:
        name = _name(sent, which)
        return replace(sent, objects={key: value for key, value in sent.objects.items() if key != name})

    return apply


def _swapping(one: int, other: int) -> OnBytes:
    def apply(sent: Parcel) -> Parcel:
        first, second = _name(sent, one), _name(sent, other)
        if first is None or second is None:
            return sent
        return replace(sent, objects={**sent.objects, first: sent.objects[second], second: sent.objects[first]})

    return apply


def _on_tree(change: Callable[[Tree], Tree | None]) -> OnBytes:
    return lambda sent: replace(sent, tree=change(sent.tree) if sent.tree else None)


def _at(tree: Tree, where: int, change: Callable[[Tree], Tree]) -> Tree:
    """Return the tree with its `where`-th node, counted from the root down the first children, changed."""
    if where <= 0 or not tree[1]:
        return change(tree)
    return tree[0], (_at(tree[1][0], where - 1, change), *tree[1][1:])


def _deepened(tree: Tree, levels: int) -> Tree:
    for _ in range(levels):
        tree = (tree[0], (tree,))
    return tree


_which, _depth = st.integers(0, 2), st.integers(0, 2)
_odd_ids = st.sampled_from(["", "0" * 64, "F" * 64, "../../site.yaml", "x" * 64]) | st.text(max_size=70)
_on_content: st.SearchStrategy[tuple[str, Callable[[bytes], bytes]]] = st.one_of(
    st.tuples(st.integers(0, 4000), st.integers(0, 7)).map(lambda d: (f"bit {d[1]} of byte {d[0]}", _flipped(*d))),
    st.integers(0, 4000).map(lambda n: (f"cut at {n}", lambda content: content[:n])),
    st.binary(min_size=1, max_size=40).map(lambda more: ("longer", lambda content: content + more)),
    st.binary(max_size=60).map(lambda other: ("other bytes", lambda _: other)),
    st.sampled_from([b"Array", b"ArrayChunk", b"ArrayRecord", b"ConfigRecord", b"MetricRecord", b"Message", b"os"]).map(
        lambda kind: (f"called {kind.decode()}", _headed(kind))
    ),
)
_metadata: Final[dict[str, st.SearchStrategy[Any]]] = {
    "run_id": st.sampled_from([0, FOREIGN_RUN, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1),
    "src_node_id": st.integers(0, (1 << 64) - 1),
    "dst_node_id": st.integers(0, (1 << 64) - 1),
    "message_id": _odd_ids,
    "reply_to_message_id": _odd_ids,
    "group_id": st.text(max_size=20),
    "ttl": st.floats(),
    "created_at": st.floats(),
    "message_type": st.sampled_from(["query", "train", "evaluate", "train.x", "query.x", "reconnect", "shell", ""])
    | st.text(max_size=12),
    "src_task_id": st.integers(0, (1 << 64) - 1),
    "dst_task_id": st.integers(0, (1 << 64) - 1),
}


def _told(field: str, value: Any) -> OnBytes:
    return lambda sent: replace(sent, metadata={**sent.metadata, field: value})


_draws_on_bytes: st.SearchStrategy[tuple[str, OnBytes]] = st.one_of(
    st.tuples(_which, _on_content, st.booleans()).map(
        lambda d: (
            f"object {d[0]} {d[1][0]}{' (fitting)' if d[2] else ''}",
            _on_object(d[0], d[1][1], fitting=d[2]),
        )
    ),
    _which.map(lambda which: (f"object {which} lost", _losing(which))),
    st.tuples(_which, _which).map(lambda d: (f"objects {d[0]} and {d[1]} swapped", _swapping(*d))),
    st.tuples(_depth, _odd_ids).map(
        lambda d: (f"node {d[0]} called {d[1]!r:.20}", _on_tree(lambda t: _at(t, d[0], lambda n: (d[1], n[1]))))
    ),
    st.tuples(_depth, _odd_ids).map(
        lambda d: (
            f"a child of node {d[0]} called {d[1]!r:.20}",
            _on_tree(lambda t: _at(t, d[0], lambda n: (n[0], (*n[1], (d[1], ()))))),
        )
    ),
    _depth.map(lambda at: (f"node {at} doubled", _on_tree(lambda t: _at(t, at, lambda n: (n[0], (*n[1], *n[1])))))),
    _depth.map(lambda at: (f"node {at} without children", _on_tree(lambda t: _at(t, at, lambda n: (n[0], ()))))),
    _depth.map(lambda at: (f"node {at} reversed", _on_tree(lambda t: _at(t, at, lambda n: (n[0], n[1][::-1]))))),
    st.tuples(_depth, st.integers(1, 40)).map(
        lambda d: (f"node {d[0]} {d[1]} deep", _on_tree(lambda t: _at(t, d[0], lambda n: _deepened(n, d[1]))))
    ),
    st.just(("no tree", _on_tree(lambda _: None))),
    st.sampled_from(sorted(_metadata)).flatmap(
        lambda field: _metadata[field].map(lambda value: (f"{field} is {value!r:.30}", _told(field, value)))
    ),
)


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Return one to three changes of an honest message, of its records, of its bytes or of both."""
    task = draw(st.booleans())
    level = draw(st.sampled_from(["records", "bytes", "both"]))
    records = draw(st.lists(_draws_on_records, min_size=1, max_size=2)) if level != "bytes" else []
    octets = draw(st.lists(_draws_on_bytes, min_size=1, max_size=2)) if level != "records" else []
    names = (*(name for name, _ in records), *(name for name, _ in octets))
    return Mutation(task, names, tuple(change for _, change in records), tuple(change for _, change in octets))
