"""What is read from a real site's folder for display: right, read-only, and whole although a part of it is broken."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from fedward_client.config import create_site
from fedward_client.overview import Overseer, Overview
from fedward_client.site import Site
from fedward_common.audit import AuditLog
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_common.wire import read_refusal, write_roll_call, write_task
from tests.builders import COHORT, private_study, site_home, small_study, table
from tests.doubles import FakeClock
from tests.https import new_authority


@pytest.fixture(scope="module")
def study() -> Study:
    return private_study(training={"rounds": 3, "local_steps": 1})


def train(home: Path, study: Study, rounds: int) -> None:
    """Let the site answer a roll call and so many rounds."""
    assert read_refusal(Site(home).answer(write_roll_call(study))) is None
    for number in range(1, rounds + 1):
        assert read_refusal(Site(home).answer(write_task(study, number, initial_weights(study)))) is None


@pytest.fixture
def home(tmp_path: Path, study: Study) -> Path:
    """Return a site that has trained one of three rounds, and to which another study was proposed."""
    folder = site_home(tmp_path, study)
    train(folder, study, 1)
    assert read_refusal(Site(folder).answer(write_roll_call(small_study(name="waiting_room")))) == "awaiting_approval"
    return folder


def contents(home: Path) -> dict[str, bytes]:
    """Return what is in a folder; SQLite's shared memory is no content."""
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def problems(overview: Overview) -> str:
    return "; ".join(problem.what for problem in overview.problems)


def test_the_overview_of_a_real_site(home: Path, study: Study) -> None:
    found = Overseer(home).look()

    assert found.problems == ()
    assert found.site == "north"
    assert [(line.name, line.standing.state, line.rounds, line.planned) for line in found.studies] == [
        ("small", "approved", 1, 3),
        ("waiting_room", "waiting", 0, 3),
    ]
    assert found.studies[0].epsilon == 8.0
    assert found.studies[0].standing.cohort == COHORT
    assert found.studies[1].epsilon is None
    (budget,) = found.budgets
    assert 0 < budget.spent < budget.promised <= 8.0 < budget.limit
    assert [(account.digest, account.rounds) for account in budget.accounts] == [(study.digest, 1)]
    assert [(left.digest, left.number, len(left.sha256)) for left in found.rounds] == [(study.digest, 1, 64)]
    assert found.entries == found.decisions[0].number
    assert [entry.event for entry in found.decisions][:2] == ["refused", "proposed"]


def test_looking_changes_nothing_in_the_folder(home: Path) -> None:
    before = contents(home)

    Overseer(home).look()

    assert contents(home) == before


def test_looking_at_a_new_site_makes_nothing_in_it(tmp_path: Path) -> None:
    home = tmp_path / "new"
    create_site(home, "north")

    found = Overseer(home, FakeClock()).look()

    assert found == Overview("north")
    assert sorted(contents(home)) == ["site.yaml"]


def test_what_happens_between_two_looks_is_seen_by_the_second(home: Path, study: Study) -> None:
    overseer = Overseer(home)
    first = overseer.look()

    weights = initial_weights(study)
    assert read_refusal(Site(home).answer(write_task(study, 2, weights))) is None
    second = overseer.look()

    assert second.studies[0].rounds == 2
    assert second.budgets[0].spent > first.budgets[0].spent
    assert [left.number for left in second.rounds] == [2, 1]
    assert second.entries == second.decisions[0].number == first.entries + 2


def test_reading_on_and_reading_anew_say_the_same(home: Path, study: Study) -> None:
    clock = FakeClock()
    overseer = Overseer(home, clock)
    overseer.look()
    assert read_refusal(Site(home).answer(write_task(study, 3, initial_weights(study)))) is None

    assert overseer.look() == Overseer(home, clock).look()


def test_the_last_decisions_are_shown_not_all(home: Path) -> None:
    log = AuditLog(home)
    for number in range(60):
        log.append("approved", at=dt.datetime.now(dt.UTC).isoformat(), detail=f"{number}")

    found = Overseer(home).look()

    assert len(found.decisions) == 25
    assert found.decisions[0].fields["detail"] == "59"
    assert found.entries > 60


