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
import math
import os
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
_SIDES = {
    "fedward_cold": "Fedward, first answer",
    "fedward_warm": "Fedward, one round more",
    "fedward_one_kind": "Fedward, 1,562 equal steps",
    "google_pld": "dp-accounting PLD, 0.001",
    "google_rdp": "dp-accounting RDP",
    "opacus_prv": "Opacus PRV",
}


def _ledger(rounds: int) -> list[Spend]:
    draw = random.Random(1)  # noqa: S311  (a benchmark's input)
    return [Spend(round(draw.uniform(1.0, 4.0), 4), round(draw.uniform(0.01, 0.1), 4), _STEPS) for _ in range(rounds)]


def _timed(answer: Callable[[], float]) -> tuple[float, float, float]:
    """Return the answer, seconds of wall time and seconds of processor time."""
    began, worked = time.perf_counter(), time.process_time()
    epsilon = answer()
    return epsilon, time.perf_counter() - began, time.process_time() - worked


def _ours(rounds: int) -> dict[str, float]:
    for name in ("scipy.special", "scipy.fft"):
        importlib.import_module(name)
    spends = _ledger(rounds + 1)
    epsilon, cold, cold_cpu = _timed(lambda: epsilon_of(spends[:-1], _DELTA))
    _, warm, warm_cpu = _timed(lambda: epsilon_of(spends, _DELTA))
    _, single, single_cpu = _timed(lambda: epsilon_of([Spend(2.0, 0.064, 1562)], 1e-4))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"cold_s": cold, "cold_cpu_s": cold_cpu, "warm_s": warm, "warm_cpu_s": warm_cpu}
    found |= {"one_kind_s": single, "one_kind_cpu_s": single_cpu}
    return {"epsilon": epsilon, **found, "peak_mib": peak}


def _google(rounds: int, *, rdp: bool) -> tuple[float, float, float]:
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


def _opacus(rounds: int) -> tuple[float, float, float]:
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
    others = {"google_pld": _google(rounds, rdp=False), "google_rdp": _google(rounds, rdp=True)}
    others["opacus_prv"] = _opacus(rounds)
    for name, values in others.items():
        found |= dict(zip((f"{name}_epsilon", f"{name}_s", f"{name}_cpu_s"), values, strict=True))
    return found | {"load": os.getloadavg()[0]}


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
    title = f"{options.rounds} rounds of {_STEPS} steps, noise and rate all different, delta {_DELTA:g}"
    lines = [title, f"{'':28s}{'epsilon':>9s}{'seconds':>10s}{'of processor':>14s}"]
    for key, name in _SIDES.items():
        epsilon = figures.get(f"{key}_epsilon", figures["fedward_epsilon"] if key == "fedward_cold" else math.nan)
        shown = f"{epsilon:9.4f}" if math.isfinite(epsilon) else f"{'':9s}"
        lines.append(f"{name:28s}{shown}{figures[f'{key}_s']:10.3f}{figures[f'{key}_cpu_s']:14.3f}")
    lines.append(f"goal: one more round < {_GOAL:g} s; ours needs at most {figures['fedward_peak_mib']:.0f} MiB in all")
    lines.append(f"load at the end {figures['load']:.1f}")
    report(figures, lines, as_json=options.json)


if __name__ == "__main__":
    main()
