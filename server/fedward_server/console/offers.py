"""What a page offers somebody to do with a study: nothing that would be refused. Pure."""

from __future__ import annotations

from typing import Final

from fedward_common.errors import AccessError, CoordinatorError
from fedward_server.studies.access import Caller
from fedward_server.studies.book import StudyEntry
from fedward_server.studies.lifecycle import Wish, after_wish
from fedward_server.studies.rights import Action, allow

__all__ = ["offers"]

_WISHES: Final[dict[Wish, Action]] = {"pause": Action.PAUSE, "resume": Action.RESUME, "stop": Action.STOP}


def offers(entry: StudyEntry, caller: Caller) -> tuple[Wish, ...]:
    """Return what `caller` may tell the study, and what has a meaning and an effect in its state."""
    return tuple(wish for wish in _WISHES if _offered(entry, caller, wish))


def _offered(entry: StudyEntry, caller: Caller, wish: Wish) -> bool:
    own = entry.submitted_by == caller.name
    if wish == "resume":
        own = own and entry.paused_by in {None, caller.name}
    try:
        allow(caller.role, _WISHES[wish], own=own)
        return after_wish(entry.state, wish, started=entry.started_at is not None) != entry.state
    except (AccessError, CoordinatorError):
        return False
