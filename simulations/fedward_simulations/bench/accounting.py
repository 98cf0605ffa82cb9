"""Seconds to account for 200 different rounds: ours cold and warm, dp-accounting, Opacus' PRV and a Rényi accountant.

    python -m fedward_simulations.bench.accounting [--json] [--rounds N] [--ours]

A ledger of N rounds whose noise and sampling rate all differ, ten steps each, is the worst case: nothing can be raised
to a power. Cold is the first answer in a fresh process after the imports; warm is the answer after one round more. The
other accountants answer once; they have no cheaper way to add a round than to compose anew what they hold.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable

from fedward_common.privacy import Spend, epsilon_of
from fedward_simulations.bench.harness import report, run_process

__all__ = ["main"]

_DELTA = 1e-5
_STEPS = 10
_GOAL = 1.0
_EVENTS = "dp_accounting.dp_event"


def _ledger(rounds: int) -> list[Spend]:
    draw = random.Random(1)  # noqa: S311  (a benchmark's input)
    return [Spend(round(draw.uniform(1.0, 4.0), 4), round(draw.uniform(0.01, 0.1), 4), _STEPS) for _ in range(rounds)]


def _timed(answer: Callable[[], float]) -> tuple[float, float]:
    began = time.perf_counter()
    epsilon = answer()
    return epsilon, time.perf_counter() - began


def _ours(rounds: int) -> dict[str, float]:
    for name in ("scipy.special", "scipy.fft"):
        importlib.import_module(name)
    spends = _ledger(rounds + 1)
    epsilon, cold = _timed(lambda: epsilon_of(spends[:-1], _DELTA))
    _, warm = _timed(lambda: epsilon_of(spends, _DELTA))
    _, single = _timed(lambda: epsilon_of([Spend(2.0, 0.064, 1562)], 1e-4))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"epsilon": epsilon, "cold_s": cold, "warm_s": warm, "one_kind_s": single, "peak_mib": peak}


def _google(rounds: int, *, rdp: bool) -> tuple[float, float]:
    events = importlib.import_module(_EVENTS)
    if rdp:
        accountant = importlib.import_module("dp_accounting.rdp").RdpAccountant()
    else:
        module = importlib.import_module("dp_accounting.pld.pld_privacy_accountant")
        accountant = module.PLDAccountant(value_discretization_interval=1e-3)

    def answer() -> float:
        for spend in _ledger(rounds):
            event = events.PoissonSampledDpEvent(spend.sampling_rate, events.GaussianDpEvent(spend.noise_multiplier))
            accountant.compose(event, spend.steps)
        return float(accountant.get_epsilon(_DELTA))

    return _timed(answer)


def _opacus(rounds: int) -> tuple[float, float]:
    accountant = importlib.import_module("opacus.accountants").PRVAccountant()
    accountant.history = [(s.noise_multiplier, s.sampling_rate, s.steps) for s in _ledger(rounds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _timed(lambda: float(accountant.get_epsilon(delta=_DELTA)))


def _measure(rounds: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "fedward_simulations.bench.accounting",
        "--ours",
        "--rounds",
        str(rounds),
        "--json",
    ]
    figures = json.loads(run_process(command))
    found: dict[str, float] = {f"fedward_{name}": value for name, value in figures.items()}
    found["google_pld_epsilon"], found["google_pld_s"] = _google(rounds, rdp=False)
    found["google_rdp_epsilon"], found["google_rdp_s"] = _google(rounds, rdp=True)
    found["opacus_prv_epsilon"], found["opacus_prv_s"] = _opacus(rounds)
    return found


def main() -> None:
    """Measure all and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--rounds", type=int, default=200, help="rounds, all different")
    parser.add_argument("--ours", action="store_true", help="ours alone, in this process")
    options = parser.parse_args()
    if options.ours:
        ours = _ours(options.rounds)
        report(ours, [f"{name:12s} {value:10.4f}" for name, value in ours.items()], as_json=options.json)
        return
    figures = _measure(options.rounds)
    lines = [
        f"{options.rounds} rounds of {_STEPS} steps, noise and rate all different, delta {_DELTA:g}: epsilon, seconds",
        f"Fedward, cold        {figures['fedward_epsilon']:9.4f} {figures['fedward_cold_s']:9.3f}",
        f"Fedward, one more    {'':9s} {figures['fedward_warm_s']:9.3f}   (goal < {_GOAL:g} s)",
        f"Fedward, one kind    {'':9s} {figures['fedward_one_kind_s']:9.4f}   (1,562 equal steps)",
        f"dp-accounting PLD    {figures['google_pld_epsilon']:9.4f} {figures['google_pld_s']:9.3f}   (grid 0.001)",
        f"dp-accounting RDP    {figures['google_rdp_epsilon']:9.4f} {figures['google_rdp_s']:9.3f}",
        f"Opacus PRV           {figures['opacus_prv_epsilon']:9.4f} {figures['opacus_prv_s']:9.3f}",
    ]
    lines.append(f"at most {figures['fedward_peak_mib']:.0f} MiB in the whole process of Fedward")
    report(figures, lines, as_json=options.json)


if __name__ == "__main__":
    main()
