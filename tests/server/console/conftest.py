"""One centre with studies that have really run, shared by the tests that only look at it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fedward_server.console.facts import RunFacts, read_facts
from fedward_server.studies.book import StudyEntry
from tests.console_centre import ConsoleCentre


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConsoleCentre, Mapping[str, StudyEntry]]:
    """Return a centre and its studies by kind; nobody changes them."""
    centre = ConsoleCentre(tmp_path_factory.mktemp("console"))
    return centre, centre.all()


@pytest.fixture
def facts(lived: tuple[ConsoleCentre, Mapping[str, StudyEntry]]) -> dict[str, RunFacts]:
    """Return what the folder of each study says, by kind."""
    centre, entries = lived
    found = {kind: centre.book.entry(entry.id) for kind, entry in entries.items()}
    return {kind: read_facts(entry, centre.book.folder(entry.id)) for kind, entry in found.items()}
