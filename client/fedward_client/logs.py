"""What a daemon and its children write to their logs: JSON lines, and never the text of an exception."""

from __future__ import annotations

import sys
import traceback
from typing import Any, TextIO

import structlog

__all__ = ["configure_logs", "where"]


def configure_logs(stream: TextIO | None = None) -> None:
    """Write this process's log as one JSON object a line to `stream`, standard error if None.

    No exception text is ever rendered.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
    )


def where(error: BaseException) -> dict[str, Any]:
    """Return an exception's kind and the lines that it came through, without its text: that may quote a patient."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "kind": type(error).__name__,
        "where": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
