"""One of three sites loses power in mid-round: daemon and children are gone at once, and nobody says goodbye.

    python -m fedward_simulations.faults.power_loss [--seed N] [--json]

In round 2 the site is struck while its child trains; its power comes back while round 3 is open. Round 2 must close
with the quorum at its deadline, 5 s after at most; the site is asked to enrol again and takes part to the end. Under
differential privacy it has paid for round 2 and is not charged for it again. Twice: with signs of life so rare that
only the deadline tells, and with frequent ones: there the round closes before.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedward_server.result import RoundResult, RunResult
from fedward_simulations.faults.killer import SITES
from fedward_simulations.faults.stage import Fault, Scene, main_of, run_campaign

__all__ = ["PowerLoss", "campaign", "wrong_with"]

STRUCK: Final = 2
_SLACK_S: Final = 5.0


@dataclass
class PowerLoss(Fault):
    """Strikes `site` in round 2 and gives it its power back in round 3, or later if it is not there yet."""

    site: str = "south"
    pause_s: float = 0.5

    def workers(self) -> dict[str, str]:
        """Return workers that take their time, at every site, so that there is a mid-round."""
        return dict.fromkeys(SITES, "fedward_simulations.faults.workers:PausingWorker")

    def opened(self, scene: Scene, round_: int) -> None:
        """Strike while the site's child trains."""
        if round_ == STRUCK:
            scene.await_child(self.site)
            time.sleep(self.pause_s)
            scene.power_off(self.site)
        if round_ == STRUCK + 1:
            threading.Thread(target=scene.power_on, args=(self.site,), daemon=True).start()

    def closed(self, scene: Scene, entry: RoundResult) -> None:  # noqa: ARG002
        """Note how long after its deadline the round closed, in seconds; before it: a negative number."""
        if entry.round == STRUCK:
            self.notes["closed_after_deadline_s"] = round(entry.seconds - self.deadline_s, 3)


def wrong_with(site: str, fault: Fault, result: RunResult) -> list[str]:
    """Return what must not be."""
    struck, found = result.rounds[STRUCK - 1], []
    if fault.notes["closed_after_deadline_s"] > _SLACK_S:
        found.append(f"the round closed {fault.notes['closed_after_deadline_s']} s after its deadline")
    if struck.statuses[site].status not in {"missed", "late"}:
        found.append(f"{site} is {struck.statuses[site].status} in the round in which it lost power")
    if any(part.status != "accepted" for name, part in struck.statuses.items() if name != site):
        found.append("the power loss of one site cost another the round")
    if result.rounds[-1].statuses[site].status != "accepted":
        found.append(f"{site} did not come back")
    if result.status != "degraded":
        found.append(f"the run is {result.status}")
    return found


def campaign(
    folder: Path, seed: int, *, deadlines: tuple[float, ...] = (20.0, 60.0), rounds: int = 10
) -> dict[str, Any]:
    """Return the figures: one part for each deadline in seconds, the second with signs of life every 10 s."""
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    figures: dict[str, Any] = {"seed": seed, "flaws": []}
    for heartbeat, deadline in zip((60.0, 10.0), deadlines, strict=False):
        site, pause = draw.choice(SITES), draw.uniform(0, 1.2)
        make = partial(PowerLoss, deadline_s=deadline, heartbeat_s=heartbeat, rounds=rounds, site=site, pause_s=pause)
        part = run_campaign(folder / f"heartbeat-{heartbeat:g}", make, lossless=False, judge=partial(wrong_with, site))
        figures["flaws"] += part.pop("flaws")
        figures[f"heartbeat_{heartbeat:g}_s"] = {"site": site, "deadline_s": deadline, **part}
    return figures


if __name__ == "__main__":
    main_of(__doc__, campaign)
