"""Millions of noised values a second on one core: both tiers beside the generators that were weighed for them.

    python -m fedward_simulations.bench.noise [--json] [--size N] [--repeats N]

The tiers are measured whole, as a step calls them: a clipped sum of `--size` values in, noised values out, keys from
the operating system. The generators draw standard normal values into a buffer that stays in the cache and do nothing
else, so they bound what a tier built on them could reach. What was used before is NumPy's ``normal`` on a PCG64. The
sides take turns; each rate is that of the fastest of the repeats, by the processor time of one thread, which other
programs on the machine disturb less than the clock.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import torch

from fedward_client.dp.noise import Tier, noised
from fedward_client.dp.stream import SEED_BYTES, AesStream
from fedward_client.dp.sums import ClippedSum
from fedward_simulations.bench.harness import machine, report

__all__ = ["main"]

_GOAL: Final = 1.0  # million values a second of the strict tier
_BUFFER: Final = 1 << 14

Side = Callable[[int], object]


@cache
def _sum(size: int) -> ClippedSum:
    """Return a sum of ones, in memory that is mapped before anything is timed."""
    return ClippedSum((torch.ones(size),), 1.0)


def _tier(tier: Tier) -> Side:
    return lambda size: noised(_sum(size), 1.0, tier)


def _before(size: int) -> object:
    """Make the noise that clipping.py made until 2026-11."""
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(32), "little")))
    (total,) = _sum(size).tensors
    return total + torch.from_numpy(generator.normal(0.0, 1.0, size)).to(total)


def _ziggurat(kind: type[np.random.BitGenerator], dtype: Any) -> Side:
    def draw(size: int) -> object:
        generator = np.random.Generator(kind(int.from_bytes(os.urandom(32), "little")))
        buffer = np.empty(_BUFFER, dtype=dtype)
        for _ in range(size // _BUFFER):
            generator.standard_normal(out=buffer, dtype=dtype)
        return buffer

    return draw


def _torch(size: int) -> object:
    buffer = torch.empty(_BUFFER)
    for _ in range(size // _BUFFER):
        buffer.normal_()
    return buffer


def _words(size: int) -> object:
    stream = AesStream(os.urandom(SEED_BYTES))
    return [len(stream.words(_BUFFER)) for _ in range(size // _BUFFER)]


SIDES: Final[dict[str, Side]] = {
    "gaussian": _tier("gaussian"),
    "discrete_gaussian": _tier("discrete_gaussian"),
    "before": _before,
    "sfc64_float64": _ziggurat(np.random.SFC64, np.float64),
    "sfc64_float32": _ziggurat(np.random.SFC64, np.float32),
    "pcg64_float64": _ziggurat(np.random.PCG64, np.float64),
    "pcg64_float32": _ziggurat(np.random.PCG64, np.float32),
    "torch_float32": _torch,
    "aes_words": _words,
}
_WORDS: Final = {
    "gaussian": "tier gaussian",
    "discrete_gaussian": "tier discrete_gaussian",
    "before": "before: PCG64, float64",
    "sfc64_float64": "draws alone: SFC64, float64",
    "sfc64_float32": "draws alone: SFC64, float32",
    "pcg64_float64": "draws alone: PCG64, float64",
    "pcg64_float32": "draws alone: PCG64, float32",
    "torch_float32": "draws alone: torch, float32, 32 bits of seed",
    "aes_words": "AES-256-CTR, 64-bit words",
}


def _measure(size: int, repeats: int) -> dict[str, float]:
    """Return millions of values for each second of processor time, by side."""
    _sum(size)
    best = dict.fromkeys(SIDES, float("inf"))
    for _ in range(repeats):
        for name, side in SIDES.items():
            began = time.thread_time()
            side(size)
            best[name] = min(best[name], time.thread_time() - began)
    return {name: round(size / seconds / 1e6, 2) for name, seconds in best.items()}


def _size(text: str) -> int:
    number = int(text)
    if number < _BUFFER or number % _BUFFER:
        msg = f"a multiple of {_BUFFER}, so that each side draws the same number"
        raise argparse.ArgumentTypeError(msg)
    return number


def main() -> None:
    """Measure all sides and print their rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--size", type=_size, default=1 << 22, help="values of a release")
    parser.add_argument("--repeats", type=int, default=7, help="of each side; the fastest counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rates = _measure(options.size, max(1, options.repeats))
    figures = {
        "million_values_per_s": rates,
        "goal_discrete": _GOAL,
        "size": options.size,
        "repeats": options.repeats,
        "load_before": round(load, 2),
        "machine": machine(),
    }
    lines = [f"millions of values for a second of one core, {options.size} values, fastest of {options.repeats}"]
    lines += [f"{_WORDS[name]:46s} {rate:8.1f}" for name, rate in rates.items()]
    lines += [f"goal for discrete_gaussian: at least {_GOAL:g}; load before: {load:.2f}"]
    report(figures, lines, as_json=options.json)


if __name__ == "__main__":
    main()
