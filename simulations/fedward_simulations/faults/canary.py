"""The canary campaign: a value found nowhere else in every field of every record, and a search of all that comes out.

A production daemon (a process of its own, with its nursery and its sandboxed children) serves a SuperLink that keeps
every byte it is sent. Each scenario registers a cohort, whole or spoilt in a way that hospitals' exports are, and asks
for a roll call and for rounds. Searched are: every request with its headers, the daemon's log, the local page with
health and metrics, what each command prints, the audit log, the evidence pack and every other file of the site's
folder but the data themselves, their cache and the list of a folder's pictures with their digests.

``python -m fedward_simulations.faults.canary [--json]``
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final, Self
from unittest.mock import patch

import httpx
import numpy as np
import pandas as pd
import yaml

from fedward_client.cohorts import CohortEntry, TableEntry, open_cohort
from fedward_client.config import SiteConfig, write_site
from fedward_client.policy import Policy
from fedward_client.runner import DEFAULT_WORKER
from fedward_client.site import approve
from fedward_common.certificates import create_node_key
from fedward_common.cli import main as fedward
from fedward_common.models import parameter_spec
from fedward_common.wire import read_refusal, write_roll_call, write_task
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.engines.deployed import LoggedProcess
from fedward_simulations.faults.canary_scenarios import RECORDS, ROUNDS, SCENARIOS, SITE, Scenario, canary_study
from fedward_simulations.faults.canary_traces import Traces, planted_table
from fedward_simulations.faults.flower_adapter import parcel
from fedward_simulations.faults.superlink import HostileSuperLink

__all__ = ["COHORT", "Hospital", "campaign", "main", "said_by", "traces_of"]

COHORT: Final = "ward"
_NODE: Final = 4711
_SLOW_COMMANDS: Final = (("rehearse", "STUDY"), ("doctor", "--json"))
_REPLY_S: Final = 60.0
_COMMANDS: Final = (
    ("studies",), ("show", "STUDY"), ("cohort", "list"), ("cohort", "check", COHORT),
    ("cohort", "check", COHORT, "--study", "STUDY"), ("approve", "STUDY", "--cohort", COHORT), ("ledger",),
    ("ledger", "--json"), ("audit", "verify"),
)  # fmt: skip


class _ListeningSuperLink(HostileSuperLink):
    """A SuperLink that keeps all that it is sent."""

    def __init__(self) -> None:
        super().__init__(_NODE)
        self.heard: list[bytes] = []

    def hears(self, head: bytes, body: bytes) -> None:
        """See `HostileSuperLink.hears`."""
        self.heard.append(head + body)


class Hospital:
    """One site with its daemon, as a context manager.

    Args:
        folder: an empty folder.
        worker: what the daemon runs in its children, ``module:attribute``.
    """

    def __init__(self, folder: Path, worker: str = DEFAULT_WORKER) -> None:
        self.home, self._data, self._logs = folder / SITE, folder / "data", folder / "logs"
        self._worker = worker
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for made in (self.home, self._data, self._logs):
            made.mkdir()
        with ExitStack() as stack:
            self.superlink = stack.enter_context(_ListeningSuperLink())
            self.register(None)
            self._connect()
            command = ["fedward_client.daemon", "--home", str(self.home), "--worker", self._worker]
            self._daemon = stack.enter_context(LoggedProcess(SITE, command, self._logs))
            stack.callback(self._daemon.ask_to_stop)
            stack.callback(self.superlink.wake)
            if not self.superlink.await_calls("pull-messages", 1, _REPLY_S):
                msg = "the daemon does not connect"
                raise RuntimeError(msg)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def register(self, entry: CohortEntry | None) -> None:
        """Let the register hold this one cohort; it counts from the next message on."""
        policy = Policy(require_signature=False, require_privacy=False, min_patients=1)
        cohorts = {} if entry is None else {COHORT: entry}
        write_site(self.home, SiteConfig(site=SITE, local_page="127.0.0.1:0", policy=policy, cohorts=cohorts))

    def play(self, scenario: Scenario) -> list[str | None]:
        """Bring the data into the scenario's state, ask, and return the code of each reply (None: accepted)."""
        folder = self._data / scenario.name
        folder.mkdir()
        study = canary_study(scenario.name, cohort=scenario.cohort, private=scenario.private)
        entry = scenario.plant(folder)
        self.register(entry)
        if scenario.late:
            approve(self.home, study, COHORT)
        scenario.spoil(folder)
        if not scenario.late:
            approve(self.home, study, COHORT)
        codes = [self._ask(write_roll_call(study))]
        weights = np.zeros(parameter_spec(study).size, dtype=np.float32)
        rounds = range(1, ROUNDS + 1) if codes == [None] else range(1, 2)
        return codes + [self._ask(write_task(study, round_, weights)) for round_ in rounds]

    def _ask(self, content: Any) -> str | None:
        self.superlink.send(parcel(content, target=_NODE, message_type="train"))
        reply = self.superlink.reply(_REPLY_S)
        if reply is None:
            msg = f"no reply; see {self._logs}"
            raise RuntimeError(msg)
        return read_refusal(reply.content())

    def outputs(self, study: str, *, slow: bool) -> Iterator[tuple[str, bytes]]:
        """Yield everything that has come out so far, each with where it stands; the slow commands if asked."""
        yield from self._printed(study, slow=slow)
        yield from self._pages()
        yield from ((f"request {number}", data) for number, data in enumerate(list(self.superlink.heard)))
        kept = (path for path in self.home.rglob("*") if path.is_file() and not {"cache", "seals"} & set(path.parts))
        yield from ((str(path.relative_to(self.home)), path.read_bytes()) for path in kept)
        yield "the daemon's log", self.log()

    def log(self) -> bytes:
        """Return the daemon's log."""
        return (self._logs / f"{SITE}.log").read_bytes()

    def _printed(self, study: str, *, slow: bool) -> Iterator[tuple[str, bytes]]:
        pack = self.home / "evidence.zip"
        pack.unlink(missing_ok=True)
        for words in (*_COMMANDS, *(_SLOW_COMMANDS if slow else ()), ("audit", "export", str(pack))):
            asked = [study if word == "STUDY" else word for word in words]
            yield " ".join(words), said_by([*asked, "--home", str(self.home)])

    def _pages(self) -> Iterator[tuple[str, bytes]]:
        address = re.search(rb"http://127\.0\.0\.1:\d+/", self.log())
        if address is None:
            msg = "the local page is not served"
            raise RuntimeError(msg)
        for page in ("", "metrics", "healthz", "readyz"):
            yield f"page /{page}", httpx.get(address[0].decode() + page, timeout=_REPLY_S, trust_env=False).content

    def _connect(self) -> None:
        create_node_key(self.home / "node.key")
        (self.home / "ca.pem").write_bytes(self.superlink.ca_pem)
        settings = {
            "superlink": self.superlink.public_address, "ca": "ca.pem", "node_key": "node.key", "proxy": "direct",
            "bundle_sha256": code_free_bundle().sha256,
        }  # fmt: skip
        (self.home / "connection.yaml").write_text(yaml.safe_dump(settings), encoding="ascii")


