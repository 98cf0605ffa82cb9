"""What a daemon notes of itself: from each answer of the coordinator, each task, and each probe."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedward_client.config import create_site, load_site
from fedward_client.flower_adapter import NotAdmittedError
from fedward_client.health import Facts, conditions
from fedward_client.vitals import Vitals, shown
from fedward_client.worker import InProcessWorker
from fedward_common.errors import InstallationError, RefusalCode, TransportError
from fedward_simulations.engines.deployed import SuperLinkProcess, write_home
from tests.https import closed_port


def unmet(facts: Facts) -> list[str]:
    found = conditions(facts, time.monotonic(), stale_s=90.0)
    return [condition.name for condition in found if not condition.met and condition.name in CONNECTION]


CONNECTION = {"registered", "authenticated"}


def answer(status: int) -> httpx.Response:
    return httpx.Response(status)


# ----------------------------------------------------------------------------------------------------- connection


def test_a_session_makes_a_site_registered_and_authenticated() -> None:
    vitals = Vitals()
    before = unmet(vitals.health.facts())

    vitals.connected()

    assert before == ["registered", "authenticated"]
    assert unmet(vitals.health.facts()) == []


def test_a_site_that_is_not_let_in_is_not_registered() -> None:
    vitals = Vitals()

    vitals.disconnected(NotAdmittedError("the SuperLink does not activate this site (HTTP 412)", remedy="register"))

    assert unmet(vitals.health.facts()) == ["registered", "authenticated"]


def test_a_session_that_is_ended_by_the_coordinator_is_not_authenticated_and_the_next_refusal_unregisters() -> None:
    vitals = Vitals()
    vitals.connected()
    revoked = NotAdmittedError("the SuperLink refuses this site: HTTP 401", remedy="revoked?")

    vitals.disconnected(revoked)
    after_one = unmet(vitals.health.facts())
    vitals.disconnected(revoked)

    assert after_one == ["authenticated"]
    assert unmet(vitals.health.facts()) == ["registered", "authenticated"]


def test_an_outage_alone_changes_nothing_yet() -> None:
    vitals = Vitals()
    vitals.connected()

    vitals.failed(TransportError("nobody answers", remedy="firewall"))
    vitals.disconnected(TransportError("nobody answers", remedy="firewall"))

    assert unmet(vitals.health.facts()) == []
    assert vitals.health.facts().trouble == ("nobody answers", "firewall")


@pytest.mark.parametrize("status", [200, 403])
def test_an_answer_to_an_accepted_signature_ends_an_outage(status: int) -> None:
    vitals = Vitals()
    vitals.connected()
    vitals.failed(TransportError("nobody answers", remedy="firewall"))

    vitals.answer_seen(100, 200, answer(status))

    assert vitals.health.facts().trouble == ("", "")


@pytest.mark.parametrize("status", [404, 412, 500, 502, 503])
def test_an_answer_that_may_come_from_anybody_proves_nothing(status: int) -> None:
    vitals = Vitals()

    vitals.answer_seen(100, 200, answer(status))

    assert vitals.health.facts().accepted is None


def test_a_sign_of_life_that_is_refused_during_a_long_task_is_seen_at_once() -> None:
    """Revoked sites are out within a minute, also those that train for an hour."""
    vitals = Vitals()
    vitals.connected()

    vitals.answer_seen(100, 0, answer(401))

    assert unmet(vitals.health.facts()) == ["authenticated"]


def test_bytes_are_counted_both_ways() -> None:
    vitals = Vitals()

    vitals.answer_seen(100, 2000, answer(200))
    vitals.answer_seen(50, 0, answer(503))

    assert (vitals.health.facts().sent, vitals.health.facts().received) == (150, 2000)


# ------------------------------------------------------------------------------------------------------- training


class Probes:
    """Answers of probes, one after the other, and how often they were asked for."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return self.answers.pop(0)


def test_training_is_tried_at_the_start() -> None:
    vitals = Vitals(probe=Probes(""))
    before = vitals.health.facts().training

    vitals.probe()

    assert before is None
    assert vitals.health.facts().training == ""


