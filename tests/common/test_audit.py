"""The log of decisions: what an insider, a crash or a wrong clock may do to it, and what is found or mended."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedward_common.audit import AuditLog
from fedward_common.audit_chain import LINE_BYTES, Entry, Position, walk
from fedward_common.errors import InstallationError, LocalDataError, Refusal, RefusalCode

NOW = "2026-11-23T12:00:00+00:00"
FILES = ("audit.jsonl", "audit.head", "audit.key", "audit.pub")


def write(log: AuditLog, number: int, event: str = "reserved") -> Entry:
    return log.append(event, at=NOW, study="a" * 64, round=number, steps=number)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """Return a log of five entries."""
    made = AuditLog(tmp_path)
    for number in range(1, 6):
        write(made, number)
    return made


def lines(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def events(log: AuditLog) -> list[str]:
    return [entry.event for entry in log.entries()]


def refused(log: AuditLog) -> bool:
    """Return whether the log takes no further entry."""
    before = log.path.read_bytes()
    with pytest.raises(Refusal) as caught:
        write(log, 99)
    assert "fedward client audit verify" in caught.value.remedy
    return caught.value.reason == RefusalCode.AUDIT_UNTRUSTED and log.path.read_bytes() == before


# ------------------------------------------------------------------------------------------------------- an insider


def test_a_whole_log_verifies(log: AuditLog) -> None:
    assert log.verify() == []
    assert [entry.number for entry in log.entries()] == [1, 2, 3, 4, 5]


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    assert AuditLog(tmp_path).verify() == []
    assert AuditLog(tmp_path).signed_head() is None


def test_an_edited_entry_is_found(log: AuditLog) -> None:
    changed = lines(log)
    changed[1] = changed[1].replace(b'"steps":2', b'"steps":1')
    log.path.write_bytes(b"".join(changed))

    assert any(finding.number == 3 for finding in log.verify())


def test_an_edit_of_the_last_entry_is_found_and_not_built_upon(log: AuditLog) -> None:
    changed = lines(log)
    changed[-1] = changed[-1].replace(b'"steps":5', b'"steps":1')
    log.path.write_bytes(b"".join(changed))

    assert log.verify()
    assert refused(log)


@pytest.mark.parametrize("taken", [0, 2, 4])
def test_a_deleted_entry_is_found(log: AuditLog, taken: int) -> None:
    changed = lines(log)
    del changed[taken]
    log.path.write_bytes(b"".join(changed))

    assert log.verify()
    assert refused(log)


def test_a_changed_order_is_found(log: AuditLog) -> None:
    changed = lines(log)
    changed[1], changed[2] = changed[2], changed[1]
    log.path.write_bytes(b"".join(changed))

    assert {finding.number for finding in log.verify()} >= {2, 3}


def test_a_repeated_entry_is_found(log: AuditLog) -> None:
    changed = lines(log)
    log.path.write_bytes(b"".join([*changed, changed[-1]]))

    assert log.verify()
    assert refused(log)


@pytest.mark.parametrize("kept", [0, 3, 4])
def test_a_log_cut_short_is_found_and_not_written_to(log: AuditLog, kept: int) -> None:
    log.path.write_bytes(b"".join(lines(log)[:kept]))

    assert log.verify()
    assert refused(log)


def test_a_deleted_log_is_found_and_not_begun_anew(log: AuditLog) -> None:
    log.path.unlink()

    assert log.verify()
    with pytest.raises(Refusal):
        write(log, 1)
    assert not log.path.exists()


@pytest.mark.usefixtures("log")
def test_a_log_written_anew_with_another_key_is_found(tmp_path: Path) -> None:
    (tmp_path / "forged").mkdir()
    forger = AuditLog(tmp_path / "forged")
    for number in range(1, 6):
        write(forger, number)
    for name in ("audit.jsonl", "audit.head"):
        shutil.copy(tmp_path / "forged" / name, tmp_path / name)

    assert [finding.what for finding in AuditLog(tmp_path).verify()] == ["the head is not signed by this site's key"]
    assert refused(AuditLog(tmp_path))


def test_a_missing_head_is_found(log: AuditLog, tmp_path: Path) -> None:
    (tmp_path / "audit.head").unlink()

    assert [finding.what for finding in log.verify()] == ["the signed head is missing"]
    assert refused(log)


def test_a_missing_key_is_not_replaced_by_a_new_one(log: AuditLog, tmp_path: Path) -> None:
    (tmp_path / "audit.key").unlink()
    again = AuditLog(tmp_path)

    assert again.verify()
    assert refused(again)
    assert not (tmp_path / "audit.key").exists()
    assert log.verify() == []  # whoever still has the key in memory sees a whole log


def test_a_line_that_is_no_entry_is_found(log: AuditLog) -> None:
    with log.path.open("ab") as file:
        file.write(b"\xff\x00 not json\n")

    assert log.verify()
    assert refused(log)


def test_an_entry_that_nobody_announced_is_not_taken_over(log: AuditLog, tmp_path: Path) -> None:
    """Whoever may write the file but has no key appends a line that fits the chain."""
    last = log.last(1)[0]
    forged = Entry(6, NOW, "approved", {"study": "e" * 64, "person": "mallory"}, last.hash)
    with log.path.open("ab") as file:
        file.write(forged.line() + b"\n")

    assert [finding.number for finding in log.verify()] == [0]
    assert refused(log)
    assert not (tmp_path / "audit.next").exists()


def test_a_head_passed_off_as_an_announcement_does_not_empty_the_log(log: AuditLog, tmp_path: Path) -> None:
    (tmp_path / "audit.head").rename(tmp_path / "audit.next")
    log.path.write_bytes(log.path.read_bytes()[:-20])

    assert log.verify()
    assert refused(log)


# ---------------------------------------------------------------------------------------------------------- a crash


def announced(folder: Path) -> bytes:
    """Let an append announce the sixth entry in `folder` and die; return the line that it was about to write."""
    twin = folder / "twin"
    shutil.copytree(folder, twin)
    write(AuditLog(twin), 6, "released")
    shutil.copy(twin / "audit.head", folder / "audit.next")
    return lines(AuditLog(twin))[5]


def interrupted(folder: Path, tail: bytes) -> AuditLog:
    """Return a log in whose file `tail` reached the disk of what was announced."""
    with (folder / "audit.jsonl").open("ab") as file:
        file.write(tail)
    return AuditLog(folder)


def test_a_crash_before_anything_was_written_is_survived(log: AuditLog, tmp_path: Path) -> None:
    announced(tmp_path)
    again = interrupted(tmp_path, b"")

    assert again.verify() == []
    write(again, 7)
    assert events(again) == ["reserved"] * 6
    assert log.verify() == []


def test_a_crash_before_the_head_was_replaced_is_survived(log: AuditLog, tmp_path: Path) -> None:
    again = interrupted(tmp_path, announced(tmp_path))

    assert again.verify() == []
    write(again, 7)
    assert events(again) == ["reserved"] * 5 + ["released", "reserved"]
    assert log.verify() == []


@pytest.mark.parametrize("lost", [1, 2, 50, 150])
@pytest.mark.usefixtures("log")
def test_a_torn_last_line_is_cut_off_kept_and_noted(tmp_path: Path, lost: int) -> None:
    torn = announced(tmp_path)[:-lost]
    again = interrupted(tmp_path, torn)

    assert again.verify() == []
    write(again, 7)

    assert events(again) == ["reserved"] * 5 + ["torn line removed", "reserved"]
    assert list(again.entries())[5].fields["bytes"] == len(torn)
    assert (tmp_path / "audit.torn-6").read_bytes() == torn
    assert again.verify() == []


@pytest.mark.usefixtures("log")
def test_zeros_that_a_loss_of_power_left_are_a_torn_line(tmp_path: Path) -> None:
    again = interrupted(tmp_path, b"\x00" * len(announced(tmp_path)))

    write(again, 7)

    assert events(again)[5:] == ["torn line removed", "reserved"]


@pytest.mark.usefixtures("log")
def test_more_than_was_announced_is_no_torn_line(tmp_path: Path) -> None:
    again = interrupted(tmp_path, announced(tmp_path) + b"x")

    assert again.verify()
    assert refused(again)


@pytest.mark.usefixtures("log")
def test_a_first_entry_that_was_torn_leaves_an_empty_log(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "audit.key").write_bytes((tmp_path / "audit.key").read_bytes())
    (folder / "audit.pub").write_bytes((tmp_path / "audit.pub").read_bytes())
    write(AuditLog(folder), 1)
    (folder / "audit.head").rename(folder / "audit.next")
    (folder / "audit.jsonl").write_bytes((folder / "audit.jsonl").read_bytes()[:-9])

    write(AuditLog(folder), 1)

    assert events(AuditLog(folder)) == ["torn line removed", "reserved"]


@pytest.mark.parametrize("left", ["empty key", "half a key", "no public half"])
def test_a_key_that_was_never_finished_is_made_anew(tmp_path: Path, left: str) -> None:
    AuditLog(tmp_path).public_key()
    if left == "no public half":
        (tmp_path / "audit.pub").unlink()
    else:
        (tmp_path / "audit.key").write_bytes((tmp_path / "audit.key").read_bytes()[: 0 if left == "empty key" else 60])

    again = AuditLog(tmp_path)
    write(again, 1)

    assert again.verify() == []
    assert (tmp_path / "audit.pub").read_text(encoding="ascii").strip() == again.public_key()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from fedward_common.audit import AuditLog
from fedward_common.errors import InstallationError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = AuditLog(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 40,) * 2)
try:
    log.append("released", at="2026-11-23T12:00:00+00:00", study="a" * 64)
except InstallationError as error:
    print(error.diagnostics())
"""


