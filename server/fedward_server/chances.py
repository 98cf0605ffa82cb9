"""Who is asked again in an open round, and when (ADR 0022): rules alone; nothing is sent and nothing is logged here.

A site that falls out is asked a second time. One that could not be reached twice is settled when the round closes, so
that it may be asked a third time where there is no quorum without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fedward_common.errors import RejectedReply
from fedward_server.post import Question
from fedward_server.replies import ask_again, unreachable

__all__ = ["Chances"]

_PAUSE_S: Final = 5.0
_LEAST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


@dataclass
class Chances:
    """The further chances of one round's sites. All times are seconds by the round's clock.

    Attributes:
        ends: when the round does.
        retried: the sites that have had their second chance, and what they fell out with before it.
        lost: the nodes that could not be reached twice.
    """

    ends: float
    retried: dict[str, str] = field(default_factory=dict)
    lost: dict[int, RejectedReply] = field(default_factory=dict)
    _due: dict[int, float] = field(default_factory=dict)
    _revived: int = 0

    @property
    def pending(self) -> frozenset[int]:
        """The nodes that are to be asked and whose time has not come."""
        return frozenset(self._due)

    def extended(self, ends: float) -> Chances:
        """Return the chances of a round that lasts until `ends`: new ones, and those that were not used yet."""
        return Chances(ends, _due=dict(self._due))

    def due(self, now: float) -> list[int]:
        """Return the nodes whose time has come; each is named once."""
        found = [node for node, at in self._due.items() if at <= now]
        for node in found:
            del self._due[node]
        return found

    def once_more(self, question: Question, error: RejectedReply, now: float) -> bool:
        """Return whether a site that fell out gets its second and last chance in this round.

        One that could not be reached gets 5 s, or half of what is left, to come back.
        """
        reason = str(error)
        if question.site in self.retried or not ask_again(error):
            return False
        at = now + (min(_PAUSE_S, (self.ends - now) / 2) if unreachable(reason) else 0.0)
        if at >= self.ends:
            return False
        self.retried[question.site] = reason
        self._due[question.node] = at
        return True

    def lose(self, question: Question, error: RejectedReply) -> bool:
        """Return whether a site that fell out again was out of reach, so that the end of the round settles it."""
        if not (ask_again(error) and unreachable(str(error))):
            return False
        self.lost[question.node] = error
        return True

    def revive(self, now: float) -> bool:
        """Return whether the lost are asked again; for rounds that have no quorum without them.

        So many out of reach at once may mean that the centre is cut off, or that its clock was wrong: a run is worth
        waiting for, 10 s at first and longer each time, to the deadline.
        """
        pause = min(_PAUSE_S * 2 ** (self._revived + 1), _LONGEST_PAUSE_S, (self.ends - now) / 2)
        if not self.lost or pause < _LEAST_PAUSE_S:
            return False
        self._due |= dict.fromkeys(self.lost, now + pause)
        self.lost.clear()
        self._revived += 1
        return True
