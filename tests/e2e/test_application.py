"""The process of one run at a whole centre: it waits, pauses, stops, is killed, and ends with the reference's bits."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.common.constant import SubStatus
from flwr.proto import runtime_pb2

from fedward_common.study import Study
from fedward_server.application import AGAIN, main
from fedward_server.centre import load_centre
from fedward_server.grid_flower_adapter import CoordinatorGrid
from fedward_server.result import RunResult
from fedward_server.run_status import ENDED, RunStatus, read_status, write_wish
from fedward_simulations.engines.centre import Installation
from fedward_simulations.engines.deployed import LoggedProcess
from fedward_simulations.federation import settle
from fedward_simulations.run import compose_plan, run
from tests.builders import table

pytestmark = [pytest.mark.deployed, pytest.mark.reduced]

PATIENCE_S = 90.0
STUDY = (
    "study=breast_cancer", "model=linear", "privacy=none", "training.rounds=4", "aggregation.deadline_seconds=60",
    "evaluation.bootstrap=100",
)  # fmt: skip


@dataclass
class Stage:
    """An installation with one study submitted."""

    installation: Installation
    study: Study
    folder: Path
    reference: str

    def start(self) -> LoggedProcess:
        return self.installation.start_application(self.folder)

    def await_status(self, wanted: Callable[[RunStatus], bool]) -> RunStatus:
        deadline = time.monotonic() + PATIENCE_S
        while (status := read_status(self.folder)) is None or not wanted(status):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status

    @staticmethod
    def await_exit(process: LoggedProcess) -> int | None:
        deadline = time.monotonic() + PATIENCE_S
        while not process.ended:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process.exit_code

    def end_run_at_the_superlink(self) -> None:
        """Report the run's task as done, in the place of its process."""
        ticket = json.loads((self.folder / "session.json").read_text())
        config = load_centre(self.installation.home)
        grid = CoordinatorGrid(f"{config.private_host}:{config.private_port}", ticket["token"])
        request = runtime_pb2.PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="ended from outside")
        grid._runtime_client.PushTaskOutput(request)
        grid.close()

    def result(self) -> RunResult:
        return RunResult.model_validate_json((self.folder / "result.json").read_bytes())


@pytest.fixture(scope="module")
def stage_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Stage]]:
    """Return a maker of stages on one installation, each with a study of its own."""
    root = tmp_path_factory.mktemp("application")
    overrides = {number: [*STUDY, f"training.learning_rate={0.1 * (number + 1):.1f}"] for number in range(7)}
    overrides[6].append("training.rounds=30")  # long enough for something to happen meanwhile
    plans = {number: compose_plan(given) for number, given in overrides.items()}
    homes: dict[str, Path] = {}
    for plan, federation, study in plans.values():
        homes = settle(federation, study, plan.policy, root / "sites")
    with Installation(root, homes) as installation:

        def make(number: int) -> Stage:
            study = plans[number][2]
            calm = run([*overrides[number], "engine=local", "engine.report=false", "engine.baselines=false"],
                       out=root / "reference").result  # fmt: skip
            assert calm.model is not None
            return Stage(installation, study, installation.submit(study), calm.model.sha256)

        yield make


def test_a_run_is_judged_reported_and_over(stage_of: Callable[[int], Stage]) -> None:
    stage = stage_of(0)
    process = stage.start()

    assert stage.await_exit(process) == 0
    result, status = stage.result(), read_status(stage.folder)
    assert result.status == "completed"
    assert result.model is not None
    assert result.model.sha256 == stage.reference
    assert status is not None
    assert (status.state, status.round) == ("completed", 4)
    assert "<html" in (stage.folder / "report.html").read_text()[:500]
    assert not (stage.folder / "session.json").exists()
    assert stage.await_exit(stage.start()) == 0  # a run that is over is not run again
    assert stage.result() == result


def test_a_run_pauses_between_rounds_and_is_told_apart_from_one_that_hangs(stage_of: Callable[[int], Stage]) -> None:
    stage = stage_of(1)
    write_wish(stage.folder, "pause")
    process = stage.start()
    stage.await_status(lambda status: status.state == "paused")
    assert not (stage.folder / "checkpoint.safetensors").exists()
    process.ask_to_stop()
    assert stage.await_exit(process) == AGAIN
    write_wish(stage.folder, "run")

    assert stage.await_exit(stage.start()) == 0
    result = stage.result()
    assert result.model is not None
    assert (result.status, result.model.sha256) == ("completed", stage.reference)