def test_a_full_disk_is_told_and_leaves_a_log_that_goes_on(log: AuditLog, tmp_path: Path) -> None:
    for number in range(6, 12):  # longer than the head, which must still be written
        write(log, number)

    told = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    write(log, 12)

    assert "audit.jsonl cannot be used" in told
    assert "free space" in told
    assert events(log)[-2:] == ["torn line removed", "reserved"]
    assert log.verify() == []


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="cannot be used"):
        write(AuditLog(tmp_path / "gone"), 1)


# ---------------------------------------------------------------------------------------------------------- the clock


def test_a_clock_set_back_is_an_entry_of_its_own(log: AuditLog) -> None:
    log.append("released", at="2026-11-23T11:59:00+00:00", study="a" * 64)
    log.append("released", at="2026-11-23T11:59:01+00:00", study="a" * 64)

    told, back, again = log.last(3)
    assert (told.event, told.at) == ("clock set back", "2026-11-23T11:59:00+00:00")
    assert NOW in str(told.fields["detail"])
    assert (back.at, again.event) == ("2026-11-23T11:59:00+00:00", "released")
    assert log.verify() == []


def test_two_processes_a_second_apart_are_no_clock_set_back(log: AuditLog) -> None:
    log.append("released", at="2026-11-23T11:59:59+00:00", study="a" * 64)

    assert [(entry.event, entry.at) for entry in log.last(1)] == [("released", NOW)]
    assert events(log) == ["reserved"] * 5 + ["released"]


