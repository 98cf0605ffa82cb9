"""The book of studies: what it takes, what it refuses, what it says after a crash."""

from __future__ import annotations

import datetime as dt
import json
import threading
from pathlib import Path

import pytest

from fedward_common.errors import CoordinatorError, FedwardError, InstallationError, SignatureError, UnknownStudyError
from fedward_common.study_file import StudyFile, read_study_file
from fedward_server.centre import load_centre, roster_of
from fedward_server.run_status import read_wish, write_wish
from fedward_server.studies.book import StudyBook, StudyEntry
from fedward_server.studies.lifecycle import Wish
from tests.builders import small_study
from tests.candidates import NOW
from tests.studies_centre import StudiesCentre

LATER = NOW + dt.timedelta(minutes=5)


@pytest.fixture
def centre(tmp_path: Path) -> StudiesCentre:
    return StudiesCentre(tmp_path / "centre")


def submitted(centre: StudiesCentre, name: str = "small") -> StudyEntry:
    return centre.book.submit(centre.signed(name=name), "ann", NOW)


# -------------------------------------------------------------------------------------------------------- submission
def test_a_study_waits_in_the_queue_with_its_files(centre: StudiesCentre) -> None:
    study_file = centre.signed()
    entry = centre.book.submit(study_file, "ann", NOW)
    folder = centre.book.folder(entry.id)

    assert (entry.state, entry.name, entry.submitted_by, entry.sites) == ("queued", "small", "ann", ("north", "south"))
    assert entry.digest == study_file.study.digest
    assert read_study_file(folder / "study.json") == study_file
    assert json.loads((folder / "run.json").read_text()) == {"hold_out": None}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (centre.home / "studies.sqlite").stat().st_mode & 0o777 == 0o600
    assert StudyBook(centre.home).entries() == [entry]


def test_numbers_sort_by_time_and_the_queue_by_arrival(centre: StudiesCentre) -> None:
    names = [f"study{number}" for number in range(4)]
    entries = [
        centre.book.submit(centre.signed(name=name), "ann", NOW + dt.timedelta(seconds=second))
        for second, name in enumerate(names)
    ]
    same_second = [submitted(centre, name=f"again{number}").name for number in range(4)]

    assert sorted(entry.id for entry in entries) == [entry.id for entry in entries]
    assert [entry.name for entry in centre.book.entries()] == names + same_second


