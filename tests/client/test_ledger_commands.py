"""``fedward client ledger`` and ``fedward client audit``: what a hospital's staff reads, and what it may do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedward_client.approvals import Approvals
from fedward_client.budget import Budget
from fedward_client.cli import app
from fedward_client.config import create_site
from fedward_common.errors import LocalDataError, Refusal, RefusalCode
from fedward_common.privacy import Spend, epsilon_of
from fedward_common.study import Study
from tests.builders import private_study
from tests.client.ledger_cases import ICU, LIFETIME_DELTA, LIMITS, NOW, TERMS, WARD, granted, people, released, reserved

RUNNER = CliRunner()
STUDY: Study = private_study()


def call(home: Path, *arguments: str) -> Result:
    return RUNNER.invoke(app, [*arguments, "--home", str(home)])


def told(home: Path, *arguments: str) -> Any:
    """Return what a command prints as JSON, whatever its exit code."""
    return json.loads(call(home, *arguments, "--json").stdout)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a site in which two of three rounds were debited and one left, and another study on other patients."""
    folder = tmp_path / "home"
    create_site(folder, "north")
    Approvals(folder).propose(STUDY)
    budget = Budget(folder)
    budget.audit.append("site made", at=NOW, name="north")
    granted(budget, STUDY.digest)
    reserved(budget, 1, STUDY.digest)
    released(budget, 1, STUDY.digest)
    reserved(budget, 2, STUDY.digest)
    granted(budget, "b" * 64, WARD, cohort="ward")
    return folder


def without_the_last_round(home: Path) -> None:
    """Put a copy of the ledger back that lacks what was done since."""
    copy = home.with_name("backup")
    copy.mkdir()
    shutil.copy(home / "ledger.sqlite", copy)
    reserved(Budget(home), 3, STUDY.digest)
    for path in home.glob("ledger.sqlite*"):
        path.unlink()
    shutil.copy(copy / "ledger.sqlite", home)


def test_ledger_says_what_is_spent_promised_and_left(home: Path) -> None:
    found = told(home, "ledger")

    icu, ward = found["cohorts"]
    spent, promised = (epsilon_of([Spend(4.0, 1.0, steps)], LIFETIME_DELTA) for steps in (4, 6))
    assert (found["limit"], found["delta"], found["doubts"]) == (16.0, LIFETIME_DELTA, [])
    assert (icu["name"], icu["patients"], icu["spent"], icu["promised"]) == ("icu", 40, spent, promised)
    assert icu["left"] == 16.0 - promised
    assert (ward["name"], ward["spent"], ward["promised"]) == ("ward", 0.0, promised)
    studies = [(s["name"], s["rounds"], s["reserved"], s["released"], s["cohorts"]) for s in found["studies"]]
    assert studies == [("small", 3, 2, 1, ["icu"]), ("", 3, 0, 0, ["ward"])]


def test_ledger_is_a_table_that_lines_up(home: Path) -> None:
    result = call(home, "ledger")

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "icu (40 patients), at δ 0.001"
    assert f"spent ε {epsilon_of([Spend(4.0, 1.0, 4)], LIFETIME_DELTA):.3f} of 16;" in lines[1]
    heading, row = lines[2], lines[3]
    assert row.strip().startswith(STUDY.digest[:12])
    for word, value in (("reserved", "2"), ("released", "1"), ("rounds", "3")):
        end = heading.index(word) + len(word)
        assert row[:end].endswith(value)


def test_ledger_of_a_new_site_says_that_nothing_was_spent(tmp_path: Path) -> None:
    create_site(tmp_path / "new", "north")

    assert "nothing was spent" in call(tmp_path / "new", "ledger").stdout


def test_closed_account_is_shown_as_closed(home: Path) -> None:
    result = call(home, "ledger", "close", STUDY.name, "--by", "ann")

    assert result.exit_code == 0
    assert "cannot be opened again" in result.stdout
    assert "  closed   icu\n" in call(home, "ledger").stdout
    assert isinstance(call(home, "ledger", "close", STUDY.name, "--by", "ann").exception, LocalDataError)


def test_ledger_that_was_put_back_is_shown_as_not_trusted(home: Path) -> None:
    without_the_last_round(home)

    result = call(home, "ledger")

    assert result.exit_code == 1
    assert f"NOT TRUSTED  the ledger lacks round 3 of {STUDY.digest[:12]}" in result.stdout
    assert "fedward client ledger reconcile" in result.stdout


