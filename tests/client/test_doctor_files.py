"""The doctor in a site's own folder: each thing as it must be, and as somebody left it."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fedward_client.cohorts import OptOuts
from fedward_client.config import create_site
from fedward_client.doctor import files
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Level
from fedward_client.site import Site
from fedward_common.audit import AuditLog
from fedward_common.errors import FedwardError
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_common.wire import read_refusal, write_roll_call, write_task
from tests.builders import COHORT, private_study, site_home, table
from tests.https import enrolled_home, new_authority

Check = Callable[[Place], Iterable[Finding]]


def found(check: Check, home: Path) -> list[Finding]:
    return list(check(Place(home, environment={})))


def one(check: Check, home: Path) -> Finding:
    findings = found(check, home)
    assert len(findings) == 1, findings
    return findings[0]


@pytest.fixture(scope="module")
def study() -> Study:
    return private_study(training={"rounds": 3, "local_steps": 1})


@pytest.fixture
def home(tmp_path: Path, study: Study) -> Path:
    """Return a site that has trained one round, all of its files closed to others."""
    folder = site_home(tmp_path, study)
    assert read_refusal(Site(folder).answer(write_roll_call(study))) is None
    train(folder, study, 1)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def train(home: Path, study: Study, round_: int) -> None:
    assert read_refusal(Site(home).answer(write_task(study, round_, initial_weights(study)))) is None


# --------------------------------------------------------------------------------------------------------- policy


def test_a_policy_that_can_be_read_passes(home: Path) -> None:
    finding = one(files.policy, home)

    assert finding.level is Level.PASS
    assert "site north" in finding.what


def test_a_wrong_key_of_the_policy_is_named(home: Path) -> None:
    path = home / "site.yaml"
    path.write_text(path.read_text().replace("max_rounds", "max_runds"))

    with pytest.raises(FedwardError, match="max_runds"):
        found(files.policy, home)


def test_a_site_without_a_policy_fails(tmp_path: Path) -> None:
    with pytest.raises(FedwardError, match=r"site\.yaml cannot be read"):
        found(files.policy, tmp_path)


def test_a_policy_that_refuses_everybody_is_warned_of(tmp_path: Path) -> None:
    create_site(tmp_path / "north", "north")

    passed, warned = found(files.policy, tmp_path / "north")

    assert passed.level is Level.PASS
    assert warned.level is Level.WARN
    assert "policy.signers" in warned.remedy


def test_a_policy_about_a_cohort_that_is_not_there_is_warned_of(home: Path) -> None:
    path = home / "site.yaml"
    path.write_text(path.read_text().replace("cohort_studies: {}", "cohort_studies: {icu: [small]}"))

    _, warned = found(files.policy, home)

    assert "icu" in warned.what


# ------------------------------------------------------------------------------------------------------ enrolment


def test_a_site_that_is_not_enrolled_is_warned(home: Path) -> None:
    assert one(files.enrolment, home).level is Level.WARN


def test_an_enrolled_site_passes(home: Path) -> None:
    enrolled_home(home, new_authority(), "coordinator.example:443")

    finding = one(files.enrolment, home)

    assert finding.level is Level.PASS
    assert "coordinator.example:443" in finding.what


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda home: (home / "node.key").unlink(), "node.key"),
        (lambda home: (home / "node.key").chmod(0o644), "node.key"),
        (lambda home: (home / "node.key").write_text("no key"), "node.key"),
        (lambda home: (home / "ca.pem").write_text("no certificate"), "ca.pem"),
        (lambda home: (home / "connection.yaml").write_text("superlnk: x"), "superlnk"),
    ],
)
def test_what_an_enrolled_site_lacks_is_named(spoil: Callable[[Path], object], named: str, home: Path) -> None:
    enrolled_home(home, new_authority(), "coordinator.example:443")
    spoil(home)

    with pytest.raises(FedwardError, match=named):
        found(files.enrolment, home)


# ---------------------------------------------------------------------------------------------------- permissions


def test_a_closed_folder_passes(home: Path) -> None:
    finding = one(files.permissions, home)

    assert finding.level is Level.PASS, finding


@pytest.mark.parametrize("name", ["audit.key", "ledger.key"])
def test_a_key_that_the_world_can_read_fails(name: str, home: Path) -> None:
    (home / name).chmod(0o644)

    finding = one(files.permissions, home)

    assert finding.level is Level.FAIL
    assert name in finding.what
    assert str(home) in finding.remedy


def test_a_node_key_that_waits_to_be_used_is_a_key_too(home: Path) -> None:
    (home / "node.key.new").write_text("key")
    (home / "node.key.new").chmod(0o640)

    assert one(files.permissions, home).level is Level.FAIL


def test_who_opted_out_is_a_secret(home: Path) -> None:
    (home / "opt-out.txt").write_text("p0001\n")
    (home / "opt-out.txt").chmod(0o644)

    finding = one(files.permissions, home)

    assert finding.level is Level.FAIL
    assert "opt-out.txt" in finding.what


def test_encoded_rows_of_patients_are_secret(home: Path) -> None:
    (kept,) = (home / "cache").glob("*.npz")
    kept.chmod(0o644)

    assert one(files.permissions, home).level is Level.FAIL


def test_state_that_others_may_write_fails(home: Path) -> None:
    (home / "approvals.json").chmod(0o666)

    finding = one(files.permissions, home)

    assert finding.level is Level.FAIL
    assert "others may change it" in finding.what


def test_a_log_that_others_may_read_is_a_warning_behind_the_closed_folder(home: Path) -> None:
    (home / "audit.jsonl").chmod(0o644)

    assert one(files.permissions, home).level is Level.WARN


def test_an_open_folder_fails(home: Path) -> None:
    home.chmod(0o755)

    finding = one(files.permissions, home)

    assert finding.level is Level.FAIL
    assert str(home) in finding.what


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_account_fails(home: Path) -> None:
    """Made by root behind the daemon's back, it shuts the daemon out."""
    os.chown(home / "audit.jsonl", 65534, 65534)

    finding = one(files.permissions, home)

    assert finding.level is Level.FAIL
    assert "audit.jsonl" in finding.what
    assert "chown" in finding.remedy


