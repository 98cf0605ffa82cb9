"""A site's training takes more memory than the hospital allows it: in one round the child is ended for that.

    python -m fedward_simulations.faults.memory [--seed N] [--json]

The site answers ``task_out_of_memory``, loses that round and no other, and is not asked a second time in it, where the
same data would meet the same limit. Nobody else loses anything, and the run goes on to its end.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from fedward_server.result import RunResult
from fedward_simulations.faults.killer import SITES
from fedward_simulations.faults.stage import Fault, main_of, run_campaign
from fedward_simulations.faults.workers import HUNGRY_ROUND

__all__ = ["Hungry", "campaign", "wrong_with"]

_LIMIT_GIB: Final = 0.5
_EXPECTED: Final = {"task_out_of_memory"}


@dataclass
class Hungry(Fault):
    """`site` has a worker that takes memory without end in round 2, and a policy that allows 0.5 GiB."""

    site: str = "south"

    def workers(self) -> dict[str, str]:
        """Return the hungry worker."""
        return {self.site: "fedward_simulations.faults.workers:HungryWorker"}

    def settled(self, homes: Mapping[str, Path]) -> None:
        """Let the site's policy allow little memory."""
        path = homes[self.site] / "site.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["policy"].setdefault("resources", {})["memory_gib"] = _LIMIT_GIB
        path.write_text(yaml.safe_dump(values), encoding="utf-8")


def wrong_with(site: str, _: Fault, result: RunResult) -> list[str]:
    """Return what must not be."""
    found = []
    for entry in result.rounds:
        for name, part in entry.statuses.items():
            if (name, entry.round) == (site, HUNGRY_ROUND):
                if part.status != "missed" or part.retried or str(part.reason).split(" ", 1)[0] not in _EXPECTED:
                    found.append(f"{name} is {part.status} ({part.reason}) in round {entry.round}")
            elif part.status != "accepted":
                found.append(f"{name} is {part.status} ({part.reason}) in round {entry.round}")
    return found


def campaign(folder: Path, seed: int, *, rounds: int = 6) -> dict[str, Any]:
    """Return the figures."""
    site = random.Random(seed).choice(SITES)  # noqa: S311  (a plan, no secret)
    make = partial(Hungry, rounds=rounds, site=site)
    return {"seed": seed, "site": site} | run_campaign(folder, make, lossless=False, judge=partial(wrong_with, site))


if __name__ == "__main__":
    main_of(__doc__, campaign)
