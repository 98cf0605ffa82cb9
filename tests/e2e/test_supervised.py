"""A study handed in over the interface and trained by real hospitals while the supervisor is killed ends as if not."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
from pathlib import Path

import pytest

from fedward_client.enrolment import enroll
from fedward_client.runner import DEFAULT_WORKER
from fedward_common.signing import create_key, public_text
from fedward_common.study_file import StudyFile
from fedward_server.centre import create_centre, invitation, load_centre
from fedward_server.run_status import read_status
from fedward_server.studies.access import Access, Role
from fedward_server.studies.book import StudyBook
from fedward_server.studies.centre_log import centre_log
from fedward_server.studies.remote import Remote
from fedward_simulations.engines.deployed import LoggedProcess
from tests.builders import SITES, site_home, small_study, table
from tests.doubles import Rehearsal
from tests.supervised import Up, until

pytestmark = [pytest.mark.deployed, pytest.mark.reduced]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def test_a_study_survives_the_kill_of_everything_at_the_centre(tmp_path: Path) -> None:
    study, home = small_study(training={"rounds": 4}), tmp_path / "centre"
    calm = Rehearsal(study, tmp_path / "calm").run()
    key, now = create_key(tmp_path / "author.pem"), dt.datetime.now(dt.UTC)
    public, private = free_ports(2)
    create_centre(
        home, "127.0.0.1", public, now, bind="127.0.0.1", private_port=private, console_port=0,
        study_keys=[public_text(key.public_key())],
    )  # fmt: skip
    tokens = {role: Access(home).issue(role.value, role, now) for role in (Role.SCIENTIST, Role.AUDITOR)}
    homes = {
        site: site_home(tmp_path / "sites", study, name=site, frame=table(rows, seed=rows))
        for site, rows in zip(SITES, (30, 40), strict=True)
    }
    with contextlib.ExitStack() as stack:
        with Up(home) as up:
            for site, folder in homes.items():
                enroll(folder, invitation(load_centre(home), site, now), dt.datetime.now(dt.UTC))
                command = ["fedward_client.daemon", "--home", str(folder.resolve()), "--worker", DEFAULT_WORKER]
                stack.enter_context(LoggedProcess(site, command, tmp_path))
            with Remote(up.console, tokens[Role.SCIENTIST]) as centre:
                id_ = centre.post("/studies", content=StudyFile(study).signed(key).dump())["id"]
            book = StudyBook(home)
            until(lambda: (status := read_status(book.folder(id_))) is not None and status.round >= 2)
            up.process.kill()
            up.process.wait()
        with Up(home) as up:
            until(lambda: not book.entry(id_).live)
            with Remote(up.console, tokens[Role.SCIENTIST]) as centre:
                result = centre.get(f"/studies/{id_}/result")
                model = centre.fetch(f"/studies/{id_}/files/model.safetensors")
            with Remote(up.console, tokens[Role.AUDITOR]) as centre:
                told = [
                    entry["fields"]["action"]
                    for entry in centre.get("/audit")["entries"]
                    if "action" in entry["fields"]
                ]

    assert book.entry(id_).state == "completed", book.entry(id_).reason
    assert len(result["rounds"]) == 4
    assert model == calm.model
    assert told == ["study-submit", "study-result", "study-model", "audit-read"]
    assert centre_log(home).verify() == []
    assert json.loads((book.folder(id_) / "status.json").read_text())["state"] == "completed"