def test_a_hold_out_is_noted_with_its_whole_path(centre: StudiesCentre, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("age\n")

    entry = centre.book.submit(centre.signed(), "ann", NOW, rows)

    told = json.loads((centre.book.folder(entry.id) / "run.json").read_text())
    assert told == {"hold_out": str(rows.resolve())}


def refusal(centre: StudiesCentre, study_file: StudyFile, hold_out: Path | None = None) -> FedwardError:
    """Return why the book does not take a study; nothing of it must be left."""
    before = centre.book.entries()
    with pytest.raises(FedwardError) as caught:
        centre.book.submit(study_file, "ann", NOW, hold_out)
    assert caught.value.remedy
    assert centre.book.entries() == before
    assert len(list((centre.home / "runs").glob("*"))) == len(before)
    return caught.value


def test_a_study_without_a_trusted_signature_is_refused(centre: StudiesCentre, tmp_path: Path) -> None:
    stranger = StudiesCentre(tmp_path / "other").signed()

    assert isinstance(refusal(centre, StudyFile(small_study())), SignatureError)
    assert isinstance(refusal(centre, stranger), SignatureError)


def test_a_signature_over_another_study_is_refused(centre: StudiesCentre) -> None:
    forged = StudyFile(small_study(name="other"), centre.signed().signatures)

    assert isinstance(refusal(centre, forged), SignatureError)


def test_a_centre_that_trusts_no_key_takes_nothing(centre: StudiesCentre) -> None:
    path = centre.home / "superlink.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"study_keys": []}))

    assert "study_keys" in refusal(centre, centre.signed()).remedy


def test_a_hospital_that_the_roster_does_not_know_is_named(centre: StudiesCentre) -> None:
    error = refusal(centre, centre.signed(sites=["north", "east", "west"]))

    assert error.message == "the roster does not know east, west"


def test_a_hospital_that_was_shut_out_is_not_known_any_more(centre: StudiesCentre) -> None:
    roster_of(load_centre(centre.home)).revoke("south", NOW)

    assert "south" in refusal(centre, centre.signed()).message


def test_the_same_study_is_live_once(centre: StudiesCentre) -> None:
    first = submitted(centre)

    assert first.id in refusal(centre, centre.signed()).message

    centre.book.wish(first.id, "stop", "bob", LATER)
    assert submitted(centre).id != first.id


def test_a_hold_out_that_cannot_be_read_is_refused(centre: StudiesCentre, tmp_path: Path) -> None:
    assert "gone.csv" in refusal(centre, centre.signed(), tmp_path / "gone.csv").message
    assert "folder" in refusal(centre, centre.signed(), _folder(tmp_path / "folder")).message


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_two_who_submit_the_same_study_at_once_get_one_place(centre: StudiesCentre) -> None:
    study_file, outcomes = centre.signed(), list[str]()
    barrier = threading.Barrier(4)

    def submit() -> None:
        book = StudyBook(centre.home)
        barrier.wait(60)
        try:
            outcomes.append(book.submit(study_file, "ann", NOW).state)
        except CoordinatorError:
            outcomes.append("refused")

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["queued", "refused", "refused", "refused"]
    assert len(centre.book.entries()) == 1


# ------------------------------------------------------------------------------------------------------------- wishes
@pytest.mark.parametrize("id_", ["", "x", "../../etc", "20261124-120000-zzzzzz", "20261124-120000-abcdef"])
def test_an_unknown_number_is_refused(centre: StudiesCentre, id_: str) -> None:
    with pytest.raises(UnknownStudyError):
        centre.book.entry(id_)
    with pytest.raises(UnknownStudyError):
        centre.book.wish(id_, "stop", "bob", NOW)


@pytest.mark.parametrize("id_", ["", "x", "../../etc", "20261124-120000-abcdef/..", "20261124-120000-abcdef\n"])
def test_no_number_leads_out_of_the_runs(centre: StudiesCentre, id_: str) -> None:
    with pytest.raises(UnknownStudyError):
        centre.book.folder(id_)


def test_a_study_that_never_started_is_stopped_without_a_process(centre: StudiesCentre) -> None:
    entry = submitted(centre)

    ended = centre.book.wish(entry.id, "stop", "bob", LATER)

    assert (ended.state, ended.ended_at, ended.live) == ("interrupted", LATER.isoformat(timespec="seconds"), False)
    assert ended.reason == "stopped by bob before it started"


def test_a_running_study_s_process_is_told(centre: StudiesCentre) -> None:
    entry = centre.book.begin(submitted(centre).id, LATER)
    folder = centre.book.folder(entry.id)
    told = [read_wish(folder)]
    wishes: tuple[Wish, ...] = ("pause", "resume", "stop")
    states = []
    for wish in wishes:
        states.append(centre.book.wish(entry.id, wish, "bob", LATER).state)
        told.append(read_wish(folder))

    assert entry.started_at == LATER.isoformat(timespec="seconds")
    assert states == ["paused", "queued", "stopping"]
    assert told == ["run", "pause", "pause", "stop"]


def test_it_is_noted_who_paused_and_forgotten_when_it_goes_on(centre: StudiesCentre) -> None:
    entry = submitted(centre)

    assert centre.book.wish(entry.id, "pause", "bob", NOW).paused_by == "bob"
    assert centre.book.wish(entry.id, "pause", "ann", NOW).paused_by == "bob"
    assert centre.book.wish(entry.id, "resume", "bob", NOW).paused_by is None


def test_a_wish_that_a_crash_kept_from_the_run_is_told_again(centre: StudiesCentre) -> None:
    entry = centre.book.begin(submitted(centre).id, NOW)
    stopped = centre.book.wish(entry.id, "stop", "bob", NOW)
    write_wish(centre.book.folder(entry.id), "run")

    centre.book.tell(stopped)

    assert read_wish(centre.book.folder(entry.id)) == "stop"


def test_a_study_that_has_ended_takes_no_wish(centre: StudiesCentre) -> None:
    entry = submitted(centre)
    centre.book.end(entry.id, "completed", None, LATER)

    with pytest.raises(CoordinatorError, match="completed cannot be told"):
        centre.book.wish(entry.id, "stop", "bob", LATER)


# ------------------------------------------------------------------------------------------------------------- events
def test_a_study_whose_process_died_is_not_said_to_run(centre: StudiesCentre) -> None:
    entry = centre.book.begin(submitted(centre).id, NOW)

    died = centre.book.died(entry.id, "exit code 75; starts again in 2 s")

    assert (died.state, died.reason) == ("queued", "exit code 75; starts again in 2 s")
    assert centre.book.begin(entry.id, LATER).started_at == entry.started_at


def test_a_study_that_stops_stays_stopping_when_its_process_dies(centre: StudiesCentre) -> None:
    entry = centre.book.begin(submitted(centre).id, NOW)
    centre.book.wish(entry.id, "stop", "bob", NOW)

    assert centre.book.died(entry.id, "signal 9").state == "stopping"
    assert centre.book.give_up(entry.id, "signal 9", LATER).state == "interrupted"


def test_what_has_ended_stays_as_it_ended(centre: StudiesCentre) -> None:
    entry = centre.book.begin(submitted(centre).id, NOW)
    ended = centre.book.end(entry.id, "degraded", "south: missed", LATER)

    assert centre.book.end(entry.id, "failed", "late", LATER) == ended
    assert centre.book.died(entry.id, "late") == ended
    assert centre.book.give_up(entry.id, "late", LATER) == ended
    assert centre.book.begin(entry.id, LATER) == ended
    centre.book.explain(entry.id, "late")
    assert centre.book.entry(entry.id) == ended


def test_a_reason_of_any_length_is_kept_short(centre: StudiesCentre) -> None:
    entry = submitted(centre)

    assert len(centre.book.end(entry.id, "failed", "x" * 10_000, NOW).reason or "") == 500


def test_a_folder_that_is_no_centre_gets_no_book(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="no centre"):
        StudyBook(tmp_path)
    assert not (tmp_path / "studies.sqlite").exists()


def test_the_book_is_synced_with_each_transaction(centre: StudiesCentre) -> None:
    with centre.book._open() as database:
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
