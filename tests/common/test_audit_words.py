"""What a site's log and the centre's log may say, each by its own list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fedward_common.audit import AuditLog
from fedward_common.audit_words import CENTRE, SITE, Vocabulary
from fedward_common.errors import Refusal

NOW = "2026-11-27T12:00:00+00:00"
ROOT = Path(__file__).parents[2]


def literal_events(room: str) -> set[str]:
    """Return the events that calls of ``….append("…", at=…)`` in a room's sources name outright."""
    found = set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"
            if not named or not isinstance(node, ast.Call) or "at" not in {word.arg for word in node.keywords}:
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant):
                found.add(str(first.value))
    return found


@pytest.mark.parametrize(("room", "words"), [("client", SITE), ("server", CENTRE)])
def test_every_event_that_a_room_writes_is_on_its_list(room: str, words: Vocabulary) -> None:
    assert literal_events(room) <= words.events


def test_the_client_writes_events_that_this_test_can_see() -> None:
    assert len(literal_events("client")) >= 10


def test_a_site_s_log_takes_no_field_of_the_centre(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="role"):
        AuditLog(tmp_path).append("refused", at=NOW, role="operator")


@pytest.mark.parametrize("fields", [{"patients": 3}, {"cohort": "ward"}, {"epsilon": 1.0}])
def test_the_centre_s_log_takes_nothing_that_only_a_site_knows(tmp_path: Path, fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        AuditLog(tmp_path, CENTRE).append("refused", at=NOW, **fields)


def test_an_event_of_the_other_side_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no event"):
        AuditLog(tmp_path, CENTRE).append("cohort sealed", at=NOW)
    with pytest.raises(ValueError, match="no event"):
        AuditLog(tmp_path).append("access issued", at=NOW)


@pytest.mark.parametrize(
    ("field", "value"), [("role", "Ann Miller"), ("action", "a b"), ("run", "../x"), ("site", "a b")]
)
def test_a_name_of_another_form_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=field):
        CENTRE.checked("allowed", {field: value})


def test_a_centre_is_told_its_own_command(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, CENTRE)
    log.append("allowed", at=NOW, person="ann", role="viewer", action="list", run="")
    log.path.write_bytes(b"x" * log.path.stat().st_size)

    with pytest.raises(Refusal) as caught:
        log.append("allowed", at=NOW)

    assert "fedward server audit verify" in caught.value.remedy


def test_a_centre_s_log_is_a_chain_like_a_site_s(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, CENTRE)
    for number in range(3):
        log.append("refused", at=NOW, person="ann", role="viewer", action="submit", code="forbidden", count=number)

    assert log.verify() == []
    assert [entry.number for entry in log.entries()] == [1, 2, 3]
