"""Faults in their reduced forms: one deployed run each, the books judged as in the campaign."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedward_simulations.faults import (
    centre_clock,
    clock_jump,
    disk_full,
    expired_certificate,
    memory,
    network,
    power_loss,
    slow_site,
)
from fedward_simulations.faults.centre_stage import rehearse_installed
from fedward_simulations.faults.road import Weather
from fedward_simulations.faults.stage import Fault, Outcome, rehearse

ROUNDS = 4

pytestmark = [pytest.mark.reduced, pytest.mark.deployed]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model's SHA-256 of a run in which nothing goes wrong."""
    outcome = rehearse(tmp_path_factory.mktemp("undisturbed"), Fault(rounds=ROUNDS), private=False)
    assert (outcome.flaws, outcome.result.status) == ([], "completed")
    return outcome.model


def lossless(folder: Path, fault: Fault, model: str) -> Outcome:
    outcome = rehearse(folder, fault, private=False)
    assert (outcome.flaws, outcome.result.status, outcome.model) == ([], "completed", model)
    return outcome


def test_a_power_loss_closes_the_round_at_its_deadline_and_the_site_comes_back(tmp_path: Path) -> None:
    fault = power_loss.PowerLoss(deadline_s=20.0, rounds=6, site="south", pause_s=0.3)
    outcome = rehearse(tmp_path, fault, private=True)
    assert outcome.flaws == []
    assert power_loss.wrong_with("south", fault, outcome.result) == []


def test_a_cut_road_costs_no_update(tmp_path: Path, undisturbed: str) -> None:
    fault = network.Cut(rounds=ROUNDS, site="north", struck=2, seconds=4.0)
    lossless(tmp_path, fault, undisturbed)
    assert fault.notes["refused"]


def test_a_bad_road_costs_no_update(tmp_path: Path, undisturbed: str) -> None:
    fault = network.BadRoad(rounds=ROUNDS, weather=Weather(delay_s=0.05, loss=0.05, resets=0.1))
    lossless(tmp_path, fault, undisturbed)
    assert fault.notes["lost"]


def test_a_slow_site_is_waited_for_while_the_deadline_allows(tmp_path: Path, undisturbed: str) -> None:
    lossless(tmp_path, slow_site.SlowSite(rounds=ROUNDS, site="east"), undisturbed)


def test_a_site_short_of_memory_loses_one_round(tmp_path: Path) -> None:
    outcome = rehearse(tmp_path, memory.Hungry(rounds=ROUNDS, site="south"), private=True)
    assert outcome.flaws == []
    assert memory.wrong_with("south", Fault(), outcome.result) == []


def test_a_clock_that_jumps_at_a_site_costs_no_update(tmp_path: Path, undisturbed: str) -> None:
    if not clock_jump.LIBRARY.exists():
        pytest.skip("libfaketime is not installed")
    fault = clock_jump.ClockJump(rounds=ROUNDS, who="north", offset_s=3600, seconds=4.0)
    lossless(tmp_path, fault, undisturbed)
    assert fault.notes["lines_that_name_the_clock"]


@pytest.mark.parametrize("jump", centre_clock.JUMPS)
def test_a_clock_that_jumps_at_the_centre_costs_no_round_and_nobody_pays_twice(tmp_path: Path, jump: str) -> None:
    offset, payer = centre_clock.JUMPS[jump], tmp_path / "run" / "sites" / "west"
    fault = centre_clock.Jump(tmp_path / "offset", offset, struck=2, payer=payer)
    run = tmp_path / "run"
    assert rehearse_installed(run, fault.act, rounds=4, seed=1, private=True, environment=fault.environment) == []
    assert fault.notes["round"] in {2, 3, 4}
    if offset > 0:
        assert centre_clock.said_again(run / "sites")


def test_a_centre_without_space_says_so_and_goes_on_in_the_same_round(tmp_path: Path, undisturbed: str) -> None:
    if not disk_full.can_mount(tmp_path / "probe"):
        pytest.skip("only root mounts a small file system")
    fault = disk_full.CentreFull(rounds=ROUNDS)
    lossless(tmp_path / "run", fault, undisturbed)
    assert "space" in fault.notes["stopped_with"]


def test_a_site_without_space_refuses_and_no_round_waits_for_it(tmp_path: Path) -> None:
    if not disk_full.can_mount(tmp_path / "probe"):
        pytest.skip("only root mounts a small file system")
    fault = disk_full.SiteFull(rounds=ROUNDS, site="east", struck=1)
    outcome = rehearse(tmp_path / "run", fault, private=True)
    assert outcome.flaws == []
    assert disk_full.wrong_with("east", fault, outcome.result) == []
    assert fault.notes["lines_that_say_what_to_do"]


def test_a_certificate_that_expires_keeps_a_site_out_until_it_is_renewed_and_no_longer(tmp_path: Path) -> None:
    fault = expired_certificate.Expiry("south", 2)
    flaws = rehearse_installed(tmp_path / "run", fault.act, rounds=30, seed=1, private=True, excused=fault.excuses)
    assert flaws == []
    assert fault.away[0] in fault.missed
    assert fault.notes["lines_that_say_why"]
    assert not fault.notes["site_started_again"]
