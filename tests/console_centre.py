"""A centre whose studies have really run, as far as each is meant to have come: what the console's tests look at.

Every round below comes from a `Coordinator` over real sites. Only ``status.json`` is written by hand, through
`write_status`, as the run's process writes it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedward_common.errors import RefusalCode
from fedward_common.study import Study
from fedward_common.study_file import read_study_file
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_server.report import render_report
from fedward_server.result import RoundResult, RunResult
from fedward_server.run_status import RunStatus, SiteStatus, write_status
from fedward_server.studies.access import Access, Role
from fedward_server.studies.book import StudyEntry
from tests.builders import hold_out, private_study, site_home, small_study, table
from tests.doubles import Behaviour, FakeClock, Script, ScriptedGrid, fails, late, silent
from tests.studies_centre import StudiesCentre

__all__ = ["SITES", "ConsoleCentre", "KilledError", "behaviours"]

SITES = ("Aachen", "Basel", "Bern", "Graz", "Ulm", "Zurich")
EPSILON = {"epsilon": 4.0, "delta": 1e-4, "clip_norm": 1.0}


class KilledError(Exception):
    """Ends a run's process where a SIGKILL would."""


def behaviours() -> dict[str | tuple[str, int], Behaviour]:
    """Return a script in which one hospital is ill for two rounds, one is late once, and one never approves."""
    return {
        ("Bern", 3): fails(RefusalCode.TASK_OUT_OF_MEMORY),
        ("Bern", 4): fails(RefusalCode.TASK_OUT_OF_MEMORY),
        ("Graz", 2): late(100_000),
        "Zurich": fails(RefusalCode.BUDGET_EXCEEDED),
    }


@dataclass
class ConsoleCentre:
    """A centre in ``root/centre``; its hospitals are below ``root/sites``."""

    root: Path
    now: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    def __post_init__(self) -> None:
        self.centre = StudiesCentre(self.root / "centre", SITES)
        self.home = self.centre.home
        self.book = self.centre.book
        self.access = Access(self.home)

    def token(self, name: str, role: Role) -> str:
        """Return a token of this role."""
        return self.access.issue(name, role, self.now)

    def submit(self, study: Study, *, by: str = "maria", ago: dt.timedelta = dt.timedelta(hours=2)) -> StudyEntry:
        """Return a study in the queue, submitted some time ago."""
        return self.book.submit(self.centre.signed(study), by, self.now - ago)

    def run(
        self, entry: StudyEntry, script: Script | None = None, *, killed_after: int | None = None
    ) -> RunResult | None:
        """Run a study to its end, or until it is killed right after a round was committed."""
        folder = self.book.folder(entry.id)
        file = self.centre.signed(_study_of(folder))
        study = file.study
        self.book.begin(entry.id, self.now)
        grid = ScriptedGrid(self._homes(study), script, clock=FakeClock())
        central = hold_out(study)

        def listen(closed: RoundResult) -> None:
            if closed.round == killed_after:
                raise KilledError

        coordinator = Coordinator(
            study, central, TorchPredictor(study, central.rows.features), folder, "deployed", listen,
            clock=grid.clock, signatures=file.signatures,
        )  # fmt: skip
        try:
            result = coordinator.run(grid, grid.roster, poll_seconds=0)
        except KilledError:
            return None
        (folder / "report.html").write_text(render_report(result, study), encoding="utf-8")
        self.book.end(entry.id, result.status, result.reason, self.now)
        return result

    def _homes(self, study: Study) -> dict[str, Path | None]:
        homes: dict[str, Path | None] = {}
        for number, site in enumerate(study.sites):
            root = self.root / "sites" / study.digest[:8]
            homes[site] = site_home(root, study, name=site, frame=table(40 + 15 * number, seed=number))
        return homes

    def says(self, entry: StudyEntry, state: str, sites: Mapping[str, SiteStatus] | None = None, **more: Any) -> None:
        """Write where the run's process says that it stands."""
        rounds = _study_of(self.book.folder(entry.id)).training.rounds
        values = {"state": state, "rounds": rounds, "sites": dict(sites or {}), "pid": 1} | more
        values.setdefault("updated_at", (self.now - dt.timedelta(seconds=2)).isoformat())
        write_status(self.book.folder(entry.id), RunStatus(**values))

    # ------------------------------------------------------------------------------------------------- some studies

    def running(self) -> StudyEntry:
        """Return a private study in its seventh round of ten."""
        study = private_study(
            privacy=EPSILON, name="sepsis_early_warning", sites=SITES, training={"rounds": 10},
            description="Finds patients on general wards whose sepsis begins, from values that every ward takes.",
        )  # fmt: skip
        entry = self.submit(study, ago=dt.timedelta(days=2, hours=3))
        self.run(entry, behaviours(), killed_after=6)
        told = dict.fromkeys(("Aachen", "Ulm"), SiteStatus(state="accepted")) | {
            "Basel": SiteStatus(state="waiting"),
            "Bern": SiteStatus(state="waiting"),
            "Graz": SiteStatus(state="missed", reason="transport_error"),
            "Zurich": SiteStatus(state="excluded", reason="budget_exceeded"),
        }
        opened = (self.now - dt.timedelta(seconds=40)).isoformat()
        self.says(entry, "running", told, round=7, opened_at=opened)
        return self.book.entry(entry.id)

    def completed(self) -> StudyEntry:
        """Return a study that is over, every hospital in it."""
        entry = self.submit(
            private_study(privacy=EPSILON, name="heart_failure", sites=SITES[:4], training={"rounds": 4}),
            by="jonas", ago=dt.timedelta(days=9),
        )  # fmt: skip
        self.run(entry)
        return self.book.entry(entry.id)

    def failed(self) -> StudyEntry:
        """Return a study that no hospital answered."""
        entry = self.submit(small_study(name="stroke_pilot", sites=SITES[:3]), ago=dt.timedelta(days=20))
        self.run(entry, dict.fromkeys(SITES[:3], silent))
        return self.book.entry(entry.id)

    def enrolling(self) -> StudyEntry:
        """Return a study that has waited for two days for hospitals to approve it."""
        entry = self.submit(
            small_study(name="fall_risk", sites=SITES[3:]), by="jonas", ago=dt.timedelta(days=2, hours=1)
        )
        self.book.begin(entry.id, self.now)
        told = {
            "Graz": SiteStatus(state="accepted"),
            "Ulm": SiteStatus(state="waiting"),
            "Zurich": SiteStatus(state="absent", reason="awaiting_approval"),
        }
        self.says(entry, "enrolling", told, opened_at=(self.now - dt.timedelta(days=2)).isoformat())
        return self.book.entry(entry.id)

    def queued(self) -> StudyEntry:
        """Return a study that waits its turn."""
        return self.submit(small_study(name="delirium", sites=SITES[:2]), by="jonas", ago=dt.timedelta(minutes=12))

    def all(self) -> dict[str, StudyEntry]:
        """Return one of each."""
        kinds = (self.completed, self.failed, self.running, self.enrolling, self.queued)
        return {kind.__name__: kind() for kind in kinds}


def _study_of(folder: Path) -> Study:
    return read_study_file(folder / "study.json").study
