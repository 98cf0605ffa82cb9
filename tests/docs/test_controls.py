"""docs/controls.md and docs/threat-model.md name tests that are there and run, for every control and every attack."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "controls.md").read_text(encoding="utf-8")
NODE = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
BODY = [line for line in ROWS if not line.startswith(("| control |", "| article |", "| item |"))]
HIPAA = [
    "(a)(1)", "(a)(2)(i)", "(a)(2)(ii)", "(a)(2)(iii)", "(a)(2)(iv)", "(b)", "(c)(1)", "(c)(2)", "(d)", "(e)(1)",
    "(e)(2)(i)", "(e)(2)(ii)",
]  # fmt: skip
GDPR = ["25(1)", "25(2)", "30", "32(1)(a)", "32(1)(b)", "32(1)(c)", "32(1)(d)", "32(4)"]
NIST = ["privacy parameter", "unit of privacy", "composition", "trust model", "random numbers", "accountant"]


@cache
def names_in(path: str) -> frozenset[str]:
    """Return the names of a file's tests, those of a class with its name before them."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


@pytest.mark.parametrize("page", ["controls", "threat-model"])
def test_every_test_that_the_page_names_is_there(page: str) -> None:
    named = NODE.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))

    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).is_file() or name not in names_in(path)]

    assert len(named) > 20
    assert not missing


def test_every_row_has_a_test() -> None:
    assert not [row for row in BODY if not NODE.search(row)]


def test_no_row_leans_on_a_test_that_is_not_run_with_every_change() -> None:
    """A campaign may stand beside another test of a row, not alone."""
    for row in BODY:
        run = [(path, name) for path, name in NODE.findall(row) if not deselected(path, name)]
        assert run, row


def deselected(path: str, name: str) -> bool:
    """Return whether a test is left out of a default run by its own mark."""
    text = (ROOT / path).read_text(encoding="utf-8")
    marks = text[: text.index(f"def {name.rpartition('::')[2]}(")].rsplit("\n\n\n", 1)[-1]
    return any(f"pytest.mark.{mark}" in marks for mark in ("slow", "campaign", "docs"))


@pytest.mark.parametrize("control", [*HIPAA, *GDPR, *NIST])
def test_control_that_must_be_answered_is(control: str) -> None:
    assert [row for row in BODY if row.startswith(f"| {control}")]