# --------------------------------------------------------------------------------------------- broken, part by part


def test_a_broken_policy_is_a_problem_and_the_rest_is_shown(home: Path) -> None:
    path = home / "site.yaml"
    path.write_text(path.read_text().replace("max_rounds", "max_runds"))

    found = Overseer(home).look()

    assert "max_runds" in problems(found)
    assert found.studies
    assert found.rounds


def test_unreadable_approvals_are_a_problem_and_the_rest_is_shown(home: Path) -> None:
    (home / "approvals.json").write_text("{")

    found = Overseer(home).look()

    assert "approvals.json" in problems(found)
    assert found.budgets[0].spent > 0


def test_a_ledger_that_is_none_is_a_problem_and_the_rest_is_shown(home: Path) -> None:
    for part in home.glob("ledger.sqlite*"):
        part.unlink()
    (home / "ledger.sqlite").write_bytes(b"no database" * 1000)

    found = Overseer(home).look()

    assert "ledger" in problems(found)
    assert found.budgets == ()
    assert found.studies


def test_an_edited_log_is_a_problem(home: Path) -> None:
    path = home / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"waiting_room", b"waiting_rooM"))

    assert "not whole" in problems(Overseer(home).look())


def test_a_log_without_its_key_is_a_problem_and_no_other_key_is_made(home: Path) -> None:
    (home / "audit.key").unlink()

    assert "audit.key is missing" in problems(Overseer(home).look())
    assert not (home / "audit.key").exists()


def test_a_ledger_that_was_put_back_is_a_problem(tmp_path: Path, study: Study) -> None:
    home = site_home(tmp_path, study)
    train(home, study, 0)
    old = {path.name: path.read_bytes() for path in home.glob("ledger.sqlite*")}
    train(home, study, 1)
    for part in home.glob("ledger.sqlite*"):
        part.unlink()
    for name, content in old.items():
        (home / name).write_bytes(content)

    assert "not to be trusted" in problems(Overseer(home).look())


def test_a_whole_log_is_not_verified_at_every_look_but_after_ten_minutes(home: Path) -> None:
    clock = FakeClock()
    overseer = Overseer(home, clock)
    overseer.look()
    path = home / "audit.jsonl"
    entry = path.read_bytes().splitlines(keepends=True)[0]
    changed = path.read_bytes().replace(entry, entry.replace(b"20", b"21", 1))
    path.write_bytes(changed)

    clock.now = 599.0
    before = overseer.look()
    clock.now = 600.0
    after = overseer.look()

    assert before.verified_s == 599.0
    assert after.verified_s == 0.0
    assert "not whole" in problems(after)


def test_a_log_that_was_replaced_is_read_anew(home: Path, tmp_path: Path) -> None:
    overseer = Overseer(home)
    overseer.look()
    other = tmp_path / "other"
    other.mkdir()
    AuditLog(other).append("site made", at="2026-01-01T00:00:00+00:00", name="south")
    for name in ("audit.jsonl", "audit.head", "audit.key"):
        (other / name).replace(home / name)

    found = overseer.look()

    assert found.entries == 1
    assert found.rounds == ()
    assert found.studies[0].rounds == 0


def test_a_study_is_stuck_when_it_is_refused_after_it_was_approved(home: Path, study: Study) -> None:
    table(30, seed=5).to_csv(home / f"{COHORT}.csv", index=False)
    assert read_refusal(Site(home).answer(write_task(study, 2, initial_weights(study)))) == "awaiting_approval"

    line = Overseer(home).look().studies[0]

    assert line.stuck
    assert line.standing.state == "approved"


def test_certificates_are_dated(home: Path) -> None:
    (home / "ca.pem").write_bytes(new_authority(days=20).certificate_pem())

    (expiry,) = Overseer(home).look().expiries

    assert expiry.what == "CA certificate"