def test_an_hour_elsewhere_is_not_an_hour_back(log: AuditLog) -> None:
    log.append("released", at="2026-11-23T07:00:01-05:00", study="a" * 64)

    assert events(log) == ["reserved"] * 5 + ["released"]


@pytest.mark.parametrize("stamp", ["", "yesterday", "2026-11-23T12:00:00", "2026-11-23"])
def test_a_stamp_without_a_time_zone_is_refused(log: AuditLog, stamp: str) -> None:
    with pytest.raises(ValueError, match=r"stamp|isoformat"):
        log.append("released", at=stamp)

    assert len(lines(log)) == 5


# ---------------------------------------------------------------------------------------------------------- the fields


def test_no_field_but_the_listed_ones_is_written(log: AuditLog) -> None:
    with pytest.raises(ValueError, match="patient_name"):
        log.append("refused", at=NOW, patient_name="Ann")

    assert b"Ann" not in log.path.read_bytes()


@pytest.mark.parametrize("text", ["x" * 5000, "\x00\x1b[31m\n", "\ud800", "\u2028", "grün", "\U0001f600" * 400])
def test_a_text_of_any_kind_stays_one_short_line(log: AuditLog, text: str) -> None:
    log.append("refused", at=NOW, code=text, detail=text, person=text, name=text, study="a" * 64)

    assert len(lines(log)) == 6
    assert max(map(len, lines(log))) <= LINE_BYTES
    assert log.verify() == []
    assert len(str(log.last(1)[0].fields["code"])) <= 160


