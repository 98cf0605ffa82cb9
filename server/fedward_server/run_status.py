"""``status.json``: where a run of the centre stands, for whoever looks on; and ``wish.json``: what it is told to do.

The run's own process writes the one and reads the other, between rounds and while it waits for replies. Neither file is
the run's memory (`journal`, `checkpoint`): without them a run goes on all the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedward_server.checkpoint import write_atomically

__all__ = [
    "ENDED",
    "RunState",
    "RunStatus",
    "SiteStatus",
    "Wish",
    "read_status",
    "read_wish",
    "write_status",
    "write_wish",
]

RunState = Literal["starting", "enrolling", "running", "paused", "completed", "degraded", "interrupted", "failed"]
Wish = Literal["run", "pause", "stop"]
ENDED: Final[frozenset[RunState]] = frozenset({"completed", "degraded", "interrupted", "failed"})
_STATUS: Final = "status.json"
_WISH: Final = "wish.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SiteStatus(_Part):
    """One hospital in the open round; at the roll call round 0.

    `state` is ``waiting`` (asked, no answer yet), ``accepted``, ``missed`` (this round), ``excluded`` (for good) or
    ``absent`` (has not enrolled); `reason` says why, as in ``result.json``.
    """

    state: Literal["waiting", "accepted", "missed", "excluded", "absent"]
    reason: str | None = None


class RunStatus(_Part):
    """A run at one moment.

    Attributes:
        state: what it does; one of `ENDED` for a run that has a result.
        round: the open round, 1-based; 0 before the first.
        rounds: how many the study has.
        sites: every site of the study.
        opened_at: ISO 8601 in UTC; when the open round began.
        updated_at: ISO 8601 in UTC; when this was written.
        pid: of the run's process.
        reason: why it is paused, or has ended as it did.
    """

    state: RunState
    round: int = 0
    rounds: int
    sites: dict[str, SiteStatus] = {}
    opened_at: str | None = None
    updated_at: str
    pid: int
    reason: str | None = None


def write_status(folder: Path, status: RunStatus) -> None:
    """Replace the status of the run in `folder`, as one whole; a machine that loses power may lose it."""
    half = folder / f".{_STATUS}.{os.getpid()}"
    half.write_bytes(status.model_dump_json(indent=2).encode())
    half.replace(folder / _STATUS)


def read_status(folder: Path) -> RunStatus | None:
    """Return the status of the run in `folder`; None where there is none, or none that this version reads."""
    try:
        return RunStatus.model_validate_json((folder / _STATUS).read_bytes())
    except (OSError, ValidationError):
        return None


def write_wish(folder: Path, wish: Wish) -> None:
    """Tell the run in `folder` what to do."""
    write_atomically(folder / _WISH, f'"{wish}"\n'.encode())


def read_wish(folder: Path) -> Wish:
    """Return what the run in `folder` is told to do: ``run`` where nobody has said anything."""
    try:
        content = (folder / _WISH).read_text(encoding="ascii").strip().strip('"')
    except (OSError, UnicodeDecodeError):
        return "run"
    return {"pause": "pause", "stop": "stop"}.get(content, "run")  # type: ignore[return-value]