def said_by(words: list[str]) -> bytes:
    """Return what a command of ``fedward client`` prints, errors with it."""
    stream = io.StringIO()
    with redirect_stdout(stream), redirect_stderr(stream), patch.object(sys, "argv", ["fedward", "client", *words]):
        try:
            fedward()
        except SystemExit as end:
            stream.write(f"exit {end.code}\n")
    return stream.getvalue().encode()


def traces_of(table: pd.DataFrame) -> Traces:
    """Return what to look for once `table` was planted."""
    with tempfile.TemporaryDirectory(prefix="fedward-canary-") as name:
        table.to_csv(Path(name) / "ward.csv", index=False)
        cohort = open_cohort(TableEntry(table="ward.csv"), canary_study("encoded").cohort, Path(name))
        features = cohort.patients(1).features
    return Traces(table.select_dtypes("number").to_numpy(), features.reshape(-1, features.shape[-1]))


def campaign(
    folder: Path, scenarios: Sequence[Scenario], worker: str = DEFAULT_WORKER, *, slow: Collection[str] = ()
) -> dict[str, Any]:
    """Play every scenario at one hospital; return what was asked, what was searched, and every trace found.

    Args:
        folder: an empty folder.
        scenarios: what is played.
        worker: what the daemon runs in its children.
        slow: the scenarios after which the commands that take seconds are asked too.
    """
    traces = traces_of(planted_table(RECORDS))
    leaks: set[str] = set()
    unexpected: dict[str, list[str | None]] = {}
    outputs = searched = 0
    with Hospital(folder, worker) as hospital:
        for scenario in scenarios:
            codes = hospital.play(scenario)
            if codes[0] != scenario.refused:
                unexpected[scenario.name] = codes
            for place, data in hospital.outputs(scenario.name, slow=scenario.name in slow):
                outputs, searched = outputs + 1, searched + len(data)
                leaks |= {f"{scenario.name}: {place}: {form}" for form in traces.found_in(data)}
    return {
        "scenarios": len(scenarios), "records": RECORDS, "outputs": outputs, "bytes": searched,
        "leaks": sorted(leaks), "unexpected": unexpected,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 if anything leaked or a scenario was not answered as it must be."""
    parser = argparse.ArgumentParser(prog="python -m fedward_simulations.faults.canary", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedward-canary-") as name:
        outcome = campaign(Path(name), SCENARIOS, slow={scenario.name for scenario in SCENARIOS})
    lines = [f"{key}: {value}" for key, value in outcome.items()]
    sys.stdout.write((json.dumps(outcome) if options.json else "\n".join(lines)) + "\n")
    return int(bool(outcome["leaks"] or outcome["unexpected"]))


if __name__ == "__main__":
    sys.exit(main())
