"""What deploy/ asks of systemd and of a container runtime for the centre is what the centre needs."""

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

from fedward_server.sites_cli import DEFAULT_CENTRE, init
from tests.deploy_files import instructions_of, unit_of

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "fedward-server.service"
SETTINGS = unit_of(UNIT)
CONTAINER = (ROOT / "deploy" / "Containerfile.server").read_text(encoding="utf-8")
INSTRUCTIONS = instructions_of(CONTAINER)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# A centre without one of these could not be reached, or could not load torch.
FORBIDDEN = {"PrivateNetwork", "IPAddressDeny", "MemoryDenyWriteExecute", "DynamicUser"}
REQUIRED = {
    "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "ProtectSystem": "strict", "PrivateTmp": "yes",
    "PrivateDevices": "yes", "RestrictNamespaces": "yes", "SystemCallFilter": "@system-service", "UMask": "0077",
    "StateDirectoryMode": "0700", "LimitCORE": "0", "Restart": "always",
}  # fmt: skip
PORT = 8443


def test_unit_starts_a_command_that_there_is() -> None:
    words = shlex.split(SETTINGS["Service"]["ExecStart"])

    assert words[:3] == ["/opt/fedward/bin/fedward", "server", "up"]
    assert "server.up" in PROJECT["entry-points"]["fedward.commands"]
    assert (
        words[words.index("--home") + 1] == str(DEFAULT_CENTRE) == f"/var/lib/{SETTINGS['Service']['StateDirectory']}"
    )


def test_a_stop_of_the_unit_ends_no_run() -> None:
    """The supervisor alone is told: it stops each process by SIGTERM, which a run's process takes for a pause."""
    service = SETTINGS["Service"]

    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 30
    assert "ExecStop" not in service


def test_unit_brings_the_centre_back_after_everything_but_a_wrong_configuration() -> None:
    assert SETTINGS["Unit"]["StartLimitIntervalSec"] == "0"
    assert SETTINGS["Service"]["RestartPreventExitStatus"] == "2"  # `fedward_server.superlink.main`
    assert SETTINGS["Service"]["OOMPolicy"] == "continue"


def test_unit_is_hardened_and_leaves_what_the_centre_needs() -> None:
    service = SETTINGS["Service"]

    assert {key: service.get(key) for key in REQUIRED} == REQUIRED
    assert not FORBIDDEN & set(service)
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} <= set(service["RestrictAddressFamilies"].split())
    assert service["User"] not in {"root", "0"}


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8").replace("/opt/fedward/bin/fedward", "/bin/true")
    copy.write_text(re.sub(r"^(User|Group)=.*", r"\1=root", text, flags=re.MULTILINE), encoding="utf-8")

    verdict = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)

    assert [line for line in verdict.stderr.splitlines() if UNIT.name in line] == []


def test_container_installs_what_a_centre_needs_at_the_pinned_versions() -> None:
    (install,) = (rest for word, rest in INSTRUCTIONS if word == "RUN" and "pip install" in rest)

    assert "'/src[server]'" in install
    assert "server" in PROJECT["optional-dependencies"]
    assert "--constraint /src/constraints.txt" in install


def test_container_runs_as_nobody_special_and_opens_the_public_port_alone(tmp_path: Path) -> None:
    words, found = [word for word, _ in INSTRUCTIONS], dict(INSTRUCTIONS)
    made = CliRunner().invoke(init, ["hub.example.org", "--home", str(tmp_path / "centre")])
    settings = json.loads((tmp_path / "centre" / "superlink.json").read_text(encoding="utf-8"))

    assert made.exit_code == 0, made.output
    assert found["USER"] == "10002"
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert [rest for word, rest in INSTRUCTIONS if word == "EXPOSE"] == [str(PORT)]
    assert settings["public_port"] == PORT
    assert f"--publish {PORT}:{PORT} " in CONTAINER


def test_container_keeps_its_state_in_the_one_volume_and_starts_the_centre() -> None:
    found = dict(INSTRUCTIONS)

    assert found["VOLUME"] == str(DEFAULT_CENTRE)
    assert f"FEDWARD_CENTRE={DEFAULT_CENTRE}" in found["ENV"]
    assert json.loads(found["ENTRYPOINT"]) == ["/opt/fedward/bin/fedward", "server"]
    assert json.loads(found["CMD"]) == ["up"]
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert "--stop-timeout 60" in CONTAINER  # podman's own ten seconds would kill what is being put on the disk