@pytest.mark.parametrize("code", ["task_crashed", "task_timed_out", "task_out_of_memory", "internal_error"])
def test_a_task_that_broke_asks_whether_training_still_works(code: str) -> None:
    vitals = Vitals(probe=Probes("the task process: exit -9", ""))

    vitals.answered("train", 1.0, code)
    broken = vitals.health.facts().training
    vitals.answered("train", 1.0, f"{code} round=3")

    assert broken == "the task process: exit -9"
    assert vitals.health.facts().training == ""


def test_no_other_answer_asks() -> None:
    probes = Probes()
    vitals = Vitals(probe=probes)

    for code in RefusalCode:
        if code not in {"task_crashed", "task_timed_out", "task_out_of_memory", "internal_error"}:
            vitals.answered("train", 1.0, code.value)
    vitals.answered("train", 1.0, None)

    assert probes.asked == 0
    assert vitals.health.facts().rounds == 1


def test_a_probe_that_takes_its_time_is_no_hanging_loop() -> None:
    due: list[float] = []

    def probe() -> str:
        due.append(vitals.health.facts().due - time.monotonic())
        return ""

    vitals = Vitals(probe=probe)
    vitals.allow(1.0)
    vitals.probe()

    assert due[0] > 100


def test_without_a_page_nobody_probes() -> None:
    vitals = Vitals()

    vitals.answered("train", 1.0, "task_crashed")
    vitals.probe()

    assert vitals.health.facts().training is None


# ---------------------------------------------------------------------------------------------------------- shown


def site(home: Path, address: str) -> Path:
    create_site(home, "north")
    path = home / "site.yaml"
    path.write_text(path.read_text().replace("local_page: 127.0.0.1:8470", f"local_page: {address}"))
    return home


def test_the_page_is_served_while_the_daemon_runs_and_no_longer(tmp_path: Path) -> None:
    address = f"127.0.0.1:{closed_port()}"
    home = site(tmp_path / "north", address)

    with shown(load_site(home), home, InProcessWorker(), 30.0) as vitals:
        vitals.connected()
        alive = httpx.get(f"http://{address}/healthz", trust_env=False)

    assert alive.status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}/healthz", trust_env=False)


def test_a_site_without_the_line_opens_no_port(tmp_path: Path) -> None:
    home = tmp_path / "north"
    create_site(home, "north")
    config = load_site(home).model_copy(update={"local_page": None})

    with shown(config, home, InProcessWorker(), 30.0) as vitals:
        vitals.probe()

    assert vitals.health.facts().training is None


def test_two_daemons_on_one_port_is_one_too_many(tmp_path: Path) -> None:
    address = f"127.0.0.1:{closed_port()}"
    home = site(tmp_path / "north", address)

    with (
        shown(load_site(home), home, InProcessWorker(), 30.0),
        pytest.raises(InstallationError, match="local_page"),
        shown(load_site(home), home, InProcessWorker(), 30.0),
    ):
        pass


# --------------------------------------------------------------------------------------------------- a real daemon


@contextlib.contextmanager
def running(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "fedward_client.daemon", "--home", str(home), "--stop-on-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def ready(address: str, *, is_ready: bool, patience_s: float = 90.0) -> dict[str, Any]:
    """Return what ``/readyz`` says once it says `is_ready`."""
    last: dict[str, Any] = {}
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"http://{address}/readyz", trust_env=False)
            last = answer.json()
            if last["ready"] is is_ready and (answer.status_code == 200) is is_ready:
                return last
        time.sleep(0.1)
    raise AssertionError(last)


@pytest.mark.deployed
def test_a_real_daemon_becomes_ready_and_is_not_once_its_coordinator_forgets_it(tmp_path: Path) -> None:
    address = f"127.0.0.1:{closed_port()}"
    home = site(tmp_path / "north", address)
    with SuperLinkProcess(tmp_path / "logs") as superlink:
        superlink.await_ready()
        public_key = write_home(home, superlink)
        with running(home):
            stranger = ready(address, is_ready=False)
            superlink.client.register(public_key, "north")
            ready(address, is_ready=True)
            metrics = httpx.get(f"http://{address}/metrics", trust_env=False).text
            page = httpx.get(f"http://{address}/", trust_env=False).text

    assert not next(c["met"] for c in stranger["conditions"] if c["name"] == "registered")
    samples = {
        sample.name + json.dumps(sample.labels): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }
    assert samples["fedward_ready{}"] == 1
    assert samples['fedward_transfer_bytes_total{"direction": "out"}'] > 0
    assert "Ready to train" in page
