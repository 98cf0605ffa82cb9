"""The commands that README.md, the hospital guide and the tutorials show work when typed in as they stand."""

from pathlib import Path

import pytest

from tests.docs.shell import Shell
from tests.docs.snippets import commands, output_matches

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "docs" / "central-guide.md", ROOT / "docs" / "hospital-guide.md"]
PAGES = [ROOT / "README.md", *GUIDES, *sorted((ROOT / "docs").glob("tutorial-*.md"))]
COMMAND_TIMEOUT_S = 600.0

pytestmark = pytest.mark.docs


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_work_as_shown(page: Path, tmp_path: Path, cache: Path) -> None:
    with Shell(tmp_path, cache=cache) as shell:
        for command in commands(page.read_text(encoding="utf-8")):
            status, printed = shell.run(command.text, timeout_s=COMMAND_TIMEOUT_S)
            where = f"{page.relative_to(ROOT)}:{command.line}: $ {command.text}"
            if status != 0:
                pytest.fail(f"{where}\nended with status {status} and printed:\n{printed}", pytrace=False)
            if command.shown is not None and not output_matches(command.shown, printed):
                shown = "\n".join(command.shown)
                pytest.fail(f"{where}\nthe page shows:\n{shown}\nbut it printed:\n{printed}", pytrace=False)
