"""One value, one byte string: on every platform, in every key order."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.canonical import canonical_json, digest

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def reversed_keys(value: object) -> object:
    if isinstance(value, dict):
        return {key: reversed_keys(item) for key, item in reversed(value.items())}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@given(VALUES)
def test_what_is_read_back_is_what_was_written(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(VALUES)
def test_bytes_read_back_and_written_again_are_the_same(value: object) -> None:
    once = canonical_json(value)
    assert canonical_json(json.loads(once)) == once


@given(VALUES)
def test_key_order_changes_neither_bytes_nor_digest(value: object) -> None:
    assert canonical_json(reversed_keys(value)) == canonical_json(value)
    assert digest(reversed_keys(value)) == digest(value)


def test_known_bytes() -> None:
    value = {"b": [1, 1.0, 1e-7, True, None], "a": "é\n"}
    assert canonical_json(value) == b'{"a":"\xc3\xa9\\n","b":[1,1.0,1e-07,true,null]}'


def test_known_digest() -> None:
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_number_without_json_form_is_refused_with_its_path(number: float) -> None:
    with pytest.raises(ValueError, match=r"privacy\.epsilon\[1\]"):
        canonical_json({"privacy": {"epsilon": [1, number]}})


@pytest.mark.parametrize("key", [1, None, True, ("a",)])
def test_key_that_is_not_text_is_refused(key: object) -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": {key: 1}})


def test_value_without_json_form_is_refused() -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": b"bytes"})


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        canonical_json("\ud800")