def test_a_run_waits_for_a_required_hospital_that_has_yet_to_join_the_centre(tmp_path: Path) -> None:
    """Nobody starts the run's process again: it looks at the roster whenever it calls the roll."""
    plan, federation, study = compose_plan([*STUDY, "aggregation.required_sites=[west]"])
    homes = settle(federation, study, plan.policy, tmp_path / "sites")
    present = {site: home for site, home in homes.items() if site != "west"}
    with Installation(tmp_path, present) as installation:
        stage = Stage(installation, study, installation.submit(study), "")
        process = stage.start()
        waiting = stage.await_status(lambda status: "required sites have not enrolled" in (status.reason or ""))
        assert waiting.state == "enrolling"
        assert waiting.sites["west"].state == "absent"
        installation.join("west", homes["west"])
        assert stage.await_exit(process) == 0
    result = stage.result()
    assert result.status == "completed"
    assert all("west" in entry.sites for entry in result.rounds)
    assert result.seconds < waiting_s(result)


def test_a_round_outlasts_an_absence_that_is_longer_than_its_deadline(tmp_path: Path) -> None:
    """Two of four hospitals, all of them needed, are gone in the middle of a run; once they are back it goes on."""
    changes = ["aggregation.quorum=4", "aggregation.deadline_seconds=8", "training.rounds=30"]
    plan, federation, study = compose_plan([*STUDY, *changes])
    calm = run([*STUDY, *changes, "engine=local", "engine.report=false", "engine.baselines=false"],
               out=tmp_path / "reference").result  # fmt: skip
    homes = settle(federation, study, plan.policy, tmp_path / "sites")
    with Installation(tmp_path, homes) as installation:
        stage = Stage(installation, study, installation.submit(study), "")
        process = stage.start()
        stage.await_status(lambda status: status.round >= 1)
        for site in ("east", "west"):
            installation.stop(site)
        told = stage.await_status(lambda status: "waits for a quorum" in (status.reason or ""))
        assert told.state == "running"
        for site in ("east", "west"):
            installation.start_site(site)
        assert stage.await_exit(process) == 0
    result = stage.result()
    assert result.status == "completed"
    assert max(entry.seconds for entry in result.rounds) > 8
    assert all(len(entry.sites) == 4 for entry in result.rounds)
    assert result.model is not None
    assert calm.model is not None
    assert result.model.sha256 == calm.model.sha256


def waiting_s(result: RunResult) -> float:
    """Return the seconds that a run may have taken whose time counts from its roll on."""
    return sum(entry.seconds for entry in result.rounds) + 5.0


def test_a_run_that_is_stopped_keeps_what_it_has(stage_of: Callable[[int], Stage]) -> None:
    stage = stage_of(2)
    process = stage.start()
    stage.await_status(lambda status: status.round >= 1)
    write_wish(stage.folder, "stop")

    assert stage.await_exit(process) == 0
    result = stage.result()
    assert result.status == "interrupted" or len(result.rounds) == 4
    status = read_status(stage.folder)
    assert status is not None
    assert status.state in ENDED


@pytest.mark.parametrize(("study", "number"), [(3, signal.SIGKILL), (4, signal.SIGTERM)])
def test_what_ends_the_process_does_not_end_the_run(
    stage_of: Callable[[int], Stage], study: int, number: signal.Signals
) -> None:
    stage = stage_of(study)
    process = stage.start()
    stage.await_status(lambda status: status.round >= 1)
    os.kill(process.pid, number)
    stage.await_exit(process)
    stage.await_exit(stage.start())
    result = stage.result()

    assert result.model is not None
    assert (result.status, result.model.sha256) == ("completed", stage.reference)
    assert all(len(entry.sites) == 4 for entry in result.rounds)


def test_a_study_goes_on_in_another_run_where_the_superlink_has_ended_the_first(
    stage_of: Callable[[int], Stage],
) -> None:
    stage = stage_of(6)
    process = stage.start()
    stage.await_status(lambda status: status.round >= 1)
    stage.end_run_at_the_superlink()
    assert stage.await_exit(process) == AGAIN

    assert stage.await_exit(stage.start()) == 0
    result = stage.result()
    assert result.model is not None
    assert (result.status, result.model.sha256) == ("completed", stage.reference)


def test_a_study_that_nobody_trusted_signed_is_not_begun(
    stage_of: Callable[[int], Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    stage = stage_of(5)
    settings = json.loads((stage.installation.home / "superlink.json").read_text())
    strict = stage.installation.home / "strict"
    strict.mkdir()
    for name in ("secret", "ca.pem", "roster.key", "server.pem"):
        (strict / name).symlink_to(stage.installation.home / name)
    keys = {"study_keys": ["ed25519:" + "A" * 43 + "="]}
    (strict / "superlink.json").write_text(json.dumps({**settings, **keys}))

    assert main(["--home", str(strict), "--run", str(stage.folder)]) == 2
    assert "sign" in capsys.readouterr().err


def test_a_hold_out_of_another_schema_ends_the_process_with_the_reason(
    stage_of: Callable[[int], Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = stage_of(5)
    table(4).to_csv(tmp_path / "central.csv", index=False)
    (stage.folder / "run.json").write_text(json.dumps({"hold_out": str(tmp_path / "central.csv")}))

    assert main(["--home", str(stage.installation.home), "--run", str(stage.folder)]) == 2
    assert "remedy" in capsys.readouterr().err
