"""The centre's log of decisions, as its commands and its interface write it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from fedward_common.audit import AuditLog
from fedward_common.audit_words import CENTRE, Value
from fedward_common.person import account

__all__ = ["centre_log", "note", "stamp"]


def centre_log(home: Path) -> AuditLog:
    """Return the log of decisions in a centre's folder."""
    return AuditLog(home, CENTRE)


def stamp() -> str:
    """Return the present as an entry has it, ISO 8601 in UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def note(home: Path, event: str, **fields: Value) -> None:
    """Write down what happens at this computer; unless `person` says who decided it, that is `account`.

    Raises:
        Refusal: ``audit_untrusted``: the log is not whole; nothing may be decided then.
        InstallationError: the disk does not take it.
    """
    centre_log(home).append(event, at=stamp(), **{"person": account()} | fields)
