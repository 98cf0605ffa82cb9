"""The killer of the kill campaign: what it has planned happens on any computer, and no round races it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedward_simulations.faults.killer import SITES, Killer, Shot, Volley

LONG_S = 30.0


@dataclass
class Processes:
    """Stands for `Supervisor`: a site's child is at work while its name is in `children`."""

    children: set[str] = field(default_factory=set)
    daemons: set[str] = field(default_factory=lambda: set(SITES))
    struck: list[tuple[str, str]] = field(default_factory=list)

    def strike(self, site: str, target: str) -> bool:
        if site not in (self.children if target == "child" else self.daemons):
            return False
        self.children.discard(site)
        self.struck.append((site, target))
        return True

    def working(self, site: str) -> bool:
        return site in self.children


@contextmanager
def killing(folder: Path, processes: Processes, *volleys: Volley) -> Iterator[Killer]:
    homes = {site: folder / site for site in SITES}
    for home in homes.values():
        home.mkdir()
    with Killer(homes, volleys, processes.strike, processes.working) as killer:
        yield killer


def ends(action: Callable[[], None]) -> None:
    """Do something that would otherwise wait for the killer's own patience, which is longer than `LONG_S`."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(LONG_S)
    assert not thread.is_alive()


def answer(killer: Killer, *sites: str) -> None:
    for site in sites:
        killer.answered(site, itself=True)


def round_of(killer: Killer, processes: Processes, number: int, *, child_s: float) -> None:
    """Play a round in which the child of `east` works for `child_s` and every site answers."""
    killer.open(number)
    processes.children.add("east")
    until = time.monotonic() + child_s
    while "east" in processes.children and time.monotonic() < until:
        time.sleep(0.001)
    processes.children.discard("east")
    answer(killer, *SITES)
    assert not killer.holds("east", LONG_S)


def test_a_shot_later_than_a_child_s_life_comes_sooner_until_it_hits(tmp_path: Path) -> None:
    """A fixed delay never hits a child that is always done before it: the run then ends with kills undone."""
    processes = Processes()
    with killing(tmp_path, processes, ("east", [Shot("child", "child", 5.0)])) as killer:
        for number in range(3):
            assert processes.struck == []
            round_of(killer, processes, number, child_s=0.2)

        assert processes.struck == [("east", "child")]
        assert [kill.round for kill in killer.kills] == [2]
        assert killer.missed == 2


def test_a_child_that_never_comes_costs_the_volley_its_round_and_no_wait(tmp_path: Path) -> None:
    processes = Processes()
    with killing(tmp_path, processes, ("east", [Shot("child", "child", 0.0)])) as killer:
        for number in range(2):
            killer.open(number)
            assert killer.holds("east", 0.0)
            answer(killer, *SITES)
            assert not killer.holds("east", LONG_S)
        killer.open(2)

        assert killer.missed == 2
        assert killer.kills == []


def test_a_round_is_held_open_until_both_shots_of_its_volley_are_fired(tmp_path: Path) -> None:
    processes = Processes()
    shots = [Shot("daemon", "message", 0.0), Shot("daemon", "time", 0.3)]
    with killing(tmp_path, processes, ("north", shots)) as killer:
        killer.open(0)
        answer(killer, *SITES)
        assert not killer.holds("east", LONG_S)
        while killer.holds("north", 0.01):
            assert len(processes.struck) < 2

        assert processes.struck == [("north", "daemon")] * 2
        assert {kill.shot.aim for kill in killer.kills} == {"time"}, "its message had not come"


@pytest.mark.parametrize("target", ["daemon", "nursery"])
def test_a_daemon_that_is_being_started_again_is_waited_for(tmp_path: Path, target: str) -> None:
    processes = Processes(daemons=set())
    shot = Shot("daemon" if target == "daemon" else "nursery", "time", 0.0)
    with killing(tmp_path, processes, ("south", [shot])) as killer:
        killer.open(0)
        answer(killer, *SITES)
        assert killer.holds("south", 0.1)
        processes.daemons.add("south")
        assert not killer.holds("south", LONG_S)

    assert processes.struck == [("south", target)]


def test_the_next_volley_waits_until_every_site_is_back(tmp_path: Path) -> None:
    processes = Processes()
    first, second = ("east", [Shot("daemon", "time", 0.0)]), ("north", [Shot("daemon", "time", 0.0)])
    with killing(tmp_path, processes, first, second) as killer:
        killer.open(0)
        assert not killer.holds("east", LONG_S)
        answer(killer, "north", "south")
        killer.answered("east", itself=False)
        killer.open(1)
        assert not killer.holds("north", 0.0)
        answer(killer, *SITES)
        assert processes.struck == [("east", "daemon")]
        killer.open(2)
        assert not killer.holds("north", LONG_S)

    assert processes.struck == [("east", "daemon"), ("north", "daemon")]
    assert [kill.round for kill in killer.kills] == [0, 2]


def test_a_round_that_ends_without_its_site_ends_the_wait_for_it(tmp_path: Path) -> None:
    processes = Processes()
    with killing(tmp_path, processes, ("east", [Shot("child", "child", 0.0)])) as killer:
        killer.open(0)
        answer(killer, "north", "south")
        ends(lambda: killer.open(1))

    assert killer.missed == 1


def test_leaving_ends_the_killer_in_the_middle_of_a_volley(tmp_path: Path) -> None:
    processes = Processes()
    with killing(tmp_path, processes, ("east", [Shot("daemon", "message", 0.0)])) as killer:
        killer.open(0)
        ends(killer.__exit__)

    assert not any(thread.name == "killer" for thread in threading.enumerate())
    assert processes.struck == []
