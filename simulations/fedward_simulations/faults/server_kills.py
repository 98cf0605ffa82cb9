"""kill -9 of a run's process at the centre, of the SuperLink, or of both, again and again, while real sites train.

    python -m fedward_simulations.faults.server_kills [--kills N] [--seed N] [--json]

A whole installation on loopback runs studies of 10 rounds at 4 sites, one after another, until every kill was done.
What is killed starts again at once, as its supervisor would start it. Each kill is aimed, by the seed, at a process and
at a moment of its life: so long after it started, or a few milliseconds after it joined, wrote its journal or its
checkpoint. Odd studies are private: their ledgers show what was spent twice. Even ones are not: with the same updates
their model has the same bits, and it is compared with the model of a run that nobody disturbs. In every round every
site must count. What is wrong is listed, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fedward_server.application import AGAIN
from fedward_simulations.engines.centre import Installation
from fedward_simulations.engines.deployed import LoggedProcess
from fedward_simulations.faults.centre_stage import rehearse_installed
from fedward_simulations.faults.kill_book import RULES, Flaw
from fedward_simulations.faults.stage import main_of

__all__ = ["ROUNDS", "Shot", "campaign", "shots_of"]

Target = Literal["application", "superlink", "both"]
Aim = Literal["time", "joined", "journal", "checkpoint"]

ROUNDS: Final = 10
_TARGETS: Final[Mapping[Target, int]] = {"application": 3, "superlink": 1, "both": 1}
_AFTER_S: Final[Mapping[Aim, float]] = {"time": 6.0, "joined": 0.3, "journal": 0.05, "checkpoint": 0.05}
_LATER: Final = 6
_LOOK_S: Final = 0.001
_RUN_S: Final = 900.0
_KILLS_A_RUN: Final = 20
_FILES: Final[Mapping[Aim, str]] = {
    "joined": "session.json", "journal": "journal.fedward", "checkpoint": "checkpoint.safetensors",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shot:
    """One kill as it is planned: whom, and `delay_s` after the `count`-th such event since the application started."""

    target: Target
    aim: Aim
    count: int
    delay_s: float


@dataclass
class _Range:
    """One study under fire.

    Attributes:
        installation: where it runs.
        folder: the run's.
        kills: what was done: the shot, and the round that was open.
    """

    installation: Installation
    folder: Path
    superlink: LoggedProcess
    application: LoggedProcess
    kills: list[tuple[Shot, int]]

    def fire(self, shot: Shot) -> bool:
        """Wait for the shot's moment and kill, then start again what was killed; False if the run ended before."""
        seen, count, due = self._stamp(shot.aim), 0, 0.0
        if shot.aim == "time":
            due = time.monotonic() + shot.delay_s
        while not due or time.monotonic() < due:
            if self._ended():
                return False
            if not due and (now := self._stamp(shot.aim)) != seen:
                seen, count = now, count + 1
                due = time.monotonic() + shot.delay_s if count == shot.count else 0.0
            time.sleep(_LOOK_S)
        self.kills.append((shot, self._round()))
        victims = {"application": [self.application], "superlink": [self.superlink]}
        for process in victims.get(shot.target, [self.superlink, self.application]):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if shot.target != "application":
            self.superlink = self.installation.start_superlink()
        if shot.target != "superlink":
            self.application = self.installation.start_application(self.folder)
        return True

    def finish(self) -> int | None:
        """Return the exit code of the application once the run is over; None if it takes too long."""
        deadline = time.monotonic() + _RUN_S
        while time.monotonic() < deadline:
            if self._ended():
                return self.application.exit_code
            time.sleep(0.05)
        return None

    def _ended(self) -> bool:
        """Return whether the application has come to an end of its own; one that asks for it is started again."""
        if self.application.exit_code == AGAIN:
            self.application = self.installation.start_application(self.folder)
        return self.application.ended

    def _stamp(self, aim: Aim) -> tuple[int, int]:
        with suppress(FileNotFoundError, KeyError):
            found = (self.folder / _FILES[aim]).stat()
            return found.st_mtime_ns, found.st_ino
        return 0, 0

    def _round(self) -> int:
        with suppress(FileNotFoundError, ValueError):
            return int(json.loads((self.folder / "status.json").read_bytes())["round"])
        return 0


def shots_of(kills: int, seed: int) -> list[Shot]:
    """Return the plan: `kills` shots, drawn with the seed."""
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    return [_shot(draw) for _ in range(kills)]


def _shot(draw: random.Random) -> Shot:
    (target,) = draw.choices(list(_TARGETS), list(_TARGETS.values()))
    aims: tuple[Aim, ...] = ("time", "joined", "journal", "checkpoint")
    aim = draw.choices(aims, (2, 1, 4, 1))[0]
    most = _LATER if aim == "journal" else 2 if aim == "joined" else 1
    return Shot(target, aim, draw.randint(1, most), draw.uniform(0, _AFTER_S[aim]))


def campaign(folder: Path, kills: int, seed: int, *, kills_a_run: int = _KILLS_A_RUN) -> dict[str, Any]:
    """Run studies under `kills` kills; return what was done, what came of it and every flaw.

    Args:
        folder: an empty folder.
        kills: how many.
        seed: of the plan.
        kills_a_run: at most so many in one study.
    """
    started, left = time.monotonic(), shots_of(kills, seed)
    done: list[tuple[Shot, int]] = []
    flaws: list[Flaw] = []
    runs = empty = 0
    while left and empty < 3:  # noqa: PLR2004  (three runs that no shot hit: something is wrong)
        runs += 1
        fired, found = _one_run(folder / f"run-{runs}", left[:kills_a_run], seed + runs, private=runs % 2 == 1)
        empty = 0 if fired else empty + 1
        left = left[len(fired) :]
        done += fired
        flaws += found
    if left:
        flaws.append(Flaw("run_stopped", "centre", f"{len(left)} kills were not done"))
    return {
        "kills": len(done),
        "runs": runs,
        "rounds": runs * ROUNDS,
        "by_target": _counted(shot.target for shot, _ in done),
        "by_aim": _counted(shot.aim for shot, _ in done),
        "by_round": {str(key): value for key, value in sorted(Counter(round_ for _, round_ in done).items())},
        "seed": seed,
        "flaws": {rule: [f"{flaw.site}: {flaw.what}" for flaw in flaws if flaw.rule == rule] for rule in RULES},
        "seconds": round(time.monotonic() - started, 1),
    }


def _one_run(
    folder: Path, shots: Sequence[Shot], seed: int, *, private: bool
) -> tuple[list[tuple[Shot, int]], list[Flaw]]:
    kills: list[tuple[Shot, int]] = []

    def act(installation: Installation, run_folder: Path) -> int | None:
        superlink = installation.start_superlink()
        target = _Range(installation, run_folder, superlink, installation.start_application(run_folder), kills)
        for shot in shots:
            if not target.fire(shot):
                break
        return target.finish()

    flaws = rehearse_installed(folder, act, rounds=ROUNDS, seed=seed, private=private)
    return kills, flaws


def _counted(words: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


if __name__ == "__main__":
    main_of(__doc__, campaign, kills=300)
