"""The files of the privacy account: spoiled, from another version or without their key, they grant nothing."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from fedward_client.ledger import Ledger, Stamp
from fedward_common.errors import InstallationError, Refusal, RefusalCode
from tests.client.ledger_cases import DELTA, ICU, LIMITS, NOW, TERMS, A, B, people

STAMP = Stamp(NOW)


def grant(ledger: Ledger, study: str = A) -> None:
    ledger.grant(study=study, cohort="icu", identities=people(ICU), terms=TERMS, limits=LIMITS, stamp=STAMP)


def reserve(ledger: Ledger) -> int:
    return ledger.reserve(study=A, round_=1, cohort="icu", identities=people(ICU), limits=LIMITS, stamp=STAMP)[1]


def refusal(call: Callable[[], object]) -> RefusalCode:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.reason


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    grant(made)
    return made


@pytest.mark.parametrize("wrong", [None, b"", b"x" * 32], ids=["missing", "empty", "another's"])
@pytest.mark.usefixtures("ledger")
def test_without_its_key_no_budget_is_granted(tmp_path: Path, wrong: bytes | None) -> None:
    """With a new key every patient would look new, and have all its budget again."""
    (tmp_path / "ledger.key").unlink()
    if wrong is not None:
        (tmp_path / "ledger.key").write_bytes(wrong)

    again = Ledger(tmp_path / "ledger.sqlite")

    assert refusal(lambda: reserve(again)) == RefusalCode.BUDGET_UNTRUSTED
    assert refusal(lambda: grant(again, B)) == RefusalCode.BUDGET_UNTRUSTED
    assert refusal(again.check) == RefusalCode.BUDGET_UNTRUSTED
    assert again.spent("icu", DELTA) == 0


def test_key_that_a_crash_left_half_written_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "ledger.key").write_bytes(b"half")

    ledger = Ledger(tmp_path / "ledger.sqlite")
    grant(ledger)

    assert len((tmp_path / "ledger.key").read_bytes()) == 32
    assert reserve(ledger) == 1


@pytest.mark.parametrize("content", [b"no database at all " * 300, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_damaged_ledger_is_not_trusted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)

    assert refusal(lambda: Ledger(tmp_path / "ledger.sqlite")) == RefusalCode.BUDGET_UNTRUSTED


def test_ledger_of_another_version_is_not_overwritten(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.execute("CREATE TABLE grants (study TEXT)")
    database.close()

    with pytest.raises(InstallationError, match="another version"):
        Ledger(tmp_path / "ledger.sqlite")


def test_ledger_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="cannot be"):
        Ledger(tmp_path / "missing" / "ledger.sqlite")


def test_ledger_has_no_way_to_give_back() -> None:
    names = {name for name in vars(Ledger) if not name.startswith("_")}

    assert {"grant", "reserve", "commit", "close", "reenter"} == names - {
        "account", "changes", "check", "cohorts", "entries", "last", "left", "log_fields", "planned", "spent",
        "summaries",
    }  # fmt: skip


def test_reading_changes_nothing(tmp_path: Path, ledger: Ledger) -> None:
    reserve(ledger)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    again = Ledger(tmp_path / "ledger.sqlite")
    again.check()
    again.spent("icu", DELTA)
    again.planned("icu", DELTA)
    again.summaries()
    again.entries("icu")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ledger_alone_names_nobody(tmp_path: Path, ledger: Ledger) -> None:
    """Whoever has the file, and knows who might be in it, cannot tell: neither identity nor its hash is in a byte."""
    reserve(ledger)

    content = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.sqlite*"))

    for code in ICU:
        identity = people([code]).tobytes()
        assert identity[:8] not in content
        assert hashlib.sha256(identity).digest()[:8] not in content


def test_files_are_for_their_owner_only(tmp_path: Path, ledger: Ledger) -> None:
    assert ledger.changes()
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "ledger.sqlite": 0o600,
        "ledger.key": 0o600,
    }
