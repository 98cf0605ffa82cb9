"""The last release as a wheel: built from its commit, since nothing is published yet, or named by the environment."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

__all__ = ["COMMIT", "VARIABLE", "installed"]

COMMIT = "5968995ddc10a14f056af795bc392b0b8d425f77"
"""The commit that counts as the last release. Each release moves it to the tag before (docs/operate-the-centre.md)."""
VARIABLE = "FEDWARD_LAST_RELEASE"
"""Names a wheel to take instead."""

ROOT = Path(__file__).parents[2]


def installed(folder: Path) -> Path:
    """Return a folder below `folder` that holds the last release, installed without its dependencies.

    A checkout without the commit skips the test and says how to get it.
    """
    wheel = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _built(folder)
    target = folder / "last-release"
    _pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def _built(folder: Path) -> Path:
    """Return the wheel of `COMMIT`, built by the pinned builder without a network."""
    pytest.importorskip("hatchling", reason="hatchling builds the last release's wheel: make install")
    try:
        archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"git is not installed; or name the last release's wheel in {VARIABLE}")
    if archive.returncode:
        said = archive.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        pytest.skip(
            f"this checkout has no commit {COMMIT[:12]} ({' '.join(said)}): git fetch --unshallow, "
            f"or name the last release's wheel in {VARIABLE}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as sources:
        sources.extractall(folder / "sources", filter="data")
    wheels = folder / "wheels"
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(folder / "sources"))
    (wheel,) = wheels.glob("fedward-*.whl")
    return wheel


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
