from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedward_client.runner import Outcome, Runner, TaskLimits, coded
from fedward_common.errors import InstallationError, RefusalCode
from fedward_common.flower_adapter import detached_message
from tests.tiny_app import CANARY

APP = "tests.tiny_app:app"


@pytest.fixture(scope="module")
def runner() -> Runner:
    runner = Runner(APP, TaskLimits(wall_s=20.0, reply_bytes=1 << 20))
    runner.start()
    return runner


def message(how: str, message_type: str = "query") -> Message:
    content = RecordDict({"how": ConfigRecord({"how": how})})
    return detached_message(content, source=1, target=7, message_type=message_type)


def context(home: Path = Path("/nowhere")) -> Context:
    return Context(1, 7, {"fedward-home": str(home)}, RecordDict(), {})


def run(runner: Runner, how: str, message_type: str = "query") -> Outcome:
    return runner.run(message(how, message_type), context(), threading.Event())


def hello(runner: Runner) -> ConfigRecord:
    outcome = run(runner, "", "query.hello")
    assert outcome.refusal is None
    assert outcome.content is not None
    return outcome.content.config_records["hello"]


def test_content_goes_in_and_comes_out(runner: Runner) -> None:
    values = np.arange(1000, dtype=np.int64)
    content = RecordDict({"model": ArrayRecord({"values": Array(values)})})
    task = detached_message(content, source=1, target=7, message_type="train")

    outcome = runner.run(task, context(), threading.Event())

    assert outcome.content is not None
    assert np.array_equal(values + 1, outcome.content.array_records["model"]["values"].numpy())


def test_every_message_has_a_process_of_its_own(runner: Runner) -> None:
    pids = {hello(runner)["pid"] for _ in range(3)}

    assert len(pids) == 3
    assert os.getpid() not in pids


def test_siblings_share_no_random_state(runner: Runner) -> None:
    assert hello(runner)["draw"] != hello(runner)["draw"]


def test_a_child_has_no_socket_and_one_thread(runner: Runner, tmp_path: Path) -> None:
    with (tmp_path / "key").open("w"):
        answer = hello(runner)

    assert answer["threads"] == 1
    files = answer["files"]
    assert isinstance(files, list)
    assert not [name for name in files if "socket" in str(name) or "key" in str(name)]


def test_exception_text_never_crosses(runner: Runner) -> None:
    outcome = run(runner, "raise")

    assert outcome.content is None
    assert outcome.refusal == "internal_error"


def test_exception_text_is_not_logged_either(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    run(runner, "raise")

    assert CANARY not in "".join(capfd.readouterr())


def test_a_refusal_keeps_its_code_and_fields_and_loses_its_text(runner: Runner) -> None:
    assert run(runner, "refuse").refusal == "budget_exceeded limit=8"


def test_an_error_that_the_app_returns_becomes_a_code(runner: Runner) -> None:
    assert run(runner, "answer with an error").refusal == "internal_error"


@pytest.mark.parametrize("how", ["exit", "be killed"])
def test_child_that_dies_becomes_a_coded_reply(runner: Runner, how: str) -> None:
    assert run(runner, how).refusal == "task_crashed"
    assert run(runner, "nothing").refusal is None


def test_a_message_that_no_handler_takes_becomes_a_code(runner: Runner) -> None:
    assert run(runner, "", "evaluate").refusal == "internal_error"


def test_a_task_over_its_time_is_killed() -> None:
    runner = Runner(APP, TaskLimits(wall_s=0.5))
    runner.start()

    outcome = run(runner, "hang")

    assert outcome.refusal == "task_timed_out"
    assert outcome.seconds < 15.0


def test_stopping_the_daemon_kills_the_task(runner: Runner) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()

    outcome = runner.run(message("hang"), context(), stop)

    assert outcome.refusal == "task_crashed"


def test_a_reply_larger_than_allowed_is_dropped(runner: Runner) -> None:
    assert run(runner, "boast").refusal == "update_out_of_bounds"


@pytest.mark.parametrize("reference", ["", "app", "a b:app", "http://example.org:app", "os:system()", "../x:app"])
def test_an_app_is_named_by_an_installed_module(reference: str) -> None:
    with pytest.raises(InstallationError):
        Runner(reference)


@pytest.mark.parametrize("reference", ["tests.tiny_app:CANARY", "tests.tiny_app:nothing", "no.such.module:app"])
def test_an_app_that_is_not_there_is_told_at_the_start(reference: str) -> None:
    with pytest.raises(InstallationError, match="does not start"):
        Runner(reference).start()


@pytest.mark.parametrize("code", list(RefusalCode))
def test_every_code_passes_the_last_gate(code: RefusalCode) -> None:
    assert coded(code.value) == code.value
    assert coded(f"{code.value} round=3 limit=0.5") == f"{code.value} round=3 limit=0.5"


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        "",
        f"internal_error {CANARY}",
        "internal_error age=81",
        "budget_exceeded limit=8 age=81",
        f"budget_exceeded limit={'9' * 65}",
        "budget_exceeded limit=8\nname=Smith",
        "budget_exceeded  limit=8",
        "no_such_code",
    ],
)
def test_no_other_words_pass_the_last_gate(text: str) -> None:
    assert coded(text) == "internal_error"
