"""What becomes of a process that has ended: started again, and when, or not. Rules only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["AGAIN", "LONGEST_S", "Failures", "Verdict", "judge"]

AGAIN: Final = 75
"""Exit code of a process that asks to be started again."""
LONGEST_S: Final = 60.0
"""No restart waits longer."""

_MISCONFIGURED: Final = 2
_FIRST_S: Final = 0.5
_SETTLED_S: Final = 30.0
_MOST_BREAKS: Final = 5
_MOST_STOPS: Final = 3


@dataclass(frozen=True, slots=True)
class Failures:
    """How often in a row a process has ended soon after its start: in all, and by an error of its own."""

    ended: int = 0
    broke: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows.

    Attributes:
        wait_s: seconds until the next start; None: there is none.
        reason: what happened, in words.
        failures: to be judged with the next time.
    """

    wait_s: float | None
    reason: str
    failures: Failures


def judge(code: int, lived_s: float, before: Failures, *, stopping: bool = False) -> Verdict:
    """Return what follows the end of a process that had work left.

    A process that was killed, or asks for it, is started again however often that happens: the reason lies outside it.
    One that ends by an error of its own five times in a row, or says that its settings are wrong, is not.

    Args:
        code: what it ended with; a signal as a negative number.
        lived_s: how long it lived; after half a minute the count begins anew.
        before: the failures until now.
        stopping: it was told to bring its work to an end, and is given up after three times.
    """
    old = Failures() if lived_s >= _SETTLED_S else before
    broke = code >= 0 and code != AGAIN
    failures = Failures(old.ended + 1, old.broke + 1 if broke else 0)
    what = _told(code)
    if code == _MISCONFIGURED:
        return Verdict(None, what, failures)
    if failures.broke >= _MOST_BREAKS or (stopping and failures.ended >= _MOST_STOPS):
        return Verdict(None, f"{what}, {failures.ended} times in a row", failures)
    wait = min(LONGEST_S, _FIRST_S * 2 ** min(failures.ended - 1, 10))
    return Verdict(wait, f"{what}; starts again in {wait:g} s", failures)


def _told(code: int) -> str:
    if code < 0:
        return f"its process was ended by signal {-code}"
    if code == AGAIN:
        return "its process asked to be started again"
    return f"its process ended with code {code}"
