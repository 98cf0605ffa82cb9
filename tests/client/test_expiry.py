"""What ends, and when a site is told: nothing where there is no centre, and a damaged file is no end."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedward_client.config import create_site
from fedward_client.enrolment import expiry_warnings, load_admission

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_site(tmp_path / "site", "north")
    return tmp_path / "site"


def test_a_site_without_a_centre_has_nothing_that_expires(home: Path) -> None:
    assert expiry_warnings(home, NOW) == []


def test_a_damaged_certificate_is_left_out(home: Path) -> None:
    (home / "ca.pem").write_text("damaged")
    (home / "enrolment.json").write_text("{}")

    assert expiry_warnings(home, NOW) == []
    assert load_admission(home) is None