def test_walk_names_each_line_that_is_wrong(log: AuditLog) -> None:
    changed = [lines(log)[0], b"{}\n", lines(log)[2], lines(log)[3].removesuffix(b"\n")]

    found = [finding.number for finding in walk(changed).findings]

    assert found == [2, 3, 4]


# ------------------------------------------------------------------------------------------------- reading and writing


def test_the_last_entries_are_read_from_the_end(log: AuditLog) -> None:
    assert [entry.number for entry in log.last(2)] == [4, 5]
    assert [entry.number for entry in log.last(50)] == [1, 2, 3, 4, 5]
    assert log.last(0) == []


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> AuditLog:
    """Return a log of 300 long entries that no test changes but by writing one more."""
    log = AuditLog(tmp_path_factory.mktemp("long"))
    for number in range(300):
        log.append("refused", at=NOW, round=number, detail="x" * 160)
    return log


@pytest.mark.parametrize("count", [1, 200, 299])
def test_many_last_entries_are_read_across_blocks(long: AuditLog, count: int) -> None:
    end = sum(1 for _ in long.lines())

    assert [entry.number for entry in long.last(count)] == list(range(1, end + 1))[-count:]


def test_an_append_reads_a_few_lines_whatever_the_log_s_length(long: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = AuditLog._read

    def counted(self: AuditLog, start: int, end: int) -> bytes:
        read.append(end - start)
        return original(self, start, end)

    monkeypatch.setattr(AuditLog, "_read", counted)
    write(long, 301)

    assert long.path.stat().st_size > 20 * LINE_BYTES
    assert sum(read) <= 3 * LINE_BYTES


def test_an_unreadable_line_is_told_to_whoever_reads(log: AuditLog) -> None:
    log.path.write_bytes(log.path.read_bytes().replace(b'"n":5', b'"n":"'))

    with pytest.raises(LocalDataError, match="line 5"):
        list(log.entries())
    with pytest.raises(LocalDataError, match="no entry"):
        log.last(1)


def test_a_position_names_one_entry(log: AuditLog) -> None:
    here = log.position(log.head())

    assert here.number == 5
    assert log.holds(here)
    write(log, 6)
    assert log.holds(here)
    assert not log.holds(Position(here.number, here.offset + 1, here.hash))
    assert not log.holds(Position(here.number + 1, here.offset, here.hash))
    assert not log.holds(Position(here.number, here.offset, "0" * 64))
    assert log.holds(Position(0, 0, "0" * 64))


def test_the_files_are_private(log: AuditLog, tmp_path: Path) -> None:
    assert log.public_key().startswith("ed25519:")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert {name: mode for name, mode in modes.items() if mode != 0o600} == {"audit.pub": modes["audit.pub"]}


def test_the_signed_head_is_what_the_log_comes_to(log: AuditLog) -> None:
    head = log.signed_head()

    assert head is not None
    assert (head["n"], head["size"]) == (5, log.path.stat().st_size)
    assert head["hash"] == log.last(1)[0].hash


def append_many(folder: str) -> None:
    log = AuditLog(Path(folder))
    for number in range(20):
        log.append("released", at=NOW, study="c" * 64, round=number)


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    AuditLog(tmp_path).append("site made", at=NOW)
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=append_many, args=(str(tmp_path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert AuditLog(tmp_path).verify() == []
    assert sum(1 for _ in AuditLog(tmp_path).entries()) == 41


def test_a_restarted_log_keeps_the_old_one_and_says_whose_it_was(log: AuditLog, tmp_path: Path) -> None:
    old = log.path.read_bytes() + b"damage"
    log.path.write_bytes(old)

    kept = log.restart(NOW, person="ann", ledger=7)

    assert kept.read_bytes() == old
    assert log.verify() == []
    (first,) = log.entries()
    assert (first.event, first.fields["person"], first.fields["detail"]) == ("log restarted", "ann", kept.name)
    assert (log.head().ledger, log.counted()) == (7, 7)
    assert json.loads((tmp_path / "audit.head.kept-1").read_bytes())["n"] == 5
