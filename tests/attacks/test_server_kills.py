"""kill -9 of the centre's processes loses no run, no update and no hospital's round."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fedward_simulations.faults.server_kills import campaign, shots_of


def test_the_plan_is_the_seed_s() -> None:
    assert shots_of(50, 3) == shots_of(50, 3)
    assert shots_of(50, 3) != shots_of(50, 4)


def test_the_plan_aims_at_every_process_and_every_moment() -> None:
    shots = shots_of(300, 1)
    targets, aims = Counter(shot.target for shot in shots), Counter(shot.aim for shot in shots)

    assert set(targets) == {"application", "superlink", "both"}
    assert set(aims) == {"time", "joined", "journal", "checkpoint"}
    assert min(*targets.values(), *aims.values()) >= 20


@pytest.mark.reduced
def test_killed_processes_of_the_centre_lose_nothing(tmp_path: Path) -> None:
    figures = campaign(tmp_path, kills=8, seed=7, kills_a_run=4)

    assert figures["kills"] == 8
    assert figures["runs"] >= 2
    assert not any(figures["flaws"].values()), figures["flaws"]
