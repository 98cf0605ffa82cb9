"""What deploy/ asks of systemd and of a container runtime is what the daemon needs; no layer of its sandbox goes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedward_client.cli import app
from fedward_client.commands.options import DEFAULT_HOME
from fedward_client.loopback import DEFAULT_ADDRESS
from tests.deploy_files import instructions_of, unit_of

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "fedward-client.service"
SETTINGS = unit_of(UNIT)
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")
INSTRUCTIONS = instructions_of(CONTAINER)
# Each of these is known to forbid what a child does for its own sandbox: unshare, Landlock, seccomp, or its memory.
FORBIDDEN = {
    "RestrictNamespaces", "SystemCallFilter", "MemoryDenyWriteExecute", "PrivateUsers", "PrivateNetwork",
    "DynamicUser", "IPAddressDeny",
}  # fmt: skip
REQUIRED = {
    "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "ProtectSystem": "strict", "PrivateTmp": "yes",
    "UMask": "0077", "StateDirectoryMode": "0700", "LimitCORE": "0", "Restart": "always",
}  # fmt: skip


def test_unit_starts_a_command_that_there_is() -> None:
    words = shlex.split(SETTINGS["Service"]["ExecStart"])

    assert words[:3] == ["/opt/fedward/bin/fedward", "client", "run"]
    assert words[words.index("--home") + 1] == str(DEFAULT_HOME) == f"/var/lib/{SETTINGS['Service']['StateDirectory']}"
    assert CliRunner().invoke(app, ["run", "--help"]).exit_code == 0


def test_unit_hears_what_the_daemon_says() -> None:
    service = SETTINGS["Service"]

    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert int(service["WatchdogSec"]) >= 30
    assert service["TimeoutStartSec"] == "infinity"  # READY comes with the connection, whenever the centre is there


def test_unit_brings_the_daemon_back_after_everything_but_a_wrong_configuration() -> None:
    assert SETTINGS["Unit"]["StartLimitIntervalSec"] == "0"
    assert SETTINGS["Service"]["RestartPreventExitStatus"] == "2"  # `fedward_client.daemon.main`
    assert SETTINGS["Service"]["OOMPolicy"] == "continue"


def test_unit_takes_no_layer_of_the_sandbox_away() -> None:
    assert not FORBIDDEN & set(SETTINGS["Service"])


def test_unit_hardens_what_the_sandbox_does_not_need() -> None:
    service = SETTINGS["Service"]

    assert {key: service.get(key) for key in REQUIRED} == REQUIRED
    assert service["User"] not in {"root", "0"}


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8").replace("/opt/fedward/bin/fedward", "/bin/true")
    copy.write_text(re.sub(r"^(User|Group)=.*", r"\1=root", text, flags=re.MULTILINE), encoding="utf-8")

    verdict = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)

    assert [line for line in verdict.stderr.splitlines() if UNIT.name in line] == []


def test_container_installs_what_a_hospital_needs_at_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (install,) = (rest for word, rest in INSTRUCTIONS if word == "RUN" and "pip install" in rest)

    assert "'/src[client]'" in install
    assert "client" in project["optional-dependencies"]
    assert "--constraint /src/constraints.txt" in install


def test_container_runs_as_nobody_special_and_opens_no_port() -> None:
    words = [word for word, _ in INSTRUCTIONS]

    assert dict(INSTRUCTIONS)["USER"] == "10001"
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert "EXPOSE" not in words


def test_container_keeps_its_state_in_the_one_volume_and_starts_the_daemon() -> None:
    found = dict(INSTRUCTIONS)

    assert found["VOLUME"] == str(DEFAULT_HOME)
    assert f"FEDWARD_HOME={DEFAULT_HOME}" in found["ENV"]
    assert json.loads(found["ENTRYPOINT"]) == ["/opt/fedward/bin/fedward", "client"]
    assert json.loads(found["CMD"]) == ["run"]
    assert found["STOPSIGNAL"] == "SIGTERM"


def test_container_s_health_is_asked_where_a_new_site_answers() -> None:
    assert f"http://{DEFAULT_ADDRESS}/healthz" in dict(INSTRUCTIONS)["HEALTHCHECK"]
