"""The table of roles, row by row, and that what is not in it is forbidden."""

from __future__ import annotations

from itertools import product

import pytest

from fedward_common.errors import AccessCode, AccessError
from fedward_server.studies.rights import ROWS, Action, Role, allow, right

EXPECTED = {
    #                     viewer scientist operator auditor
    Action.LIST:         ("any", "any", "any", "any"),
    Action.SHOW:         ("any", "any", "any", "any"),
    Action.RESULT:       ("any", "any", "any", "any"),
    Action.MODEL:        ("no", "any", "any", "any"),
    Action.SUBMIT:       ("no", "any", "no", "no"),
    Action.PAUSE:        ("no", "own", "any", "no"),
    Action.RESUME:       ("no", "own", "any", "no"),
    Action.STOP:         ("no", "no", "any", "no"),
    Action.SITES:        ("any", "any", "any", "any"),
    Action.SITES_CHANGE: ("no", "no", "any", "no"),
    Action.AUDIT:        ("no", "no", "no", "any"),
}  # fmt: skip


@pytest.mark.parametrize("action", list(Action))
def test_each_role_may_what_its_row_says(action: Action) -> None:
    assert tuple(right(role, action) for role in Role) == EXPECTED[action]


@pytest.mark.parametrize(("role", "action", "own"), list(product(Role, Action, [False, True])))
def test_a_call_is_let_through_exactly_where_the_table_lets_it(role: Role, action: Action, own: bool) -> None:  # noqa: FBT001  (drawn)
    found = EXPECTED[action][list(Role).index(role)]
    if found == "any" or (found == "own" and own):
        allow(role, action, own=own)
        return
    with pytest.raises(AccessError) as caught:
        allow(role, action, own=own)
    assert caught.value.reason is AccessCode.FORBIDDEN
    assert caught.value.remedy


def test_what_stands_in_no_row_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, Role.OPERATOR, {})

    assert {right(Role.OPERATOR, action) for action in Action} == {"no"}


def test_an_auditor_changes_nothing() -> None:
    changes = {Action.SUBMIT, Action.PAUSE, Action.RESUME, Action.STOP, Action.SITES_CHANGE}

    assert not changes & set(ROWS[Role.AUDITOR])
    assert set(ROWS[Role.AUDITOR]) == set(Action) - changes
