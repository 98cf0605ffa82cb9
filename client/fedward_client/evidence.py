"""Evidence that leaves the site's computer by hand: a signed pack for an auditor, and copies to compare the log with.

A log and a ledger that are put back together, as they once were, fit each other. Only a copy kept elsewhere shows that
something is missing: an evidence pack, a copy of ``audit.head``, or the lines that a syslog receiver wrote down
(`read_anchor`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

from fedward_client.books import RELEASED, RESERVED
from fedward_client.budget import Budget
from fedward_client.config import SiteConfig
from fedward_common import __version__
from fedward_common.audit_chain import Finding, Head, entry_of, head_of, walk
from fedward_common.canonical import canonical_json, digest
from fedward_common.errors import LocalDataError, SignatureError
from fedward_common.signing import load_public_key, verify

__all__ = ["FORMAT", "build_pack", "check_pack", "compare", "read_anchor", "read_pack"]

FORMAT: Final = "fedward-audit-2"
_PURPOSE: Final = "fedward audit pack 2"
_MOST_BYTES: Final = 1 << 30

Pack = Mapping[str, Any]


def build_pack(budget: Budget, config: SiteConfig, *, now: str) -> dict[str, Any]:
    """Return the evidence of a site: log, head, key, ledger, version and the policy's digest, signed as one.

    Args:
        budget: of the site.
        config: its ``site.yaml``.
        now: time stamp, ISO 8601.

    Raises:
        Refusal: ``audit_untrusted``: the log's head is not signed by this site's key.
    """
    head = budget.audit.signed_head()
    lines = islice(budget.audit.lines(), head["n"] if head else 0)
    accounts = [asdict(summary) for summary in budget.ledger.summaries()]
    pack: dict[str, Any] = {
        "format": FORMAT,
        "site": config.site,
        "software": f"fedward {__version__}",
        "at": now,
        "key": budget.audit.public_key(),
        "policy_sha256": digest(config.policy.model_dump(mode="json")),
        "ledger": {"changes": head["ledger"] if head else 0, "accounts": accounts},
        "head": head,
        "lines": [line.decode("utf-8", "replace") for line in lines],
    }
    return pack | {"signature": budget.audit.signature(_payload(pack))}


def read_pack(path: Path) -> dict[str, Any]:
    """Return the pack in `path`, unchecked.

    Raises:
        LocalDataError: it is no pack.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            msg = f"{path} is larger than {_MOST_BYTES} bytes"
            raise LocalDataError(msg)
        value = json.loads(path.read_bytes())
        whole = value["format"] == FORMAT and isinstance(value["lines"], list)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{path} is no evidence pack"
        raise LocalDataError(msg, remedy="fedward client audit export FILE writes one") from error
    if not whole:
        msg = f"{path} is no evidence pack of format {FORMAT}"
        raise LocalDataError(msg, remedy="check it with the version of Fedward that wrote it")
    return dict(value)


def check_pack(pack: Pack, key: str | None = None) -> list[Finding]:
    """Return everything that is wrong with a pack; an empty list means that it is whole.

    Args:
        pack: as `read_pack` returns it.
        key: the site's public key as the auditor has it from elsewhere; without one, the pack's own is believed, which
            shows that the pack is whole but not whose it is.
    """
    findings = []
    try:
        public = load_public_key(key or str(pack["key"]))
        verify(public, _payload(pack), str(pack["signature"]))
    except (KeyError, TypeError, ValueError, SignatureError):
        findings.append(Finding(0, "the pack is not signed by this key, or was changed after it was signed"))
    try:
        lines = [str(line).encode() + b"\n" for line in pack["lines"]]
        chain = walk(lines)
        findings += chain.findings
        stated = head_of(pack["head"]) if pack["head"] else Head(0, chain.head.hash, 0, 0)
        if stated != chain.head:
            findings.append(Finding(0, f"the pack has {len(lines)} entries, its head says {stated.number}"))
        if pack["head"]:
            verify(load_public_key(key or str(pack["key"])), stated.payload(), str(pack["head"]["signature"]))
        findings += _compare_ledger(lines, pack["ledger"])
    except SignatureError:
        findings.append(Finding(0, "the head is not signed by this key"))
    except (KeyError, TypeError, ValueError, AttributeError):
        findings.append(Finding(0, "a part of the pack is missing or of another kind"))
    return findings


def _payload(pack: Pack) -> bytes:
    return canonical_json({**{k: v for k, v in pack.items() if k != "signature"}, "purpose": _PURPOSE})


def _compare_ledger(lines: Sequence[bytes], ledger: Mapping[str, Any]) -> Iterable[Finding]:
    """Yield where log and ledger of a pack do not tell the same; an account's last round may wait for its line."""
    logged: dict[tuple[str, str], set[int]] = {}
    for line in lines:
        try:
            entry = entry_of(line.removesuffix(b"\n"))
        except ValueError:
            continue
        if entry.event in {RESERVED, RELEASED} and "entry" in entry.fields:
            key = (str(entry.fields["study"]), entry.event)
            logged.setdefault(key, set()).add(int(entry.fields["round"]))
    for account in ledger["accounts"]:
        study = str(account["study"])
        for event in (RESERVED, RELEASED):
            known = len(logged.pop((study, event), ()))
            if known > int(account[event]):
                yield Finding(0, f"the log has {known} rounds of {study[:12]} {event}, the ledger {account[event]}")
    for (study, event), rounds in sorted(logged.items()):
        yield Finding(0, f"the log has {len(rounds)} rounds of {study[:12]} {event}, the ledger no account")


def read_anchor(path: Path) -> dict[int, str]:
    """Return what a copy kept elsewhere says of the log: the SHA-256 of each line that it knows, by its number.

    Args:
        path: an evidence pack, a copy of ``audit.head``, or a text with entries of the log somewhere in its lines, as
            a syslog receiver writes them.

    Raises:
        LocalDataError: it says nothing of any log.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read ({type(error).__name__})"
        raise LocalDataError(msg) from error
    found = _anchors_of(content)
    if not found:
        msg = f"{path} holds no entry and no head of a log of decisions"
        raise LocalDataError(msg, remedy="give an evidence pack, a copy of audit.head, or what a syslog receiver wrote")
    return found


def _anchors_of(content: bytes) -> dict[int, str]:
    try:
        value = json.loads(content)
        if "lines" in value:
            return _entries_in(str(line).encode() for line in value["lines"])
        head = head_of(value)
    except (ValueError, TypeError, KeyError, RecursionError):
        return _entries_in(content.split(b"\n"))
    return {head.number: head.hash}


def _entries_in(lines: Iterable[bytes]) -> dict[int, str]:
    found = {}
    for line in lines:
        start = line.find(b'{"at":')
        text = line[start:].rstrip() if start >= 0 else b""
        try:
            found[entry_of(text).number] = hashlib.sha256(text).hexdigest()
        except ValueError:
            continue
    return found


def compare(lines: Iterable[bytes], anchor: Mapping[int, str]) -> list[Finding]:
    """Return where a log is not the one that a copy kept elsewhere knows.

    Args:
        lines: of the log, without their ends.
        anchor: as `read_anchor` returns it.
    """
    open_ = dict(anchor)
    findings = []
    for number, line in enumerate(lines, start=1):
        stated = open_.pop(number, None)
        if stated is not None and hashlib.sha256(line).hexdigest() != stated:
            findings.append(Finding(number, "the copy has another entry here: the log was written anew"))
    if open_:
        what = f"the copy has {len(open_)} entries from here on that the log lacks: an old log was put back"
        findings.append(Finding(min(open_), what))
    return findings
