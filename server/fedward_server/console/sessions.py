"""Who has logged in at the console. Kept in memory alone: a restart logs everybody out.

A session holds the token, which `Access` judges again at each request: a token that was revoked or has expired ends its
sessions at once. A browser gets a number drawn at random and never the token.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["COOKIE", "IDLE_S", "LONGEST_S", "Session", "Sessions"]

COOKIE: Final = "fedward_console"
IDLE_S: Final = 2 * 3600.0
"""Seconds without a request by hand after which a session ends; pages that refresh themselves do not count."""
LONGEST_S: Final = 10 * 3600.0
"""Seconds after which a session ends in any case: a working day."""
_MOST: Final = 1024
_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Session:
    """One log-in: its token, what its forms must bring along, when it began and was used last (monotonic seconds)."""

    token: str
    form: str
    began: float
    used: float

    def alive(self, now: float) -> bool:
        """Return whether it still counts."""
        return now - self.used < IDLE_S and now - self.began < LONGEST_S

    def sent(self, form: str) -> bool:
        """Return whether a form came from a page of this session."""
        return hmac.compare_digest(self.form.encode(), form.encode("utf-8", "replace"))


class Sessions:
    """The sessions of one console, shared by its threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._pages: dict[str, set[str]] = {}

    def begin(self, token: str, now: float) -> str:
        """Return the number of a new session; the oldest gives way when there are too many."""
        number = secrets.token_urlsafe(_BYTES)
        with self._guard:
            self._known[number] = Session(token, secrets.token_urlsafe(_BYTES), now, now)
            while len(self._known) > _MOST:
                self._forget(next(iter(self._known)))
        return number

    def find(self, number: str, now: float, *, by_hand: bool) -> Session | None:
        """Return a session that still counts, and note that it was used if that was done by hand."""
        with self._guard:
            found = self._known.get(number)
            if found is None:
                return None
            if not found.alive(now):
                self._forget(number)
                return None
            if by_hand:
                found = self._known[number] = replace(found, used=now)
            return found

    def open(self, number: str, page: str) -> None:
        """Note that a page was opened by hand, so that it may keep itself fresh."""
        with self._guard:
            if number in self._known:
                self._pages.setdefault(number, set()).add(page)

    def opened(self, number: str, page: str) -> bool:
        """Return whether it was."""
        with self._guard:
            return page in self._pages.get(number, set())

    def end(self, number: str) -> None:
        """Forget a session."""
        with self._guard:
            self._forget(number)

    def _forget(self, number: str) -> None:
        self._known.pop(number, None)
        self._pages.pop(number, None)
