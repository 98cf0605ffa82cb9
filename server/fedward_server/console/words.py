"""How the console writes times, spans and states. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["STATES", "ago", "count", "moment", "parsed", "size", "span"]

STATES: Final = {
    "queued": "queued",
    "running": "running",
    "paused": "paused",
    "stopping": "stopping",
    "completed": "completed",
    "degraded": "completed, degraded",
    "interrupted": "stopped",
    "failed": "failed",
}
"""What a study's state is called."""
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_STEP: Final = 1000.0
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def parsed(text: str | None) -> datetime | None:
    """Return an ISO 8601 time stamp, taken as UTC where it names no zone; None where it is none."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def moment(text: str | None) -> str:
    """Return an ISO 8601 time stamp for a person, in UTC; any other text as it is, nothing as a dash."""
    found = parsed(text)
    if found is None:
        return text or "—"
    utc = found.astimezone(UTC)
    return f"{utc.day} {_MONTHS[utc.month - 1]} {utc.year}, {utc:%H:%M}"


def span(seconds: float) -> str:
    """Return a length of time in its two largest units, rounded to the smaller: 45 s, 12 min, 3 h 5 min, 2 days."""
    whole = round(max(0.0, seconds))
    if whole < 2 * _MINUTE:
        return f"{whole} s"
    if whole < 2 * _HOUR:
        return f"{round(whole / _MINUTE)} min"
    if whole < 2 * _DAY:
        minutes = round(whole / _MINUTE)
        return f"{minutes // 60} h {minutes % 60} min"
    return count(whole // _DAY, "day")


def ago(text: str | None, now: datetime) -> str:
    """Return how long ago a time stamp was; nothing where it is none."""
    found = parsed(text)
    return f"{span((now - found) / timedelta(seconds=1))} ago" if found is not None else ""


def count(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural where it belongs."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(bytes_: float) -> str:
    """Return a number of bytes in the unit that keeps it short."""
    value = float(bytes_)
    for unit in ("B", "kB", "MB"):
        if value < _STEP:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} GB"
