"""The benchmark of the accountants measures what it says: a ledger in which no two rounds are alike."""

from __future__ import annotations

import json
import sys

import pytest

from fedward_common.privacy import epsilon_of
from fedward_simulations.bench import accounting
from fedward_simulations.bench.harness import run_process


def test_no_two_rounds_of_the_ledger_are_alike() -> None:
    ledger = accounting._ledger(200)

    assert len({(spend.noise_multiplier, spend.sampling_rate) for spend in ledger}) == 200
    assert ledger == accounting._ledger(201)[:200]


def test_our_side_reports_the_epsilon_that_is_charged_and_what_it_took() -> None:
    command = [sys.executable, "-m", "fedward_simulations.bench.accounting", "--ours", "--rounds", "6", "--json"]
    figures = json.loads(run_process(command))

    assert figures.pop("epsilon") == pytest.approx(epsilon_of(accounting._ledger(6), 1e-5))
    timed = {f"{what}_{unit}" for what in ("cold", "warm", "one_kind") for unit in ("s", "cpu_s")}
    assert set(figures) == {*timed, "peak_mib"}
    assert min(figures.values()) >= 0


def test_other_accountants_are_asked_for_the_same_ledger() -> None:
    epsilon = epsilon_of(accounting._ledger(6), 1e-5)

    assert accounting._google(6, rdp=False)[0] == pytest.approx(epsilon, abs=0.02)
    assert accounting._google(6, rdp=True)[0] > epsilon
    assert accounting._opacus(6)[0] == pytest.approx(epsilon, abs=0.02)
