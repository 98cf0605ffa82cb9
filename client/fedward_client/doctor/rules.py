"""When a measured value is good, worrying or bad, and what to do about it. Pure: no file, no socket, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from fedward_client.diagnosis import FAST_S, clock_text
from fedward_common.enrolment import WARNING_DAYS, days_left, warning_due
from fedward_common.protocol import Release, compatible

__all__ = [
    "MIB",
    "Finding",
    "Kept",
    "Level",
    "as_json",
    "clock",
    "expiry",
    "failed",
    "free_memory",
    "free_space",
    "modes",
    "shared_memory",
    "size",
    "summary",
    "version",
]

MIB: Final = 1024 * 1024
_GIB: Final = 1024 * MIB

CLOCK_WARN_S: Final = 60.0
CLOCK_FAIL_S: Final = 300.0

DISK_FAIL: Final = 1 * _GIB  # the largest message in and the largest out, 512 MiB each
DISK_WARN: Final = 5 * _GIB
FILES_WARN: Final = 10_000
MEMORY_FAIL: Final = 512 * MIB
MEMORY_WARN: Final = 2 * _GIB
SHM_FAIL: Final = 8 * MIB
SHM_WARN: Final = 256 * MIB

_SHOWN: Final = 3


class Level(StrEnum):
    """How bad a finding is."""

    PASS = "PASS"  # noqa: S105  (a verdict, no password)
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Args:
        check: the check's name.
        level: how bad it is.
        what: what was found, with the number or the file.
        remedy: what to do; never empty unless `level` is PASS.

    Raises:
        ValueError: something is wrong and no remedy is given.
    """

    check: str
    level: Level
    what: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.level is not Level.PASS and not self.remedy:
            msg = f"{self.check}: {self.what}: a finding that is not PASS needs a remedy"
            raise ValueError(msg)


def failed(findings: Iterable[Finding]) -> bool:
    """Return whether any check failed."""
    return any(finding.level is Level.FAIL for finding in findings)


def summary(findings: Iterable[Finding]) -> dict[str, int]:
    """Return how many findings there are of each level."""
    levels = [finding.level for finding in findings]
    return {level.value: levels.count(level) for level in Level}


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the findings for a machine: ``format``, ``summary`` (count by level) and ``checks``, in order."""
    found = list(findings)
    return {"format": "fedward-doctor-1", "summary": summary(found), "checks": [asdict(finding) for finding in found]}


def _leveled(value: float, warn: float, fail: float) -> Level:
    """Return the level of a value of which more is better: below `fail`, below `warn`, or enough."""
    return Level.FAIL if value < fail else Level.WARN if value < warn else Level.PASS


def size(count: float) -> str:
    """Return a number of bytes for a person: ``3.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004  (the step between binary units)
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def clock(ahead_s: float, uncertain_s: float) -> Finding:
    """Return the verdict on a clock `ahead_s` seconds ahead of the coordinator's, known to ± `uncertain_s`.

    Sixty seconds either way are a warning and three hundred a failure, and so is a clock that runs ahead by more than
    the coordinator accepts in a signature (`fedward_client.diagnosis.FAST_S`), beyond what the measurement may err.
    """
    what = f"{clock_text(ahead_s)} (± {uncertain_s:.1f} s)"
    remedy = "let this computer take its time from NTP: timedatectl set-ntp true; timedatectl timesync-status"
    if abs(ahead_s) >= CLOCK_FAIL_S:
        return Finding("clock", Level.FAIL, what, f"signatures are refused; {remedy}")
    if ahead_s > FAST_S + uncertain_s:
        return Finding("clock", Level.FAIL, what, f"signatures from the future are refused; {remedy}")
    if abs(ahead_s) >= CLOCK_WARN_S:
        return Finding("clock", Level.WARN, what, remedy)
    return Finding("clock", Level.PASS, what)


def expiry(what: str, not_after: datetime, now: datetime, remedy: str) -> Finding:
    """Return the verdict on what is valid until `not_after`: warned at 30 and 7 days, failed on its last day.

    Args:
        what: a certificate or key.
        not_after: aware.
        now: aware.
        remedy: who renews it, and how.
    """
    days, due = days_left(not_after, now), warning_due(not_after, now)
    if now >= not_after:
        return Finding("certificates", Level.FAIL, f"the {what} expired on {not_after:%Y-%m-%d %H:%M} UTC", remedy)
    text = f"the {what} is valid until {not_after:%Y-%m-%d}, {days} days"
    if due is None:
        return Finding("certificates", Level.PASS, text)
    if due == min(WARNING_DAYS):
        hours = (not_after - now).total_seconds() / 3600
        return Finding("certificates", Level.FAIL, f"the {what} expires in {hours:.0f} hours", f"today: {remedy}")
    return Finding("certificates", Level.WARN, text, f"within {due} days: {remedy}")


