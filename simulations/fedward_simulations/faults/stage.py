"""A study on three deployed sites, something that goes wrong meanwhile, and the verdict on what is left.

A `Fault` says what goes wrong and when. The same study runs once undisturbed and once with it, with the production code
as real processes on loopback: without privacy, where the model must have the same bits if no update was lost, and with
it, where the books of each site are added up anew (`fedward_simulations.faults.kill_book`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from flwr.app import Message
from flwr.serverapp import Grid

from fedward_common.audit import AuditLog
from fedward_common.errors import FedwardError, RejectedReply
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_common.wire import read_update
from fedward_server.checkpoint import read_checkpoint
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_server.result import RoundResult, RunResult
from fedward_server.rounds import Roster
from fedward_simulations.engines.deployed import Deployed
from fedward_simulations.faults.kill_book import Arrival, Flaw, flaws_of_run, flaws_of_site, read_book
from fedward_simulations.faults.killer import tree_of
from fedward_simulations.federation import settle
from fedward_simulations.run import compose_plan

__all__ = ["Ear", "Fault", "Outcome", "Scene", "await_true", "main_of", "rehearse", "run_campaign", "statuses_of"]

STUDY: Final = (
    "study=breast_cancer", "model=linear", "training.local_steps=4", "training.sampling_rate=0.2",
    "training.learning_rate=0.5", "aggregation.quorum=2", "engine=deployed", "cohort.source.hospitals.north=0.4",
    "cohort.source.hospitals.south=0.3", "cohort.source.hospitals.east=0.3", "~cohort.source.hospitals.west",
    "evaluation.bootstrap=100",
)  # fmt: skip
_WAIT_S: Final = 60.0


class Ear:
    """A grid that notes every update as it arrives, before anybody judges it, and tells when a round's tasks leave.

    Args:
        grid: the run's.
        roster: site names by node.
        study: what is trained.
        opens: told of each round once, right before its first messages leave.
        opened: told of each round once, right behind them.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Roster,
        study: Study,
        opens: Callable[[int], None] = lambda _: None,
        opened: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._grid, self.roster, self._opens, self._opened = grid, roster, opens, opened
        self._size = parameter_spec(study).size
        self._round = -1
        self.arrivals: list[Arrival] = []

    @property
    def lineage(self) -> str:
        """The grid's own."""
        return str(getattr(self._grid, "lineage", ""))

    def get_node_ids(self) -> Iterable[int]:
        """Return the grid's nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self.push_named(messages, lambda _: None)

    def push_named(self, messages: Iterable[Message], note: Callable[[list[str]], None]) -> list[str]:
        """Send messages; `note` is told their names before."""
        sent = list(messages)
        round_ = max((int(message.metadata.group_id) for message in sent), default=0)
        first, self._round = round_ > self._round, max(round_, self._round)
        if first:
            self._opens(round_)
        identifiers: list[str] = cast("Any", self._grid).push_named(sent, note)
        if first:
            self._opened(round_)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what has arrived."""
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            self.note(reply)
        return replies

    def note(self, reply: Message) -> None:
        """Note an update."""
        with suppress(RejectedReply):
            if not reply.has_error():
                update = read_update(reply.content, size=self._size)
                digest = hashlib.sha256(update.values.tobytes()).hexdigest()
                self.arrivals.append(Arrival(update.site, update.digest, update.round, update.steps, digest))


