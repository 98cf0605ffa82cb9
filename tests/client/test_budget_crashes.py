"""kill -9 at every point of a debit: never a round twice, never one let out without a debit, never a log that lies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_client.budget import Budget
from fedward_common.errors import Refusal, RefusalCode
from tests.client.ledger_cases import NOW, A, granted, released, reserved

STEP = 37
Told = set[tuple[str, int]]


def told_of(home: Path) -> Told:
    """Return the changes whose call had returned before the process was killed."""
    words = [line.split() for line in (home / "told").read_text(encoding="ascii").splitlines()]
    return {(event, int(round_)) for event, round_ in words}


def known(budget: Budget) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return (event, round) of the ledger's changes and of the log's entries about them."""
    ledger = [(change.event, change.round) for change in budget.ledger.changes()]
    logged = [(e.event, int(e.fields.get("round", 0))) for e in budget.audit.entries() if "entry" in e.fields]
    return ledger, logged


def examined(home: Path) -> tuple[str, ...]:
    """Return what is wrong in a folder in which a process was killed, before anybody mends it and afterwards."""
    budget, wrong = Budget(home), []
    wrong += [finding.what for finding in budget.audit.verify()]
    wrong += budget.doubts()
    budget.check(NOW)
    wrong += [finding.what for finding in budget.audit.verify()]
    ledger, logged = known(budget)
    if ledger != logged:
        wrong.append(f"ledger {ledger}, log {logged}")
    if len(set(ledger)) != len(ledger):
        wrong.append(f"twice in the ledger: {ledger}")
    if not told_of(home) <= set(ledger):
        wrong.append(f"told {told_of(home)}, kept {ledger}")
    if any(
        ("reserved", round_) not in ledger[:place]
        for place, (event, round_) in enumerate(ledger)
        if event == "released"
    ):
        wrong.append("let out without a debit")
    return tuple(wrong)


def finished(home: Path) -> tuple[str, ...]:
    """Let the daemon come back and do what it was killed at; return what is wrong then."""
    budget, refused = Budget(home), set()
    granted(budget)
    for round_ in (1, 2):
        try:
            reserved(budget, round_)
        except Refusal as refusal:
            refused.add(refusal.reason)
    if ("released", 1) not in known(budget)[0]:
        released(budget, 1)
    ledger, logged = known(budget)
    expected = {("granted", 0), ("reserved", 1), ("reserved", 2), ("released", 1)}
    wrong = [finding.what for finding in budget.audit.verify()] + budget.doubts()
    if set(ledger) != expected or len(ledger) != len(expected) or ledger != logged:
        wrong.append(f"ledger {ledger}, log {logged}")
    if refused - {RefusalCode.ROUND_REPLAYED}:
        wrong.append(str(refused))
    return tuple(wrong)


def killed(folder: Path, first: int, step: int) -> Iterator[Path]:
    """Yield the folders in which a process was killed, the one that lived to the end as well."""
    command = [sys.executable, "-m", "tests.client.crash_child", str(folder), str(first), str(step)]
    count = int(
        subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    )
    homes = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    assert len(homes) == count
    yield from homes


def check(folder: Path, first: int, step: int, at_least: int) -> None:
    stages, wrong = set(), {}
    homes = list(killed(folder, first, step))
    for home in homes:
        stages.add(len(told_of(home)))
        found = examined(home) or finished(home)
        if found:
            wrong[home.name] = found
    assert not wrong
    assert stages == {0, 1, 2, 3, 4}, "points before, between and behind all steps"
    assert len(homes) >= at_least
    assert Budget(homes[-1]).ledger.account(A) is not None


def test_kill_9_at_points_all_over_a_debit_leaves_ledger_and_log_true(tmp_path: Path) -> None:
    check(tmp_path, 1, STEP, at_least=40)


@pytest.mark.slow
def test_kill_9_before_every_line_of_ledger_and_log_leaves_them_true(tmp_path: Path) -> None:
    check(tmp_path, 1, 1, at_least=1500)