def free_space(folder: str, free: int, files: int) -> Finding:
    """Return the verdict on `free` bytes and `files` new files that fit into a folder; `files` < 0 is unlimited."""
    level = _leveled(free, DISK_WARN, DISK_FAIL)
    if 0 <= files < FILES_WARN:
        what = f"{folder}: {files} more files fit (inodes)"
        worst = max(level, Level.WARN, key=list(Level).index)
        return Finding("disk", worst, what, "delete small files, or make the volume anew")
    what = f"{folder}: {size(free)} free for models, cache and logs"
    return Finding("disk", level, what, "" if level is Level.PASS else f"free space, to {size(DISK_WARN)} or more")


def free_memory(available: int) -> Finding:
    """Return the verdict on `available` bytes of memory, for a training child beside the daemon."""
    level = _leveled(available, MEMORY_WARN, MEMORY_FAIL)
    remedy = "" if level is Level.PASS else f"leave the daemon {size(MEMORY_WARN)}; raise MemoryMax or --memory if set"
    return Finding("memory", level, f"{size(available)} available", remedy)


def shared_memory(total: int) -> Finding:
    """Return the verdict on `total` bytes of /dev/shm, which torch uses between processes."""
    level = _leveled(total, SHM_WARN, SHM_FAIL)
    remedy = "" if level is Level.PASS else "in a container: --shm-size=1g; else: mount -o remount,size=1g /dev/shm"
    return Finding("shm", level, f"the shared memory holds {size(total)}", remedy)


@dataclass(frozen=True, slots=True)
class Kept:
    """A file or folder of a site: its name, permission bits, owner's number, and whether it is secret or public."""

    name: str
    mode: int
    owner: int
    secret: bool = False
    folder: bool = False
    public: bool = False


def modes(home: Kept, inside: Iterable[Kept], names: Mapping[int, str]) -> list[Finding]:
    """Return the verdicts on who may read and write a site's files.

    Everything belongs to the owner of `home`. A secret is closed to everybody else (0600), and nothing can be written
    by anybody else. What is readable by others fails where they also reach it, that is, where `home` is open to them;
    behind a closed home it is a warning. What is public may be read by anybody.

    Args:
        home: the site's folder.
        inside: what is in it.
        names: the accounts' names by number, for messages.
    """
    kept = [home, *inside]
    open_home = bool(home.mode & 0o077)
    stranger = [k for k in kept if k.owner != home.owner]
    secret = [k for k in kept if k.secret and k.mode & 0o077]
    writable = [k for k in kept if k.mode & 0o022 and k not in secret]
    readable = [k for k in kept if k.mode & 0o044 and not k.public and k not in secret and k not in writable]
    owner = names.get(home.owner, str(home.owner))
    groups = (
        (stranger, Level.FAIL, f"not owned by {owner}, who owns {home.name}", f"chown -R {owner} {home.name}"),
        (secret, Level.FAIL, "a secret that others may read", f"{_closing(home)}; then make the key anew"),
        (writable, Level.FAIL, "others may change it", _closing(home)),
        (readable, Level.FAIL if open_home else Level.WARN, "others may read it", _closing(home)),
    )
    found = [
        Finding("files", level, f"{_listed([k.name for k in group])}: {what}", remedy)
        for group, level, what, remedy in groups
        if group
    ]
    return found or [Finding("files", Level.PASS, f"{len(kept)} files and folders, all {owner}'s alone")]


def _closing(home: Kept) -> str:
    return f"chmod -R go-rwx {home.name}"


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def version(ours: Release, theirs: Release) -> Finding:
    """Return whether a site of release `ours` works with a coordinator of release `theirs`."""
    what = f"this site runs Fedward {ours.version}, the coordinator {theirs.version or 'a release without a name'}"
    why = compatible(ours, theirs, them="the coordinator")
    if why is None:
        return Finding("version", Level.PASS, f"{what}; they work together")
    return Finding("version", Level.FAIL, what, why)
