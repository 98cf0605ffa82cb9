"""A site's clock jumps an hour forth or back while a round is open, and is set right later.

    python -m fedward_simulations.faults.clock_jump [--seed N] [--json]

The daemon's time of day is another (Debian's libfaketime); monotonic time is not touched, as by a person who sets a
clock. While the clock is wrong the SuperLink does not believe the site's signatures, and the site says in its log what
to look at; set right, it goes on, and no update is lost. For the centre's clock see `centre_clock`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import InstallationError
from fedward_server.result import RunResult
from fedward_simulations.faults.killer import SITES
from fedward_simulations.faults.stage import Fault, Scene, main_of, run_campaign

__all__ = ["LIBRARY", "ClockJump", "campaign"]

LIBRARY: Final = next(
    (path for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), Path("/usr/lib/libfaketime.so.1")
)
_WORDS: Final = "clock"


@dataclass
class ClockJump(Fault):
    """The clock of `who` is wrong by `offset_s` from a round's opening on, for `seconds`."""

    who: str = "south"
    offset_s: int = 3600
    struck: int = 2
    seconds: float = 10.0
    file: Path = field(default_factory=Path)

    def settled(self, homes: Mapping[str, Path]) -> None:
        """Write where the process reads its offset: none so far."""
        self.file = next(iter(homes.values())).parent.parent / "offset"
        self._set(0)

    def _set(self, seconds: int) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n", encoding="ascii")
        new.replace(self.file)

    def environment(self, name: str) -> Mapping[str, str]:
        """Return what lets the process believe another time of day."""
        if name != self.who:
            return {}
        return {
            "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip

    def opens(self, scene: Scene, round_: int) -> None:
        """Set the clock wrong."""
        if round_ == self.struck:
            self._set(self.offset_s)
            threading.Thread(target=self._right, args=(scene,), daemon=True).start()

    def _right(self, scene: Scene) -> None:
        time.sleep(self.seconds)
        log = (scene.logs / f"{self.who}.log").read_text(encoding="utf-8", errors="replace")
        self.notes["lines_that_name_the_clock"] = sum(_WORDS in line for line in log.split("\n"))
        self._set(0)


def _wrong(fault: Fault, result: RunResult) -> list[str]:
    found = [] if result.status == "completed" else [f"the run is {result.status}: {result.reason}"]
    return found if fault.notes["lines_that_name_the_clock"] else [*found, "the site's log does not name the clock"]


def campaign(folder: Path, seed: int, *, rounds: int = 6, seconds: float = 10.0) -> dict[str, Any]:
    """Return the figures of a clock that goes forth, and of one that goes back.

    Raises:
        InstallationError: libfaketime is not installed.
    """
    if not LIBRARY.exists():
        msg = "this campaign needs libfaketime"
        raise InstallationError(msg, remedy="apt-get install faketime")
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    figures: dict[str, Any] = {"seed": seed, "flaws": []}
    for name, offset in (("forth", 3600), ("back", -3600)):
        struck, who = draw.randint(1, rounds - 2), draw.choice(SITES)
        make = partial(ClockJump, rounds=rounds, who=who, offset_s=offset, struck=struck, seconds=seconds)
        part = run_campaign(folder / name, make, lossless=True, judge=_wrong)
        figures["flaws"] += [f"{name}: {flaw}" for flaw in part.pop("flaws")]
        figures[name] = {"who": who, "in_round": struck, **part}
    return figures


if __name__ == "__main__":
    main_of(__doc__, campaign)
