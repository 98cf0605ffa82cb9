"""The judges of the fault campaigns see what must not be."""

from __future__ import annotations

from typing import Any

import pytest

from fedward_server.result import RunResult
from fedward_simulations.faults import memory, power_loss, slow_site
from fedward_simulations.faults.stage import Fault, statuses_of


def _result(statuses: list[dict[str, Any]], status: str = "degraded") -> RunResult:
    rounds = [{"round": n, "sites": [], "seconds": 1.0, "statuses": entry} for n, entry in enumerate(statuses, start=1)]
    return RunResult.model_validate(
        {
            "study": {"name": "n", "digest": "0" * 64}, "engine": "deployed", "seed": 1, "status": status,
            "started_at": "2026-11-27T00:00:00+00:00", "seconds": 1.0, "versions": {}, "privacy": None, "sites": {},
            "rounds": rounds, "central": {},
        }
    )  # fmt: skip


def _all(**changes: str) -> dict[str, Any]:
    return {site: {"status": changes.get(site, "accepted")} for site in ("east", "north", "south")}


@pytest.mark.parametrize(
    ("late_s", "statuses", "status", "flaw"),
    [
        (5.1, [_all(), _all(south="missed"), _all()], "degraded", "after its deadline"),
        (0.1, [_all(), _all(), _all()], "degraded", "in the round in which it lost power"),
        (0.1, [_all(), _all(south="late", north="missed"), _all()], "degraded", "cost another"),
        (0.1, [_all(), _all(south="late"), _all(south="absent")], "degraded", "did not come back"),
        (0.1, [_all(), _all(south="late"), _all()], "failed", "the run is failed"),
    ],
)
def test_the_judge_of_a_power_loss_sees(late_s: float, statuses: list[dict[str, Any]], status: str, flaw: str) -> None:
    fault = Fault(notes={"closed_after_deadline_s": late_s})
    (found,) = power_loss.wrong_with("south", fault, _result(statuses, status))
    assert flaw in found


@pytest.mark.parametrize(
    "second",
    [_all(), _all(south="missed", north="missed"), _all(south="late")],
    ids=["not-struck", "another-too", "late"],
)
def test_the_judge_of_a_short_memory_sees(second: dict[str, Any]) -> None:
    second["south"]["reason"] = "task_out_of_memory" if second["south"]["status"] == "missed" else "x"
    assert len(memory.wrong_with("south", Fault(), _result([_all(), second, _all()]))) == 1


def test_the_judge_of_a_slow_site_sees() -> None:
    fault = Fault(deadline_s=5.0)
    whole = _result([_all(south="late"), _all(south="absent")])
    assert slow_site.wrong_with("south", fault, whole) == []
    assert slow_site.wrong_with("south", fault, _result([_all(south="missed")]))
    assert slow_site.wrong_with("south", fault, _result([_all(south="late", north="missed")]))
    assert slow_site.wrong_with("south", fault, _result([_all(south="late")], "completed"))
    long = whole.rounds[0].model_copy(update={"seconds": 10.1})
    assert slow_site.wrong_with("south", fault, whole.model_copy(update={"rounds": (long,)}))


def test_statuses_are_counted_over_all_rounds_and_sites() -> None:
    found = statuses_of(_result([_all(south="missed"), _all(south="absent"), _all()]))
    assert found == {"absent": 1, "accepted": 7, "missed": 1}
