"""The audit log byte by byte: any change of any byte is found, and nothing but an entry's own bytes is an entry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common.audit import AuditLog
from fedward_common.audit_chain import entry_of
from fedward_common.audit_words import SITE

NOW = "2026-11-23T12:00:00+00:00"
FILES = ("audit.jsonl", "audit.head", "audit.key", "audit.pub")


def mutated(content: bytes, place: int, kind: str, byte: int) -> bytes:
    """Return `content` with one byte replaced, put in, taken out or repeated."""
    here = place % len(content)
    match kind:
        case "replaced":
            return content[:here] + bytes([byte]) + content[here + 1 :]
        case "put in":
            return content[:here] + bytes([byte]) + content[here:]
        case "taken out":
            return content[:here] + content[here + 1 :]
        case _:
            return content[:here]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a log of four entries that no test changes."""
    folder = tmp_path_factory.mktemp("whole")
    made = AuditLog(folder)
    for number in range(1, 5):
        made.append("released", at=NOW, study="a" * 64, round=number, detail="größer", epsilon=1.5)
    return folder


@given(
    name=st.sampled_from(["audit.jsonl", "audit.head"]),
    place=st.integers(0, 1 << 16),
    kind=st.sampled_from(["replaced", "put in", "taken out", "cut"]),
    byte=st.integers(0, 255),
)
def test_any_one_change_of_any_byte_is_found(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, name: str, place: int, kind: str, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    for file in FILES:
        shutil.copy(whole / file, folder / file)
    content = (whole / name).read_bytes()
    changed = mutated(content, place, kind, byte)

    (folder / name).write_bytes(changed)

    assert bool(AuditLog(folder).verify()) == (changed != content)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("study", "A" * 64), ("study", "Ann Miller"), ("sha256", "a" * 63), ("cohort", "Ann Miller"),
        ("cohort", "x" * 64), ("round", -1), ("round", 1 << 63), ("round", True), ("round", "7"), ("round", 1.5),
        ("epsilon", float("nan")), ("epsilon", float("inf")), ("epsilon", "2"), ("detail", 7), ("person", None),
    ],
)  # fmt: skip
def test_a_value_of_another_form_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        SITE.checked("refused", {field: value})  # type: ignore[dict-item]


@pytest.mark.parametrize("event", ["", "Refused", "refused\n", "x" * 60, "a value: 81"])
def test_an_event_is_a_few_plain_words(event: str) -> None:
    with pytest.raises(ValueError, match="event"):
        SITE.checked(event, {})


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_other_bytes_are_an_entry(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"entry|long|written"):
        entry_of(content)


@pytest.mark.parametrize(
    "line",
    [
        b'{"n":1}', b"[" * 3000, b"{}", b"null", b'{"at":"","event":"","fields":{"a":[1]},"n":1,"previous":""}',
        b'{"at":"","event":"","fields":{"a":NaN},"n":1,"previous":""}',
        b'{"at":"","event":"","fields":{},"n":true,"previous":""}',
        b'{"at":"","event":"","fields":[],"n":1,"previous":""}',
        b'{"at":"","event":"","fields":{},"n":1,"n":1,"previous":""}',
        b'{"at":"","event":"","fields":{},"n":1, "previous":""}',
    ],
)  # fmt: skip
def test_what_only_looks_like_an_entry_is_none(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"entry|written|long"):
        entry_of(line)
