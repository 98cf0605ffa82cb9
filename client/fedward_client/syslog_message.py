"""An entry of the log of decisions as a message of syslog (RFC 5424) over TLS (RFC 5425); rules without I/O."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, Self

from pydantic import model_validator

from fedward_common.audit_chain import Entry
from fedward_common.contract import Contract, quantity

__all__ = ["DEFAULT_PORT", "AuditSettings", "backoff_s", "frame", "message"]

DEFAULT_PORT: Final = 6514
"""Of syslog over TLS (RFC 5425, section 4.1)."""

_LOG_AUDIT: Final = 13
_WARNING, _NOTICE = 4, 5
_UNUSUAL: Final = frozenset({"refused", "clock set back", "torn line removed", "log restarted", "reconciled"})
_BOM: Final = b"\xef\xbb\xbf"
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9.-]{1,253}))(?::([0-9]{1,5}))?", re.ASCII)
_NAME: Final = 48
_HOST: Final = 255
_KIND: Final = 32
_FASTEST_S, _SLOWEST_S = 1.0, 300.0


class AuditSettings(Contract):
    """``audit`` in ``site.yaml``: where else the log of decisions goes."""

    syslog: str | None = quantity(
        "host or host:port of a syslog receiver that speaks TLS (RFC 5425), [address]:port for IPv6",
        default=None,
    )
    ca: str | None = quantity(
        "PEM file of the authority that signed the receiver's certificate; none: those this computer trusts",
        default=None,
        min_length=1,
    )
    answers: bool = quantity(
        "the receiver answers the end of a connection (RFC 5425, section 4.4); false for rsyslog with its driver gtls",
        default=True,
    )

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        if self.syslog is not None and not (_ADDRESS.fullmatch(self.syslog) and 0 < self.address[1] < 1 << 16):
            msg = "audit.syslog reads host or host:port, with a port up to 65535"
            raise ValueError(msg)
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the receiver; an empty host where there is none."""
        found = _ADDRESS.fullmatch(self.syslog or "")
        return (found[1] or found[2], int(found[3] or DEFAULT_PORT)) if found else ("", DEFAULT_PORT)


def message(entry: Entry, *, host: str, name: str = "fedward") -> bytes:
    """Return an entry as one message of RFC 5424: its stored line, as UTF-8, behind a header.

    Facility 13 (log audit), severity notice; warning where the site refused something or mended itself.

    Args:
        entry: of the log.
        host: this computer's name; what a header cannot hold becomes ``-``.
        name: of the application.
    """
    severity = _WARNING if entry.event in _UNUSUAL else _NOTICE
    stamp = datetime.fromisoformat(entry.at).isoformat()
    kind = entry.event.replace(" ", "_")
    head = f"<{_LOG_AUDIT * 8 + severity}>1 {stamp} {_word(host, _HOST)} {_word(name, _NAME)} - {_word(kind, _KIND)} - "
    return head.encode("ascii") + _BOM + entry.line()


def frame(content: bytes) -> bytes:
    """Return a message as it goes over TLS: its length in octets, a space, the message (RFC 5425, section 4.3)."""
    return b"%d %s" % (len(content), content)


def backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row: 1 s, 2 s, 4 s, … and at most five minutes."""
    return min(_FASTEST_S * 2.0 ** min(failures - 1, 16), _SLOWEST_S) if failures else 0.0


def _word(text: str, most: int) -> str:
    return re.sub(r"[^\x21-\x7e]", "-", text)[:most] or "-"
