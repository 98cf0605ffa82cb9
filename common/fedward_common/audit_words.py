"""The words of a log of decisions: which events and fields, of which form, a site's or a centre's log may have."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedward_common.study import SITE_NAME

__all__ = ["CENTRE", "SITE", "TEXT_CHARACTERS", "Value", "Vocabulary"]

Value = str | int | float

TEXT_CHARACTERS: Final = 160
"""Longer texts are cut."""

_DIGEST: Final = re.compile(r"([0-9a-f]{64})?")
_NAME: Final = re.compile(f"({SITE_NAME.removeprefix('^').removesuffix('$')})?")
_WORD: Final = re.compile(r"([a-z][a-z-]{0,31})?")
_RUN: Final = re.compile(r"([0-9a-z-]{1,40})?")
_ANYBODY: Final = frozenset({"clock set back", "torn line removed", "log restarted"})
"""What the log itself says."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What entries of one kind of log may say; anything else is refused, not dropped.

    Args:
        events: what may have happened.
        texts: fields of free text, cut at `TEXT_CHARACTERS`, with ``?`` for what cannot be printed.
        counts: fields of whole numbers below 2⁶³.
        reals: fields of finite numbers.
        patterns: fields whose text must match.
        verify: the command that checks such a log.
        owner: whose it is, as a person says it.
    """

    events: frozenset[str]
    texts: frozenset[str]
    counts: frozenset[str]
    verify: str
    owner: str
    reals: frozenset[str] = frozenset()
    patterns: Mapping[str, re.Pattern[str]] = field(default_factory=dict)

    def checked(self, event: str, fields: Mapping[str, Value]) -> dict[str, Value]:
        """Return `fields` as an entry keeps them.

        Raises:
            ValueError: no entry has such an event or field, or a field has not the form of its kind.
        """
        if event not in self.events:
            msg = f"{event[:40]!r} is no event"
            raise ValueError(msg)
        unknown = set(fields) - self.texts - self.counts - self.reals - set(self.patterns)
        if unknown:
            msg = f"no audit entry has {sorted(unknown)}"
            raise ValueError(msg)
        return {name: self._checked(name, value) for name, value in fields.items()}

    def _checked(self, name: str, value: Value) -> Value:
        if name in self.counts:
            if type(value) is int and 0 <= value < 1 << 63:
                return value
        elif name in self.reals:
            if isinstance(value, int | float) and math.isfinite(value):
                return float(value)
        elif isinstance(value, str):
            if name in self.texts:
                return "".join(c if c.isprintable() else "?" for c in value[:TEXT_CHARACTERS])
            if self.patterns[name].fullmatch(value):
                return value
        msg = f"{name} of an audit entry has another form"
        raise ValueError(msg)


SITE: Final = Vocabulary(
    events=_ANYBODY
    | {"site made", "enrolled at centre", "key renewed", "signer trusted"}
    | {"cohort registered", "cohort sealed", "opt-out added", "opt-out removed"}
    | {"proposed", "approved", "denied", "withdrawn", "refused", "enrolled"}
    | {"granted", "reserved", "released", "released again", "closed", "reconciled"},
    texts=frozenset({"name", "person", "actor", "code", "detail"}),
    counts=frozenset({"round", "rounds", "steps", "bytes", "patients", "entry", "snapshot"}),
    reals=frozenset({"epsilon", "delta", "noise", "rate"}),
    patterns={"study": _DIGEST, "sha256": _DIGEST, "cohort": _NAME},
    verify="fedward client audit verify",
    owner="this site",
)
"""A hospital's log."""

CENTRE: Final = Vocabulary(
    events=_ANYBODY
    | {"allowed", "refused", "access issued", "access revoked", "site invited", "site revoked"}
    | {"centre started", "centre stopped", "run started", "run ended", "run restarted", "process restarted"},
    texts=frozenset({"name", "person", "code", "detail"}),
    counts=frozenset({"bytes", "entry", "count", "days"}),
    patterns={"study": _DIGEST, "sha256": _DIGEST, "site": _NAME, "role": _WORD, "action": _WORD, "run": _RUN},
    verify="fedward server audit verify",
    owner="this centre",
)
"""The centre's log; ``allowed`` and ``refused`` are what it answered to a call of its interface."""
