"""``fedward client doctor``: every check alone, all of them in time, for people and for machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import Result
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.config import create_site
from fedward_client.doctor import CHECKS, Check, Finding, Level, Place, examine
from fedward_common.certificates import load_node_key

RUNNER = CliRunner()
CANARY = "Müller, Anna 1961-04-02"
QUICK = [option for check in CHECKS if check.name not in {"training", "gpu"} for option in ("--only", check.name)]


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """Give other tests their log back."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "north"
    create_site(folder, "north")
    return folder


def call(home: Path, *arguments: str) -> Result:
    return RUNNER.invoke(app, ["doctor", *arguments, "--home", str(home)])


def good(name: str, *, after: threading.Event | None = None) -> Check:
    def look(_: Place) -> Iterator[Finding]:
        if after is not None:
            assert after.wait(10.0)
        yield Finding(name, Level.PASS, "good")

    return Check(name, look)


# ------------------------------------------------------------------------------------------------------- examining


def test_a_check_that_blows_up_fails_by_its_class_and_the_others_go_on(tmp_path: Path) -> None:
    def look(_: Place) -> Iterator[Finding]:
        yield Finding("bad", Level.PASS, "before")
        raise KeyError(CANARY)

    findings = list(examine(Place(tmp_path), [good("first"), Check("bad", look), good("last")]))

    assert [(finding.check, finding.level) for finding in findings] == [
        ("first", Level.PASS),
        ("bad", Level.FAIL),
        ("last", Level.PASS),
    ]
    assert "KeyError" in findings[1].what
    assert CANARY not in str(findings)


def test_an_error_of_fedward_s_own_fails_with_its_message_and_remedy(tmp_path: Path) -> None:
    def look(_: Place) -> Iterator[Finding]:
        load_node_key(tmp_path / "node.key")
        yield Finding("enrolment", Level.PASS, "good")

    (finding,) = examine(Place(tmp_path), [Check("enrolment", look)])

    assert finding.level is Level.FAIL
    assert "node.key holds no readable private key" in finding.what
    assert "`node_key`" in finding.remedy


def test_a_check_that_hangs_fails_in_time_and_the_others_go_on(tmp_path: Path) -> None:
    never = threading.Event()
    hanging = Check("dns", lambda _: iter([Finding("dns", Level.PASS, str(never.wait(60.0)))]), limit_s=0.05)

    started = time.monotonic()
    findings = list(examine(Place(tmp_path), [hanging, good("last")]))
    never.set()

    assert time.monotonic() - started < 30.0
    assert [finding.level for finding in findings] == [Level.FAIL, Level.PASS]
    assert "no result within" in findings[0].what


def test_checks_run_side_by_side_and_are_told_in_their_order(tmp_path: Path) -> None:
    """The first waits for the last: one after the other, they would never end."""
    done = threading.Event()

    def look(_: Place) -> Iterator[Finding]:
        done.set()
        yield Finding("last", Level.PASS, "good")

    findings = list(examine(Place(tmp_path), [good("first", after=done), Check("last", look)]))

    assert [finding.check for finding in findings] == ["first", "last"]


def test_a_check_that_finds_nothing_passes(tmp_path: Path) -> None:
    (finding,) = examine(Place(tmp_path), [Check("gpu", lambda _: [])])

    assert finding.level is Level.PASS


def test_no_network_check_may_take_longer_than_five_seconds() -> None:
    limits = {check.name: check.limit_s for check in CHECKS}
    asking = {"dns", "proxy", "tls", "certificates", "clock", "identity", "daemon"}

    assert {limits[name] for name in asking} == {5.0}
    assert max(limits.values()) <= 60.0


# -------------------------------------------------------------------------------------------------------- command


def test_a_new_site_has_warnings_and_remedies_and_no_failure_of_its_own(home: Path) -> None:
    result = call(home, *QUICK, "--json")
    told = json.loads(result.stdout)

    warned = {check["check"] for check in told["checks"] if check["level"] == "WARN"}
    assert {"enrolment", "dns", "proxy", "tls", "certificates", "clock", "identity", "cohorts"} <= warned
    assert not [check for check in told["checks"] if check["level"] == "FAIL" and check["check"] not in HERE]
    assert all(check["remedy"] for check in told["checks"] if check["level"] != "PASS")


