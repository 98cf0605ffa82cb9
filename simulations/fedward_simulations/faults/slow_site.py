"""One site's computer is twenty times as slow as the others'.

    python -m fedward_simulations.faults.slow_site [--seed N] [--json]

Patient: the deadline is long enough, the rounds wait, and the model has the bits of the undisturbed run. Impatient: the
deadline is shorter than the slow site's round; every round closes at it with the others, and what comes late is
recorded and not used. The slow site is asked to enrol again when it has answered, and not for a round before.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from fedward_server.result import RunResult
from fedward_simulations.faults.killer import SITES
from fedward_simulations.faults.stage import Fault, main_of, run_campaign

__all__ = ["SlowSite", "campaign", "wrong_with"]

_SLACK_S: Final = 5.0


@dataclass
class SlowSite(Fault):
    """`site` has a slow worker."""

    site: str = "south"
    worker: str = "SlowWorker"

    def workers(self) -> dict[str, str]:
        """Return the slow worker."""
        return {self.site: f"fedward_simulations.faults.workers:{self.worker}"}


def _patient(_: Fault, result: RunResult) -> list[str]:
    return [] if result.status == "completed" else [f"the run is {result.status}: {result.reason}"]


def wrong_with(site: str, fault: Fault, result: RunResult) -> list[str]:
    """Return what must not be where the deadline is shorter than the slow site's round."""
    found = []
    for entry in result.rounds:
        if entry.seconds > fault.deadline_s + _SLACK_S:
            found.append(f"round {entry.round} took {entry.seconds} s")
        if any(part.status != "accepted" for name, part in entry.statuses.items() if name != site):
            found.append(f"the slow site cost another one round {entry.round}")
    if not any(entry.statuses[site].status == "late" for entry in result.rounds):
        found.append("nothing that came late was recorded")
    if result.status != "degraded":
        found.append(f"the run is {result.status}: {result.reason}")
    return found


def campaign(folder: Path, seed: int, *, rounds: int = 6) -> dict[str, Any]:
    """Return the figures of both deadlines."""
    site = random.Random(seed).choice(SITES)  # noqa: S311  (a plan, no secret)
    patient = partial(SlowSite, rounds=rounds, site=site)
    hasty = partial(SlowSite, rounds=rounds, site=site, worker="LateWorker", deadline_s=5.0)
    parts = {
        "patient": run_campaign(folder / "patient", patient, lossless=True, judge=_patient),
        "impatient": run_campaign(folder / "impatient", hasty, lossless=False, judge=partial(wrong_with, site)),
    }
    # That the slow site has no part in the last round is what is meant to happen here.
    flaws = [
        f"{name}: {flaw}" for name, part in parts.items() for flaw in part.pop("flaws") if "last round" not in flaw
    ]
    return {"seed": seed, "site": site, **parts, "flaws": flaws}


if __name__ == "__main__":
    main_of(__doc__, campaign)
