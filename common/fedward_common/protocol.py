"""Which releases of Fedward work together: the rule, and the two headers that say what a side speaks.

A protocol is the form of what crosses between a site and its centre. A release speaks its own and the one before; two
releases work together if they have one in common. The centre asks in the oldest that it speaks, and a site answers in
the one that it was asked in: a new form is first used by the release after the one that learnt to read it (ADR 0023).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedward_common import __version__
from fedward_common.errors import RefusalCode

__all__ = ["OURS", "PROTOCOL_HEADER", "VERSION_HEADER", "Release", "compatible", "outdated"]

PROTOCOL_HEADER: Final = "fedward-protocol"
VERSION_HEADER: Final = "fedward-version"

_SPAN: Final = re.compile(r"([1-9][0-9]{0,3})-([1-9][0-9]{0,3})", re.ASCII)
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+!_-]{0,31}", re.ASCII)
_FACTS: Final = re.compile(rf"{RefusalCode.PROTOCOL_MISMATCH} asked=([0-9]+) limit=([0-9]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Release:
    """What one side says of itself.

    Args:
        version: its release; empty where it did not say.
        oldest: the oldest protocol that it speaks.
        newest: the newest one, its own.
    """

    version: str
    oldest: int
    newest: int

    def __contains__(self, protocol: object) -> bool:
        """Return whether this release speaks a protocol."""
        return type(protocol) is int and self.oldest <= protocol <= self.newest

    @property
    def span(self) -> str:
        """The protocols as the header has them."""
        return f"{self.oldest}-{self.newest}"

    def headers(self) -> dict[str, str]:
        """Return what a request or an answer says of its sender."""
        return {PROTOCOL_HEADER: self.span, VERSION_HEADER: self.version}

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Release:
        """Return the release that headers (lower-case names) are from.

        Whoever says no protocol is from before the headers, and speaks protocol 2. A version of no known form is
        dropped.

        Raises:
            ValueError: the protocols are not two numbers, the smaller one first.
        """
        version = headers.get(VERSION_HEADER, "")
        version = version if _VERSION.fullmatch(version) else ""
        if PROTOCOL_HEADER not in headers:
            return cls(version, _BEFORE_HEADERS, _BEFORE_HEADERS)
        match = _SPAN.fullmatch(headers[PROTOCOL_HEADER])
        if match is None or int(match[1]) > int(match[2]):
            msg = f"{PROTOCOL_HEADER} is not OLDEST-NEWEST"
            raise ValueError(msg)
        return cls(version, int(match[1]), int(match[2]))


OURS: Final = Release(__version__, oldest=2, newest=2)
"""What this release speaks. Protocol 1 was never released, so there is nothing older to speak yet."""
_BEFORE_HEADERS: Final = 2


def compatible(ours: Release, theirs: Release, *, us: str = "this site", them: str = "the centre") -> str | None:
    """Return None if two releases have a protocol in common, else which side has to be upgraded to what.

    Args:
        ours: one side.
        theirs: the other.
        us: what the first is called.
        them: what the second is called.
    """
    if ours.newest < theirs.oldest:
        return _upgrade(us, ours, them, theirs)
    if theirs.newest < ours.oldest:
        return _upgrade(them, theirs, us, ours)
    return None


def outdated(reason: str) -> str:
    """Return a site's refusal ``protocol_mismatch`` with what to upgrade; any other reason as it is.

    The refusal says which protocol the site was asked in and which is its own.
    """
    match = _FACTS.fullmatch(reason)
    if match is None:
        return reason
    return f"{reason}: upgrade Fedward at {'the site' if int(match[1]) > int(match[2]) else 'the centre'}"


def _upgrade(behind: str, older: Release, ahead: str, newer: Release) -> str:
    release = f"Fedward {newer.version}" if newer.version else f"a release that speaks protocol {newer.oldest}"
    return f"upgrade {behind} to {release}: it speaks protocol {_words(older)}, {ahead} speaks {_words(newer)}"


def _words(release: Release) -> str:
    return str(release.newest) if release.oldest == release.newest else f"{release.oldest} to {release.newest}"