HERE = {"disk", "memory", "shm", "files"}
"""What is about the computer that the tests run on."""


def test_people_read_a_line_for_each_finding_a_remedy_below_and_a_sum(home: Path) -> None:
    result = call(home, "--only", "policy", "--only", "ledger", "--only", "dns")
    lines = result.stdout.splitlines()

    assert lines[0].startswith("PASS  policy")
    assert "WARN  dns          not enrolled yet" in lines
    assert "remedy: fedward client enroll INVITE" in result.stdout
    assert lines[-1] == "2 passed, 2 warnings, 0 failed"
    assert result.exit_code == 0


def test_one_failure_is_exit_code_1(home: Path) -> None:
    path = home / "site.yaml"
    path.write_text(path.read_text().replace("max_rounds", "max_runds"))

    result = call(home, "--only", "policy")

    assert result.exit_code == 1
    assert "FAIL  policy" in result.stdout
    assert "max_runds" in result.stdout


def test_a_broken_policy_hides_no_other_check(home: Path) -> None:
    (home / "site.yaml").write_text("site: [")

    told = json.loads(call(home, *QUICK, "--json").stdout)

    names = {check["check"] for check in told["checks"]}
    assert {check.name for check in CHECKS if check.name not in {"training", "gpu"}} <= names


def test_a_home_that_is_not_there_is_a_failure_not_a_crash(tmp_path: Path) -> None:
    result = call(tmp_path / "nothing", *QUICK, "--json")
    told = json.loads(result.stdout)

    assert result.exit_code == 1
    assert told["summary"]["FAIL"] >= 2
    assert not any("Traceback" in check["what"] for check in told["checks"])
    assert not (tmp_path / "nothing").exists()


def test_a_check_that_does_not_exist_is_an_error_that_lists_those_that_do(home: Path) -> None:
    result = call(home, "--only", "diskk")

    assert result.exit_code == 2
    assert "disk" in result.output


def test_the_whole_doctor_speaks_json_and_nothing_else(home: Path) -> None:
    """With the training step, in a process of its own, as a monitor calls it."""
    command = [f"{sys.prefix}/bin/fedward", "client", "doctor", "--json", "--home", str(home)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = json.loads(done.stdout)

    assert told["format"] == "fedward-doctor-1"
    assert done.returncode == (1 if told["summary"]["FAIL"] else 0)
    training = [check for check in told["checks"] if check["check"] == "training"]
    assert [check["level"] for check in training] == ["PASS"], training


def usable_by_all() -> bool:
    """Return whether another account could start this interpreter."""
    folders = [folder for prefix in (sys.base_prefix, sys.prefix) for folder in Path(prefix, "bin").parents]
    return all(folder.stat().st_mode & 0o001 for folder in folders)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
@pytest.mark.skipif(not usable_by_all(), reason="this interpreter is closed to other accounts")
def test_root_looks_with_the_eyes_of_the_account_that_owns_the_site() -> None:
    """Else it would find readable what the daemon cannot read, and leave files behind that shut the daemon out."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to others
        Path(folder).chmod(0o755)
        home, table = Path(folder, "north"), Path(folder, "chart.csv")
        create_site(home, "north")
        table.write_text("age\n50\n")
        table.chmod(0o600)
        path = home / "site.yaml"
        path.write_text(path.read_text().replace("cohorts: {}", f"cohorts: {{chart: {{table: {table}}}}}"))
        for owned in (home, path):
            os.chown(owned, 65534, 65534)
        command = [f"{sys.prefix}/bin/fedward", "client", "doctor", "--only", "cohorts", "--home", str(home)]

        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        owners = {entry.stat().st_uid for entry in home.rglob("*")}

    assert done.returncode == 1, done.stderr
    assert "chart: chart.csv cannot be read (PermissionError)" in done.stdout
    assert owners == {65534}
