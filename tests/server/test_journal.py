"""The journal's file and its rules: what is cut off, what is refused, and what it all comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.errors import CoordinatorError, InstallationError
from fedward_server.journal import (
    Accepted,
    Asked,
    Asking,
    Begun,
    Enrolled,
    Missed,
    Record,
    Seat,
    parse_record,
    story_of,
)
from fedward_server.journal_file import MAX_HEAD, JournalFile

DIGEST = "d" * 64
BODY = 5 * 8
VALUES = np.array([1 << 62, -1, 0, 7, -(1 << 63)], dtype=np.int64)
BEGUN = Begun(study=DIGEST, after=1, started="2026-11-27T00:00:00+00:00")
ENROLLED = Enrolled(seats=(Seat(node=2**64 - 1, site="north", patients=40, version="1"),), excluded={"east": "why"})
ASKING = Asking(round=2, sites=("north", "south", "west"))
ASKED = Asked(round=2, lineage="7", messages={"a": "north", "b": "south", "c": "west"})
ACCEPTED = Accepted(round=2, site="south", weight=9, steps=4, metrics={"loss": 0.1 + 0.2})
MISSED = Missed(round=2, site="north", reason="task_crashed", for_good=False)
WHOLE: list[tuple[Record, Any]] = [
    (ENROLLED, None),
    (ASKING, None),
    (ASKED, None),
    (ACCEPTED, VALUES),
    (MISSED, None),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.fedward"


def write(path: Path) -> list[int]:
    """Write a whole journal; return its length after each record."""
    journal = JournalFile.create(path, BEGUN)
    ends = [path.stat().st_size]
    for record, values in WHOLE:
        journal.write(record, values)
        ends.append(path.stat().st_size)
    journal.close()
    return ends


def records(path: Path) -> list[Record]:
    journal, entries = JournalFile.reopen(path, body=BODY)
    journal.close()
    return [entry.record for entry in entries]


# ------------------------------------------------------------------------------------------------------------- the file
def test_every_record_and_every_value_comes_back_bit_for_bit(path: Path) -> None:
    write(path)
    journal, entries = JournalFile.reopen(path, body=BODY)
    assert [entry.record for entry in entries] == [BEGUN, *(record for record, _ in WHOLE)]
    assert [entry.size for entry in entries] == [0, 0, 0, 0, BODY, 0]
    found = np.empty(len(VALUES), dtype=np.int64)
    journal.body(entries[4]).read_into(found, 0)
    np.testing.assert_array_equal(found, VALUES)
    journal.close()


def test_a_write_cut_short_at_any_byte_costs_the_last_record_and_no_other(path: Path) -> None:
    ends = write(path)
    whole = path.read_bytes()
    for length in range(ends[0], len(whole)):
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in ends)
        assert len(records(path)) == kept
        assert path.read_bytes() == whole[: ends[kept - 1]]


def test_what_is_written_behind_a_cut_is_read_again(path: Path) -> None:
    ends = write(path)
    path.write_bytes(path.read_bytes()[: ends[3] + 11])
    journal, _ = JournalFile.reopen(path, body=BODY)
    journal.write(ACCEPTED, VALUES)
    journal.close()
    assert records(path) == [BEGUN, ENROLLED, ASKING, ASKED, ACCEPTED]


def test_space_that_a_power_cut_left_without_content_costs_the_last_record(path: Path) -> None:
    ends = write(path)
    whole = path.read_bytes()
    for cut in (ends[3], ends[3] + 16, ends[4] - 32):  # nothing of the record, its frame, all but its digest
        path.write_bytes(whole[:cut] + bytes(ends[4] - cut))
        assert records(path) == [BEGUN, ENROLLED, ASKING, ASKED]
    path.write_bytes(whole + bytes(5000))
    assert len(records(path)) == 6


def test_a_change_of_any_byte_is_refused_and_the_file_is_left_alone(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            damaged = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
            path.write_bytes(damaged)
            with pytest.raises(CoordinatorError, match=r"journal\.fedward is damaged at byte \d+") as caught:
                records(path)
            assert caught.value.remedy
            assert path.read_bytes() == damaged


def test_a_record_that_is_taken_out_doubled_or_moved_is_refused(path: Path) -> None:
    ends = write(path)
    whole = path.read_bytes()
    first, second = whole[ends[0] : ends[1]], whole[ends[1] : ends[2]]
    rest = whole[ends[2] :]
    for middle in (second, first, first + second + second, second + first):
        path.write_bytes(whole[: ends[0]] + middle + rest)
        with pytest.raises(CoordinatorError, match="is damaged"):
            records(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * 4096, b"not a journal, but long enough to be read"])
def test_a_file_without_a_first_record_is_no_journal(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CoordinatorError, match="is damaged at byte 0"):
        records(path)


def test_a_body_larger_than_the_model_is_refused_before_it_is_read(path: Path) -> None:
    journal = JournalFile.create(path, BEGUN)
    journal.write(ACCEPTED, np.zeros(BODY // 8 + 1, dtype=np.int64))
    journal.close()
    with pytest.raises(CoordinatorError, match="is damaged"):
        records(path)


def test_a_record_that_could_not_be_read_again_is_not_written(path: Path) -> None:
    journal = JournalFile.create(path, BEGUN)
    length = path.stat().st_size
    with pytest.raises(CoordinatorError, match="does not fit a journal"):
        journal.write(Missed(round=2, site="north", reason="x" * MAX_HEAD, for_good=False))
    journal.write(ASKING)
    journal.close()
    assert path.stat().st_size > length
    assert records(path) == [BEGUN, ASKING]


def test_after_a_full_disk_nothing_more_is_written_and_the_remedy_says_how_to_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalFile.create(path, BEGUN)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(InstallationError, match=r"journal\.fedward cannot be read or written: No space") as caught:
            journal.write(ASKING)
        assert "the run goes on" in caught.value.remedy
    with pytest.raises(InstallationError):
        journal.write(ASKED)


def test_a_journal_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="no-such-folder"):
        JournalFile.create(tmp_path / "no-such-folder" / "journal", BEGUN)
    with pytest.raises(InstallationError, match="no-such-file"):
        JournalFile.reopen(tmp_path / "no-such-file", body=0)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"kind":"other"}', b'{"kind":"asking","round":1,"sites":[],"more":1}'])
def test_json_that_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_record(text)


# ------------------------------------------------------------------------------------------------------------ the rules
def test_the_story_is_who_is_asked_who_is_waited_for_and_who_is_settled() -> None:
    story = story_of([BEGUN, *(record for record, _ in WHOLE)])
    assert (story.begun, story.enrolled) == (BEGUN, ENROLLED)
    assert story.open is not None
    assert story.open.round == 2
    assert story.open.asked == {"north", "south", "west"}
    assert (story.open.lineage, story.open.waiting) == ("7", {"c": "west"})
    assert (story.open.accepted, story.open.missed) == ({"south": ACCEPTED}, {"north": MISSED})


def test_a_site_that_is_asked_again_is_waited_for_under_its_new_message_alone() -> None:
    again: list[Record] = [Asking(round=2, sites=("west",)), Asked(round=2, lineage="7", messages={"d": "west"})]
    story = story_of([BEGUN, ASKING, ASKED, *again])
    assert story.open is not None
    assert story.open.waiting == {"a": "north", "b": "south", "d": "west"}


def test_messages_of_another_grid_are_forgotten() -> None:
    story = story_of([BEGUN, ASKING, ASKED, Asked(round=2, lineage="8", messages={"d": "west"})])
    assert story.open is not None
    assert (story.open.lineage, story.open.waiting) == ("8", {"d": "west"})


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ([], "does not begin"),
        ([ASKING], "does not begin"),
        ([BEGUN, BEGUN], "begins twice"),
        ([BEGUN, Asking(round=1, sites=("north",))], "round 1 in the journal of round 2"),
        ([BEGUN, Asking(round=3, sites=("north",))], "round 3 in the journal of round 2"),
        ([BEGUN, ACCEPTED], "was not asked"),
        ([BEGUN, ASKING, ACCEPTED, ACCEPTED], "a second time"),
        ([BEGUN, ASKING, MISSED, MISSED], "a second time"),
        ([BEGUN, ASKING, ACCEPTED, ASKING], "asked again"),
    ],
)
def test_records_that_no_coordinator_writes_are_refused(told: list[Record], what: str) -> None:
    with pytest.raises(CoordinatorError, match=what):
        story_of(told)
