"""The reference page is the contract's."""

from __future__ import annotations

from pathlib import Path

from fedward_common.reference import study_reference


def test_the_reference_page_is_what_the_contract_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "study-reference.md"

    assert page.read_text(encoding="utf-8") == study_reference(), (
        "python -m fedward_common.reference > docs/study-reference.md"
    )


def test_every_key_of_every_section_has_a_meaning_or_is_its_own() -> None:
    rows = [line for line in study_reference().splitlines() if line.startswith("| `")]

    assert len(rows) > 50
    assert all(len(row.split("|")) >= 7 for row in rows)
