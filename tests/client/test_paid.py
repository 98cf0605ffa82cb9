"""What was paid for is said again, byte for byte, to the same question; to no other, and it is never made again."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_client.approvals import Approvals
from fedward_client.budget import Budget
from fedward_client.config import load_site, write_site
from fedward_client.decisions import Decision
from fedward_client.ledger import Ledger
from fedward_client.paid import PaidUpdate
from fedward_client.site import Site
from fedward_common.audit import AuditLog
from fedward_common.errors import RefusalCode
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.study import Study
from fedward_common.wire import Task, Update, read_refusal, read_update, write_roll_call, write_task
from tests.builders import COHORT, private_study, site_home, small_study
from tests.client.crash_child import killed_at
from tests.client.ledger_cases import NOW, A, code_of, granted, released, reserved

STUDY = private_study()
SIZE = parameter_spec(STUDY).size
REPLAYED = "round_replayed round=1"


def asked(home: Path, round_: int = 1, *, moved: float = 0.0, study: Study = STUDY) -> Any:
    return Site(home).answer(write_task(study, round_, initial_weights(study) + np.float32(moved)))


def update_of(reply: Any) -> Update:
    return read_update(reply, size=SIZE)


def same(one: Update, other: Update) -> bool:
    return one.values.tobytes() == other.values.tobytes() and (one.weight, one.steps, one.metrics, one.round) == (
        other.weight, other.steps, other.metrics, other.round,
    )  # fmt: skip


def events(home: Path) -> list[str]:
    return [entry.event for entry in AuditLog(home).entries()]


def debits(home: Path) -> list[int]:
    return [c.round for c in Ledger(home / "ledger.sqlite").changes() if c.event == "reserved"]


def place(home: Path) -> Path:
    return home / "paid" / f"{STUDY.digest}.npz"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site that has enrolled."""
    made = site_home(tmp_path, STUDY)
    assert read_refusal(Site(made).answer(write_roll_call(STUDY))) is None
    return made


def test_the_same_question_has_the_same_answer_and_costs_nothing(home: Path) -> None:
    first = update_of(asked(home))
    before, spent = events(home), Ledger(home / "ledger.sqlite").entries(COHORT)
    (home / f"{COHORT}.csv").unlink()  # nothing is computed
    assert same(update_of(asked(home)), first)
    assert same(update_of(asked(home)), first)
    assert Ledger(home / "ledger.sqlite").entries(COHORT) == spent
    assert debits(home) == [1]
    assert events(home)[len(before) :] == ["released again"] * 2
    assert AuditLog(home).verify() == []
    assert Budget(home).doubts() == []


def test_the_log_says_what_left_again(home: Path) -> None:
    asked(home)
    asked(home)
    once, again = (e for e in AuditLog(home).entries() if e.event.startswith("released"))
    assert {key: once.fields[key] for key in again.fields} == again.fields
    assert again.fields.keys() == {"study", "cohort", "round", "sha256", "bytes"}


@pytest.mark.parametrize("moved", [0.5, -1e-6])
def test_another_model_in_the_same_round_gets_nothing(home: Path, moved: float) -> None:
    asked(home)
    assert read_refusal(asked(home, moved=moved)) == REPLAYED
    assert debits(home) == [1]


def test_only_the_last_round_is_kept(home: Path) -> None:
    asked(home)
    second = update_of(asked(home, 2))
    assert read_refusal(asked(home)) == REPLAYED
    assert same(update_of(asked(home, 2)), second)
    assert debits(home) == [1, 2]


def test_a_study_without_privacy_keeps_nothing_and_trains_again(tmp_path: Path) -> None:
    study = small_study()
    home = site_home(tmp_path, study)
    first = read_update(asked(home, study=study), size=parameter_spec(study).size)
    again = read_update(asked(home, study=study), size=parameter_spec(study).size)
    assert first.values.tobytes() == again.values.tobytes()
    assert not (home / "paid").exists()


# -------------------------------------------------------------------------------------------------------------- vetoes
def test_a_yes_that_was_taken_back_holds_for_what_was_paid_as_well(home: Path) -> None:
    asked(home)
    Approvals(home).decide(STUDY, Decision("withdrawn", "ann", "2026-11-27T12:00:00+00:00", COHORT, ""))
    assert str(read_refusal(asked(home))).startswith("awaiting_approval")
    assert "released again" not in events(home)


def test_a_closed_account_says_nothing_again(home: Path) -> None:
    asked(home)
    Budget(home).close(study=STUDY.digest, person="ann", now=NOW)
    assert read_refusal(asked(home)) == "budget_exceeded round=1"


def test_a_cohort_that_left_the_register_says_nothing_again(home: Path) -> None:
    asked(home)
    config = load_site(home)
    write_site(home, config.model_copy(update={"cohorts": {}}))
    assert read_refusal(asked(home)) == "cohort_missing"


def test_an_old_ledger_put_back_stops_the_second_answer_too(home: Path) -> None:
    old = (home / "ledger.sqlite").read_bytes()
    asked(home)
    (home / "ledger.sqlite").write_bytes(old)
    assert str(read_refusal(asked(home))).startswith("budget_untrusted")


