"""The rules of CONTRIBUTING.md and DESIGN.md that a machine can check, by reflection over the whole checkout."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_common import errors

ROOT = Path(__file__).parents[1]
ROOMS = ("common", "client", "server", "conf", "simulations")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EVERYTHING = [*SOURCES, *TESTS]
FUNCTION_LINES, FILE_LINES = 65, 500

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def length(node: Function) -> int:
    """Return the lines of a function, its docstring left out."""
    first, lines = node.body[0], (node.end_lineno or 0) - node.lineno + 1
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 20
    assert len(TESTS) > 20


def test_no_function_is_longer_than_65_lines() -> None:
    long = [
        f"{where(p, f)} {f.name}: {length(f)}" for p in EVERYTHING for f in functions(p) if length(f) > FUNCTION_LINES
    ]
    assert not long


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in EVERYTHING}
    assert not {name: lines for name, lines in lengths.items() if lines > FILE_LINES}


def test_no_bare_except_and_no_silent_one() -> None:
    """`except Exception` needs a noqa with its reason, which ruff checks; a bare one has no excuse."""
    found = [
        where(path, node)
        for path in EVERYTHING
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not found


def test_no_broad_except_but_at_a_process_s_border() -> None:
    broad = {
        where(path, node)
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and isinstance(node.type, ast.Name)
        and node.type.id in {"Exception", "BaseException"}
        and not isinstance(node.body[-1], ast.Raise)
        and "noqa: BLE001  (" not in path.read_text(encoding="utf-8").splitlines()[node.lineno - 1]
    }
    assert not broad


def test_every_error_class_is_in_the_tree_and_exported() -> None:
    doc = errors.__doc__ or ""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ != errors.__name__:
            continue
        assert name in errors.__all__
        if issubclass(kind, Exception):
            assert f" {name} " in doc or f"\n    {name}\n" in doc, f"{name} is not in the tree of errors.py"


def test_tree_of_errors_is_the_inheritance() -> None:
    """Each line of the drawing, by its depth, stands below its base class."""
    stack: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        head = line[4:].split("  ")[0] if line.startswith("    ") else ""
        name = head.split("─ ")[-1].strip().split(" ")[0]
        kind = getattr(errors, name, None)
        if kind is None:
            continue
        depth = head.find("─ ") // 4 + 1 if "─ " in head else 0
        stack = [*stack[:depth], name]
        if depth:
            assert kind.__base__.__name__ == stack[depth - 1], name
    assert stack


def modules() -> list[str]:
    names = []
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts[1:]
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_every_exported_name_exists_and_every_module_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    missing = [exported for exported in getattr(module, "__all__", []) if not hasattr(module, exported)]
    assert not missing
    assert module.__doc__


def public(path: Path) -> set[str]:
    found = {node.name for node in tree(path).body if isinstance(node, Function | ast.ClassDef)}
    return {name for name in found if not name.startswith("_")}


def test_what_another_module_imports_is_exported() -> None:
    """A name that is used elsewhere belongs to the module's face."""
    missing = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedward_"):
                module = importlib.import_module(str(node.module))
                exported = getattr(module, "__all__", None)
                missing += [
                    f"{where(path, node)} {alias.name}"
                    for alias in node.names
                    if exported is not None
                    and alias.name not in exported
                    and not inspect.ismodule(getattr(module, alias.name, module))
                    and getattr(getattr(module, alias.name), "__module__", None) == node.module
                ]
    assert not missing


def imported(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after `statement`."""
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(run.stdout.split())


def below(package: str) -> str:
    names = [name for name in modules() if name.split(".")[0] == package and not name.endswith("cli")]
    return "import " + ", ".join(names)


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("fedward_client", {"fedward_server", "fedward_simulations", "fedward_conf", "hydra", "sklearn"}),
        ("fedward_server", {"fedward_client", "fedward_simulations", "opacus"}),
        ("fedward_common", {"fedward_client", "fedward_server", "fedward_simulations", "fedward_conf", "opacus"}),
    ],
)
def test_one_side_imports_nothing_of_the_other(package: str, strangers: set[str]) -> None:
    assert not imported(below(package)) & strangers


@pytest.mark.parametrize("module", ["fedward_server.coordinator", "fedward_simulations.plan"])
def test_coordinator_starts_without_torch(module: str) -> None:
    """Three seconds of start-up that only training children need."""
    assert not imported(f"import {module}") & {"torch", "opacus", "sklearn"}


def internal_flower(path: Path) -> list[str]:
    public_roots = ("flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation")
    names = [
        (node, module)
        for node in ast.walk(tree(path))
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    ]
    return [
        where(path, node)
        for node, module in names
        if module.startswith("flwr.") and not module.startswith(public_roots)
    ]


def adapts_flower(path: Path) -> bool:
    return path.stem.endswith("flower_adapter") or path.parent.name == "flower_adapter"


def test_internal_names_of_flower_are_imported_in_the_adapters_only() -> None:
    assert not [line for path in SOURCES if not adapts_flower(path) for line in internal_flower(path)]