@dataclass
class Scene:
    """Processes at work, and what can be done to them."""

    deployed: Deployed
    homes: Mapping[str, Path]
    logs: Path
    run: Path
    _stack: ExitStack

    def power_off(self, site: str) -> None:
        """End everything of a site at once, without a word to anybody."""
        for pid in tree_of(self.deployed.processes[site].pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await_true(lambda: self.deployed.processes[site].ended)

    def power_on(self, site: str) -> None:
        """Start a site's daemon again."""
        self.deployed.processes[site] = self._stack.enter_context(self.deployed.daemon(site))

    def await_child(self, site: str) -> None:
        """Return once a child of the site is at work."""
        await_true(lambda: len(tree_of(self.deployed.processes[site].pid)) > 2)  # noqa: PLR2004  (daemon, nursery, child)

    def await_log(self, site: str, words: str, after: int = 0) -> None:
        """Return once the site's log says something behind byte `after`."""
        path = self.logs / f"{site}.log"
        await_true(lambda: words in path.read_text(encoding="utf-8", errors="replace")[after:])


def await_true(true: Callable[[], bool], seconds: float = _WAIT_S) -> None:
    """Return once something is so.

    Raises:
        TimeoutError: it is not within so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            msg = f"what the campaign waits for does not happen within {seconds:g} s"
            raise TimeoutError(msg)
        time.sleep(0.005)


@dataclass
class Fault:
    """What goes wrong; this one is nothing at all.

    Attributes:
        deadline_s: of each round.
        heartbeat_s: of each site.
        rounds: of the study.
        seed: of whatever the fault draws.
    """

    deadline_s: float = 120.0
    heartbeat_s: float = 60.0
    rounds: int = 4
    seed: int = 1
    notes: dict[str, Any] = field(default_factory=dict)

    def workers(self) -> dict[str, str]:
        """Return workers by site, where a site has another than the production's."""
        return {}

    def settled(self, homes: Mapping[str, Path]) -> None:
        """Change the sites' folders before anything runs."""

    def detour(self, _: str, address: str) -> str:
        """Return where a site connects to."""
        return address

    def environment(self, _: str) -> Mapping[str, str]:
        """Return what a site's daemon, or ``superlink``, finds in its environment besides ours."""
        return {}

    @contextmanager
    def around(self) -> Iterator[None]:
        """Be there while the processes are."""
        yield

    def opens(self, scene: Scene, round_: int) -> None:
        """Act right before a round's messages leave; 0 is the roll call."""

    def opened(self, scene: Scene, round_: int) -> None:
        """Act right behind them."""

    def closed(self, scene: Scene, entry: RoundResult) -> None:
        """Act once a round is committed."""

    def run(self, coordinator: Callable[[], Coordinator], grid: Grid, roster: Roster, scene: Scene) -> RunResult:  # noqa: ARG002
        """Run the coordinator; a fault of the centre starts another."""
        return coordinator().run(grid, roster)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left: its result, its model's SHA-256, and every flaw that was found."""

    result: RunResult
    model: str
    flaws: list[Flaw]


def rehearse(folder: Path, fault: Fault, *, private: bool, study_seed: int = 1) -> Outcome:
    """Run the study with a fault in an empty folder and judge what is left."""
    mechanism = ["privacy=dp"] if private else ["privacy=none"]
    limits = [f"aggregation.deadline_seconds={fault.deadline_s}", f"training.rounds={fault.rounds}"]
    plan, federation, study = compose_plan([*STUDY, *mechanism, *limits, f"seed={study_seed}"])
    homes = settle(federation, study, plan.policy, folder / "sites")
    approved = {site: json.loads((home / "approvals.json").read_bytes()) for site, home in homes.items()}
    run = folder / "run"
    run.mkdir()
    fault.settled(homes)
    predictor = TorchPredictor(study, federation.hold_out.rows.features)
    with ExitStack() as stack:
        stack.enter_context(fault.around())
        deployed = Deployed(
            homes, folder / "logs", heartbeat_s=fault.heartbeat_s, workers=fault.workers(), detour=fault.detour,
            environment=fault.environment,
        )  # fmt: skip
        grid, _, roster = stack.enter_context(deployed)
        scene = Scene(deployed, homes, folder / "logs", run, stack)
        ear = Ear(grid, roster, study, lambda n: fault.opens(scene, n), lambda n: fault.opened(scene, n))

        def coordinator() -> Coordinator:
            return Coordinator(
                study,
                federation.hold_out,
                predictor,
                run,
                "deployed",
                listener=lambda entry: fault.closed(scene, entry),
            )

        fault.run(coordinator, cast("Grid", ear), roster, scene)
    return _judged(run, homes, ear.arrivals, approved, fault, private=private)


def _judged(
    run: Path, homes: Mapping[str, Path], arrivals: list[Arrival], approved: Mapping[str, Any], fault: Fault, *,
    private: bool,
) -> Outcome:  # fmt: skip
    values = json.loads((run / "result.json").read_bytes())
    committed = read_checkpoint(run / "checkpoint.safetensors").round
    flaws = flaws_of_run(values, arrivals, rounds=fault.rounds, checkpoint=committed, last_kill=0)
    for site, home in homes.items():
        if private:
            flaws += flaws_of_site(read_book(home, site), arrivals, approved[site], [])
        else:
            flaws += [Flaw("broken_log", site, finding.what) for finding in AuditLog(home).verify()]
    model = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    return Outcome(RunResult.model_validate(values), model, flaws)


def statuses_of(result: RunResult) -> dict[str, int]:
    """Return how often a site of a round was what."""
    return dict(sorted(Counter(part.status for entry in result.rounds for part in entry.statuses.values()).items()))


def run_campaign(
    folder: Path, make: Callable[[], Fault], *, lossless: bool, judge: Callable[[Fault, RunResult], list[str]]
) -> dict[str, Any]:
    """Return the figures of a fault: undisturbed and disturbed without privacy, and disturbed with it.

    Args:
        folder: an empty one.
        make: the fault, anew for each run.
        lossless: whether the fault may cost no update, so that the model must have the reference's bits.
        judge: what is wrong with a disturbed run beyond the books.
    """
    fault = make()
    quiet = Fault(deadline_s=fault.deadline_s, heartbeat_s=60.0, rounds=fault.rounds)
    reference = rehearse(folder / "reference", quiet, private=False)
    plain, private = make(), make()
    disturbed = rehearse(folder / "plain", plain, private=False)
    paid = rehearse(folder / "private", private, private=True)
    wrong = [f"{kind}: {flaw.rule} at {flaw.site}: {flaw.what}" for kind, outcome in
             (("reference", reference), ("plain", disturbed), ("private", paid)) for flaw in outcome.flaws]  # fmt: skip
    wrong += [f"plain: {what}" for what in judge(plain, disturbed.result)]
    wrong += [f"private: {what}" for what in judge(private, paid.result)]
    same = disturbed.model == reference.model
    if lossless and not same:
        wrong.append("plain: another model than the undisturbed run's")
    return {
        "rounds": fault.rounds,
        "same_model_as_undisturbed": same,
        "double_spends": sum(flaw.rule == "double_spend" for flaw in paid.flaws),
        "plain": {"status": disturbed.result.status, "sites": statuses_of(disturbed.result), **plain.notes},
        "private": {"status": paid.result.status, "sites": statuses_of(paid.result), **private.notes},
        "seconds_of_rounds": [entry.seconds for entry in disturbed.result.rounds],
        "flaws": wrong,
    }


def main_of(doc: str, campaign: Callable[..., dict[str, Any]], *, kills: int | None = None) -> None:
    """Run a campaign from the command line and print its figures; the exit code is 1 where something is wrong.

    Args:
        doc: the module's, for ``--help``.
        campaign: called with a folder and `seed`, and with `kills` where that is given.
        kills: how many there are if the command line does not say.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    if kills is not None:
        parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in and to leave everything in")
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything that was started is ended
    with tempfile.TemporaryDirectory(prefix="fedward-fault-") as name:
        try:
            asked = {"seed": options.seed} | ({} if kills is None else {"kills": options.kills})
            figures = campaign(options.folder or Path(name), **asked)
        except FedwardError as error:
            sys.exit(f"{error.message}; {error.remedy}")
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.write("".join(f"{key}: {value}\n" for key, value in figures.items()))
    flaws = figures["flaws"]
    sys.exit(1 if any(flaws.values() if isinstance(flaws, dict) else flaws) else 0)
