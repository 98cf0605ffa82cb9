"""The centre's log in one signed file, for an auditor who checks it on another computer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedward_common import __version__
from fedward_common.audit import AuditLog
from fedward_common.audit_chain import NO_ENTRIES, Finding, head_of, walk
from fedward_common.canonical import canonical_json
from fedward_common.errors import LocalDataError, SignatureError
from fedward_common.signing import load_public_key, verify

__all__ = ["FORMAT", "build_pack", "check_pack", "read_pack"]

FORMAT: Final = "fedward-centre-audit-1"
_MOST_BYTES: Final = 1 << 30


def build_pack(log: AuditLog, centre: str, now: str) -> dict[str, Any]:
    """Return the log, its signed head and its key, signed as one.

    Args:
        log: of the centre.
        centre: how hospitals reach it, to tell packs apart.
        now: time stamp, ISO 8601.

    Raises:
        Refusal: ``audit_untrusted``: the head is not signed by the centre's key.
    """
    head = log.signed_head()
    lines = [line.decode("utf-8", "replace") for line in log.lines()][: head["n"] if head else 0]
    pack: dict[str, Any] = {
        "format": FORMAT,
        "centre": centre,
        "software": f"fedward {__version__}",
        "at": now,
        "key": log.public_key(),
        "head": head,
        "lines": lines,
    }
    return pack | {"signature": log.signature(_payload(pack))}


def read_pack(path: Path) -> dict[str, Any]:
    """Return the pack in `path`, unchecked.

    Raises:
        LocalDataError: it is no pack of this format.
    """
    try:
        value = json.loads(path.read_bytes()) if path.stat().st_size <= _MOST_BYTES else {}
        if value["format"] == FORMAT and isinstance(value["lines"], list):
            return dict(value)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    msg = f"{path} is no copy of a centre's log"
    raise LocalDataError(msg, remedy="fedward server audit export FILE writes one")


def check_pack(pack: Mapping[str, Any], key: str | None = None) -> list[Finding]:
    """Return everything that is wrong with a pack; an empty list means that it is whole.

    Args:
        pack: as `read_pack` returns it.
        key: the centre's public audit key as the auditor has it from elsewhere; without one the pack's own is believed,
            which shows that the pack is whole but not whose it is.
    """
    findings: list[Finding] = []
    try:
        public = load_public_key(key or str(pack["key"]))
        verify(public, _payload(pack), str(pack["signature"]))
        chain = walk(str(line).encode() + b"\n" for line in pack["lines"])
        findings += chain.findings
        stated = head_of(pack["head"]) if pack["head"] else NO_ENTRIES
        if stated != chain.head:
            findings.append(Finding(0, f"the pack has {chain.head.number} entries, its head says {stated.number}"))
        if pack["head"]:
            verify(public, stated.payload(), str(pack["head"]["signature"]))
    except SignatureError:
        findings.append(Finding(0, "the pack is not signed by this key, or was changed after it was signed"))
    except (KeyError, TypeError, ValueError, AttributeError):
        findings.append(Finding(0, "a part of the pack is missing or of another kind"))
    return findings


def _payload(pack: Mapping[str, Any]) -> bytes:
    return canonical_json({**{k: v for k, v in pack.items() if k != "signature"}, "purpose": FORMAT})
