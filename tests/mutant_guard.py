"""A pytest plugin: the tests of a mutant run against the mutant, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fedward_client
import fedward_common


def pytest_configure() -> None:
    """Refuse to start unless both rooms were imported from the copy."""
    folder = Path(os.environ["FEDWARD_MUTANT"])
    for room in (fedward_client, fedward_common):
        if not Path(str(room.__file__)).is_relative_to(folder):
            pytest.exit(f"{room.__name__} was not imported from {folder}", returncode=3)
