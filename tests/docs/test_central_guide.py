"""docs/central-guide.md says what the code does: roles, states, calls, files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from fastapi.routing import APIRoute

from fedward_server.centre import CONSOLE_PORT
from fedward_server.studies.access import Access
from fedward_server.studies.api import FILES, HOLD_OUTS, api_router
from fedward_server.studies.lifecycle import State
from fedward_server.studies.remote import DEFAULT_URL
from fedward_server.studies.restarts import LONGEST_S
from fedward_server.studies.rights import Action, Role, right
from fedward_server.superlink import SuperLinkConfig
from tests.studies_centre import StudiesCentre

PAGE = (Path(__file__).parents[2] / "docs" / "central-guide.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    """Return the cells of the first table of a section, without its head."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def code(cell: str) -> str:
    return cell.strip("`")


def test_the_table_of_roles_is_the_one_in_the_code() -> None:
    said = {code(row[0]): tuple(row[1:]) for row in rows("Roles")}

    assert said == {action.value: tuple(right(role, action) for role in Role) for action in Action}


def test_every_state_is_explained_and_none_that_is_not_there() -> None:
    assert [code(row[0]) for row in rows("What becomes of a study")] == list(get_args(State))


def test_every_call_is_there_and_none_that_is_not(tmp_path: Path) -> None:
    centre = StudiesCentre(tmp_path / "centre")
    routes = {
        f"{method} {route.path}".replace("{id_}", "ID").replace("{name}", "NAME")
        for route in api_router(centre.home, Access(centre.home)).routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }

    assert {code(row[0]) for row in rows("The interface")} == routes


def test_files_and_settings_are_as_the_code_has_them() -> None:
    files = re.findall(r"`([a-z]+\.[a-z]+)`", next(row[1] for row in rows("The interface") if "files" in row[0]))
    assert set(files) == set(FILES)
    assert [code(row[0]) for row in rows("What lies where") if row[0].endswith("/`")][1] == f"{HOLD_OUTS}/"
    default = SuperLinkConfig(Path(), Path(), Path(), Path())
    assert f"`runs_at_once` ask hospitals at the same time ({default.runs_at_once}," in PAGE
    assert (default.share_sites, default.console) == (False, f"127.0.0.1:{CONSOLE_PORT}")
    assert f"http://{default.console}" == DEFAULT_URL
    assert f"up to {LONGEST_S:g}" in PAGE
