"""How fast updates are added up, against what one core moves: bytes per second of both, measured in one run.

    python -m fedward_simulations.bench.aggregation_speed [--json] [--megabytes M] [--sites N]

Adding one number reads it, reads the sum and writes the sum: 24 bytes. The memory's own figure is the best of NumPy's
copy and its triad over arrays far larger than any cache, by the same count of bytes (STREAM's, without the reads that
a write of a whole line may cost). `add` is what an update in memory costs; `stored` is what the deployed coordinator
does: it reads the updates of a round from the journal's file, a block of each at a time, decodes the mean of the
block and writes the next model into a file's pages. The sides take turns, and the best of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from fedward_common.wire import Update
from fedward_server.aggregation import Mean, add_into
from fedward_server.journal import StoredUpdate
from fedward_server.journal_file import StoredBody
from fedward_server.server_steps import Scaled
from fedward_simulations.bench.harness import filesystem, machine, report

__all__ = ["main", "measure"]

_GOAL: Final = 0.5
_MB: Final = 1_000_000
_ITEM: Final = 8


def measure(megabytes: float, sites: int, folder: Path, *, repeats: int = 5) -> dict[str, object]:
    """Return the figures for updates of so many megabytes, in bytes per second of one core."""
    size = round(megabytes * _MB / _ITEM)
    first, second = (np.arange(size, dtype=np.int64) % 1000 for _ in range(2))
    third = np.zeros(size, dtype=np.int64)
    mean = _stored_mean(first, sites, folder)

    def triad() -> None:
        np.multiply(second, 3, out=third)
        np.add(first, third, out=third)

    sides: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: np.copyto(third, first), 2 * _ITEM * size),
        "triad": (triad, 5 * _ITEM * size),
        "add": (lambda: add_into(third, first), 3 * _ITEM * size),
        "stored": (mean, 3 * _ITEM * size * sites),
    }
    best = dict.fromkeys(sides, 0.0)
    for _ in range(repeats):
        for name, (run, moved) in sides.items():
            began = time.perf_counter()
            run()
            best[name] = max(best[name], moved / (time.perf_counter() - began))
    memory = max(best["copy"], best["triad"])
    return {
        **{f"{name}_gb_s": round(value / 1e9, 2) for name, value in best.items()},
        "add_over_memory": round(best["add"] / memory, 3),
        "stored_over_memory": round(best["stored"] / memory, 3),
        "megabytes": megabytes,
        "sites": sites,
    }


def _stored_mean(values: np.ndarray[tuple[int], np.dtype[np.int64]], sites: int, folder: Path) -> Callable[[], object]:
    path = folder / "updates"
    with path.open("wb") as file:
        for _ in range(sites):
            file.write(values.astype("<i8", copy=False).data)
    weights = np.zeros(len(values), dtype=np.float32)
    head = Update("site", "d" * 64, 1, 1, 0, np.zeros(0, dtype=np.int64), {})
    mean = Mean(Scaled(1.0), folder)

    def run() -> object:
        mean.start(weights)
        for number in range(sites):
            body = StoredBody(path, number * values.nbytes, values.nbytes)
            mean.take(StoredUpdate(head, body, len(values)))
        return mean.finish()

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--megabytes", type=float, default=400.0, help="of one update, 10**6 bytes each")
    parser.add_argument("--sites", type=int, default=4, help="whose updates are in the file")
    parser.add_argument("--folder", type=Path, help="where the file goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedward-bench-", dir=options.folder) as folder:
        figures = measure(options.megabytes, options.sites, Path(folder))
        figures |= {"filesystem": filesystem(Path(folder)), "machine": machine()}
    lines = [
        f"one core: copy {figures['copy_gb_s']} GB/s, triad {figures['triad_gb_s']} GB/s",
        f"add an update in memory   {figures['add_gb_s']} GB/s, {figures['add_over_memory']} of it (goal {_GOAL:g})",
        f"add and decode from file  {figures['stored_gb_s']} GB/s, {figures['stored_over_memory']} of it",
    ]
    report(figures, lines, as_json=options.json)


if __name__ == "__main__":
    main()
