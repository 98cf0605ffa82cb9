"""A process that keeps the contract of `fedward_server.application` without a SuperLink; its study's name says how.

``quick`` ends at once; ``patient`` waits until it is told to stop; ``faulty`` says that its settings are wrong;
``mortal`` is killed twice and then ends; ``broken`` always ends by an error; ``deaf`` hears nothing. Each start is a
line in ``starts``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import sys
import time
from pathlib import Path

from fedward_server.result import RunResult, StudyRef
from fedward_server.run_status import RunState, RunStatus, read_wish, write_status
from fedward_server.studies.lifecycle import EndState
from fedward_server.superlink import stop_when_input_closes

AGAIN = 75


def told(folder: Path, state: RunState, round_: int = 0) -> None:
    now = dt.datetime.now(dt.UTC).isoformat()
    write_status(folder, RunStatus(state=state, round=round_, rounds=3, updated_at=now, pid=os.getpid()))


def end(folder: Path, study: dict[str, str], status: EndState, reason: str | None = None) -> int:
    """Leave a result as the application does."""
    result = RunResult(
        study=StudyRef(name=study["name"], digest="0" * 64),
        engine="double",
        seed=0,
        status=status,
        reason=reason,
        started_at=dt.datetime.now(dt.UTC).isoformat(),
        seconds=0.0,
        versions={},
        privacy=None,
        sites={},
        rounds=(),
        central={},
    )
    for name in ("report.html", "privacy.json", "model.safetensors"):
        (folder / name).write_text("{}")
    (folder / "result.json").write_text(result.model_dump_json())
    told(folder, result.status, 3)
    return 0


def wait(folder: Path, study: dict[str, str]) -> int:
    """Run until told to stop."""
    told(folder, "running", 1)
    while (wish := read_wish(folder)) != "stop":
        told(folder, "paused" if wish == "pause" else "running", 1)
        time.sleep(0.05)
    return end(folder, study, "interrupted", "stopped by the operator")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--stop-on-eof", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(AGAIN))
    if options.stop_on_eof:
        stop_when_input_closes()
    folder: Path = options.run
    study = json.loads((folder / "study.json").read_text())["study"]
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    starts = len((folder / "starts").read_text().splitlines())
    name = study["name"].partition("-")[0]
    told(folder, "starting")
    if name == "faulty":
        sys.stderr.write(
            '{"event": "a line of the log"}\nthe hold-out has no column age\n  remedy: give another file\n'
        )
        return 2
    if name == "broken":
        return 1
    if name == "mortal" and starts <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if name == "patient":
        return wait(folder, study)
    while read_wish(folder) == "pause":
        time.sleep(0.05)
    return end(folder, study, "completed")


if __name__ == "__main__":
    sys.exit(main())