def test_where_a_link_points_to_is_not_looked_at(home: Path, tmp_path: Path) -> None:
    (tmp_path / "open.csv").write_text("x")
    (tmp_path / "open.csv").chmod(0o666)
    (home / "linked.csv").symlink_to(tmp_path / "open.csv")

    assert one(files.permissions, home).level is Level.PASS


def test_a_home_that_is_not_there_fails(tmp_path: Path) -> None:
    finding = one(files.permissions, tmp_path / "nothing")

    assert finding.level is Level.FAIL
    assert "fedward client init" in finding.remedy


# --------------------------------------------------------------------------------------------------------- ledger


def test_a_whole_ledger_passes(home: Path) -> None:
    assert one(files.ledger, home).level is Level.PASS


def test_a_site_that_has_spent_nothing_passes_and_no_ledger_is_made(tmp_path: Path) -> None:
    assert one(files.ledger, tmp_path).level is Level.PASS
    assert not list(tmp_path.iterdir())


def _single_file(home: Path) -> Path:
    """Return the ledger with everything in its one file."""
    path = home / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    for part in ("-wal", "-shm"):
        path.with_name(path.name + part).unlink(missing_ok=True)
    return path


def test_a_ledger_with_a_page_of_rubbish_fails(home: Path) -> None:
    path = _single_file(home)
    content = bytearray(path.read_bytes())
    content[4096 : 2 * 4096] = b"\xa5" * 4096
    path.write_bytes(content)

    finding = one(files.ledger, home)

    assert finding.level is Level.FAIL
    assert "backup" in finding.remedy


@pytest.mark.parametrize("content", [b"no database at all" * 999, b"SQLite format 3\x00" + b"\x00" * 5000])
def test_a_ledger_that_is_none_fails(content: bytes, home: Path) -> None:
    _single_file(home).write_bytes(content)

    assert one(files.ledger, home).level is Level.FAIL


