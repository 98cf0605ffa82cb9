"""What the benchmarks share: whole processes, timed in turn, and figures as text or JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["filesystem", "machine", "measure_in_turn", "report", "run_process"]

_SETTLE_S = 5.0


def machine() -> str:
    """Return the processor, the number of cores and the Python version."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123  (a device of the kernel)
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def filesystem(folder: Path) -> str:
    """Return the type of the file system that `folder` is on, for example ``ext4``; ``unknown`` off Linux."""
    found = ("", "unknown")
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found[1]
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        if folder.resolve().is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]


def run_process(command: Sequence[str], *, limit_s: float = 600.0) -> str:
    """Return what a successful process printed.

    Raises:
        RuntimeError: it failed; with the end of what it wrote to standard error.
    """
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        msg = f"{' '.join(command[:4])} … failed with {done.returncode}:\n{done.stderr[-2000:]}"
        raise RuntimeError(msg)
    return done.stdout


def measure_in_turn(sides: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Return each side's median wall time in seconds.

    The sides alternate, after a pause in which the processes that the other side left behind can end.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            time.sleep(_SETTLE_S)
            began = time.monotonic()
            run()
            seconds[name].append(time.monotonic() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(figures: Mapping[str, object], lines: Sequence[str], *, as_json: bool) -> None:
    """Print the figures as one JSON object, or the lines for a person with the machine below."""
    if as_json:
        sys.stdout.write(json.dumps(dict(figures)) + "\n")
    else:
        sys.stdout.write("\n".join([*lines, machine()]) + "\n")
