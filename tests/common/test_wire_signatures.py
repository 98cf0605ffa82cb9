"""Signatures travel with the question and with every task; what is too much or no signature is refused unread."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import Refusal, RefusalCode
from fedward_common.models import initial_weights
from fedward_common.study_file import MAX_SIGNATURES, Signature, StudyFile
from fedward_common.wire import read_task, write_roll_call, write_task
from tests.builders import small_study

STUDY = small_study()
SIGNATURES = StudyFile(STUDY).signed(Ed25519PrivateKey.generate()).signed(Ed25519PrivateKey.generate()).signatures


def questions(*signatures: Signature) -> list[RecordDict]:
    return [write_roll_call(STUDY, signatures), write_task(STUDY, 1, initial_weights(STUDY), signatures)]


def with_lines(lines: Any) -> RecordDict:
    content = write_roll_call(STUDY)
    content.config_records["fedward"]["signatures"] = lines
    return content


def test_signatures_arrive_with_the_roll_call_and_with_a_task() -> None:
    for content in questions(*SIGNATURES):
        assert read_task(content).signatures == SIGNATURES


def test_unsigned_question_arrives_without_any() -> None:
    for content in questions():
        assert read_task(content).signatures == ()
        assert "signatures" not in content.config_records["fedward"]


def test_as_many_signatures_as_a_study_may_carry_are_read() -> None:
    most = SIGNATURES[:1] * MAX_SIGNATURES

    assert read_task(questions(*most)[0]).signatures == most


@pytest.mark.parametrize(
    "lines",
    [
        "one text", 7, b"bytes", [1, 2], [1.5], [b"x y"], [True],
        ["no blank"[:2]], ["two  blanks"], ["a b c"], ["x " + "y" * 300], ["ed25519:k sig"] * (MAX_SIGNATURES + 1),
    ],
)  # fmt: skip
def test_what_is_no_list_of_signatures_is_refused(lines: Any) -> None:
    with pytest.raises(Refusal) as caught:
        read_task(with_lines(lines))

    assert caught.value.reason is RefusalCode.MESSAGE_INVALID
    assert caught.value.fields == {}


@given(st.lists(st.text(max_size=300), max_size=12))
def test_whatever_stands_for_signatures_is_read_bounded_or_refused(lines: list[str]) -> None:
    good = len(lines) <= MAX_SIGNATURES and all(len(line) <= 256 and line.count(" ") == 1 for line in lines)

    if good:
        assert [f"{each.key} {each.signature}" for each in read_task(with_lines(lines)).signatures] == lines
    else:
        with pytest.raises(Refusal) as caught:
            read_task(with_lines(lines))
        assert caught.value.reason is RefusalCode.MESSAGE_INVALID
