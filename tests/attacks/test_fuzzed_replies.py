"""Replies that nobody would think of: none ends a round, none is accepted, none changes the model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedward_common.errors import QuorumLostError
from fedward_common.fixed_point import SCALE
from fedward_common.models import initial_weights
from fedward_common.wire import Enrolment, write_enrolment, write_update
from fedward_server.aggregation import aggregator_for
from fedward_server.rounds import ClosedRound, RoundLoop
from tests.builders import small_study, update
from tests.doubles import Delivery, FakeClock, ScriptedGrid, says

STUDY = small_study(sites=["north", "south", "west"], training={"rounds": 1}, aggregation={"deadline_seconds": 10})
WEIGHT = 40
HONEST = write_update(update(STUDY, site="south", weight=WEIGHT))
NUMBERS: dict[str, Any] = dict(HONEST.config_records["fedward"])
DATA = update(STUDY, site="south", weight=WEIGHT).values.tobytes()
LENGTH = len(initial_weights(STUDY))
DEFAULT, CAMPAIGN = 500, 10_000

integers = st.integers(-(1 << 63), (1 << 63) - 1)
interesting = st.sampled_from([-9, -1, 0, 1, 2, WEIGHT - 1, WEIGHT + 1, 1 << 20, 10**15, (1 << 63) - 1])
texts = st.text(max_size=300) | st.sampled_from(["north", "south", STUDY.digest, "", "refusal"])
scalars = st.booleans() | integers | interesting | st.floats() | texts | st.binary(max_size=64)
values = scalars | st.lists(integers, max_size=3) | st.lists(st.floats(), max_size=3) | st.lists(texts, max_size=3)
names = st.sampled_from(["vector", "dtype", "fedward", "part-1", "loss", "weight"]) | st.text(max_size=20)
plain: st.SearchStrategy[Any] = st.builds(ConfigRecord, st.dictionaries(names, values, max_size=4))
numbers: st.SearchStrategy[Any] = integers | st.floats() | st.lists(integers, max_size=3)
metrics: st.SearchStrategy[Any] = st.builds(MetricRecord, st.dictionaries(names, numbers, max_size=4))
dtypes = st.sampled_from(["<i8", ">i8", "<f4", "<f8", "<f2", "<u8", "<i4", "?", "<c16", "S3", "<U2"])
shapes = st.lists(st.integers(0, 9), max_size=3)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Return an array of any dtype and shape."""
    return Array(np.zeros(tuple(draw(shapes)), dtype=draw(dtypes)))


array_records: st.SearchStrategy[Any] = st.dictionaries(names, arrays(), max_size=2).map(ArrayRecord)


@st.composite
def other_vectors(draw: st.DrawFn) -> dict[str, Any]:
    """Return the entries of a vector of any type and length, never those of an update."""
    dtype, shape = draw(dtypes), tuple(draw(shapes))
    array = np.zeros(shape, dtype=dtype)
    assume((array.dtype.str, array.size) != ("<i8", LENGTH))
    return {"dtype": array.dtype.str, "length": array.size, "vector": array.tobytes()}


@st.composite
def broken_bytes(draw: st.DrawFn) -> dict[str, Any]:
    """Return the honest vector's bytes, cut, prolonged, or with a file's header before them."""
    kind = draw(st.sampled_from(["cut", "longer", "header", "random"]))
    data = {
        "cut": DATA[: draw(st.integers(0, len(DATA) - 1))],
        "longer": DATA + draw(st.binary(min_size=1, max_size=2000)),
        "header": b"\x93NUMPY\x01\x00" + draw(st.binary(max_size=128)) + DATA,
        "random": draw(st.binary(max_size=300)),
    }[kind]
    assume(len(data) != len(DATA))
    return {"vector": data}


@st.composite
def beyond(draw: st.DrawFn) -> dict[str, Any]:
    """Return a vector of the right form with an entry beyond the bound."""
    limit = int(STUDY.aggregation.update_bound) * SCALE * WEIGHT
    vector = np.zeros(LENGTH, dtype=np.int64)
    vector[draw(st.integers(0, len(vector) - 1))] = draw(
        st.integers(limit + 1, (1 << 63) - 1) | st.integers(-(1 << 63), -limit - 1)
    )
    return {"vector": vector.tobytes()}