def test_reconcile_enters_the_round_again_and_names_the_person(home: Path) -> None:
    without_the_last_round(home)

    result = call(home, "ledger", "reconcile", "--by", "ann")

    assert result.exit_code == 0
    assert "ledger again: 1;" in result.stdout
    assert told(home, "ledger")["studies"][0]["reserved"] == 3
    assert Budget(home).audit.last(1)[0].fields["person"] == "ann"
    assert "nothing was changed" in call(home, "ledger", "reconcile").stdout


def test_damaged_ledger_is_shown_and_mended(home: Path) -> None:
    (home / "ledger.sqlite").write_bytes(b"damage " * 999)
    for part in home.glob("ledger.sqlite-*"):
        part.unlink()

    assert "damaged" in call(home, "ledger").stdout
    assert call(home, "ledger", "reconcile", "--by", "ann").exit_code == 0
    assert told(home, "ledger")["studies"][0]["reserved"] == 2


# ------------------------------------------------------------------------------------------------------------- the log


def test_verify_says_that_a_log_is_whole(home: Path) -> None:
    result = call(home, "audit", "verify")

    assert result.exit_code == 0
    assert result.stdout == f"good: 6 entries, signed by {Budget(home).audit.public_key()}\n"
    assert told(home, "audit", "verify")["whole"]


def test_verify_finds_an_edit(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))

    result = call(home, "audit", "verify")

    assert result.exit_code == 1
    assert result.stdout.startswith("WRONG  entry 2: the chain is broken")
    assert not told(home, "audit", "verify")["whole"]


def test_verify_finds_a_ledger_that_was_put_back(home: Path) -> None:
    without_the_last_round(home)

    result = call(home, "audit", "verify")

    assert result.exit_code == 1
    assert "WRONG  the ledger lacks round 3" in result.stdout


def test_verify_finds_with_a_copy_what_it_cannot_find_alone(home: Path, tmp_path: Path) -> None:
    everything = tmp_path / "everything"
    shutil.copytree(home, everything)
    reserved(Budget(home), 3, STUDY.digest)
    (tmp_path / "head.json").write_text(call(home, "audit", "head").stdout, encoding="utf-8")
    shutil.rmtree(home)
    shutil.copytree(everything, home)

    alone = call(home, "audit", "verify")
    compared = call(home, "audit", "verify", "--anchor", str(tmp_path / "head.json"))

    assert alone.exit_code == 0
    assert compared.exit_code == 1
    assert "an old log was put back" in compared.stdout


def test_export_is_checked_on_another_computer(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    assert call(home, "audit", "export", str(file)).exit_code == 0
    key = Budget(home).audit.public_key()
    shutil.copy(home / "audit.pub", tmp_path / "site.pub")
    shutil.rmtree(home)

    for arguments in ([], ["--key", key], ["--key", str(tmp_path / "site.pub")]):
        result = RUNNER.invoke(app, ["audit", "check", str(file), *arguments])
        assert result.exit_code == 0
        assert result.stdout == f"good: 6 entries, signed by {key}\n"
    assert isinstance(RUNNER.invoke(app, ["audit", "check", str(file), "--key", "x"]).exception, LocalDataError)


def test_check_finds_a_changed_pack(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    call(home, "audit", "export", str(file))
    file.write_text(file.read_text(encoding="utf-8").replace('"released": 1', '"released": 0'), encoding="utf-8")

    result = RUNNER.invoke(app, ["audit", "check", str(file), "--json"])

    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["findings"]) == 2


def test_export_overwrites_nothing(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    file.write_text("mine", encoding="utf-8")

    result = call(home, "audit", "export", str(file))

    assert isinstance(result.exception, LocalDataError)
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_log_that_is_not_whole_is_restarted_by_a_named_person(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))

    result = call(home, "audit", "restart", "--by", "ann")

    assert result.exit_code == 0
    assert "audit.jsonl.kept-1" in result.stdout
    assert call(home, "audit", "verify").exit_code == 0
    with pytest.raises(Refusal) as caught:
        reserved(Budget(home), 2, STUDY.digest)
    assert caught.value.reason == RefusalCode.ROUND_REPLAYED
    assert isinstance(call(home, "audit", "restart", "--by", "ann").exception, LocalDataError)


def test_head_of_an_empty_log_is_named(tmp_path: Path) -> None:
    assert isinstance(call(tmp_path, "audit", "head").exception, LocalDataError)


def test_the_two_cohorts_share_nobody() -> None:
    """The cases that these tests stand on."""
    assert not set(ICU) & set(WARD)
    assert len({row.tobytes() for row in people([*ICU, *WARD])}) == 80
    assert (TERMS.rounds, LIMITS.lifetime) == (3, 16.0)
