"""The server's certificate is replaced in the middle of a round; nothing of the run is lost, and nobody restarts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedward_client.connection import load_connection, open_way
from fedward_client.enrolment import enroll
from fedward_common.certificates import create_authority, issue_server_certificate, load_authority
from fedward_common.study import Study
from fedward_server.centre import load_centre
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_server.result import RoundResult, RunResult
from fedward_server.superlink_client import code_free_bundle
from fedward_server.warden import Certificates
from fedward_simulations.engines.deployed import LoggedProcess
from tests.builders import SITES, hold_out, site_home, small_study, table
from tests.centres import Centre, now
from tests.doubles import Rehearsal

pytestmark = pytest.mark.deployed


def until(what: Callable[[], bool], seconds: float = 90.0) -> None:
    """Return once `what` holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@dataclass
class Federation:
    """A centre and two hospitals, each a process of its own."""

    root: Path
    study: Study
    centre: Centre
    stack: contextlib.ExitStack
    daemons: dict[str, LoggedProcess] = field(default_factory=dict)

    def home(self, site: str) -> Path:
        return self.root / "sites" / site

    def start(self, site: str) -> None:
        """Run the daemon of a site, which logs to the end of its file."""
        command = ["fedward_client.daemon", "--home", str(self.home(site))]
        self.daemons[site] = self.stack.enter_context(LoggedProcess(site, command, self.root))

    def log(self, site: str) -> str:
        return (self.root / f"{site}.log").read_text()

    def served(self, site: str) -> bytes:
        """Return the centre's certificate as this site has seen it last."""
        return (self.home(site) / "server.pem").read_bytes()

    def run(self, listener: Callable[[RoundResult], None]) -> tuple[RunResult, Path]:
        """Run the study over the sites that are connected."""
        central, folder = hold_out(self.study), self.root / "run"
        folder.mkdir()
        predictor = TorchPredictor(self.study, central.rows.features)
        coordinator = Coordinator(self.study, central, predictor, folder, "deployed", listener)
        client = self.centre.client
        with client.session(client.start_run(code_free_bundle())) as (grid, _):
            roster = self.centre.roster.nodes(now())
            until(lambda: set(roster) <= set(grid.get_node_ids()))
            return coordinator.run(grid, roster), folder


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    study = small_study(aggregation={"deadline_seconds": 120})
    with Centre(tmp_path / "centre") as centre, contextlib.ExitStack() as stack:
        found = Federation(tmp_path, study, centre, stack)
        for number, site in enumerate(SITES):
            rows = 30 + 10 * number  # as in `Rehearsal`
            home = site_home(tmp_path / "sites", study, name=site, frame=table(rows, seed=rows))
            enroll(home, centre.invite(site), now())
            found.start(site)
        yield found


def rotate(centre: Centre) -> bytes:
    """Renew, by the warden's own code, a certificate that is about to expire, and put it in place; return the file."""
    config = load_centre(centre.home)
    assert config.ca is not None
    assert config.ca_key is not None
    draft = centre.home / "draft.pem"
    issued = issue_server_certificate(load_authority(config.ca, config.ca_key), now(), ["127.0.0.1"], days=20)
    draft.write_bytes(issued.certificate_pem + issued.key_pem)
    assert Certificates(config.ca, config.ca_key, draft, draft).renew(now())
    assert draft.read_bytes() not in (issued.certificate_pem + issued.key_pem, config.certificate.read_bytes())
    return draft.replace(config.certificate).read_bytes()


def test_a_certificate_is_replaced_in_mid_round_and_the_run_ends_with_the_same_bits(
    federation: Federation, tmp_path: Path
) -> None:
    closed: list[int] = []
    frozen = threading.Event()
    north = federation.daemons["north"]

    def listener(entry: RoundResult) -> None:
        closed.append(entry.round)
        if entry.round == 1:
            os.kill(north.pid, signal.SIGSTOP)  # so that round 2 is open until somebody lets it close
            frozen.set()

    def rotate_in_mid_round() -> None:
        assert frozen.wait(120)
        until(lambda: federation.log("south").count('"answered"') >= 3)  # roll call, round 1, round 2
        rotated.append(rotate(federation.centre))
        until(lambda: "certificate_reloaded" in federation.centre.log())
        still_open.append(closed == [1])
        os.kill(north.pid, signal.SIGCONT)

    rotated: list[bytes] = []
    still_open: list[bool] = []
    before = {}
    thread = threading.Thread(target=rotate_in_mid_round)
    thread.start()
    try:
        until(lambda: all((federation.home(site) / "server.pem").exists() for site in SITES))
        before = {site: federation.served(site) for site in SITES}
        result, folder = federation.run(listener)
    finally:
        os.kill(north.pid, signal.SIGCONT)
        thread.join(150)

    assert still_open == [True]
    assert result.status == "completed"
    assert closed == [1, 2, 3]
    assert [entry.sites for entry in result.rounds] == [SITES] * 3
    assert (folder / "model.safetensors").read_bytes() == Rehearsal(
        federation.study, tmp_path / "reference"
    ).run().model
    assert {site: federation.log(site).count('"connected"') for site in SITES} == dict.fromkeys(SITES, 1)

    north.ask_to_stop()  # whoever connects anew sees the new one, without having been told
    until(lambda: north.ended)
    federation.start("north")
    until(lambda: federation.served("north") != before["north"])
    assert federation.served("north").strip() in rotated[0]
    assert before["north"].strip() not in rotated[0]


def test_a_file_that_is_no_certificate_is_named_and_the_former_one_stays_in_use(tmp_path: Path) -> None:
    with Centre(tmp_path / "centre") as centre:
        path = load_centre(centre.home).certificate
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2])
        until(lambda: "certificate_unusable" in centre.log())
        create_and_enrol(tmp_path, centre, "north")

        rotated = rotate(centre)
        until(lambda: "certificate_reloaded" in centre.log())
        home = create_and_enrol(tmp_path, centre, "south")

    assert (home / "server.pem").read_bytes().strip() in rotated
    assert centre.log().count("certificate_unusable") == 1


def create_and_enrol(folder: Path, centre: Centre, site: str) -> Path:
    home = site_home(folder / "sites", name=site)
    enroll(home, centre.invite(site), now())
    return home


def test_a_site_that_holds_two_authorities_accepts_the_server_of_either(tmp_path: Path) -> None:
    """The overlap of a roll-over: the hospital's IT has put the new authority below the old one."""
    with Centre(tmp_path / "centre") as centre:
        home = create_and_enrol(tmp_path, centre, "north")
        successor = create_authority(now(), name="Fedward CA, the next one")
        pinned = home / "ca.pem"
        pinned.write_bytes(pinned.read_bytes() + successor.certificate_pem())
        way = open_way(load_connection(home), {})
        assert way.tls.cert_store_stats()["x509_ca"] == 2

        issued = issue_server_certificate(successor, now(), ["127.0.0.1"])
        load_centre(centre.home).certificate.write_bytes(issued.certificate_pem + issued.key_pem)
        until(lambda: "certificate_reloaded" in centre.log())
        with LoggedProcess("north", ["fedward_client.daemon", "--home", str(home)], tmp_path):
            until(lambda: '"connected"' in (tmp_path / "north.log").read_text())

    assert (home / "server.pem").read_bytes().strip() in issued.certificate_pem
