"""docs/console.md says what the code does: roles, series, lengths of sessions, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedward_server.centre import CONSOLE_PORT
from fedward_server.console.sessions import IDLE_S, LONGEST_S
from fedward_server.studies.rights import Action, Role, right

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "console.md").read_text(encoding="utf-8")
ROWS = {
    "pages, reports, results": (Action.LIST, Action.SHOW, Action.RESULT, Action.SITES),
    "model": (Action.MODEL,),
    "pause and resume": (Action.PAUSE, Action.RESUME),
    "stop": (Action.STOP,),
    "audit trail": (Action.AUDIT,),
}
WORDS = {"any": "yes", "own": "own studies", "no": "no"}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_roles_is_the_table_of_rights(row: str) -> None:
    (told,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", PAGE, re.MULTILINE)

    for action in ROWS[row]:
        assert [cell.strip() for cell in told.split("|")] == [WORDS[right(role, action)] for role in Role]


def test_every_exported_series_is_named_and_no_other() -> None:
    named = set(re.findall(r"`([a-z_]+)`", PAGE.partition("| series,")[2].partition("\n")[2]))
    board = (ROOT / "deploy" / "grafana" / "fedward-centre.json").read_text(encoding="utf-8")
    shown = {name.removesuffix("_bucket") for name in re.findall(r"fedward_centre_(\w+)", board)}

    assert named == shown | {"other"}


def test_ports_and_lengths_are_those_of_the_code() -> None:
    assert f"127.0.0.1:{CONSOLE_PORT} unless" in PAGE.replace("\n", " ")
    assert IDLE_S == 2 * 3600
    assert LONGEST_S == 10 * 3600
    assert "two hours without" in PAGE
    assert "ten hours in any case" in PAGE


def test_every_file_that_the_page_refers_to_is_there() -> None:
    for target in re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', PAGE):
        assert (ROOT / "docs" / "".join(target)).exists(), target
