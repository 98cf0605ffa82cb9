"""The doctor asks a real SuperLink whether it knows this site, and leaves no trace of the question."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedward_client.connection import load_connection, open_way
from fedward_client.doctor import network
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Level
from fedward_client.flower_adapter import open_fleet
from fedward_common import __version__
from fedward_common.certificates import create_node_key, load_node_key
from fedward_simulations.engines.deployed import SuperLinkProcess, write_home
from tests.https import closed_port, enrolled_home, https_server, new_authority, server_certificate

pytestmark = pytest.mark.deployed


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("logs")) as process:
        process.await_ready()
        yield process


@pytest.fixture
def home(tmp_path: Path, superlink: SuperLinkProcess) -> Path:
    """Return the home of a site that the SuperLink knows and that has connected once."""
    folder = tmp_path / "north"
    node_id = superlink.client.register(write_home(folder, superlink), "north")
    (folder / "node_id").write_text(f"{node_id}\n")
    return folder


def found(home: Path) -> list[Finding]:
    return list(network.identity(Place(home, environment={})))


def test_a_site_that_the_coordinator_knows_passes_and_the_releases_are_compared(home: Path) -> None:
    identity, version = found(home)

    assert identity.level is Level.PASS
    assert version.check == "version"
    assert version.level is Level.PASS
    assert version.what.count(__version__) == 2


def test_asking_begins_no_session(home: Path) -> None:
    """A site that only asked is not called online: its daemon begins the first session."""
    assert found(home)[0].level is Level.PASS

    settings = load_connection(home)
    way, key = open_way(settings, {}), load_node_key(settings.node_key)
    with open_fleet(settings.superlink, way.tls, key, threading.Event()) as fleet:
        assert str(fleet.node_id) == (home / "node_id").read_text().strip()
        assert found(home)[0].level is Level.PASS
        assert fleet.receive() is None


def test_a_key_that_the_coordinator_does_not_know_fails(home: Path) -> None:
    (home / "node.key").unlink()
    create_node_key(home / "node.key")

    (finding,) = found(home)

    assert finding.level is Level.FAIL
    assert "does not accept this site's key" in finding.what


def test_another_site_s_number_fails(home: Path) -> None:
    (home / "node_id").write_text("4711\n")

    assert [finding.level for finding in found(home)] == [Level.FAIL]


def test_a_site_that_never_connected_is_told_to(home: Path) -> None:
    (home / "node_id").unlink()

    (finding,) = found(home)

    assert finding.level is Level.WARN
    assert "fedward client run" in finding.remedy


def test_a_coordinator_that_is_down_fails_with_the_cause(tmp_path: Path) -> None:
    home = enrolled_home(tmp_path / "north", new_authority(), f"127.0.0.1:{closed_port()}")
    (home / "node_id").write_text("7\n")

    (finding,) = found(home)

    assert finding.level is Level.FAIL
    assert "nobody answers" in finding.what


def test_a_server_that_is_no_coordinator_fails(tmp_path: Path) -> None:
    authority = new_authority()
    with https_server(server_certificate(authority)) as address:
        home = enrolled_home(tmp_path / "north", authority, address)
        (home / "node_id").write_text("7\n")

        (finding,) = found(home)

    assert finding.level is Level.FAIL
    assert "HTTP 501" in finding.what


def test_an_unproven_caller_is_not_told_the_release(home: Path, superlink: SuperLinkProcess) -> None:
    with httpx.Client(verify=open_way(load_connection(home), {}).tls, trust_env=False) as client:
        answers = [
            client.get(f"https://{superlink.public_address}/"),
            client.post(f"https://{superlink.public_address}/v1/fleet/get-run", content=b""),
            client.post(f"https://{superlink.public_address}/v1/fleet/get-run", content=b"\xff" * 40),
        ]

    assert all("fedward-version" not in answer.headers for answer in answers)
    assert all(answer.status_code not in {200, 403} for answer in answers)
