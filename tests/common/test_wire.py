"""What crosses a site's border: the allow-list, and nothing that a stranger sends does more than get refused."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.errors import Refusal, RefusalCode, RejectedReply
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.wire import (
    MAX_STUDY_BYTES,
    PROTOCOL,
    Enrolment,
    read_enrolment,
    read_refusal,
    read_task,
    read_update,
    refusing_site,
    write_enrolment,
    write_refusal,
    write_roll_call,
    write_task,
    write_update,
)
from tests.builders import small_study, update

STUDY = small_study(model={"name": "mlp", "hidden": [3]})
SIZE = parameter_spec(STUDY).size
ENROLMENT = Enrolment("north", STUDY.digest, 40, "0.1.0")


def header(content: RecordDict, **changes: Any) -> RecordDict:
    """Change the header of a message; None takes a key out."""
    values = dict(content.config_records["fedward"]) | changes
    content["fedward"] = ConfigRecord({key: value for key, value in values.items() if value is not None})
    return content


def with_vector(content: RecordDict, array: np.ndarray) -> RecordDict:
    """Put an array into a message, declared as what it is."""
    return header(content, dtype=array.dtype.str, length=array.size, vector=array.tobytes())


def valid_bytes() -> bytes:
    return update(STUDY).values.tobytes()


# ------------------------------------------------------------------------------------------------------ round trips


def test_roll_call_is_read_as_it_was_written() -> None:
    task = read_task(write_roll_call(STUDY))
    assert (task.study, task.round, task.weights) == (STUDY, 0, None)


def test_task_is_read_as_it_was_written() -> None:
    weights = initial_weights(STUDY)
    task = read_task(write_task(STUDY, 2, weights))
    assert (task.study, task.round) == (STUDY, 2)
    assert task.weights is not None
    assert task.weights.dtype == np.float32
    assert (task.weights == weights).all()


def test_enrolment_is_read_as_it_was_written() -> None:
    assert read_enrolment(write_enrolment(ENROLMENT)) == ENROLMENT


def test_update_is_read_as_it_was_written() -> None:
    sent = update(STUDY, round_=2, weight=7)
    sent.metrics["loss"] = 0.25
    got = read_update(write_update(sent), size=SIZE)
    assert (got.values == sent.values).all()
    for name in ("site", "digest", "round", "weight", "steps", "metrics"):
        assert getattr(got, name) == getattr(sent, name)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=SIZE, max_size=SIZE))
def test_any_integers_cross_unchanged(values: list[int]) -> None:
    """Masked updates are uniform modulo 2**64."""
    content = write_update(replace(update(STUDY), values=np.array(values, dtype=np.int64)))
    assert read_update(content, size=SIZE).values.tolist() == values


def test_refusal_crosses_as_code_and_fields_and_never_as_text() -> None:
    refusal = Refusal(RefusalCode.POLICY_LIMIT, "Mrs Canary", remedy="47371", fields={"limit": 8.0, "key": "a.b"})
    content = write_refusal("north", refusal)
    assert read_refusal(content) == "policy_limit key=a.b limit=8.0"
    assert refusing_site(content) == "north"
    assert "Canary" not in repr(content)
    assert "47371" not in repr(content)


def test_every_code_crosses() -> None:
    for code in RefusalCode:
        assert read_refusal(write_refusal("north", Refusal(code))) == code.value


def test_answers_that_are_no_refusal_are_none() -> None:
    assert read_refusal(write_enrolment(ENROLMENT)) is None
    assert read_refusal(RecordDict()) is None


def test_only_allow_listed_fields_cross() -> None:
    """A new field in a reply has to be added here, by somebody who asked whether patients stay safe."""
    allowed = {"protocol", "site", "digest", "round", "weight", "steps", "patients", "version", "refusal", "loss"}
    allowed |= {"dtype", "length", "vector"}
    replies = [
        write_update(replace(update(STUDY), metrics={"loss": 0.5})),
        write_enrolment(ENROLMENT),
        write_refusal("north", Refusal(RefusalCode.INTERNAL, "text")),
    ]
    for reply in replies:
        assert set(reply.config_records["fedward"]) <= allowed
        assert set(reply) == {"fedward"}


def test_metric_that_no_site_may_send_is_never_written() -> None:
    for name in ("auroc", "weight", "site", ""):
        with pytest.raises(ValueError, match="only loss may leave a site"):
            write_update(replace(update(STUDY), metrics={"loss": 0.5, name: 1.0}))


@pytest.mark.parametrize("kind", ["roll call", "task", "enrolment", "update", "refusal"])
def test_message_is_one_record(kind: str) -> None:
    """Each record is an object of its own for Flower, and one more request each way."""
    content = {
        "roll call": write_roll_call(STUDY),
        "task": write_task(STUDY, 1, initial_weights(STUDY)),
        "enrolment": write_enrolment(ENROLMENT),
        "update": write_update(replace(update(STUDY), metrics={"loss": 0.5})),
        "refusal": write_refusal("north", Refusal(RefusalCode.INTERNAL)),
    }[kind]
    assert [type(record) for record in content.values()] == [ConfigRecord]


def test_message_survives_flowers_own_encoding() -> None:
    weights = initial_weights(STUDY) + np.float32(0.5)
    sent = replace(update(STUDY), metrics={"loss": 0.25})

    task = read_task(recorddict_from_proto(recorddict_to_proto(write_task(STUDY, 1, weights))))
    reply = read_update(recorddict_from_proto(recorddict_to_proto(write_update(sent))), size=SIZE)

    assert task.weights is not None
    assert task.weights.tobytes() == weights.tobytes()
    assert reply.values.tobytes() == sent.values.tobytes()
    assert reply.metrics == {"loss": 0.25}


# --------------------------------------------------------------------------------------------- what the centre reads

LYING_TYPES = {
    "float": "<f8",
    "unsigned": "<u8",
    "big endian": ">i8",
    "native": "=i8",
    "other words": "int64",
    "object": "|O",
    "structured": "[('a', '<i8')]",
    "time": "<M8[s]",
    "eight of one byte": "8i1",
    "nested": "(" * 300,
    "minus": "-" * 900 + "1",
    "call": "__import__('os').system('true')",
    "nothing": "",
    "bytes": b"<i8",
    "list": ["<i8"],
    "number": 8,
    "missing": None,
}


@pytest.mark.parametrize("name", LYING_TYPES)
def test_vector_of_a_lying_type_is_rejected(name: str) -> None:
    """The type is compared, never parsed: NumPy reads small programs in such text."""
    with pytest.raises(RejectedReply, match="not declared as") as caught:
        read_update(header(write_update(update(STUDY)), dtype=LYING_TYPES[name]), size=SIZE)
    assert "import" not in caught.value.message


@pytest.mark.parametrize(
    "length", [SIZE - 1, SIZE + 1, 0, -1, 10**12, (1 << 63) - 1, float(SIZE), str(SIZE), [SIZE], [SIZE, 1], True, None]
)
def test_vector_of_a_lying_length_is_rejected(length: Any) -> None:
    with pytest.raises(RejectedReply, match="not declared as"):
        read_update(header(write_update(update(STUDY)), length=length), size=SIZE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        valid_bytes()[:-1],
        valid_bytes()[:-8],
        valid_bytes() + b"\x00",
        valid_bytes() + b"\x00" * 8,
        valid_bytes()[:64],
        b"\x93NUMPY\x01\x00" + valid_bytes(),
        valid_bytes() * 2,
        valid_bytes().decode("latin-1"),
        [valid_bytes()],
        update(STUDY).values.tolist(),
        0,
        None,
    ],
    ids=[
        "empty", "cut", "short", "trailing", "long", "prefix", "file", "twice", "text", "list of bytes",
        "list of numbers", "number", "missing",
    ],
)  # fmt: skip
def test_bytes_that_are_no_packed_vector_are_rejected(data: Any) -> None:
    with pytest.raises(RejectedReply, match="a part of the vector is missing or has not its"):
        read_update(header(write_update(update(STUDY)), vector=data), size=SIZE)


def test_huge_vector_is_rejected_by_its_length_alone() -> None:
    with pytest.raises(RejectedReply, match="has not its"):
        read_update(header(write_update(update(STUDY)), vector=bytes(10_000_000)), size=SIZE)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(SIZE, dtype=np.int32),
        np.zeros(SIZE, dtype=np.float64),
        np.zeros(2 * SIZE, dtype=np.int32),
        np.zeros(SIZE + 1, dtype=np.int64),
        np.zeros(SIZE - 1, dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        np.zeros((), dtype=np.int64),
    ],
)
def test_vector_of_another_length_or_dtype_is_rejected(array: np.ndarray) -> None:
    with pytest.raises(RejectedReply):
        read_update(with_vector(write_update(update(STUDY)), array), size=SIZE)


def test_part_that_a_vector_of_this_size_has_not_is_rejected() -> None:
    for name in ("part-0", "part-1", "part-2", "update", "model"):
        content = write_update(update(STUDY))
        content[name] = ConfigRecord({"vector": valid_bytes()})
        with pytest.raises(RejectedReply, match="1 records that no reply has"):
            read_update(content, size=SIZE)


@pytest.mark.parametrize("key", ["study", "patients", "refusal", "metrics", "rows", ""])
def test_entry_that_no_update_has_is_rejected(key: str) -> None:
    with pytest.raises(RejectedReply, match="1 entries that no such reply has"):
        read_update(header(write_update(update(STUDY)), **{key: "Mrs Canary"}), size=SIZE)


@pytest.mark.parametrize("key", ["weight", "loss", "vector", "refusal", "name"])
def test_entry_that_no_enrolment_has_is_rejected(key: str) -> None:
    with pytest.raises(RejectedReply, match="1 entries that no such reply has"):
        read_enrolment(header(write_enrolment(ENROLMENT), **{key: 7}))


@pytest.mark.parametrize("record", [ConfigRecord({"a": 1}), MetricRecord({"a": 1.0}), ArrayRecord({})])
def test_record_that_no_reply_has_is_rejected(record: Any) -> None:
    content = write_update(update(STUDY))
    content["more"] = record
    with pytest.raises(RejectedReply, match="1 records that no reply has"):
        read_update(content, size=SIZE)


def test_missing_records_are_rejected() -> None:
    with pytest.raises(RejectedReply, match="protocol"):
        read_update(RecordDict(), size=SIZE)
    content = RecordDict({"fedward": MetricRecord({"protocol": PROTOCOL, "weight": 40})})
    with pytest.raises(RejectedReply, match="protocol"):
        read_update(content, size=SIZE)


@pytest.mark.parametrize("protocol", [1, PROTOCOL + 1, 0, -1, 1 << 62])
def test_reply_of_another_protocol_is_rejected_with_both_numbers(protocol: int) -> None:
    for read, content in (
        (lambda reply: read_update(reply, size=SIZE), write_update(update(STUDY))),
        (read_enrolment, write_enrolment(ENROLMENT)),
    ):
        with pytest.raises(RejectedReply, match=f"protocol_mismatch asked={protocol} limit={PROTOCOL}") as caught:
            read(header(content, protocol=protocol))
        assert caught.value.check == "protocol"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", PROTOCOL + 1), ("protocol", str(PROTOCOL)), ("protocol", float(PROTOCOL)), ("protocol", None),
        ("site", None), ("site", ""), ("site", 3), ("site", "x" * 257), ("site", b"north"), ("site", ["north"]),
        ("digest", None), ("digest", 1.0),
        ("round", None), ("round", 1.0), ("round", "1"), ("round", True), ("round", [1]),
        ("weight", None), ("weight", 1e15), ("weight", float("nan")), ("weight", "-9"),
        ("steps", None), ("steps", 0.5),
    ],
)  # fmt: skip
def test_header_field_of_another_type_is_rejected(key: str, value: Any) -> None:
    with pytest.raises(RejectedReply):
        read_update(header(write_update(update(STUDY)), **{key: value}), size=SIZE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), [0.1], "0.1", b"1", True])
def test_metric_that_is_no_finite_number_is_rejected(value: Any) -> None:
    content = header(write_update(update(STUDY)), loss=value)
    with pytest.raises(RejectedReply, match="metric"):
        read_update(content, size=SIZE)


@pytest.mark.parametrize("name", ["auroc", "patients", "loss ", ""])
def test_metric_that_no_site_may_send_is_rejected(name: str) -> None:
    with pytest.raises(RejectedReply, match="1 entries that no such reply has"):
        read_update(header(write_update(update(STUDY)), **{name: 0.5}), size=SIZE)


@pytest.mark.parametrize("patients", [0, -9, (1 << 40) + 1, 1.0, "40", None, True])
def test_enrolment_of_an_impossible_number_of_patients_is_rejected(patients: Any) -> None:
    with pytest.raises(RejectedReply, match="patients"):
        read_enrolment(header(write_enrolment(ENROLMENT), patients=patients))


@pytest.mark.parametrize(
    "tail", ["\x1b[2J", "\n2026 all is well", "<script>", "patient=47371", "key=a b", "key=" + "a" * 300, "limit=", " "]
)
def test_text_that_a_hostile_site_adds_to_a_refusal_is_dropped(tail: str) -> None:
    """The text is shown to people, in a terminal and on a page."""
    content = header(write_refusal("north", Refusal(RefusalCode.INTERNAL)), refusal=f"policy_limit {tail}")
    assert read_refusal(content) == "policy_limit"


def test_unknown_code_is_an_internal_error() -> None:
    content = header(write_refusal("north", Refusal(RefusalCode.INTERNAL)), refusal="all_is_well limit=1")
    assert read_refusal(content) == "internal_error"


# ------------------------------------------------------------------------------------------------- what a site reads


def refused(content: RecordDict) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_task(content)
    return caught.value


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("protocol", 1, RefusalCode.PROTOCOL_MISMATCH),
        ("protocol", PROTOCOL + 1, RefusalCode.PROTOCOL_MISMATCH),
        ("protocol", -(1 << 62), RefusalCode.PROTOCOL_MISMATCH),
        ("protocol", str(PROTOCOL), RefusalCode.MESSAGE_INVALID),
        ("protocol", True, RefusalCode.MESSAGE_INVALID),
        ("protocol", None, RefusalCode.MESSAGE_INVALID),
        ("study", None, RefusalCode.MESSAGE_INVALID),
        ("study", b"{}", RefusalCode.MESSAGE_INVALID),
        ("study", "x" * (MAX_STUDY_BYTES + 1), RefusalCode.MESSAGE_INVALID),
        ("round", None, RefusalCode.MESSAGE_INVALID),
        ("round", 1.0, RefusalCode.MESSAGE_INVALID),
        ("round", True, RefusalCode.MESSAGE_INVALID),
        ("study", "", RefusalCode.STUDY_INVALID),
        ("study", "[]", RefusalCode.STUDY_INVALID),
        ("study", "null", RefusalCode.STUDY_INVALID),
        ("study", '{"name": "\\ud800"}', RefusalCode.STUDY_INVALID),
        ("study", "[" * 100_000, RefusalCode.STUDY_INVALID),
        ("study", "1" * 10_000, RefusalCode.STUDY_INVALID),
        ("study", json.dumps(STUDY.contract() | {"seed": -1}), RefusalCode.STUDY_INVALID),
        ("study", json.dumps(STUDY.contract() | {"code": "import os"}), RefusalCode.STUDY_INVALID),
        ("round", -1, RefusalCode.ROUND_OUT_OF_RANGE),
        ("round", 4, RefusalCode.ROUND_OUT_OF_RANGE),
        ("round", 1 << 62, RefusalCode.ROUND_OUT_OF_RANGE),
    ],
)
def test_header_that_no_centre_writes_is_refused(key: str, value: Any, code: RefusalCode) -> None:
    assert refused(header(write_task(STUDY, 1, initial_weights(STUDY)), **{key: value})).reason == code


def test_round_out_of_range_names_what_was_asked_and_the_limit() -> None:
    refusal = refused(header(write_roll_call(STUDY), round=4))
    assert refusal.crossing() == "round_out_of_range asked=4 limit=3"


@pytest.mark.parametrize(("protocol", "who"), [(1, "the coordinator"), (PROTOCOL + 1, "this site")])
def test_question_of_another_protocol_is_refused_with_both_numbers_and_says_who_is_older(
    protocol: int, who: str
) -> None:
    for content in (write_roll_call(STUDY), write_task(STUDY, 1, initial_weights(STUDY))):
        refusal = refused(header(content, protocol=protocol))
        assert refusal.crossing() == f"protocol_mismatch asked={protocol} limit={PROTOCOL}"
        assert refusal.remedy == f"upgrade Fedward at {who}"
        older = {"the coordinator": "the centre", "this site": "the site"}[who]
        said = f"{refusal.crossing()}: upgrade Fedward at {older}"
        assert read_refusal(write_refusal("north", refusal)) == said


@pytest.mark.parametrize("name", ["model", "part-1", "more"])
def test_record_that_no_task_has_is_refused(name: str) -> None:
    for content in (write_roll_call(STUDY), write_task(STUDY, 1, initial_weights(STUDY))):
        content[name] = ConfigRecord({"vector": bytes(4 * SIZE)})
        assert refused(content).reason == RefusalCode.MESSAGE_INVALID


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros(SIZE + 1, dtype=np.float32),
        np.zeros(SIZE, dtype=np.float64),
        np.zeros(SIZE, dtype=np.int32),
        np.zeros(SIZE, dtype=">f4"),
        np.full(SIZE, np.nan, dtype=np.float32),
        np.full(SIZE, np.inf, dtype=np.float32),
        np.zeros((SIZE, 2), dtype=np.float32),
    ],
)
def test_model_of_another_length_or_type_or_not_finite_is_refused(weights: np.ndarray) -> None:
    content = with_vector(write_task(STUDY, 1, initial_weights(STUDY)), weights)
    assert refused(content).reason == RefusalCode.MODEL_MISMATCH


def test_task_without_a_model_is_refused() -> None:
    assert refused(header(write_roll_call(STUDY), round=1)).reason == RefusalCode.MODEL_MISMATCH


# -------------------------------------------------------------------------------------------------------------- fuzz


def metrics(values: Any) -> MetricRecord:
    return MetricRecord(values)


NAMES = st.sampled_from(["fedward", "part-1", "part-0", "more"])
KEYS = st.sampled_from([
    "protocol", "site", "digest", "round", "weight", "steps", "patients", "version", "study", "refusal", "loss", "x",
    "dtype", "length", "vector",
])  # fmt: skip
SINGLE = st.one_of(
    st.just(PROTOCOL),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.binary(max_size=9),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    st.just(STUDY.canonical().decode()),
    st.sampled_from(["internal_error", "policy_limit limit=1", "north", "<i8", "<f4", SIZE, valid_bytes()]),
)
ARRAYS = st.sampled_from([Array(np.zeros(SIZE)), Array(np.zeros(SIZE, dtype=np.int64)), Array(np.zeros(0))])
RECORDS = st.one_of(
    st.dictionaries(KEYS, SINGLE | st.lists(st.integers(-9, 9), max_size=3), max_size=8).map(ConfigRecord),
    st.dictionaries(NAMES, ARRAYS, max_size=2).map(ArrayRecord),
    st.dictionaries(KEYS, st.integers(-9, 9) | st.floats() | st.lists(st.floats(), max_size=2), max_size=3).map(
        metrics
    ),
)
CONTENTS = st.dictionaries(NAMES, RECORDS, max_size=4).map(RecordDict)


@settings(max_examples=300)
@given(CONTENTS)
def test_any_records_are_read_or_refused_and_nothing_else(content: RecordDict) -> None:
    with suppress(Refusal):
        read_task(content)
    with suppress(RejectedReply):
        read_update(content, size=SIZE)
    with suppress(RejectedReply):
        read_enrolment(content)
    assert read_refusal(content) is None or len(read_refusal(content) or "") <= 256
    assert len(refusing_site(content)) <= 256


@settings(max_examples=300)
@given(st.integers(0, len(valid_bytes())), st.binary(max_size=40), st.integers(0, 60))
def test_any_change_of_the_bytes_is_read_or_rejected_and_nothing_else(at: int, patch: bytes, cut: int) -> None:
    data = valid_bytes()[:at] + patch + valid_bytes()[at + cut :]
    try:
        got = read_update(header(write_update(update(STUDY)), vector=data), size=SIZE)
    except RejectedReply:
        assert len(data) != len(valid_bytes())
        return
    assert got.values.shape == (SIZE,)
    assert got.values.dtype == np.int64


@settings(max_examples=200)
@given(st.data())
def test_any_change_of_the_study_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    text = STUDY.canonical().decode()
    at = data.draw(st.integers(0, len(text)))
    patch = data.draw(st.text(max_size=8) | st.sampled_from(["NaN", "1e999", "null", '"\\ud800"', "-0", "{}", "[]"]))
    content = header(write_roll_call(STUDY), study=text[:at] + patch + text[at + data.draw(st.integers(0, 8)) :])
    with suppress(Refusal):
        assert len(read_task(content).study.digest) == 64
