"""The log of decisions: what an insider may try with it, and what is found."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from fedward_client.audit import AuditLog, missing_reservations
from fedward_common.errors import LocalDataError

NOW = "2026-11-23T12:00:00+00:00"


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """Return a log of five entries."""
    made = AuditLog(tmp_path)
    for number in range(1, 6):
        made.append("reserved", at=NOW, study="a" * 64, round=number, steps=number)
    return made


def _lines(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def test_a_whole_log_verifies(log: AuditLog) -> None:
    assert log.verify() == []
    assert [entry.number for entry in log.entries()] == [1, 2, 3, 4, 5]


def test_an_empty_log_verifies(tmp_path: Path) -> None:
    assert AuditLog(tmp_path).verify() == []


def test_an_edited_entry_is_found(log: AuditLog) -> None:
    lines = _lines(log)
    lines[1] = lines[1].replace(b'"steps":2', b'"steps":1')
    log.path.write_bytes(b"".join(lines))

    assert any(finding.number == 3 for finding in log.verify())


def test_an_edit_of_the_last_entry_is_found(log: AuditLog) -> None:
    lines = _lines(log)
    lines[-1] = lines[-1].replace(b'"steps":5', b'"steps":1')
    log.path.write_bytes(b"".join(lines))

    assert log.verify()


@pytest.mark.parametrize("taken", [0, 2, 4])
def test_a_deleted_entry_is_found(log: AuditLog, taken: int) -> None:
    lines = _lines(log)
    del lines[taken]
    log.path.write_bytes(b"".join(lines))

    assert log.verify()


def test_a_changed_order_is_found(log: AuditLog) -> None:
    lines = _lines(log)
    lines[1], lines[2] = lines[2], lines[1]
    log.path.write_bytes(b"".join(lines))

    assert log.verify()


def test_a_repeated_entry_is_found(log: AuditLog) -> None:
    lines = _lines(log)
    log.path.write_bytes(b"".join([*lines, lines[-1]]))

    assert log.verify()


def test_a_log_cut_short_is_found_and_not_written_to(log: AuditLog) -> None:
    log.path.write_bytes(b"".join(_lines(log)[:3]))

    assert log.verify()
    with pytest.raises(LocalDataError, match="does not end"):
        log.append("released", at=NOW, study="a" * 64, round=6)


def test_a_log_written_anew_with_another_key_is_found(log: AuditLog, tmp_path: Path) -> None:
    (tmp_path / "forged").mkdir()
    forger = AuditLog(tmp_path / "forged")
    for number in range(1, 6):
        forger.append("reserved", at=NOW, study="b" * 64, round=number, steps=number)
    log.path.write_bytes(forger.path.read_bytes())
    (tmp_path / "audit.head").write_bytes((tmp_path / "forged" / "audit.head").read_bytes())

    assert [finding.what for finding in log.verify()] == ["the head is not signed by this site's key"]


def test_a_missing_head_is_found(log: AuditLog, tmp_path: Path) -> None:
    (tmp_path / "audit.head").unlink()

    assert log.verify()


def test_a_line_that_is_no_entry_is_found(log: AuditLog) -> None:
    with log.path.open("ab") as file:
        file.write(b"\xff\x00 not json\n")

    assert log.verify()


def test_a_crash_between_log_and_head_is_survived(log: AuditLog, tmp_path: Path) -> None:
    old_head = (tmp_path / "audit.head").read_bytes()
    log.append("released", at=NOW, study="a" * 64, round=6)
    (tmp_path / "audit.head").write_bytes(old_head)

    log.append("released", at=NOW, study="a" * 64, round=7)

    assert log.verify() == []
    assert sum(1 for _ in log.entries()) == 7


def test_an_old_ledger_lacks_what_the_log_says(log: AuditLog) -> None:
    kept = [("a" * 64, 1), ("a" * 64, 2)]

    lost = missing_reservations(log.entries(), kept)

    assert lost == [("a" * 64, 3), ("a" * 64, 4), ("a" * 64, 5)]
    assert missing_reservations(log.entries(), [*kept, *lost]) == []


def test_no_field_but_the_listed_ones_is_written(log: AuditLog) -> None:
    with pytest.raises(ValueError, match="patient_name"):
        log.append("refused", at=NOW, patient_name="Ann")

    assert b"Ann" not in log.path.read_bytes()


def test_the_key_is_private(log: AuditLog, tmp_path: Path) -> None:
    assert log.public_key().startswith("ed25519:")
    assert (tmp_path / "audit.key").stat().st_mode & 0o777 == 0o600


def test_an_export_holds_all_that_an_auditor_needs(log: AuditLog) -> None:
    pack = log.export()

    assert [json.loads(line)["n"] for line in pack["lines"]] == [1, 2, 3, 4, 5]
    assert pack["head"]["n"] == 5


def _append_many(folder: str) -> None:
    log = AuditLog(Path(folder))
    for number in range(20):
        log.append("released", at=NOW, study="c" * 64, round=number)


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    AuditLog(tmp_path).append("site made", at=NOW)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(str(tmp_path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert AuditLog(tmp_path).verify() == []
    assert sum(1 for _ in AuditLog(tmp_path).entries()) == 41
