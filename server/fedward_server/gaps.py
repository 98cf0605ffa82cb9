"""Where a run was not whole: which hospital did not take part in which rounds, and why, rounds in a row as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedward_server.result import RoundResult, SiteRound

__all__ = ["Gap", "gaps_of"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Rounds in a row in which one site did not take part, for one reason: `first` to `last`, both among them."""

    site: str
    first: int
    last: int
    status: str
    reason: str

    @property
    def rounds(self) -> str:
        """The rounds as they are written: ``3`` or ``3 to 5``."""
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"


def gaps_of(rounds: Iterable[RoundResult]) -> list[Gap]:
    """Return every gap, by first round and site; none of a result that does not hold statuses."""
    found: dict[tuple[int, str], Gap] = {}
    last: dict[str, Gap] = {}
    for entry in rounds:
        for site, part in entry.statuses.items():
            gap = _gap(site, entry.round, part, last.pop(site, None))
            if gap is not None:
                last[site] = found[gap.first, site] = gap
    return [found[key] for key in sorted(found)]


def _gap(site: str, round_: int, part: SiteRound, before: Gap | None) -> Gap | None:
    if part.status == "accepted":
        return None
    reason = part.reason or ""
    goes_on = before is not None and (before.status, before.reason, before.last) == (part.status, reason, round_ - 1)
    first = before.first if before is not None and goes_on else round_
    return Gap(site, first, round_, part.status, reason)