def test_a_ledger_that_was_cut_fails(home: Path) -> None:
    path = _single_file(home)
    path.write_bytes(path.read_bytes()[:5000])

    assert one(files.ledger, home).level is Level.FAIL


# ---------------------------------------------------------------------------------------------------------- audit


def test_a_whole_log_passes_with_its_number(home: Path) -> None:
    finding = one(files.audit, home)

    assert finding.level is Level.PASS
    assert finding.what.startswith(f"{sum(1 for _ in AuditLog(home).entries())} entries")


def test_a_site_without_a_log_passes_and_no_key_is_made(tmp_path: Path) -> None:
    assert one(files.audit, tmp_path).level is Level.PASS
    assert not list(tmp_path.iterdir())


def test_an_edited_log_fails(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2'))

    finding = one(files.audit, home)

    assert finding.level is Level.FAIL
    assert "evidence" in finding.remedy


def test_a_log_that_was_cut_fails(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))

    assert one(files.audit, home).level is Level.FAIL


def test_a_log_without_its_key_fails_and_no_other_key_is_made(home: Path) -> None:
    (home / "audit.key").unlink()

    finding = one(files.audit, home)

    assert finding.level is Level.FAIL
    assert "audit.key" in finding.what
    assert not (home / "audit.key").exists()


def test_an_old_ledger_under_a_newer_log_fails(home: Path, study: Study) -> None:
    old = _single_file(home).read_bytes()
    train(home, study, 2)
    _single_file(home).write_bytes(old)

    finding = one(files.audit, home)

    assert finding.level is Level.FAIL
    assert "old copy" in finding.what or "old ledger" in finding.what


# -------------------------------------------------------------------------------------------------------- cohorts


def test_a_cohort_that_opens_passes(home: Path) -> None:
    finding = one(files.cohorts, home)

    assert finding.level is Level.PASS
    assert COHORT in finding.what


def test_a_cohort_whose_file_is_gone_fails(home: Path) -> None:
    (home / f"{COHORT}.csv").unlink()

    failed, changed = found(files.cohorts, home)

    assert failed.level is Level.FAIL
    assert changed.level is Level.WARN


def test_a_cohort_that_changed_since_it_was_approved_is_warned_of(home: Path) -> None:
    table(30, seed=5).to_csv(home / f"{COHORT}.csv", index=False)

    passed, changed = found(files.cohorts, home)

    assert passed.level is Level.PASS
    assert changed.level is Level.WARN
    assert "fedward client approve" in changed.remedy


def test_a_table_that_the_world_can_read_is_warned_of(study: Study) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to others
        Path(folder).chmod(0o755)
        home = site_home(Path(folder), study)
        home.chmod(0o755)
        (home / f"{COHORT}.csv").chmod(0o644)
        open_to_all = one(files.cohorts, home)
        home.chmod(0o700)
        closed = one(files.cohorts, home)

    assert open_to_all.level is Level.WARN
    assert "chmod o-rwx" in open_to_all.remedy
    assert closed.level is Level.PASS


def test_a_site_without_cohorts_is_told_how_to_add_one(tmp_path: Path) -> None:
    create_site(tmp_path / "north", "north")

    finding = one(files.cohorts, tmp_path / "north")

    assert finding.level is Level.WARN
    assert "fedward client cohort add" in finding.remedy


def test_looking_changes_nothing(home: Path) -> None:
    def contents() -> dict[str, bytes]:
        kept = [path for path in home.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
        return {str(path): path.read_bytes() for path in kept}

    before = contents()
    for check in (files.policy, files.permissions, files.ledger, files.audit, files.cohorts):
        found(check, home)

    assert contents() == before


def test_a_new_site_has_nothing_to_be_warned_of(tmp_path: Path) -> None:
    home = tmp_path / "home"
    create_site(home, "north")
    AuditLog(home).append("site made", at="2026-11-24T00:00:00+00:00", name="north")
    OptOuts(home).add(["4711"])
    (home / "approvals.lock").touch(mode=0o644)

    assert one(files.permissions, home).level is Level.PASS
