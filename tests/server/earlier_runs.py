"""Folders as `fedward simulate` leaves them, for what reads earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedward_common.study import Study
from fedward_common.study_file import StudyFile
from fedward_server.coordinator import dump
from fedward_server.result import Baselines, Estimate, RunResult, SiteResult, StudyRef


def leave_run(folder: Path, study: Study, value: float | None, *, alone: float | None = None, **changes: Any) -> Path:
    """Leave what `fedward simulate` leaves, as far as a curve reads it."""
    figures = {"auroc": Estimate(value=value, low=None, high=None)}
    local = {"south": {"auroc": Estimate(value=alone, low=None, high=None)}} if alone is not None else {}
    values: dict[str, Any] = {
        "study": StudyRef(name=study.name, digest=study.digest),
        "engine": "local",
        "seed": study.seed,
        "status": "completed",
        "started_at": "2026-11-23T12:00:00+00:00",
        "seconds": 1.5,
        "versions": {},
        "privacy": None,
        "sites": {name: SiteResult(patients=40, status="completed") for name in study.sites},
        "rounds": (),
        "central": figures,
        "baselines": Baselines(local=local),
    }
    folder.mkdir(parents=True)
    (folder / "study.json").write_bytes(StudyFile(study).dump())
    (folder / "result.json").write_bytes(dump(RunResult(**(values | changes))))
    return folder