def _harmless(key: str, value: object) -> bool:
    """Return whether a site may say this instead: fewer patients than it enrolled with, or another small change."""
    if key == "weight":
        return type(value) is int and 1 <= value <= WEIGHT
    if key == "vector":
        return isinstance(value, bytes) and len(value) == len(DATA)
    return bool(value == NUMBERS[key])  # True == 1 too: refused where a number is due, but not claimed here


wrong_entries = st.dictionaries(
    st.sampled_from(list(NUMBERS)), st.none() | values, min_size=1, max_size=3
).filter(lambda changes: not all(_harmless(key, value) for key, value in changes.items()))  # fmt: skip
more_entries = st.dictionaries(
    names.filter(lambda name: name not in {*NUMBERS, "loss"}), values, min_size=1, max_size=2
)  # fmt: skip


@st.composite
def hostile_headers(draw: st.DrawFn) -> ConfigRecord:
    """Return a header in which at least one entry is not what it must be."""
    changes = draw(wrong_entries | more_entries | other_vectors() | broken_bytes() | beyond())
    return ConfigRecord({key: value for key, value in {**NUMBERS, **changes}.items() if value is not None})


@st.composite
def hostile_contents(draw: st.DrawFn) -> RecordDict:
    """Return the honest reply with one to all of its records made wrong."""
    choices: st.SearchStrategy[Any] = hostile_headers() | plain | metrics | array_records | st.none()
    wrong = draw(st.sets(st.sampled_from(["fedward", "extra"]), min_size=1))
    records: dict[str, Any] = dict(HONEST)
    if "fedward" in wrong:
        records["fedward"] = draw(choices)
    if "extra" in wrong:
        key = draw(names.filter(lambda text: text != "fedward"))
        records[key] = draw(plain | metrics | array_records)
    return RecordDict({key: record for key, record in records.items() if record is not None})


@st.composite
def wrong_metrics(draw: st.DrawFn) -> RecordDict:
    """Return the honest reply with a metric that no site may send."""
    found = draw(st.dictionaries(names.filter(lambda name: name not in NUMBERS), numbers, min_size=1, max_size=3))
    assume(any(not _is_loss(name, value) for name, value in found.items()))
    return RecordDict({"fedward": ConfigRecord({**NUMBERS, **found})})


def _is_loss(name: str, value: object) -> bool:
    return name == "loss" and isinstance(value, int | float) and math.isfinite(value)


errors = st.builds(Error, st.integers(-5, 300), st.none() | texts)
hostile = hostile_contents() | wrong_metrics() | errors


ENROLMENTS = {node: Enrolment(site, STUDY.digest, WEIGHT, "1") for node, site in enumerate(STUDY.sites, start=2)}
ANSWERS: dict[Any, Any] = {
    (e.site, round_): says(content)
    for seed, e in enumerate(ENROLMENTS.values())
    for round_, content in enumerate([
        write_enrolment(e), write_update(update(STUDY, site=e.site, weight=WEIGHT, seed=seed)),
    ])
}  # fmt: skip


def a_loop(script: dict[Any, Any], **options: Any) -> RoundLoop:
    """Return the real loop over three sites that enrol and answer from a script alone."""
    grid = ScriptedGrid(dict.fromkeys(STUDY.sites), {**ANSWERS, **script}, clock=FakeClock())
    return RoundLoop(
        STUDY, grid, aggregator=aggregator_for(STUDY), poll_seconds=0, clock=grid.clock,
        **{"roster": grid.roster, **options},
    )  # fmt: skip


def one_round(reply: RecordDict | Error) -> tuple[ClosedRound, RoundLoop]:
    """Run a round of three enrolled sites; `reply` is what ``south`` says."""
    loop = a_loop({("south", 1): lambda _: [Delivery(reply)]}, enrolments=dict(ENROLMENTS))
    return next(iter(loop.rounds(initial_weights(STUDY)))), loop


