"""kill -9 of a site's daemon, its nursery or its child, again and again, while a real private study runs.

    python -m fedward_simulations.faults.kills [--kills N] [--seed N] [--json]

A SuperLink, a coordinator and three daemons train on loopback. A supervisor starts a dead daemon again at once, as
systemd does with Restart=always. Each kill is aimed, by the seed, at a site, at one of its processes and at a moment:
any time, or a few milliseconds after a message came, the log or the ledger grew, a child was forked, a reply was kept.
In one round one site is struck, once or twice: the study's quorum lets one of three be away. Afterwards the books alone
are judged (`fedward_simulations.faults.kill_book`); whatever is wrong is listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

from flwr.app import Message
from flwr.serverapp import Grid

from fedward_client.runner import DEFAULT_WORKER
from fedward_common.errors import FedwardError, RejectedReply
from fedward_common.models import parameter_spec
from fedward_common.study import Study
from fedward_common.wire import read_update
from fedward_server.checkpoint import read_checkpoint
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import TorchPredictor
from fedward_server.result import RoundResult
from fedward_simulations.engines.deployed import Deployed, LoggedProcess
from fedward_simulations.faults.kill_book import (
    RULES,
    Arrival,
    Flaw,
    Mark,
    flaws_of_run,
    flaws_of_site,
    mark_of,
    read_book,
)
from fedward_simulations.federation import settle
from fedward_simulations.run import compose_plan

__all__ = ["Kill", "Shot", "Supervisor", "campaign", "main", "volleys_of"]

Target = Literal["daemon", "nursery", "child"]
Aim = Literal["time", "message", "log", "ledger", "child", "reply"]

SITES: Final = ("east", "north", "south")
_STUDY: Final = (
    "study=breast_cancer", "model=linear", "privacy=dp", "training.local_steps=4", "training.sampling_rate=0.2",
    "training.learning_rate=0.5", "aggregation.quorum=2", "aggregation.deadline_seconds=45", "engine=deployed",
    "cohort.source.hospitals.north=0.4", "cohort.source.hospitals.south=0.3", "cohort.source.hospitals.east=0.3",
    "~cohort.source.hospitals.west", "evaluation.bootstrap=100",
)  # fmt: skip
_AIMS: Final[Mapping[Target, tuple[Aim, ...]]] = {
    "daemon": ("time", "message", "log", "ledger", "child", "reply"),
    "nursery": ("time", "child", "ledger"),
    "child": ("child",),
}
_LOOK_S: Final = 0.0005
_AFTER_S: Final[Mapping[Aim, float]] = {
    "time": 0.4, "message": 0.04, "log": 0.04, "ledger": 0.04, "child": 0.12, "reply": 0.02,
}  # fmt: skip
_RECOVERY_S: Final = 4.0
_NURSERIES: Final = 0.1
_TWICE: Final = 0.1
_TAIL: Final = 3
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Shot:
    """One kill as it is planned: whom, and `delay_s` after which event."""

    target: Target
    aim: Aim
    delay_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill as it was done.

    Attributes:
        site: whose process.
        shot: what was planned.
        round: the round that was open; 0 is the roll call.
        entry: the last entry of the site's log at that moment, and whether it is of an earlier round.
        mail: what the site still had to do: ``message``, ``reply`` or ``nothing``.
        mark: where the site's log stood.
    """

    site: str
    shot: Shot
    round: int
    entry: str
    mail: str
    mark: Mark


def volleys_of(kills: int, seed: int, *, daemons: float) -> list[tuple[str, list[Shot]]]:
    """Return the plan: in each round one site and one or two shots at it, `kills` shots in all.

    The first is at a daemon: it may come in the roll call, where a site whose child dies has said no to the study.

    Args:
        kills: how many.
        seed: of the plan.
        daemons: share of the volleys whose first shot is at a daemon.
    """
    rest = 1 - daemons - _NURSERIES
    weights = (daemons, rest, _NURSERIES)
    kinds: tuple[Target, ...] = ("daemon", "child", "nursery")
    draw = random.Random(seed)  # noqa: S311  (a plan, no secret)
    volleys: list[tuple[str, list[Shot]]] = []
    while left := kills - sum(len(shots) for _, shots in volleys):
        first = _shot(draw, draw.choices(kinds, weights)[0] if volleys else "daemon")
        second = [Shot("daemon", "time", draw.uniform(0, _RECOVERY_S))] if draw.random() < _TWICE and left > 1 else []
        volleys.append((draw.choice(SITES), [first, *second]))
    return volleys


def _shot(draw: random.Random, target: Target) -> Shot:
    aim = draw.choice(_AIMS[target])
    return Shot(target, aim, draw.uniform(0, _AFTER_S[aim]))


