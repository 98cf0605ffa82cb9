"""The one table of roles and what each may do; whatever is not in it is forbidden."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from fedward_common.errors import AccessCode, AccessError

__all__ = ["ROWS", "Action", "Right", "Role", "allow", "right"]

Right = Literal["no", "own", "any"]
"""``own``: of studies that the caller submitted."""


class Role(StrEnum):
    """What a caller is at the centre."""

    VIEWER = "viewer"
    SCIENTIST = "scientist"
    OPERATOR = "operator"
    AUDITOR = "auditor"


class Action(StrEnum):
    """What can be asked of the centre."""

    LIST = "study-list"
    SHOW = "study-show"
    RESULT = "study-result"
    MODEL = "study-model"
    SUBMIT = "study-submit"
    PAUSE = "study-pause"
    RESUME = "study-resume"
    STOP = "study-stop"
    SITES = "site-list"
    SITES_CHANGE = "site-change"
    AUDIT = "audit-read"


_READS: Final[dict[Action, Right]] = {
    Action.LIST: "any", Action.SHOW: "any", Action.RESULT: "any", Action.SITES: "any",
}  # fmt: skip

ROWS: Final[dict[Role, dict[Action, Right]]] = {
    Role.VIEWER: _READS,
    Role.SCIENTIST: _READS | {Action.MODEL: "any", Action.SUBMIT: "any", Action.PAUSE: "own", Action.RESUME: "own"},
    Role.OPERATOR: _READS
    | {Action.MODEL: "any", Action.PAUSE: "any", Action.RESUME: "any", Action.STOP: "any", Action.SITES_CHANGE: "any"},
    Role.AUDITOR: _READS | {Action.MODEL: "any", Action.AUDIT: "any"},
}
"""``own`` of `Action.RESUME`: submitted by the caller, and paused by nobody else."""


def right(role: Role, action: Action) -> Right:
    """Return whether `role` may do `action`: to all, to its own, or not."""
    return ROWS.get(role, {}).get(action, "no")


def allow(role: Role, action: Action, *, own: bool = False) -> None:
    """Return if `role` may do `action`.

    Args:
        role: of the caller.
        action: what is asked.
        own: whether it concerns a study of the caller's own.

    Raises:
        AccessError: ``forbidden``.
    """
    found = right(role, action)
    if found == "any" or (found == "own" and own):
        return
    msg = f"the role {role} may not do {action}" + (" for studies of others" if found == "own" else "")
    roles = [other for other in Role if right(other, action) == "any"]
    raise AccessError(AccessCode.FORBIDDEN, msg, remedy=f"ask somebody in the role {' or '.join(roles)}")