@pytest.fixture(scope="module")
def reference() -> npt.NDArray[np.float32]:
    """The model of the round that ``south`` does not answer."""
    return one_round(RecordDict())[0].weights


def _assert_costs_only_the_sender(reference: npt.NDArray[np.float32], reply: RecordDict | Error) -> None:
    closed, loop = one_round(reply)
    assert closed.accepted == ("north", "west")
    assert closed.missing.keys() == {"south"}
    assert 0 < len(closed.missing["south"]) <= 600
    assert closed.missing == loop.missed
    assert closed.weights.tobytes() == reference.tobytes()


def test_the_unchanged_reply_would_be_accepted() -> None:
    closed, _ = one_round(HONEST)
    assert closed.accepted == STUDY.sites
    assert closed.missing == {}


@settings(max_examples=DEFAULT)
@given(hostile)
def test_no_hostile_reply_ends_the_round_or_is_accepted(reference: npt.NDArray[np.float32], reply: Any) -> None:
    _assert_costs_only_the_sender(reference, reply)


@pytest.mark.campaign
@settings(max_examples=CAMPAIGN)
@given(hostile)
def test_no_hostile_reply_of_ten_thousand_is_accepted(reference: npt.NDArray[np.float32], reply: Any) -> None:
    _assert_costs_only_the_sender(reference, reply)


# ------------------------------------------------------------------------------------------------------------ roll call
ENROLMENT: dict[str, Any] = dict(
    write_enrolment(Enrolment("south", STUDY.digest, WEIGHT, "1")).config_records["fedward"]
)


def _allowed(header: dict[str, Any]) -> bool:
    """Return whether a node may enrol with this header: everything but size and version has one right value."""
    patients, version = header.get("patients"), header.get("version")
    return (
        header.keys() <= ENROLMENT.keys()
        and type(header.get("protocol")) is int  # True is no number of a protocol
        and all(header.get(key) == ENROLMENT[key] for key in ("protocol", "site", "digest"))
        and type(patients) is int
        and 1 <= patients <= 1 << 40
        and isinstance(version, str)
        and 0 < len(version) <= 256
    )


@st.composite
def hostile_enrolments(draw: st.DrawFn) -> RecordDict:
    keys = st.sampled_from([*ENROLMENT, "refusal"])
    header = {**ENROLMENT, **draw(st.dictionaries(keys, st.none() | values, min_size=1, max_size=4))}
    header = {key: value for key, value in header.items() if value is not None}
    extra = draw(st.dictionaries(st.text(min_size=1, max_size=9), plain | metrics, max_size=1))
    assume(not _allowed(header) or extra.keys() - {"fedward"})
    return RecordDict({**extra, "fedward": ConfigRecord(header)})


@settings(max_examples=DEFAULT // 2)
@given(st.one_of(hostile_enrolments(), plain.map(lambda record: RecordDict({"fedward": record})), errors))
def test_no_hostile_enrolment_ends_the_roll_call_or_is_accepted(reply: Any) -> None:
    loop = a_loop({("south", 0): lambda _: [Delivery(reply)]})
    loop.enrol()
    assert {e.site for e in loop.enrolments.values()} == {"north", "west"}
    assert loop.excluded.keys() == {"south"}


@settings(max_examples=100)
@given(st.lists(st.sampled_from(STUDY.sites), min_size=3, max_size=3))
def test_nodes_without_keys_cannot_take_two_names_or_speak_for_a_site(claims: list[str]) -> None:
    script = {
        (site, 0): says(write_enrolment(Enrolment(claim, STUDY.digest, WEIGHT, "1")))
        for site, claim in zip(STUDY.sites, claims, strict=True)
    }
    loop = a_loop(script, roster=None)
    if len(set(claims)) < STUDY.aggregation.quorum:
        with pytest.raises(QuorumLostError):
            loop.enrol()
    else:
        loop.enrol()
    enrolled = [e.site for e in loop.enrolments.values()]
    assert sorted(enrolled) == sorted(set(claims))
    assert not set(enrolled) & loop.excluded.keys()
    assert set(STUDY.sites) <= set(enrolled) | loop.excluded.keys()
