"""This release and the last one train together, whichever of the two is the hospitals', to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.last_release import installed

pytestmark = [pytest.mark.deployed, pytest.mark.reduced]

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("mixed_run.py")
PRESENT = os.pathsep.join(str(ROOT / room) for room in ("common", "client", "server", "conf", "simulations"))


def said(path: str, *arguments: str) -> dict[str, Any]:
    """Run the driver with Fedward from `path` and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    command = [sys.executable, "-P", str(DRIVER), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Outcome:
    """What came of a run: the sites' word, the centre's, and the folder."""

    sites: dict[str, Any]
    centre: dict[str, Any]
    folder: Path

    def explained(self) -> str:
        """Return what a failure should show."""
        logs = "\n".join(path.read_text()[-1500:] for path in sorted((self.folder / "logs").glob("*.log")))
        return f"{self.sites}\n{self.centre}\n{logs}"


def trained(folder: Path, *, centre: str, sites: str) -> Outcome:
    """Train a small study with Fedward from one path at the centre and from another at four sites."""
    folder.mkdir()
    return Outcome(said(sites, "homes", str(folder)), said(centre, "run", str(folder), sites), folder)


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(installed(tmp_path_factory.mktemp("release")))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trained(tmp_path_factory.mktemp("reference") / "run", centre=PRESENT, sites=PRESENT)


@pytest.mark.parametrize("older", ["sites", "centre"])
def test_releases_train_together_to_the_same_bits(older: str, last: str, reference: Outcome, tmp_path: Path) -> None:
    paths = {"centre": PRESENT, "sites": PRESENT, older: last}

    mixed = trained(tmp_path / "run", **paths)

    assert mixed.sites["room"].startswith(last if older == "sites" else str(ROOT / "client"))
    assert mixed.centre["room"].startswith(last if older == "centre" else str(ROOT / "server"))
    assert mixed.sites["digest"] == mixed.centre["digest"] == reference.centre["digest"], mixed.explained()
    assert mixed.centre["status"] == "completed", mixed.explained()
    assert set(mixed.centre["rounds"].values()) == {2}, mixed.explained()
    assert mixed.centre["model"] == reference.centre["model"] is not None, mixed.explained()
