"""Book and processes kept together: with processes that die when the test says so, and a clock that it moves."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedward_server.result import RunResult, StudyRef
from fedward_server.run_status import RunStatus, read_wish, write_status
from fedward_server.studies.book import StudyEntry
from fedward_server.studies.lifecycle import EndState
from fedward_server.studies.runs import Runs
from tests.candidates import NOW
from tests.studies_centre import StudiesCentre

SITES = ("east", "north", "south", "west")


@dataclass
class Puppet:
    """A process that ends when it is told what with."""

    folder: Path
    code: int | None = None
    words: str = ""
    closed: bool = False

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9

    def last_words(self) -> str:
        return self.words

    def close(self) -> None:
        self.closed = True


def result(status: EndState, reason: str | None = None) -> str:
    return RunResult(
        study=StudyRef(name="x", digest="0" * 64), engine="double", seed=0, status=status, reason=reason,
        started_at=NOW.isoformat(), seconds=0.0, versions={}, privacy=None, sites={}, rounds=(), central={},
    ).model_dump_json()  # fmt: skip


@dataclass
class House:
    """A centre whose runs are puppets."""

    centre: StudiesCentre
    at_once: int = 2
    share_sites: bool = False
    now: float = 0.0
    started: list[Puppet] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    full: bool = False

    def __post_init__(self) -> None:
        self.book = self.centre.book
        self.runs = self.anew()

    def anew(self) -> Runs:
        """Return what a new supervisor would have: nothing but the book."""
        return Runs(
            self.book,
            self.start,
            at_once=self.at_once,
            share_sites=self.share_sites,
            note=lambda event, entry, _: self.told.append((event, entry.name)),
            clock=lambda: self.now,
        )

    def start(self, folder: Path) -> Puppet:
        if self.full:
            raise BlockingIOError
        self.started.append(Puppet(folder))
        return self.started[-1]

    def submit(self, name: str, *sites: str) -> str:
        return self.book.submit(self.centre.signed(name=name, sites=list(sites or ("north", "south"))), "ann", NOW).id

    def entry(self, id_: str) -> StudyEntry:
        return self.book.entry(id_)

    def states(self) -> list[str]:
        return [entry.state for entry in self.book.entries()]

    def process(self, id_: str) -> Puppet:
        """Return the last process of a study."""
        return [puppet for puppet in self.started if puppet.folder.name == id_][-1]

    def end(self, id_: str, code: int, status: EndState | None = None, reason: str | None = None) -> None:
        if status is not None:
            (self.book.folder(id_) / "result.json").write_text(result(status, reason))
        self.process(id_).code = code
        self.runs.step()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(StudiesCentre(tmp_path / "centre", SITES))


# ---------------------------------------------------------------------------------------------------------- the queue
def test_a_study_starts_and_ends_as_its_result_says(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    assert (house.entry(id_).state, read_wish(house.book.folder(id_))) == ("running", "run")

    house.end(id_, 0, "degraded", "south: missed")

    assert (house.entry(id_).state, house.entry(id_).reason) == ("degraded", "south: missed")
    assert house.told == [("run started", "a"), ("run ended", "a")]
    assert house.process(id_).closed
    assert house.runs.processes == {}


def test_two_places_and_a_queue(house: House) -> None:
    ids = [house.submit(name, *sites) for name, sites in (("a", ("north", "south")), ("b", ("east", "west")))]
    third = house.submit("c", "east", "north")
    house.runs.step()

    assert house.states() == ["running", "running", "queued"]
    assert "asks first" in (house.entry(third).reason or "")

    house.end(ids[0], 0, "completed")
    assert house.states() == ["completed", "running", "queued"]
    house.end(ids[1], 0, "completed")
    assert house.states() == ["completed", "completed", "running"]
    assert house.entry(third).reason is None


def test_two_that_share_hospitals_run_together_where_that_is_allowed(tmp_path: Path) -> None:
    house = House(StudiesCentre(tmp_path / "centre", SITES), share_sites=True)
    for name in "abc":
        house.submit(name)
    house.runs.step()

    assert house.states() == ["running", "running", "queued"]
    assert "2 places" in (house.book.entries()[2].reason or "")


def test_a_pause_gives_the_hospitals_free_once_the_run_has_heard_it(house: House) -> None:
    first, second = house.submit("a"), house.submit("b")
    house.runs.step()
    house.book.wish(first, "pause", "ann", NOW)
    write_status(house.book.folder(first), status("running"))
    house.runs.step()
    assert house.states() == ["paused", "queued"]

    write_status(house.book.folder(first), status("paused"))
    house.runs.step()
    assert house.states() == ["paused", "running"]

    house.book.wish(first, "resume", "ann", NOW)
    house.runs.step()
    assert house.states() == ["queued", "running"]
    assert read_wish(house.book.folder(first)) == "pause"

    house.end(second, 0, "completed")
    assert house.states() == ["running", "completed"]
    assert read_wish(house.book.folder(first)) == "run"
    assert len(house.started) == 2  # its process waited for it


def status(state: str) -> RunStatus:
    return RunStatus.model_validate({"state": state, "rounds": 3, "updated_at": NOW.isoformat(), "pid": 1})


# --------------------------------------------------------------------------------------------------------------- deaths
def test_a_killed_process_is_followed_by_another_and_meanwhile_nothing_runs(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    house.end(id_, -9)

    assert house.entry(id_).state == "queued"
    assert house.entry(id_).reason == "its process was ended by signal 9; starts again in 0.5 s"

    house.now += 0.6
    house.runs.step()
    assert (house.entry(id_).state, len(house.started)) == ("running", 2)


def test_nobody_takes_the_place_of_a_run_whose_process_comes_back(house: House) -> None:
    first, second = house.submit("a"), house.submit("b")
    house.runs.step()
    house.end(first, -9)
    assert house.states() == ["queued", "queued"]

    house.now += 0.6
    house.runs.step()

    assert house.states() == ["running", "queued"]
    assert house.entry(second).started_at is None


def test_wrong_settings_end_a_study_with_what_its_process_said(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    house.process(id_).words = "the hold-out has no column age; remedy: give another file"
    house.end(id_, 2)

    assert house.entry(id_).state == "failed"
    assert house.entry(id_).reason == "the hold-out has no column age; remedy: give another file"


def test_a_process_that_always_breaks_ends_its_study_at_last(house: House) -> None:
    id_ = house.submit("a")
    for _ in range(6):
        house.runs.step()
        house.now += 61.0
        house.end(id_, 1)
        house.now += 1.0

    assert house.entry(id_).state == "queued"  # it lived for a minute each time

    for _ in range(5):
        house.runs.step()
        house.end(id_, 1)
        house.now += 20.0

    assert house.entry(id_).state == "failed"
    assert "process.log" in (house.entry(id_).reason or "")
    assert str(house.centre.home) not in (house.entry(id_).reason or "")


def test_an_end_without_a_result_is_no_end(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    (house.book.folder(id_) / "result.json").write_text('{"status": "completed"}')
    house.end(id_, 0)

    assert (house.entry(id_).state, house.entry(id_).reason) == (
        "queued", "its process ended with code 0; starts again in 0.5 s",
    )  # fmt: skip


def test_a_result_counts_where_only_the_report_after_it_fails(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    house.end(id_, 2, "completed")

    assert house.entry(id_).state == "completed"


def test_a_computer_that_has_no_process_left_is_a_reason_to_wait(house: House) -> None:
    id_ = house.submit("a")
    house.full = True
    house.runs.step()
    assert house.entry(id_).state == "queued"

    house.full, house.now = False, house.now + 1.0
    house.runs.step()
    assert house.entry(id_).state == "running"


# ---------------------------------------------------------------------------------------------------------------- stops
def test_a_stop_reaches_the_run_and_its_result_is_the_end(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    house.book.wish(id_, "stop", "olga", NOW)
    house.runs.step()
    assert (house.entry(id_).state, read_wish(house.book.folder(id_))) == ("stopping", "stop")

    house.end(id_, 0, "interrupted", "stopped by the operator")
    assert house.entry(id_).state == "interrupted"


def test_a_stop_while_the_process_is_away_starts_one_to_wind_up(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    house.end(id_, -9)
    house.book.wish(id_, "stop", "olga", NOW)
    house.now += 1.0
    house.runs.step()

    assert len(house.started) == 2
    house.end(id_, 0, "interrupted")
    assert house.entry(id_).state == "interrupted"


def test_a_run_that_cannot_wind_up_is_given_up_and_is_no_failure(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    house.book.wish(id_, "stop", "olga", NOW)
    for _ in range(3):
        house.runs.step()
        house.end(id_, -9)
        house.now += 10.0

    assert house.entry(id_).state == "interrupted"
    assert "3 times in a row" in (house.entry(id_).reason or "")


def test_a_process_that_hears_no_stop_is_killed_after_two_minutes(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    house.book.wish(id_, "stop", "olga", NOW)
    for second in (0.0, 119.0):
        house.now = second
        house.runs.step()
    assert house.process(id_).code is None

    house.now = 121.0
    house.runs.step()
    assert house.process(id_).code == -9


# ------------------------------------------------------------------------------------------------------------ a reboot
def test_after_a_reboot_nothing_is_said_to_run_until_it_does_and_what_ran_goes_first(house: House) -> None:
    first = house.submit("a")
    house.runs.step()
    second, third = house.submit("b"), house.submit("c", "east", "west")
    runs = house.runs = house.anew()

    runs.recover("the centre was restarted")
    assert house.states() == ["queued", "queued", "queued"]
    assert house.entry(first).reason == "the centre was restarted"

    runs.step()
    assert house.states() == ["running", "queued", "running"]
    assert [puppet.folder.name for puppet in house.started[1:]] == [first, third]
    assert house.entry(second).started_at is None


def test_after_a_reboot_a_paused_run_stays_paused_and_a_stopping_one_winds_up(house: House) -> None:
    paused, stopping = house.submit("a"), house.submit("b", "east", "west")
    house.runs.step()
    house.book.wish(paused, "pause", "ann", NOW)
    house.book.wish(stopping, "stop", "olga", NOW)
    runs = house.runs = house.anew()
    runs.recover("the centre was restarted")
    runs.step()

    assert house.states() == ["paused", "stopping"]
    assert len(house.started) == 4
    house.end(stopping, 0, "interrupted")
    assert house.states() == ["paused", "interrupted"]


def test_a_result_that_nobody_saw_is_found_by_the_next_process(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    (house.book.folder(id_) / "result.json").write_text(result("completed"))
    runs = house.runs = house.anew()
    runs.recover("the centre was restarted")
    runs.step()
    house.end(id_, 0)

    assert house.entry(id_).state == "completed"


def test_leaving_notes_the_results_that_came_at_the_last_moment(house: House) -> None:
    done, open_ = house.submit("a"), house.submit("b", "east", "west")
    house.runs.step()
    (house.book.folder(done) / "result.json").write_text(result("completed"))
    house.process(done).code, house.process(open_).code = 0, 75

    house.runs.leave("the centre was stopped")

    assert house.states() == ["completed", "queued"]
    assert house.entry(open_).reason == "the centre was stopped"


def test_while_the_launcher_is_away_nobody_starts_and_deaths_are_noted(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step(admit=False)
    assert house.states() == ["queued"]

    house.runs.step()
    house.process(id_).code = 75
    house.now += 60.0
    house.runs.step(admit=False)
    assert house.states() == ["queued"]
    assert len(house.started) == 1


def test_no_study_is_said_to_run_without_a_process_whatever_happens(house: House) -> None:
    """Deaths, wishes and reboots in a fixed order that visits every pair of neighbours."""
    ids = [house.submit(name, *sites) for name, sites in (("a", ("north", "south")), ("b", ("east", "west")))]
    codes = (-9, 75, 1, -15)
    for number in range(40):
        house.now += 7.0
        id_ = ids[number % 2]
        living = house.runs.processes.get(id_)
        if isinstance(living, Puppet) and number % 3 == 0:
            living.code = codes[number % 4]
        if number % 11 == 10:
            house.runs = house.anew()
            house.runs.recover("the centre was restarted")
        house.runs.step()
        running = {entry.id for entry in house.book.entries() if entry.state == "running"}
        assert running <= set(house.runs.processes)
        assert all(entry.state in {"running", "queued"} for entry in house.book.entries())


def test_what_the_book_says_is_what_the_wish_file_says(house: House) -> None:
    id_ = house.submit("a")
    house.runs.step()
    (house.book.folder(id_) / "wish.json").write_text(json.dumps("stop"))
    house.runs.step()

    assert read_wish(house.book.folder(id_)) == "run"
    assert dt.datetime.fromisoformat(house.entry(id_).started_at or "") > NOW
