"""Where the doctor looks: a site's folder on this computer, each part of which a test may lay elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedward_client.runner import DEFAULT_WORKER, WARM

__all__ = ["Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """What is examined.

    Args:
        home: the site's folder.
        environment: the variables that name a proxy, and the daemon's other settings.
        clock: seconds since 1970 by this computer's clock.
        statvfs: how much room a file system has.
        shm: the shared memory's folder.
        proc: the kernel's folder of processes.
        cgroup: the folder with this process's memory limits, if it has any.
        dev: the folder of devices.
        worker: who trains, as the daemon's `--worker`.
        preload: what is imported once for all children of the runner.
        python: the interpreter that tries a GPU.
    """

    home: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    clock: Callable[[], float] = time.time
    statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
    shm: Path = Path("/dev/shm")  # noqa: S108  (it is measured, not written to)
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")
    dev: Path = Path("/dev")
    worker: str = DEFAULT_WORKER
    preload: str = WARM
    python: str = sys.executable

    @property
    def enrolled(self) -> bool:
        """Whether the site knows its coordinator."""
        return (self.home / "connection.yaml").exists()

    def now(self) -> datetime:
        """Return this computer's time, in UTC."""
        return datetime.fromtimestamp(self.clock(), UTC)
