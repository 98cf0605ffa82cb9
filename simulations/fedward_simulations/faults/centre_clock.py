"""The centre's clock jumps an hour forth or back while a round is open, and is set right some seconds later.

    python -m fedward_simulations.faults.centre_clock [--seed N] [--json]

The SuperLink and the run's process believe the wrong time of day; monotonic time is not touched. Forth, the SuperLink
takes everything that is under way for expired and forgets it, replies for which hospitals have paid among it; it
believes no site's signature, and calls no site online. Set right, the run goes on: no site misses a round, none pays
twice, and without privacy the model has the bits of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedward_client.books import RESERVED
from fedward_client.ledger import Ledger
from fedward_common.audit import AuditLog
from fedward_common.files import replace_file
from fedward_server.run_status import read_status
from fedward_simulations.engines.centre import Installation
from fedward_simulations.faults import shifted
from fedward_simulations.faults.centre_stage import SITES, rehearse_installed
from fedward_simulations.faults.stage import await_true, main_of

__all__ = ["JUMPS", "Jump", "campaign"]

JUMPS: Final[Mapping[str, float]] = {"forth": 3600.0, "back": -3600.0}
_CENTRE: Final = frozenset({"superlink", "application"})
_RUN_S: Final = 400.0


@dataclass
class Jump:
    """The clock is wrong by `offset_s` for `seconds`, from a moment of round `struck` on.

    Attributes:
        file: where the processes read their offset.
        payer: the folder of a site, at whose debit for the round the clock jumps; None: as soon as the round is open.
        delay_s: how long after that.
    """

    file: Path
    offset_s: float
    struck: int
    payer: Path | None = None
    delay_s: float = 0.0
    seconds: float = 8.0
    notes: dict[str, Any] = field(default_factory=dict)

    def environment(self, name: str) -> Mapping[str, str]:
        """Return what lets a process of the centre believe another time of day."""
        if name not in _CENTRE:
            return {}
        paths = [str(Path(*shifted.__path__)), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "FEDWARD_CLOCK": str(self.file)}

    def act(self, installation: Installation, run_folder: Path) -> int | None:
        """See `rehearse_installed`."""
        process = installation.start_application(run_folder)
        await_true(lambda: process.ended or self._is_time(run_folder), _RUN_S)
        time.sleep(self.delay_s)
        replace_file(self.file, f"{self.offset_s}\n".encode("ascii"))
        time.sleep(self.seconds)
        self.notes["round"] = self._closed(run_folder) + 1
        replace_file(self.file, b"0\n")
        await_true(lambda: process.ended, _RUN_S)
        return process.exit_code

    def _is_time(self, run_folder: Path) -> bool:
        if self.payer is None:
            return self._closed(run_folder) >= self.struck - 1
        changes = Ledger(self.payer / "ledger.sqlite").changes()
        return any((change.event, change.round) == (RESERVED, self.struck) for change in changes)

    @staticmethod
    def _closed(run_folder: Path) -> int:
        status = read_status(run_folder)
        return status.round if status else -1


def campaign(folder: Path, seed: int, *, rounds: int = 8) -> dict[str, Any]:
    """Return the figures of a clock that goes forth and of one that goes back, without privacy and with it."""
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    figures: dict[str, Any] = {"seed": seed, "rounds": rounds, "flaws": []}
    folder.mkdir(parents=True, exist_ok=True)
    for name, offset in JUMPS.items():
        for kind in ("plain", "private"):
            part, private = folder / f"{name}-{kind}", kind == "private"
            payer = part / "sites" / draw.choice(SITES) if private else None
            jump = Jump(folder / f"{name}-{kind}.offset", offset, draw.randint(2, rounds - 2), payer, draw.random() / 4)
            flaws = rehearse_installed(
                part, jump.act, rounds=rounds, seed=seed, private=private, environment=jump.environment
            )
            figures[part.name] = {"struck": jump.struck, **jump.notes, "said_again": said_again(part / "sites")}
            figures["flaws"] += [f"{part.name}: {flaw.rule} at {flaw.site}: {flaw.what}" for flaw in flaws]
    return figures


def said_again(sites: Path) -> int:
    """Return how many times the sites in a folder said once more what was paid for."""
    logs = (AuditLog(home).entries() for home in sites.iterdir() if (home / "site.yaml").exists())
    return sum(entry.event == "released again" for log in logs for entry in log)


if __name__ == "__main__":
    main_of(__doc__, campaign)
