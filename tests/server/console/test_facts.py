"""Files of a run are read without trust, without the model, and again only when they were replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedward_server.console.facts import DOWNLOADS, RunFacts, read_facts, read_progress
from fedward_server.resume import CHECKPOINT
from fedward_server.studies.book import StudyEntry
from tests.console_centre import ConsoleCentre
from tests.server.console.lines import line

Lived = tuple[ConsoleCentre, Mapping[str, StudyEntry]]


def folder_of(lived: Lived, kind: str) -> Path:
    centre, entries = lived
    return centre.book.folder(entries[kind].id)


def test_a_checkpoint_s_head_tells_the_rounds_so_far_without_its_model(lived: Lived, tmp_path: Path) -> None:
    content = (folder_of(lived, "running") / CHECKPOINT).read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / CHECKPOINT
    path.write_bytes(content[:head])  # no tensor left

    progress = read_progress(path)

    assert progress is not None
    assert [entry.round for entry in progress.closed] == [1, 2, 3, 4, 5, 6]
    assert progress.excluded == {"Zurich": "budget_exceeded"}
    assert {seat.site for seat in progress.seats} == {"Aachen", "Basel", "Bern", "Graz", "Ulm"}


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", b"\xff" * 8, (1 << 40).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}",
     (26).to_bytes(8, "little") + b'{"__metadata__":{"a":"b"}}', (4).to_bytes(8, "little") + b"null"],
)  # fmt: skip
def test_what_is_no_checkpoint_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)

    found = read_facts(line(), tmp_path)

    assert found.progress is None
    assert found.unreadable == (CHECKPOINT,)
    assert found.closed == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"schema_version": 2}'])
def test_a_study_or_a_result_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("study.json", "result.json", "status.json", "wish.json"):
        (tmp_path / name).write_bytes(content)

    found = read_facts(line(), tmp_path)

    assert found.unreadable == ("study.json", "result.json")
    assert (found.file, found.result, found.status, found.wish) == (None, None, None, "run")


def test_a_folder_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    assert read_facts(line(), tmp_path / "nowhere") == RunFacts(line())


def test_a_file_that_was_replaced_is_read_again_and_one_that_was_not_is_not(lived: Lived, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes((folder_of(lived, "completed") / "result.json").read_bytes())
    first = read_facts(line(), tmp_path).result
    assert first is not None

    again = read_facts(line(), tmp_path).result
    assert again is first

    content = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "new").write_text(json.dumps(content | {"reason": "another"}))
    (tmp_path / "new").replace(tmp_path / "result.json")
    changed = read_facts(line(), tmp_path).result
    assert changed is not None
    assert changed.reason == "another"


def test_only_named_plain_files_can_be_downloaded(tmp_path: Path) -> None:
    for name in (*DOWNLOADS, "run.json", "wish.json", CHECKPOINT):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").symlink_to("/etc/passwd")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()

    found = read_facts(line(), tmp_path)

    assert [d.name for d in found.downloads] == ["result.json", "privacy.json", "study.json"]


def test_a_finished_run_offers_everything(lived: Lived) -> None:
    entry = lived[1]["completed"]

    found = read_facts(entry, folder_of(lived, "completed"))

    assert [d.name for d in found.downloads] == list(DOWNLOADS)
    assert all(d.size for d in found.downloads)
    assert found.unreadable == ()