class Supervisor:
    """Starts each daemon again as soon as it has ended, however it ended, until its context is left.

    Args:
        homes: each site's folder.
        logs: where the daemons' logs go.
        processes: the running daemon of each site; kept up to date.
    """

    def __init__(self, homes: Mapping[str, Path], logs: Path, processes: dict[str, LoggedProcess]) -> None:
        self._homes, self._logs, self._processes = homes, logs, processes
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._struck: set[int] = set()
        self.restarts = 0
        self.own_ends: list[str] = []
        """Sites whose daemon ended though nobody had killed it or a process of its own."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for process in self._processes.values():
            process.ask_to_stop()
        self._stack.close()

    def strike(self, site: str, target: Target) -> bool:
        """Kill a process of the site; returns whether there was one."""
        with self._lock:
            process = self._processes[site]
            if process.ended:
                return False
            pids = {
                "daemon": lambda: [process.pid], "nursery": lambda: _children(process.pid),
                "child": lambda: self._tasks_of(process.pid),
            }[target]()  # fmt: skip
            for pid in pids[:1]:
                self._struck.add(process.pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
            return False

    def working(self, site: str) -> bool:
        """Return whether a child of the site is at work."""
        return bool(self._tasks_of(self._processes[site].pid))

    @staticmethod
    def _tasks_of(daemon: int) -> list[int]:
        return [child for nursery in _children(daemon) for child in _children(nursery)]

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            for site, process in list(self._processes.items()):
                if process.ended:
                    self._start_again(site, process)

    def _start_again(self, site: str, process: LoggedProcess) -> None:
        with self._lock:
            if process.pid not in self._struck:
                self.own_ends.append(site)
            process.__exit__()
            command = ["fedward_client.daemon", "--home", str(self._homes[site].resolve()), "--worker", DEFAULT_WORKER]
            self._processes[site] = self._stack.enter_context(LoggedProcess(site, command, self._logs))
            self.restarts += 1


def _children(pid: int) -> list[int]:
    """Return the children of a process; none once it has ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text(encoding="ascii").split())
    return found


@dataclass
class _Killer:
    """Carries the plan out beside the run.

    Args:
        homes: each site's folder.
        volleys: the plan.
        supervisor: who knows the processes.
    """

    homes: Mapping[str, Path]
    volleys: Sequence[tuple[str, Sequence[Shot]]]
    supervisor: Supervisor
    kills: list[Kill] = field(default_factory=list)
    round: int = 0
    over: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def committed(self, entry: RoundResult) -> None:
        """Hear that a round is over; a kill comes before or after this, never in between."""
        with self._changed:
            self.round = entry.round + 1
            self._changed.notify_all()

    def end(self) -> None:
        """Stop soon."""
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def work(self) -> None:
        """Carry the plan out, one volley in a round."""
        for site, shots in self.volleys:
            for shot in shots:
                while not self.over and not self._fire(site, shot):
                    pass
            with self._changed:
                struck = self.round
                self._changed.wait_for(lambda struck=struck: self.over or self.round > struck)  # type: ignore[misc]
            if self.over:
                return

    def _fire(self, site: str, shot: Shot) -> bool:
        home = self.homes[site]
        before, deadline = _sizes(home), time.monotonic() + _PATIENCE_S
        while not self._due(site, shot, before) and not self.over and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        time.sleep(shot.delay_s)
        with self._changed:
            entry, mail, mark = _last_entry(home, self.round), _mail(home), mark_of(home)
            if self.over or not self.supervisor.strike(site, shot.target):
                return False
            self.kills.append(Kill(site, shot, self.round, entry, mail, mark))
        return True

    def _due(self, site: str, shot: Shot, before: Mapping[str, int]) -> bool:
        match shot.aim:
            case "time":
                return True
            case "child":
                return self.supervisor.working(site)
            case "message" | "reply":
                return _mail(self.homes[site]) == shot.aim
            case _:
                return _sizes(self.homes[site])[shot.aim] != before[shot.aim]


def _sizes(home: Path) -> dict[str, int]:
    """Return what changes when the log or the ledger grows."""
    found = {"log": 0, "ledger": 0}
    for aim, name in (("log", "audit.jsonl"), ("ledger", "ledger.sqlite-wal"), ("ledger", "ledger.sqlite")):
        with suppress(FileNotFoundError):
            found[aim] += (home / name).stat().st_mtime_ns
    return found


def _mail(home: Path) -> str:
    for mail, box in (("reply", "outbox"), ("message", "inbox")):
        with suppress(FileNotFoundError):
            if any(not name.startswith(".") for name in os.listdir(home / box)):  # noqa: PTH208  (looked at 2,000 times a second)
                return mail
    return "nothing"


