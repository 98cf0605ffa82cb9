"""The disk is full: that of the centre's run folder, and that of a site's folder; then somebody frees space.

    python -m fedward_simulations.faults.disk_full [--seed N] [--json]

Each folder lies on a small file system of its own, which is filled to the last byte while a round is open (it takes
root to mount one). The centre stops with what to do, and goes on in the same round once there is space: nobody is asked
twice, and the model has the bits of the undisturbed run. The site refuses what it cannot keep, so that no round waits
for it; its space comes back before the next round but one. It loses the rounds until then, says in its log what to do,
and its books stay whole.
"""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from flwr.serverapp import Grid

from fedward_common.errors import InstallationError
from fedward_server.coordinator import Coordinator
from fedward_server.result import RoundResult, RunResult
from fedward_server.rounds import Roster
from fedward_simulations.faults.killer import SITES
from fedward_simulations.faults.stage import Fault, Scene, main_of, run_campaign

__all__ = ["CentreFull", "SiteFull", "SmallDisk", "campaign", "can_mount", "wrong_with"]

_KIB: Final = 1024
_FILLER: Final = "filler"
_PROMPT: Final = 0.5  # of the deadline: a round that waited for the site would take all of it


class SmallDisk:
    """A file system of `kib` KiB in memory over a folder, with what was in it, until the context is left."""

    def __init__(self, folder: Path, kib: int) -> None:
        self._folder, self._kib = folder, kib

    def mount(self) -> None:
        """Put it over the folder."""
        kept = self._folder.with_name(f"{self._folder.name}.kept")
        shutil.copytree(self._folder, kept)
        subprocess.run(
            ["/bin/mount", "-t", "tmpfs", "-o", f"size={self._kib}k,mode=700", "tmpfs", self._folder], check=True
        )
        shutil.copytree(kept, self._folder, dirs_exist_ok=True)

    def unmount(self) -> None:
        """Take it away and leave in the folder what was on it."""
        left = self._folder.with_name(f"{self._folder.name}.left")
        shutil.copytree(self._folder, left)
        subprocess.run(["/bin/umount", "-l", self._folder], check=True)
        shutil.rmtree(self._folder)
        left.rename(self._folder)

    def fill(self) -> None:
        """Leave no byte."""
        with (self._folder / _FILLER).open("ab", buffering=0) as file:
            for size in (_KIB * 64, _KIB, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the space back."""
        (self._folder / _FILLER).unlink(missing_ok=True)


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a file system."""
    folder.mkdir()
    try:
        SmallDisk(folder, 64).mount()
    except (OSError, subprocess.CalledProcessError):
        return False
    SmallDisk(folder, 64).unmount()
    return True


@dataclass
class _Full(Fault):
    struck: int = 2
    disks: list[SmallDisk] = field(default_factory=list)

    def mount(self, folder: Path, kib: int) -> None:
        """Put a small disk over a folder until the processes have ended."""
        disk = SmallDisk(folder, kib)
        disk.mount()
        self.disks.append(disk)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Take the disks away in the end."""
        try:
            yield
        finally:
            for disk in self.disks:
                disk.unmount()


@dataclass
class CentreFull(_Full):
    """The run's folder is full from the moment on at which a round's tasks have left; freed once the centre gave up."""

    def settled(self, homes: Mapping[str, Path]) -> None:
        """Give the run's folder a disk of its own."""
        self.mount(next(iter(homes.values())).parent.parent / "run", 512)

    def opened(self, scene: Scene, round_: int) -> None:  # noqa: ARG002
        """Fill it, once."""
        if round_ == self.struck and "stopped_with" not in self.notes:
            self.disks[0].fill()

    def run(self, coordinator: Callable[[], Coordinator], grid: Grid, roster: Roster, scene: Scene) -> RunResult:  # noqa: ARG002
        """Run a coordinator until it gives up, free the space, and run the next."""
        try:
            return coordinator().run(grid, roster)
        except InstallationError as error:
            self.notes["stopped_with"] = f"{type(error).__name__}: {error.remedy}"
        self.disks[0].free()
        return coordinator().run(grid, roster)


@dataclass
class SiteFull(_Full):
    """The folder of `site` is full from a round's opening to the end of the round after it."""

    site: str = "south"

    def settled(self, homes: Mapping[str, Path]) -> None:
        """Give the site's folder a disk of its own."""
        self.mount(homes[self.site], 4096)

    def opens(self, scene: Scene, round_: int) -> None:  # noqa: ARG002
        """Fill it."""
        if round_ == self.struck:
            self.disks[0].fill()

    def closed(self, scene: Scene, entry: RoundResult) -> None:
        """Free it."""
        if entry.round == self.struck + 1:
            self.disks[0].free()
            log = (scene.logs / f"{self.site}.log").read_text(encoding="utf-8", errors="replace")
            self.notes["lines_that_say_what_to_do"] = sum(
                "remedy" in line or "free space" in line for line in log.split("\n")
            )


def _centre(fault: Fault, result: RunResult) -> list[str]:
    found = [] if result.status == "completed" else [f"the run is {result.status}: {result.reason}"]
    return found if "space" in fault.notes.get("stopped_with", "") else [*found, "nobody said that there is no space"]


def wrong_with(site: str, fault: Fault, result: RunResult) -> list[str]:
    """Return what a site without space cost beyond two rounds of its own, and whether a round waited for it."""
    found = []
    for entry in result.rounds:
        for name, part in entry.statuses.items():
            hit = name == site and entry.round in {_struck(fault), _struck(fault) + 1}
            if part.status != ("missed" if hit else "accepted"):
                found.append(f"{name} is {part.status} ({part.reason}) in round {entry.round}")
        if entry.seconds > fault.deadline_s * _PROMPT:
            found.append(f"round {entry.round} took {entry.seconds:.1f} s of {fault.deadline_s:g}")
    struck = result.rounds[_struck(fault) - 1].statuses[site]
    fault.notes["struck_round"] = struck.model_dump(exclude_none=True)
    return found


def _struck(fault: Fault) -> int:
    return fault.struck if isinstance(fault, _Full) else 0


def campaign(folder: Path, seed: int, *, rounds: int = 4) -> dict[str, Any]:
    """Return the figures of a full centre and of a full site.

    Raises:
        InstallationError: this process may not mount a file system.
    """
    if not can_mount(folder / "probe"):
        msg = "this campaign mounts a small file system, which takes root"
        raise InstallationError(msg, remedy="run it as root, for example in a container")
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    site, struck = draw.choice(SITES), draw.randint(1, rounds - 2)
    centre = partial(CentreFull, rounds=rounds, struck=struck)
    hospital = partial(SiteFull, rounds=rounds, struck=struck, site=site, deadline_s=20.0)
    parts = {
        "centre": run_campaign(folder / "centre", centre, lossless=True, judge=_centre),
        "site": run_campaign(folder / "site", hospital, lossless=False, judge=partial(wrong_with, site)),
    }
    flaws = [f"{name}: {flaw}" for name, part in parts.items() for flaw in part.pop("flaws")]
    return {"seed": seed, "site_struck": site, "in_round": struck, **parts, "flaws": flaws}


if __name__ == "__main__":
    main_of(__doc__, campaign)
