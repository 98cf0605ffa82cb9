"""What a room imports its extra declares and constraints.txt pins; a fuller environment would hide a gap."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What each room may import: the core, and the extra of the audience that installs it.
EXTRAS: dict[str, tuple[str, ...]] = {
    "common": (),
    "client": ("client",),
    "server": ("server",),
    "conf": ("server",),
    "simulations": ("client", "server", "simulation", "ray"),
    "tests": ("client", "server", "simulation", "ray", "dev"),
}
# Imported by name, brought by a declared library of which it is the other half, and useless without it.
HALVES = {
    "annotated-types": "pydantic",
    "anyio": "starlette",
    "click": "typer",
    "markupsafe": "jinja2",
    "omegaconf": "hydra-core",
    "protobuf": "flwr",
    "starlette": "fastapi",
}


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]) for requirement in requirements}


def declared(room: str) -> set[str]:
    extras = PROJECT["optional-dependencies"]
    found = named(PROJECT["dependencies"]).union(*(named(extras[extra]) for extra in EXTRAS[room]))
    return found | {half for half, whole in HALVES.items() if whole in found or HALVES.get(whole) in found}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports, without the standard library and Fedward's own."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return {name for name in names - sys.stdlib_module_names if not name.startswith("fedward") and name != "tests"}


@pytest.mark.parametrize("room", EXTRAS)
def test_every_import_of_a_room_is_declared_for_who_installs_it(room: str) -> None:
    distributions = importlib.metadata.packages_distributions()
    allowed = declared(room)

    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for name in imported(path)
        if not allowed & {normal(found) for found in distributions.get(name, [name])}
    }

    assert not undeclared


def test_every_declared_library_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = named([line for line in lines if not line.startswith("#")])
    wanted = named(PROJECT["dependencies"]).union(*map(named, PROJECT["optional-dependencies"].values()))

    assert wanted - pinned == {"fedward"}
