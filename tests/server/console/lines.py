"""Lines of the book for tests that need no folder."""

from __future__ import annotations

from typing import Any

from fedward_server.studies.book import StudyEntry


def line(**changes: Any) -> StudyEntry:
    """Return a queued study of two hospitals."""
    values: dict[str, Any] = {
        "id": "20261127-120000-abcdef",
        "name": "small",
        "digest": "5e" * 32,
        "state": "queued",
        "submitted_by": "maria",
        "submitted_at": "2026-11-27T10:00:00+00:00",
        "sites": ("north", "south"),
    }
    return StudyEntry(**(values | changes))
