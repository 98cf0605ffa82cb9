"""A bad road between the sites and the centre: cut in mid-run, or with 200 ms of delay and 1 % of loss.

    python -m fedward_simulations.faults.network [--seed N] [--json]

Cut: in one round, drawn by the seed, one site's connections end while its child trains, and none gets through for some
seconds; then the road is mended. Bad: every byte takes 200 ms each way, 1 % of the segments are lost, and one loss in
twenty resets its connection. No update may be lost: the model has the bits of the undisturbed run.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedward_server.result import RunResult
from fedward_simulations.faults.killer import SITES
from fedward_simulations.faults.road import Road, Weather
from fedward_simulations.faults.stage import Fault, Scene, main_of, run_campaign

__all__ = ["BadRoad", "Cut", "campaign"]

CLEAR: Final = Weather()
BAD: Final = Weather(delay_s=0.2, loss=0.01, resets=0.05)


@dataclass
class BadRoad(Fault):
    """Every site's road has this weather."""

    weather: Weather = CLEAR
    roads: dict[str, Road] = field(default_factory=dict)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Build a road for each site."""
        with ExitStack() as stack:
            for number, site in enumerate(SITES):
                self.roads[site] = stack.enter_context(Road(self.weather, seed=self.seed + number))
            yield
        for name in ("segments", "lost", "connections", "refused", "reset"):
            self.notes[name] = sum(getattr(road, name) for road in self.roads.values())

    def detour(self, site: str, address: str) -> str:
        """Lead over the site's road."""
        return self.roads[site].to(address)


@dataclass
class Cut(BadRoad):
    """The road of `site` is cut in round `struck` for `seconds`."""

    site: str = "south"
    struck: int = 2
    seconds: float = 5.0

    def workers(self) -> dict[str, str]:
        """Return a worker that takes its time, so that there is a mid-round."""
        return {self.site: "fedward_simulations.faults.workers:PausingWorker"}

    def opened(self, scene: Scene, round_: int) -> None:
        """Cut the road while the site's child trains."""
        if round_ == self.struck:
            scene.await_child(self.site)
            self.roads[self.site].cut()
            threading.Thread(target=self._mend, daemon=True).start()

    def _mend(self) -> None:
        time.sleep(self.seconds)
        self.roads[self.site].mend()


def _whole(fault: Fault, result: RunResult) -> list[str]:
    found = [] if result.status == "completed" else [f"the run is {result.status}: {result.reason}"]
    if isinstance(fault, Cut) and not fault.notes["refused"]:
        found.append("nobody tried the road while it was cut")
    if fault.seed and isinstance(fault, BadRoad) and fault.weather.loss and not fault.notes["lost"]:
        found.append("nothing was lost")
    return found


def campaign(folder: Path, seed: int, *, rounds: int = 10, cut_s: float = 15.0) -> dict[str, Any]:
    """Return the figures of a cut and of a bad road."""
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    site, struck = draw.choice(SITES), draw.randint(1, rounds - 1)
    makes: dict[str, Callable[[], Fault]] = {
        "cut": partial(Cut, rounds=rounds, seed=seed, site=site, struck=struck, seconds=cut_s),
        "bad_road": partial(BadRoad, rounds=rounds, seed=seed, weather=BAD),
    }
    parts = {name: run_campaign(folder / name, make, lossless=True, judge=_whole) for name, make in makes.items()}
    flaws = [f"{name}: {flaw}" for name, part in parts.items() for flaw in part.pop("flaws")]
    parts["cut"] |= {"site": site, "in_round": struck, "cut_s": cut_s}
    return {"seed": seed, **parts, "flaws": flaws}


if __name__ == "__main__":
    main_of(__doc__, campaign)
