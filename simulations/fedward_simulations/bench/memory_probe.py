"""How much memory processes take, as Linux counts it: at the highest, each, and all together at one moment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

__all__ = ["Probe", "peak_rss", "pss"]

_EVERY_S: Final = 0.1
_KIB: Final = 1024


def peak_rss(pid: int) -> int:
    """Return the most bytes of memory that a process has held so far (VmHWM); 0 for one that has ended."""
    return _field(Path(f"/proc/{pid}/status"), "VmHWM")


def pss(pid: int) -> int:
    """Return the bytes that a process holds now, of shared ones its part; 0 for one that has ended."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def _field(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * _KIB
    return 0


class Probe:
    """Looks at processes ten times a second, inside a ``with``.

    `peaks` is each one's highest VmHWM, which misses nothing; `together` the highest sum of what all held at one look,
    which may miss what lasted less than a tenth of a second and counts shared pages once.

    Args:
        processes: their numbers by name.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = dict(processes)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="memory-probe", daemon=True)
        self.peaks = dict.fromkeys(processes, 0)
        self.together = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            for name, pid in self._processes.items():
                self.peaks[name] = max(self.peaks[name], peak_rss(pid))
            self.together = max(self.together, sum(map(pss, self._processes.values())))
            self._stop.wait(max(_EVERY_S, 4 * (time.monotonic() - began)))
