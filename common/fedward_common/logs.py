"""A process's log as one JSON object a line on standard error."""

from __future__ import annotations

import sys

import structlog

__all__ = ["log_json_lines"]


def log_json_lines() -> None:
    """Write this process's log as one JSON object a line to standard error; no exception text is ever rendered."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # as it is when something is logged
    )
