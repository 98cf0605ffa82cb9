"""The same study on each engine, as a person runs it: one process, one result, the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_STUDY = ["privacy=none", "training=minibatch", "training.rounds=2", "engine.baselines=false", "seed=7"]


def _simulate(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run the command line in a process of its own and return what it printed as JSON."""
    command = [str(Path(sys.executable).with_name("fedward")), "simulate", *_STUDY, *overrides, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False, env=os.environ)

    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the result of the local engine."""
    return _simulate(tmp_path_factory.mktemp("local"), "engine=local")


def test_the_local_engine_gives_the_same_bits_twice(local: dict[str, Any], tmp_path: Path) -> None:
    again = _simulate(tmp_path, "engine=local")

    assert again["model"]["sha256"] == local["model"]["sha256"]
    assert again["study"]["digest"] == local["study"]["digest"]


def test_another_seed_gives_other_bits(local: dict[str, Any], tmp_path: Path) -> None:
    other = _simulate(tmp_path, "engine=local", "seed=8")

    assert other["model"]["sha256"] != local["model"]["sha256"]


@pytest.mark.deployed
def test_deployed_processes_give_the_bits_of_the_local_engine(local: dict[str, Any], tmp_path: Path) -> None:
    deployed = _simulate(tmp_path, "engine=deployed")

    assert deployed["engine"] == "deployed"
    assert deployed["status"] == "completed"
    assert deployed["model"]["sha256"] == local["model"]["sha256"]
    assert deployed["central"] == local["central"]


@pytest.mark.ray
def test_ray_gives_the_bits_of_the_local_engine(local: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="engine=ray needs the extra `ray`")

    ray = _simulate(tmp_path, "engine=ray")

    assert ray["engine"] == "ray"
    assert ray["model"]["sha256"] == local["model"]["sha256"]


def test_the_run_folder_holds_what_the_documents_promise(tmp_path: Path) -> None:
    result = _simulate(tmp_path, "engine=local")

    (folder,) = (tmp_path / "runs" / "breast_cancer").iterdir()
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "result.json", "privacy.json", "report.html", "model.safetensors", "study.json", "checkpoint.safetensors",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    assert json.loads((folder / "study.json").read_text())["digest"] == result["study"]["digest"]