def _last_entry(home: Path, round_: int) -> str:
    """Return the event of the log's last entry, marked where it is of a round before this one."""
    try:
        lines = (home / "audit.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        lines = []
    if not lines:
        return "no entry"
    last = json.loads(lines[-1])
    earlier = last["fields"].get("round", round_) < round_
    return f"{last['event']} in an earlier round" if earlier else str(last["event"])


class _Ear:
    """A grid that notes every update as it arrives, before anybody judges it."""

    def __init__(self, grid: Grid, study: Study) -> None:
        self._grid, self._size = grid, parameter_spec(study).size
        self.arrivals: list[Arrival] = []

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            with suppress(RejectedReply):
                if not reply.has_error():
                    update = read_update(reply.content, size=self._size)
                    digest = hashlib.sha256(update.values.tobytes()).hexdigest()
                    self.arrivals.append(Arrival(update.site, update.digest, update.round, update.steps, digest))
        return replies


def campaign(folder: Path, kills: int, seed: int, *, daemons: float = 0.4) -> dict[str, Any]:
    """Run a study under `kills` kills; return what was done, what came of it and every flaw in the books.

    Args:
        folder: an empty folder; the sites' folders are in ``folder/sites`` afterwards.
        kills: how many.
        seed: of the plan.
        daemons: see `volleys_of`.
    """
    started = time.monotonic()
    volleys = volleys_of(kills, seed, daemons=daemons)
    rounds = len(volleys) + len(volleys) // 3 + 2 * _TAIL
    plan, federation, study = compose_plan([*_STUDY, f"training.rounds={rounds}", f"seed={seed}"])
    homes = settle(federation, study, plan.policy, folder / "sites")
    approved = {site: json.loads((home / "approvals.json").read_bytes()) for site, home in homes.items()}
    (folder / "run").mkdir()
    predictor = TorchPredictor(study, federation.hold_out.rows.features)
    coordinator = Coordinator(study, federation.hold_out, predictor, folder / "run", "deployed")
    deployed = Deployed(homes, folder / "logs")
    with deployed as (grid, _, roster), Supervisor(homes, folder / "logs", deployed.processes) as supervisor:
        ear, killer = _Ear(grid, study), _Killer(homes, volleys, supervisor)
        coordinator.listener = killer.committed
        thread = threading.Thread(target=killer.work, name="killer", daemon=True)
        thread.start()
        try:
            coordinator.run(cast("Grid", ear), roster)
        finally:
            killer.end()
            thread.join()
    result = json.loads((folder / "run" / "result.json").read_bytes())
    checkpoint = folder / "run" / "checkpoint.safetensors"
    flaws = flaws_of_run(
        result,
        ear.arrivals,
        rounds=rounds,
        checkpoint=read_checkpoint(checkpoint).round if checkpoint.exists() else 0,
        last_kill=max((kill.round for kill in killer.kills), default=0),
    )
    for site, home in homes.items():
        marks = [kill.mark for kill in killer.kills if kill.site == site]
        flaws += flaws_of_site(read_book(home, site), ear.arrivals, approved[site], marks)
    if len(killer.kills) != kills:
        flaws.append(Flaw("run_stopped", "centre", f"{len(killer.kills)} of {kills} kills were done"))
    flaws += [Flaw("run_stopped", site, "the daemon ended by itself") for site in supervisor.own_ends]
    return _figures(killer.kills, result, homes) | {
        "seed": seed,
        "updates_arrived": len(ear.arrivals),
        "daemon_starts_again": supervisor.restarts,
        "flaws": {rule: [f"{flaw.site}: {flaw.what}" for flaw in flaws if flaw.rule == rule] for rule in RULES},
        "seconds": round(time.monotonic() - started, 1),
    }


def _figures(kills: Sequence[Kill], result: Mapping[str, Any], homes: Mapping[str, Path]) -> dict[str, Any]:
    rounds = result["rounds"]
    last = max((kill.round for kill in kills), default=0)
    missing = Counter(str(why).split(" ", 1)[0] for entry in rounds for why in entry["missing"].values())
    changes = Counter(line.event for site, home in homes.items() for line in read_book(home, site).journal)
    return {
        "kills": len(kills),
        "by_target": _counted(kill.shot.target for kill in kills),
        "by_aim": _counted(kill.shot.aim for kill in kills),
        "by_last_entry": _counted(kill.entry for kill in kills),
        "by_last_entry_and_mail": _counted(f"{kill.entry}, mail: {kill.mail}" for kill in kills),
        "by_site": _counted(kill.site for kill in kills),
        "status": result["status"],
        "rounds_committed": len(rounds),
        "rounds_after_the_last_kill": sum(entry["round"] > last for entry in rounds),
        "updates_accepted": sum(len(entry["sites"]) for entry in rounds),
        "updates_missing": dict(sorted(missing.items())),
        "rounds_debited": changes["reserved"],
        "rounds_released": changes["released"],
    }


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def main() -> None:
    """Run the campaign and print its figures; the exit code is 1 where a book has a flaw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an empty folder to work in and to leave the books in")
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything that was started is ended
    with tempfile.TemporaryDirectory(prefix="fedward-kills-") as name:
        try:
            figures = campaign(options.folder or Path(name), options.kills, options.seed)
        except FedwardError as error:
            sys.exit(f"{error.message}; {error.remedy}")
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.write("".join(f"{key}: {value}\n" for key, value in figures.items()))
    sys.exit(1 if any(figures["flaws"].values()) else 0)


if __name__ == "__main__":
    main()
