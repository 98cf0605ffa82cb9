"""Seconds per round and the centre's memory against the number of hospitals.

    python -m fedward_simulations.bench.many_sites [--sites 10 50 100 200] [--json] [--plot FILE.svg]

Two engines, each point in a process of its own. ``centre``: the coordinator alone, with its gatekeeper, journal,
checkpoints and central evaluation, before sites that answer at once with an update of half a million parameters; what
is measured is the centre's own work. ``local``: whole simulated hospitals (policy, approval, ledger, audit log,
training) of 40 patients each, on two workers. The first round, which meets cold caches, does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal
from uuid import uuid4

import numpy as np
import pandas as pd
from flwr.app import Message, RecordDict

from fedward_client.policy import Policy
from fedward_common import __version__
from fedward_common.flower_adapter import assume_identity
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_common.tables import encode
from fedward_common.wire import Enrolment, Update, write_enrolment, write_update
from fedward_server.bare_grid import BareGrid
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import HoldOut, TorchPredictor
from fedward_server.result import RoundResult
from fedward_simulations.bench.harness import machine, report, run_process
from fedward_simulations.engines.local import LocalGrid
from fedward_simulations.federation import Federation, settle
from fedward_simulations.pool import WorkerPool

__all__ = ["Point", "ThinGrid", "main", "measure", "operations", "study_of"]

Engine = Literal["centre", "local"]
ENGINES: Final[tuple[Engine, ...]] = ("centre", "local")
SITES: Final = (10, 50, 100, 200)
_PATIENTS: Final = 40
_WORKERS: Final = 2
_HIDDEN: Final[dict[Engine, list[int]]] = {"centre": [1024, 512], "local": [16]}


@dataclass(frozen=True, slots=True)
class Point:
    """What one number of sites came to.

    Args:
        engine: ``centre`` or ``local``.
        sites: how many hospitals answered in each round.
        seconds_per_round: median, without the first round.
        cpu_per_round: processor seconds of the process with the coordinator, median of the same rounds; on a busy
            machine, the figure to compare.
        peak_mib: peak memory (RSS) of the process with the coordinator, MiB.
        grown_mib: how much of it came after the sites and the study were there, MiB.
        parameters: of the model.
    """

    engine: str
    sites: int
    seconds_per_round: float
    cpu_per_round: float
    peak_mib: float
    grown_mib: float
    parameters: int


def study_of(sites: int, *, rounds: int, hidden: list[int]) -> Study:
    """Return a study over so many hospitals, without privacy: no noise and no ledger decide the figures."""
    return Study.of({
        "name": f"many_{sites}",
        "sites": [f"site{number:03d}" for number in range(sites)],
        "cohort": {
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "minimum": 18, "maximum": 100},
                "stage": {"kind": "categorical", "categories": [1, 2, 3]},
            },
            "label": {"column": "outcome", "vocabulary": ["no", "yes"], "positive": ["yes"]},
        },
        "model": {"name": "mlp", "hidden": hidden},
        "training": {"rounds": rounds, "local_steps": 2, "sampling_rate": 1.0, "learning_rate": 0.1},
        "privacy": {"mechanism": "none"},
        "aggregation": {"rule": "fedavg", "deadline_seconds": 3600},
        "evaluation": {"bootstrap": 100},
    })  # fmt: skip


def _table(rows: int, seed: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    age, stage = draw.integers(18, 101, rows), draw.integers(1, 4, rows)
    outcome = np.where((age - 59) / 20 + stage - 2 + draw.normal(0, 0.5, rows) > 0, "yes", "no")
    return pd.DataFrame({"age": age.astype(str), "stage": stage.astype(str), "outcome": outcome})


def _hold_out(study: Study, rows: int = 200) -> HoldOut:
    encoded = encode(_table(rows, 1), study.cohort)
    return HoldOut(encoded, (np.arange(rows) % len(study.sites)).astype(np.int64), study.sites)


class ThinGrid(BareGrid):
    """A grid whose sites say yes, and answer each task with the same small update, made when it is fetched.

    Args:
        study: what they are asked.
    """

    def __init__(self, study: Study) -> None:
        assume_identity(run=1, node=1)
        self._study = study
        self._values = np.arange(parameter_spec(study).size, dtype=np.int64) % 1000
        self.roster = dict(enumerate(study.sites, start=2))
        self._waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take the messages; returns their identifiers, in order."""
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return one reply: sites of a real federation answer one after the other."""
        for identifier in message_ids:
            if identifier in self._waiting:
                message = self._waiting.pop(identifier)
                return [Message(self._reply(message), reply_to=message)]
        return []

    def _reply(self, message: Message) -> RecordDict:
        site, round_ = self.roster[message.metadata.dst_node_id], int(message.metadata.group_id)
        if round_ == 0:
            return write_enrolment(Enrolment(site, self._study.digest, _PATIENTS, __version__))
        return write_update(Update(site, self._study.digest, round_, _PATIENTS, 0, self._values, {}))


def measure(engine: Engine, sites: int, *, rounds: int) -> Point:
    """Run one study in this process and return what it came to.

    Raises:
        RuntimeError: a site missed a round; the figure would be of another number of sites.
    """
    study = study_of(sites, rounds=rounds, hidden=_HIDDEN[engine])
    seconds: list[float] = []
    processor: list[float] = []

    def listener(entry: RoundResult) -> None:
        if len(entry.sites) != sites:
            msg = f"{len(entry.sites)} of {sites} sites answered in round {entry.round}: {entry.missing}"
            raise RuntimeError(msg)
        seconds.append(entry.seconds)
        processor.append(time.process_time())

    with tempfile.TemporaryDirectory(prefix="fedward-") as folder:
        run = Path(folder) / "run"
        run.mkdir()
        with _grid(engine, study, Path(folder)) as grid:
            central = _hold_out(study)
            predictor = TorchPredictor(study, central.rows.features)
            coordinator = Coordinator(
                study, central, predictor, run, engine, listener, resumable=engine == "centre"
            )  # fmt: skip
            before = _peak_mib()
            coordinator.run(grid, grid.roster, poll_seconds=0)
            peak = _peak_mib()
    wall, cpu = statistics.median(seconds[1:]), statistics.median(b - a for a, b in pairwise(processor))
    size = parameter_spec(study).size
    return Point(engine, sites, round(wall, 4), round(cpu, 4), round(peak, 1), round(peak - before, 1), size)


@contextmanager
def _grid(engine: Engine, study: Study, root: Path) -> Iterator[ThinGrid | LocalGrid]:
    if engine == "centre":
        yield ThinGrid(study)
        return
    tables = {site: _table(_PATIENTS, number) for number, site in enumerate(study.sites, start=10)}
    policy = Policy(
        require_signature=False,
        require_privacy=False,
        max_epsilon_per_study=1,
        max_epsilon_lifetime=1,
        max_delta=1e-5,
        min_noise_multiplier=1,
        max_clip_norm=1,
        min_patients=1,
    )
    homes = settle(Federation(tables, _hold_out(study), {}), study, policy, root / "sites")
    with WorkerPool(_WORKERS) as pool:
        yield LocalGrid(homes, pool)


def operations(sites: int, *, rounds: int) -> int:
    """Return how often the centre calls or resumes a function of Fedward's in a whole run over thin sites."""
    study, count = study_of(sites, rounds=rounds, hidden=[4]), 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and "fedward_" in frame.f_code.co_filename

    with tempfile.TemporaryDirectory(prefix="fedward-") as folder:
        central = _hold_out(study)
        predictor = TorchPredictor(study, central.rows.features)
        coordinator = Coordinator(study, central, predictor, Path(folder), "centre")
        grid = ThinGrid(study)
        sys.setprofile(profile)
        try:
            coordinator.run(grid, grid.roster, poll_seconds=0)
        finally:
            sys.setprofile(None)
    return count


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _plot(points: list[Point], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415  (for whoever wants the picture)

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "fedward"
    figure, (wall, processor, memory) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for engine, style, label in zip(ENGINES, ("o-", "s--"), ("the centre alone", "whole hospitals"), strict=True):
        found = [point for point in points if point.engine == engine]
        sites = [point.sites for point in found]
        wall.plot(sites, [point.seconds_per_round for point in found], style, label=label)
        processor.plot(sites, [point.cpu_per_round for point in found], style, label=label)
        memory.plot(sites, [point.peak_mib for point in found], style, label=label)
    titles = ("seconds per round", "processor seconds of the centre per round", "peak memory of the centre, MiB")
    for axis, title in zip((wall, processor, memory), titles, strict=True):
        axis.set(xlabel="hospitals", xlim=(0, None), ylim=(0, 1.15 * axis.get_ylim()[1]))
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _line(point: Point) -> str:
    return (
        f"{point.engine:7s} {point.sites:4d} sites  {point.seconds_per_round:7.3f} s a round"
        f", {point.cpu_per_round:6.3f} s of the processor at the centre"
        f" ({1000 * point.cpu_per_round / point.sites:5.2f} ms a site)"
        f"  peak {point.peak_mib:6.1f} MiB, {point.grown_mib:5.1f} of them in the run"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedward_simulations.bench.many_sites", description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES), help="numbers of hospitals")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=6, help="2 or more")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--plot", type=Path, help="SVG or PNG file")
    parser.add_argument("--here", action="store_true", help="measure the one point in this process")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or min(options.sites) < 2:  # noqa: PLR2004  (the first round does not count; a quorum is two)
        parser.error("two rounds and two sites at least")
    if options.here:
        sys.stdout.write(json.dumps(asdict(measure(options.engines[0], options.sites[0], rounds=options.rounds))))
        return 0
    command = [sys.executable, "-m", "fedward_simulations.bench.many_sites", "--here", "--rounds", str(options.rounds)]
    points = [
        Point(**json.loads(run_process([*command, "--engines", engine, "--sites", str(sites)])))
        for engine in options.engines
        for sites in options.sites
    ]
    if options.plot:
        _plot(points, options.plot)
    figures = {"machine": machine(), "rounds": options.rounds, "points": [asdict(point) for point in points]}
    report(figures, [_line(point) for point in points], as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
