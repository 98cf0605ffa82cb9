"""A hospital and a centre whose releases do not work together: each says so, and which of the two to upgrade."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedward_client.config import create_site
from fedward_client.connection import load_connection, open_way
from fedward_client.daemon import Daemon, SiteBorder
from fedward_client.enrolment import KeyFile, enroll
from fedward_client.flower_adapter import FleetConnection, NotAdmittedError, OtherReleaseError, open_fleet
from fedward_client.health import conditions
from fedward_client.vitals import Vitals
from fedward_client.worker import InProcessWorker
from fedward_common import __version__
from fedward_common.audit import AuditLog
from fedward_common.errors import TransportError
from fedward_common.protocol import OURS, Release
from fedward_server.sites_cli import sites
from tests.centres import Centre, now

pytestmark = pytest.mark.deployed

LATER = Release("9.0.0", OURS.newest + 1, OURS.newest + 2)
EARLIER = Release("0.0.1", 1, 1)
UPGRADE_CENTRE, UPGRADE_SITE = "upgrade the centre to Fedward 9.0.0", f"to Fedward {__version__}"


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    with Centre(tmp_path_factory.mktemp("centre") / "home") as running:
        yield running


_names = iter(range(1000))


@pytest.fixture
def home(tmp_path: Path, centre: Centre) -> Path:
    """Return the folder of a hospital that is enrolled."""
    name = f"hospital{next(_names)}"
    create_site(tmp_path / name, name)
    enroll(tmp_path / name, centre.invite(name), now())
    return tmp_path / name


def call(home: Path, release: Release) -> None:
    """Connect as a daemon of `release` would, and ask for a message."""
    settings = load_connection(home)
    with open_fleet(
        settings.superlink, open_way(settings, {}).tls, KeyFile(settings.node_key), threading.Event(), heartbeat_s=10.0,
        wait_s=0.1, patience_s=5.0, ours=release,
    ) as fleet:  # fmt: skip
        fleet.receive()


class Attempts(Vitals):
    """A daemon's vitals that count how often it was turned away."""

    count = 0

    def disconnected(self, error: TransportError) -> None:
        super().disconnected(error)
        self.count += 1


def listed(centre: Centre) -> str:
    done = CliRunner().invoke(sites, ["list", "--home", str(centre.home)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("release", "words"), [(LATER, UPGRADE_CENTRE), (EARLIER, f"this site {UPGRADE_SITE}")])
def test_both_sides_say_which_one_to_upgrade(centre: Centre, home: Path, release: Release, words: str) -> None:
    with pytest.raises(OtherReleaseError) as error:
        call(home, release)

    assert words in error.value.message
    assert error.value.remedy
    why = centre.roster.outside(now())[home.name]
    assert why.startswith("protocol_mismatch: ")
    assert words.replace("this site", f"the site {home.name}") in why
    assert why in listed(centre)


def test_a_site_that_was_upgraded_works_at_once(centre: Centre, home: Path) -> None:
    with pytest.raises(OtherReleaseError):
        call(home, EARLIER)

    call(home, OURS)

    assert home.name not in centre.roster.outside(now())
    (line,) = [line for line in listed(centre).splitlines() if line.startswith(home.name)]
    assert line.endswith(f"Fedward {__version__}")


def test_a_site_that_does_not_wait_to_be_told_gets_nothing(centre: Centre, home: Path) -> None:
    """A release that ignores what the centre says in its greeting is turned away from everything else as well."""
    settings = load_connection(home)
    with open_fleet(
        settings.superlink, open_way(settings, {}).tls, KeyFile(settings.node_key), threading.Event(), wait_s=0.1,
        patience_s=5.0,
    ) as fleet:  # fmt: skip
        interceptor = fleet.client._interceptors[0]
        interceptor._headers["fedward-protocol"] = LATER.span  # type: ignore[attr-defined]
        with pytest.raises(NotAdmittedError, match="do not work together"):
            fleet.receive()
        interceptor._headers["fedward-protocol"] = OURS.span  # type: ignore[attr-defined]
        assert isinstance(fleet, FleetConnection)
    assert home.name not in centre.roster.outside(now())


def test_a_daemon_keeps_trying_and_notes_once_why_it_cannot(home: Path) -> None:
    stop, attempts = threading.Event(), Attempts()
    border = SiteBorder(home, InProcessWorker())
    daemon = Daemon(home, load_connection(home), border, stop, vitals=attempts, ours=LATER)
    thread = threading.Thread(target=daemon.serve)
    thread.start()
    deadline = time.monotonic() + 60
    while attempts.count < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join(30)

    noted = [entry.fields["code"] for entry in AuditLog(home).entries() if entry.event == "refused"]
    assert noted == [f"protocol_mismatch asked={OURS.span} key=upgrade_centre limit={LATER.span}"]
    unmet = {c.name: c for c in conditions(attempts.health.facts(), time.monotonic(), stale_s=90.0) if not c.met}
    assert UPGRADE_CENTRE in unmet["registered"].why + unmet["authenticated"].why
