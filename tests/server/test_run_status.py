"""What a run says of itself, and what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fedward_server.run_status import RunStatus, SiteStatus, read_status, read_wish, write_status, write_wish

if TYPE_CHECKING:
    from pathlib import Path

    from fedward_server.run_status import Wish


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    status = RunStatus(
        state="running",
        round=3,
        rounds=10,
        sites={
            "a": SiteStatus(state="accepted"),
            "b": SiteStatus(state="missed", reason="transport_error"),
        },
        opened_at="2026-11-27T06:00:00+00:00",
        updated_at="2026-11-27T06:00:01+00:00",
        pid=17,
    )
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status


@pytest.mark.parametrize("content", [None, b"", b"\xff", b'{"state": "dancing"}'])
def test_a_status_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path) is None


@pytest.mark.parametrize("wish", ["run", "pause", "stop"])
def test_a_wish_is_read_as_it_was_written(tmp_path: Path, wish: Wish) -> None:
    write_wish(tmp_path, wish)
    assert read_wish(tmp_path) == wish


@pytest.mark.parametrize("content", [None, b"", b"\xff", b'"dance"'])
def test_a_run_that_is_told_nothing_it_knows_goes_on(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "wish.json").write_bytes(content)
    assert read_wish(tmp_path) == "run"
