"""Where every call of the centre's interface is judged and written down, before it has an effect."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedward_common.errors import AccessCode, AccessError, FedwardError
from fedward_server.studies.access import Access, Caller
from fedward_server.studies.book import StudyBook, StudyEntry
from fedward_server.studies.centre_log import centre_log, stamp
from fedward_server.studies.rights import Action, allow

__all__ = ["Call", "Desk"]

_WINDOW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it arrives.

    Args:
        token: the bearer token; empty for none.
        peer: address that it comes from.
        action: what is asked.
        run: number of the study that it concerns; empty for none.
        content: what was sent along; its SHA-256 is written down.
    """

    token: str
    peer: str
    action: Action
    run: str = ""
    content: bytes = b""


class Desk:
    """Judges calls: who asks, may he, would it succeed; one entry in the centre's log for each.

    Args:
        home: the centre's folder.
        access: its tokens.
        book: its studies.
    """

    def __init__(self, home: Path, access: Access, book: StudyBook) -> None:
        self._access = access
        self._book = book
        self._log = centre_log(home)
        self._guard = threading.Lock()
        self._silent_until = 0.0
        self._unnoted = 0

    def screen(self, call: Call) -> None:
        """Return if `admit` may be asked: before a body is read from whoever may not send one.

        Raises:
            AccessError: as `admit`, and written down as there.
        """
        caller = None
        try:
            caller = self._access.caller(call.token, peer=call.peer)
            self._allow(caller, call)
        except FedwardError as error:
            self._refused(call, caller, error)
            raise

    def admit(self, call: Call, check: Callable[[Caller], None] = lambda _: None) -> Caller:
        """Return who asks, once ``allowed`` stands in the log.

        Args:
            call: what is asked.
            check: what else must hold; raises a `FedwardError` where it does not.

        Raises:
            AccessError: no valid token, or one whose role may not do this.
            UnknownStudyError: the book has no such study.
            FedwardError: what `check` raised.
        """
        caller = None
        try:
            caller = self._access.caller(call.token, peer=call.peer)
            self._allow(caller, call)
            check(caller)
        except FedwardError as error:
            self._refused(call, caller, error)
            raise
        self._write("allowed", call, caller, "ok")
        return caller

    def failed(self, call: Call, caller: Caller, error: FedwardError) -> None:
        """Write down that a call which was allowed had no effect: somebody else was faster."""
        self._write("refused", call, caller, code_of(error))

    def _allow(self, caller: Caller, call: Call) -> None:
        entry = self._known(call)
        own = entry is not None and entry.submitted_by == caller.name
        if call.action is Action.RESUME and entry is not None:
            own = own and entry.paused_by in {None, caller.name}
        allow(caller.role, call.action, own=own)
        if call.run:
            self._book.entry(call.run)

    def _known(self, call: Call) -> StudyEntry | None:
        return next((entry for entry in self._book.entries() if entry.id == call.run), None) if call.run else None

    def _refused(self, call: Call, caller: Caller | None, error: FedwardError) -> None:
        """Write a refusal down; of a flood of tokens, the first in each minute and how many came since."""
        if isinstance(error, AccessError) and error.reason is AccessCode.RATE_LIMITED:
            with self._guard:
                self._unnoted += 1
                if time.monotonic() < self._silent_until:
                    return
                self._silent_until, count, self._unnoted = time.monotonic() + _WINDOW_S, self._unnoted, 0
            self._write("refused", call, caller, code_of(error), count=count)
            return
        self._write("refused", call, caller, code_of(error))

    def _write(self, event: str, call: Call, caller: Caller | None, code: str, **more: int) -> None:
        known = self._known(call)
        self._log.append(
            event,
            at=stamp(),
            person=caller.name if caller else "",
            role=caller.role.value if caller else "",
            action=call.action.value,
            run=known.id if known else "",
            code=code,
            sha256=hashlib.sha256(call.content).hexdigest() if call.content else "",
            **more,
        )


def code_of(error: FedwardError) -> str:
    """Return the code of an error: the narrower one, where it has two."""
    return str(getattr(error, "reason", error.code))
