"""Kills planned by a seed, and carried out at the processes of sites while a run goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

from fedward_client.runner import DEFAULT_WORKER
from fedward_simulations.engines.deployed import LoggedProcess
from fedward_simulations.faults.kill_book import Mark, mark_of

__all__ = ["SITES", "Kill", "Killer", "Shot", "Supervisor", "Volley", "tree_of", "volleys_of"]

Target = Literal["daemon", "nursery", "child"]
Aim = Literal["time", "message", "log", "ledger", "child", "reply"]

SITES: Final = ("east", "north", "south")
_AIMS: Final[Mapping[Target, tuple[Aim, ...]]] = {
    "daemon": ("time", "message", "log", "ledger", "child", "reply"),
    "nursery": ("time", "child", "ledger"),
    "child": ("child",),
}
_LOOK_S: Final = 0.0005
_AFTER_S: Final[Mapping[Aim, float]] = {
    "time": 0.4, "message": 0.04, "log": 0.04, "ledger": 0.04, "child": 0.08, "reply": 0.02,
}  # fmt: skip
_RECOVERY_S: Final = 4.0
_NURSERIES: Final = 0.1
_TWICE: Final = 0.1
_PATIENCE_S: Final = 60.0
_MISCONFIGURED: Final = 2  # RestartPreventExitStatus in deploy/fedward-client.service
_SOONER: Final = (1.0, 0.4, 0.0)


@dataclass(frozen=True, slots=True)
class Shot:
    """One kill as it is planned: whom, and `delay_s` after which event."""

    target: Target
    aim: Aim
    delay_s: float


Volley = tuple[str, Sequence[Shot]]
"""A site, and what it is struck with in one round."""


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


def volleys_of(kills: int, seed: int, *, daemons: float) -> list[Volley]:
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
    volleys: list[Volley] = []
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
        """Sites whose daemon ended though nobody had killed it or a process of its own, or so that systemd would not
        start it again."""

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
            if process.pid not in self._struck or process.exit_code == _MISCONFIGURED:
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


def tree_of(pid: int) -> list[int]:
    """Return a process and all that it has started, the process first; its own number alone once it has ended."""
    return [pid, *(deeper for child in _children(pid) for deeper in tree_of(child))]


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


class Killer:
    """Carries the plan out, one volley in a round, and holds the round until its volley was fired or has missed.

    No volley races the run: a round's messages leave once its volley watches, and what its site answers counts as
    arrived once the volley is over. A volley starts only where every site answered in the round before. A child that
    ends before its shot costs the volley that round; the shot comes earlier in the next, the third time at once.

    Args:
        homes: each site's folder.
        volleys: the plan.
        strike: kills a site's process; returns whether there was one.
        working: whether a child of a site is at work.
    """

    def __init__(
        self,
        homes: Mapping[str, Path],
        volleys: Sequence[Volley],
        strike: Callable[[str, Target], bool],
        working: Callable[[str], bool],
    ) -> None:
        self._homes, self._strike, self._working = homes, strike, working
        self._left = deque(volleys)
        self._back = set(homes)
        self._changed = threading.Condition()
        self._busy = self._watching = self._passed = self._over = False
        self._tries = 0
        self._round = 0
        self._thread = threading.Thread(target=self._work, name="killer", daemon=True)
        self.kills: list[Kill] = []
        self.missed = 0
        """Shots at a child that had ended before; each was tried again."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()

    def open(self, round_: int) -> None:
        """Return once the round's volley watches, if there is one; the round's messages leave afterwards."""
        with self._changed:
            self._passed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._over or not self._busy)
            self._round = round_
            if not self._left or self._back != set(self._homes):
                self._back.clear()
                return
            self._back.clear()
            self._busy, self._watching, self._passed = True, False, False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._over or self._watching)

    def answered(self, site: str, *, itself: bool) -> None:
        """Hear that a reply of a site has come, or with `itself` false the transport's word that none will."""
        with self._changed:
            if itself:
                self._back.add(site)
            if self._busy and site == self._left[0][0]:
                self._passed = True

    def holds(self, site: str, wait_s: float) -> bool:
        """Return whether what `site` answered has to wait, after waiting for the volley's end for `wait_s` at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, wait_s if self._busy and site == self._left[0][0] else 0)
            return self._busy and site == self._left[0][0] and not self._over

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy or self._over)
                if self._over:
                    return
            site, shots = self._left[0]
            fired = all(self._fire(site, shot) for shot in shots)
            with self._changed:
                if fired:
                    self._left.popleft()
                self._tries = 0 if fired else self._tries + 1
                self.missed += not fired
                self._busy = False
                self._changed.notify_all()

    def _fire(self, site: str, shot: Shot) -> bool:
        """Return whether the shot hit; one at a daemon or a nursery does, at another moment if its own did not come."""
        home, deadline = self._homes[site], time.monotonic() + _PATIENCE_S
        before = _sizes(home)
        with self._changed:
            self._watching = True
            self._changed.notify_all()
        while not (due := self._due(site, shot, before)) and time.monotonic() < deadline:
            if self._passed or self._over:
                break
            time.sleep(_LOOK_S)
        if not due:
            shot = replace(shot, aim="time")
        if shot.target == "child":
            return due and self._await_child(site, shot.delay_s) and self._hit(site, shot)
        time.sleep(shot.delay_s)
        while not self._hit(site, shot):  # its daemon is being started again
            if self._over or time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        return True

    def _await_child(self, site: str, delay_s: float) -> bool:
        """Let the delay pass, less of it each time; return whether the child is still at work."""
        until = time.monotonic() + delay_s * _SOONER[min(self._tries, len(_SOONER) - 1)]
        while time.monotonic() < until:
            time.sleep(_LOOK_S)
            if not self._working(site):
                return False
        return True

    def _hit(self, site: str, shot: Shot) -> bool:
        home = self._homes[site]
        entry, mail, mark = _last_entry(home, self._round), _mail(home), mark_of(home)
        if self._over or not self._strike(site, shot.target):
            return False
        self.kills.append(Kill(site, shot, self._round, entry, mail, mark))
        return True

    def _due(self, site: str, shot: Shot, before: Mapping[str, int]) -> bool:
        match shot.aim:
            case "time":
                return True
            case "child":
                return self._working(site)
            case "message" | "reply":
                return _mail(self._homes[site]) == shot.aim
            case _:
                return _sizes(self._homes[site])[shot.aim] != before[shot.aim]
