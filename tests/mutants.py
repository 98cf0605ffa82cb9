"""Defects of differential privacy, each planted in a copy of the sources; a suite that stays green has missed it.

A mutant is one replacement in one file. Its text must occur there exactly once, so that a change of the code cannot
unplant it in silence. Tests run against the copy in a process of their own; killed means that a test failed, not that
the copy could not be imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_ROOMS: Final = ("client/fedward_client", "common/fedward_common")
_DP: Final = "client/fedward_client/dp"
_LIMIT_S: Final = 900.0
_FAILED: Final = 1
_FIRST: Final = re.compile(r"^FAILED (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect.

    Attributes:
        name: what it is, in the words of the privacy literature.
        file: path in the checkout.
        old: text that occurs there once.
        new: what stands there instead.
        killers: the tests that are there to find it.
    """

    name: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a mutant was found, and by which test first; `output` is the end of what pytest printed."""

    name: str
    killed: bool
    by: str
    seconds: float
    output: str


def plant(folder: Path, mutant: Mutant | None) -> None:
    """Copy what a hospital runs into `folder`, with the defect in it; without one, as it is.

    Raises:
        ValueError: the mutant's text does not occur in its file exactly once.
    """
    for room in _ROOMS:
        shutil.copytree(ROOT / room, folder / Path(room).name, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is None:
        return
    place = folder / Path(mutant.file).relative_to(Path(mutant.file).parts[0])
    source = place.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        msg = f"{mutant.name}: its text occurs {source.count(mutant.old)} times in {mutant.file}"
        raise ValueError(msg)
    place.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")


def judge(name: str, folder: Path, tests: Sequence[str]) -> Verdict:
    """Run `tests` against the sources in `folder` and say whether one of them failed.

    Raises:
        RuntimeError: pytest neither passed nor failed: the copy cannot be imported, or there is no such test.
    """
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutant_guard"]
    finished = subprocess.run(
        [*command, *tests],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder), "FEDWARD_MUTANT": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    first = _FIRST.search(finished.stdout)
    if finished.returncode not in {0, _FAILED} or (finished.returncode == _FAILED) != bool(first):
        msg = f"{name}: pytest ended with {finished.returncode}: {finished.stdout[-3000:]}{finished.stderr[-2000:]}"
        raise RuntimeError(msg)
    by = first[1] if first else ""
    return Verdict(name, bool(first), by, round(time.monotonic() - began, 1), finished.stdout[-3000:])


def try_mutant(mutant: Mutant) -> Verdict:
    """Return whether the tests that are there to find a mutant do."""
    with tempfile.TemporaryDirectory(prefix="fedward-mutant-") as folder:
        plant(Path(folder), mutant)
        return judge(mutant.name, Path(folder), mutant.killers)


def try_original(mutants: Iterable[Mutant]) -> Verdict:
    """Return whether the same tests pass where nothing is planted: else they prove nothing."""
    with tempfile.TemporaryDirectory(prefix="fedward-mutant-") as folder:
        plant(Path(folder), None)
        return judge("original", Path(folder), sorted({test for mutant in mutants for test in mutant.killers}))
