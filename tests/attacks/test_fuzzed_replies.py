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
DATA = HONEST.array_records["update"]["update"].data
BODY = 8 * len(initial_weights(STUDY))
DEFAULT, CAMPAIGN = 500, 10_000

integers = st.integers(-(1 << 63), (1 << 63) - 1)
interesting = st.sampled_from([-9, -1, 0, 1, 2, WEIGHT - 1, WEIGHT + 1, 1 << 20, 10**15, (1 << 63) - 1])
texts = st.text(max_size=300) | st.sampled_from(["north", "south", STUDY.digest, "", "refusal"])
scalars = st.booleans() | integers | interesting | st.floats() | texts | st.binary(max_size=64)
values = scalars | st.lists(integers, max_size=3) | st.lists(st.floats(), max_size=3) | st.lists(texts, max_size=3)
names = st.sampled_from(["update", "metrics", "fedward", "model", "loss", "weight"]) | st.text(max_size=20)
plain: st.SearchStrategy[Any] = st.builds(ConfigRecord, st.dictionaries(names, values, max_size=4))
numbers: st.SearchStrategy[Any] = integers | st.floats() | st.lists(integers, max_size=3)
metrics: st.SearchStrategy[Any] = st.builds(MetricRecord, st.dictionaries(names, numbers, max_size=4))
dtypes = st.sampled_from(["<i8", ">i8", "<f4", "<f8", "<f2", "<u8", "<i4", "?", "<c16", "S3", "<U2"])
shapes = st.lists(st.integers(0, 9), max_size=3)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Return an array of any dtype and shape, never that of an update."""
    dtype, shape = draw(dtypes), tuple(draw(shapes))
    assume((dtype, shape) != ("<i8", (BODY // 8,)))
    return Array(np.zeros(shape, dtype=dtype))


@st.composite
def broken_bytes(draw: st.DrawFn) -> Array:
    """Return the honest array's bytes, cut, prolonged, or with a header of somebody else's."""
    kind = draw(st.sampled_from(["cut", "longer", "header", "random"]))
    data = {
        "cut": DATA[: draw(st.integers(0, len(DATA) - 1))],
        "longer": DATA + draw(st.binary(min_size=1, max_size=2000)),
        "header": draw(st.binary(min_size=1, max_size=len(DATA) - BODY)) + DATA[-BODY:],
        "random": draw(st.binary(max_size=300)),
    }[kind]
    assume(data != DATA)
    return Array(dtype="int64", shape=(BODY // 8,), stype="numpy.ndarray", data=data)


@st.composite
def beyond(draw: st.DrawFn) -> Array:
    """Return an array of the right form with an entry beyond the bound."""
    limit = int(STUDY.aggregation.update_bound) * SCALE * WEIGHT
    vector = np.zeros(BODY // 8, dtype=np.int64)
    vector[draw(st.integers(0, len(vector) - 1))] = draw(
        st.integers(limit + 1, (1 << 63) - 1) | st.integers(-(1 << 63), -limit - 1)
    )
    return Array(vector)


@st.composite
def hostile_headers(draw: st.DrawFn) -> ConfigRecord:
    """Return a header in which at least one number or name is not what it must be."""
    changes = draw(st.dictionaries(st.sampled_from(list(NUMBERS)), st.none() | values, min_size=1, max_size=3))
    assume(any(not _same(NUMBERS[key], value) for key, value in changes.items()))
    return ConfigRecord({key: value for key, value in {**NUMBERS, **changes}.items() if value is not None})


def _same(honest: object, value: object) -> bool:
    return value == honest  # True == 1 too: a reply whose round is True is refused, but that is not this test's claim


@st.composite
def hostile_contents(draw: st.DrawFn) -> RecordDict:
    """Return the honest reply with one to all of its records made wrong."""
    wrong_arrays = (arrays() | broken_bytes() | beyond()).map(lambda array: ArrayRecord({"update": array}))
    other_names = st.dictionaries(names, arrays(), max_size=2).map(ArrayRecord)
    choices: dict[str, st.SearchStrategy[Any]] = {
        "fedward": hostile_headers() | plain | metrics | other_names | st.none(),
        "update": wrong_arrays | other_names | plain | metrics | st.none(),
    }
    wrong = draw(st.sets(st.sampled_from([*choices, "extra"]), min_size=1))
    records: dict[str, Any] = dict(HONEST)
    for name in sorted(wrong & choices.keys()):
        records[name] = draw(choices[name])
        assume(records[name] is None or dict(records[name]) != dict(HONEST[name]))
    if "extra" in wrong:
        key = draw(st.text(max_size=30).filter(lambda text: text not in {"fedward", "update", "metrics"}))
        records[key] = draw(plain | metrics | other_names)
    return RecordDict({key: record for key, record in records.items() if record is not None})


@st.composite
def wrong_metrics(draw: st.DrawFn) -> RecordDict:
    """Return the honest reply with a metric that no site may send."""
    found = draw(st.dictionaries(names, numbers, min_size=1, max_size=3))
    assume(any(not _is_loss(name, value) for name, value in found.items()))
    return RecordDict({**HONEST, "metrics": MetricRecord(found)})


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
        all(header.get(key) == ENROLMENT[key] for key in ("protocol", "site", "digest"))
        and not isinstance(header.get("refusal"), str)
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
