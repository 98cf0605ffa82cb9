"""kill -9 between any two steps of an enrolment or renewal leaves a site that works, or that the same command mends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.centres import Centre

pytestmark = pytest.mark.deployed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    with Centre(tmp_path_factory.mktemp("centre") / "home") as running:
        yield running


def campaign(what: str, centre: Centre, folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.e2e.killed_membership", what, str(centre.home), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_an_enrolment_that_was_killed_is_ended_by_the_same_line(centre: Centre, tmp_path: Path) -> None:
    outcomes = campaign("enrol", centre, tmp_path)

    assert len(outcomes) > 15
    assert [outcome["ended"] for outcome in outcomes] == [-9] * (len(outcomes) - 1) + [0]
    for step, outcome in enumerate(outcomes):
        assert (outcome["again"], outcome["works"]) == (0, 0) or _complete(outcome), step


def _complete(outcome: dict[str, Any]) -> bool:
    """Killed after its last step, an enrolment needs no repetition: told so, the site works."""
    return bool(outcome["again"] == 1 and outcome["works"] == 0)


@pytest.mark.slow
def test_a_renewal_that_was_killed_leaves_a_working_site_at_every_step(centre: Centre, tmp_path: Path) -> None:
    outcomes = campaign("renew", centre, tmp_path)

    assert len(outcomes) > 10
    assert [outcome["ended"] for outcome in outcomes] == [-9] * (len(outcomes) - 1) + [0]
    assert {outcome["between"] for outcome in outcomes} == {0}
    assert {outcome["again"] for outcome in outcomes} == {0}
    assert {outcome["works"] for outcome in outcomes} == {0}