# ------------------------------------------------------------------------------------------------ damage, disk, age
def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with np.load(path) as found:
        content[content.index(found["values"].tobytes())] ^= 1
    path.write_bytes(content)


def _other_values(path: Path) -> None:
    with np.load(path) as found:
        np.savez(path, head=found["head"], values=found["values"] + 1)


def _without_head(path: Path) -> None:
    with np.load(path) as found:
        np.savez(path, values=found["values"])


@pytest.mark.parametrize("damage", [_cut, _flipped, _other_values, _without_head, Path.unlink])
def test_what_is_damaged_is_not_said(home: Path, damage: Callable[[Path], None]) -> None:
    asked(home)
    damage(place(home))
    assert read_refusal(asked(home)) == REPLAYED
    assert debits(home) == [1]


def test_other_bytes_than_those_that_left_are_not_said(home: Path) -> None:
    """Whoever can write into the folder cannot let the site say something that its ledger does not know."""
    update = update_of(asked(home))
    task = Task(STUDY, 1, initial_weights(STUDY))
    forged = Update(update.site, update.digest, 1, update.weight, update.steps, update.values + 1, {})
    PaidUpdate.of(home, update.site, task).keep(forged, hashlib.sha256(forged.values.data).hexdigest())
    assert read_refusal(asked(home)) == REPLAYED


def test_a_file_that_cannot_be_written_costs_the_second_answer_and_not_the_first(home: Path) -> None:
    (home / "paid").write_text("no folder", encoding="ascii")
    assert update_of(asked(home)).round == 1
    assert read_refusal(asked(home)) == REPLAYED


def test_what_nobody_asked_for_in_thirty_days_goes(home: Path) -> None:
    (home / "paid").mkdir()
    old, young = home / "paid" / "old.npz", home / "paid" / "young.npz"
    old.touch()
    young.touch()
    long_ago = time.time() - 31 * 86_400
    os.utime(old, (long_ago, long_ago))
    asked(home)
    assert not old.exists()
    assert young.exists()
    assert place(home).stat().st_mode & 0o777 == 0o600


# --------------------------------------------------------------------------------------------------------------- budget
def again(budget: Budget, round_: int = 1, **changes: Any) -> None:
    values: dict[str, Any] = {"cohort": "icu", "sha256": f"{round_:064x}", "size": 10 * round_, "now": NOW}
    budget.commit_again(study=A, round_=round_, **(values | changes))


def test_a_debited_round_that_a_crash_kept_back_is_let_out_once_and_then_again(tmp_path: Path) -> None:
    budget = Budget(tmp_path)
    granted(budget)
    reserved(budget, 1)
    again(budget)
    again(budget)
    assert [c.event for c in budget.ledger.changes()] == ["granted", "reserved", "released"]
    assert [e.event for e in budget.audit.entries()] == ["granted", "reserved", "released", "released again"]
    assert budget.doubts() == []


def test_what_was_never_debited_or_left_otherwise_is_not_let_out(tmp_path: Path) -> None:
    budget = Budget(tmp_path)
    assert code_of(lambda: again(budget)) == RefusalCode.BUDGET_EXCEEDED
    granted(budget)
    assert code_of(lambda: again(budget)) == RefusalCode.ROUND_REPLAYED
    reserved(budget, 1)
    released(budget, 1)
    assert code_of(lambda: again(budget, sha256="f" * 64)) == RefusalCode.ROUND_REPLAYED
    budget.close(study=A, person="ann", now=NOW)
    assert code_of(lambda: again(budget)) == RefusalCode.BUDGET_EXCEEDED


# ---------------------------------------------------------------------------------------------------------------- kills
_WATCHED = {"site.py", "paid.py"}


def killed_before(line: int, home: Path) -> bool:
    """Train round 1 in a child that is killed before the `line`-th line of site and kept update; say if it was."""
    child = os.fork()
    if child == 0:
        sys.settrace(killed_at(line, _WATCHED))
        asked(home)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_line_a_site_pays_once_and_says_one_thing(tmp_path: Path) -> None:
    """Behind the debit there are two ends: the round is lost to this site, or its one update leaves. Never two."""
    said, line, step = [], 1, 3
    while True:
        home = site_home(tmp_path / str(line), STUDY)
        Site(home).answer(write_roll_call(STUDY))
        killed = killed_before(line, home)
        paid = debits(home) == [1]
        reply, once_more = asked(home), asked(home)
        refusal = read_refusal(reply)
        assert refusal in ({None, REPLAYED} if paid else {None})
        assert read_refusal(once_more) == refusal
        if refusal is None:
            assert same(update_of(reply), update_of(once_more))
        assert debits(home) == [1]
        assert Budget(home).doubts() == []
        said.append((paid, refusal))
        if not killed:
            break
        line += step
    assert {(False, None), (True, None), (True, REPLAYED)} <= set(said)
    assert said[-1] == (True, None)
