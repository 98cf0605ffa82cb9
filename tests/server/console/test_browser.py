"""The console in a real browser: no complaint, no sideways scrolling, all by keyboard, with and without script.

Pictures of every page go to the folder that FEDWARD_SCREENSHOTS names.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from fedward_server.run_status import SiteStatus
from fedward_server.studies.access import Role
from fedward_server.studies.api import build_api
from fedward_server.studies.book import StudyEntry
from tests.chromium import DESKTOP, PHONE, Tab, browser
from tests.console_centre import ConsoleCentre

SIZES = {"phone": PHONE, "desktop": DESKTOP}
FOCUSABLE = "a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']"


@contextlib.contextmanager
def served(home: Path) -> Iterator[str]:
    """Serve the centre in `home` on a free port of loopback and yield the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(build_api(home), lifespan="off", log_config=None, access_log=False, http="h11", ws="none")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@dataclass
class Visit:
    """A tab at a console, logged in by hand."""

    tab: Tab
    address: str
    pages: Mapping[str, str]

    def go(self, page: str) -> None:
        self.tab.go(self.address + self.pages[page])

    def log_in(self, token: str) -> None:
        self.tab.ask("Network.clearBrowserCookies")
        self.tab.go(f"{self.address}/login")
        self.tab.run(f"document.getElementById('token').value = '{token}'")
        self.tab.submits("document.querySelector('form.stack').requestSubmit()")


@pytest.fixture(scope="module")
def visit(
    lived: tuple[ConsoleCentre, Mapping[str, StudyEntry]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Visit]:
    centre, entries = lived
    running, completed = entries["running"].id, entries["completed"].id
    pages = {
        "studies": "/",
        "rounds": f"/runs/{running}",
        "rounds-ended": f"/runs/{completed}",
        "rounds-failed": f"/runs/{entries['failed'].id}",
        "contract": f"/runs/{running}/study",
        "contract-ended": f"/runs/{completed}/study",
        "approvals": f"/runs/{entries['enrolling'].id}/study",
        "sites": "/sites",
        "audit": "/audit",
    }
    with served(centre.home) as address, browser(tmp_path_factory.mktemp("chromium")) as tab:
        found = Visit(tab, address, pages)
        found.log_in(centre.token("auditor-in-a-browser", Role.AUDITOR))
        yield found


PAGES = (
    "studies", "rounds", "rounds-ended", "rounds-failed", "contract", "contract-ended", "approvals", "sites", "audit",
)  # fmt: skip


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("FEDWARD_SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_screen_and_the_browser_has_no_complaint(
    visit: Visit, album: Path, page: str, size: str
) -> None:
    visit.tab.complaints.clear()
    for scheme in ("light", "dark") if size == "desktop" else ("light",):
        visit.tab.look(SIZES[size], dark=scheme == "dark")
        visit.go(page)
        picture = visit.tab.picture(album / f"{page}-{size}{'-dark' * (scheme == 'dark')}.png")
        assert picture.stat().st_size > 5_000

    assert visit.tab.complaints == []
    assert visit.tab.run("document.documentElement.scrollWidth") == SIZES[size][0]
    beyond = f"""[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .hidden')
        && e.getBoundingClientRect().right > {SIZES[size][0]} + 0.5).map(e => e.outerHTML.slice(0, 80))"""
    assert visit.tab.run(beyond) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_breaks_no_text_into_single_letters(visit: Visit, page: str) -> None:
    visit.tab.look(PHONE)
    visit.go(page)
    squeezed = """[...document.querySelectorAll('main :is(.badge, .sub, a, th, td, dd, p, code)')].filter(
        e => e.innerText.length > 6 && e.checkVisibility() && !e.closest('.grid, .hidden, .cards thead')
        && e.getBoundingClientRect().width < 40).map(e => e.outerHTML.slice(0, 80))"""

    assert visit.tab.run(squeezed) == []
    assert visit.tab.run("[...document.querySelectorAll('.badge')].every(e => e.getBoundingClientRect().height < 60)")


@pytest.mark.parametrize("page", ["studies", "rounds", "contract-ended", "audit"])
def test_the_tab_key_reaches_every_control_in_order_and_shows_where_it_is(visit: Visit, page: str) -> None:
    visit.tab.look(DESKTOP)
    visit.go(page)
    wanted = f"""[...document.querySelectorAll("{FOCUSABLE}")].filter(
        e => e.checkVisibility() && !e.closest('details:not([open]) > :not(summary)'))"""
    visit.tab.run(f"window.wanted = {wanted}; window.reached = []; true")
    count = visit.tab.run("wanted.length")

    shown = []
    for _ in range(count):
        visit.tab.press("Tab")
        visit.tab.run("reached.push(document.activeElement); true")
        shown.append(visit.tab.run("getComputedStyle(document.activeElement).outlineStyle"))

    assert count >= 6
    assert visit.tab.run("reached.every((element, place) => element === wanted[place])")
    assert set(shown) == {"solid"}


def test_the_skip_link_comes_first_and_leads_to_the_content(visit: Visit) -> None:
    visit.tab.look(DESKTOP)
    visit.go("studies")

    visit.tab.press("Tab")
    left = visit.tab.run("document.activeElement.getBoundingClientRect().left")
    visit.tab.press("Enter")

    assert left > 0  # it has come into view
    assert visit.tab.run("document.activeElement.id") == "content"


def test_every_control_has_a_name(visit: Visit) -> None:
    for page in PAGES:
        visit.go(page)
        nodes = visit.tab.ask("Accessibility.getFullAXTree")["nodes"]
        kinds = {"link", "button", "textbox", "searchbox", "combobox", "image", "table", "region"}
        told = [node for node in nodes if not node["ignored"] and node["role"]["value"] in kinds]
        assert len(told) >= 6
        assert [node["role"]["value"] for node in told if not node["name"]["value"]] == [], page


def test_the_grid_is_told_in_words_too(visit: Visit) -> None:
    visit.go("rounds")

    row = visit.tab.run("document.querySelectorAll('.grid tbody tr')[2].innerText")

    assert row.split()[0] == "Bern"
    assert visit.tab.run(
        "[...document.querySelectorAll('.grid .cell')].every(e => e.querySelector('.hidden').textContent)"
    )


def test_a_phone_shows_the_open_round_without_scrolling(visit: Visit) -> None:
    visit.tab.look(PHONE)
    visit.go("rounds")

    box = visit.tab.run("(e => [e.left, e.right])(document.querySelector('th.open').getBoundingClientRect())")

    assert 0 < box[0] < box[1] <= PHONE[0]


def test_paper_gets_no_buttons_and_black_ink(visit: Visit, album: Path) -> None:
    visit.tab.look((794, 1123), media="print")
    visit.go("rounds")

    visit.tab.picture(album / "rounds-paper.png")
    assert visit.tab.run("[...document.querySelectorAll('button')].every(e => !e.checkVisibility())")
    assert visit.tab.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert visit.tab.run("document.documentElement.scrollWidth") <= 794


# --------------------------------------------------------------------------------------------- with and without script


@pytest.fixture
def lively(tmp_path: Path, visit: Visit) -> Iterator[tuple[ConsoleCentre, StudyEntry, Visit]]:
    """Yield a centre with a run that goes on, at which an operator has logged in."""
    centre = ConsoleCentre(tmp_path)
    entry = centre.enrolling()
    with served(centre.home) as address:
        other = Visit(visit.tab, address, {"rounds": f"/runs/{entry.id}"})
        other.tab.look(DESKTOP)
        other.log_in(centre.token("ops", Role.OPERATOR))
        yield centre, entry, other
        other.tab.go("about:blank")


def test_a_page_keeps_itself_fresh_without_taking_the_focus_away(
    lively: tuple[ConsoleCentre, StudyEntry, Visit],
) -> None:
    centre, entry, visit = lively
    visit.go("rounds")
    visit.tab.complaints.clear()
    assert "Asks the hospitals" in visit.tab.run("document.querySelector('.now').textContent")
    visit.tab.run("document.getElementById('grid-scroll').focus()")

    told = dict.fromkeys(("Graz", "Ulm"), SiteStatus(state="accepted")) | {"Zurich": SiteStatus(state="waiting")}
    opened = dt.datetime.now(dt.UTC).isoformat()
    centre.says(entry, "running", told, round=1, opened_at=opened, updated_at=opened)
    changed = """new Promise(done => { const look = () =>
        document.querySelector('.now').textContent.startsWith('Round 1') ? done(true) : setTimeout(look, 100);
        look(); })"""

    assert visit.tab.run(changed)
    assert visit.tab.run("document.activeElement.id") == "grid-scroll"
    assert "2 of 3" in visit.tab.run("document.querySelector('[role=status]').textContent")  # said aloud, politely
    assert visit.tab.complaints == []


def test_whoever_holds_a_page_still_is_left_alone(lively: tuple[ConsoleCentre, StudyEntry, Visit]) -> None:
    _, _, visit = lively
    visit.go("rounds")

    visit.tab.run("document.querySelector('[data-fresh] button').click()")

    assert visit.tab.run("document.querySelector('[data-fresh]').textContent") == "This page holds still. Follow again"


def test_without_script_everything_is_there_and_forms_work(
    lively: tuple[ConsoleCentre, StudyEntry, Visit], album: Path
) -> None:
    centre, entry, visit = lively
    visit.tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        visit.go("rounds")
        visit.tab.picture(album / "rounds-operator-without-script.png")
        assert visit.tab.run("document.querySelector('[data-fresh] a').textContent") == "Reload"
        visit.tab.submits("document.querySelector('button[value=pause]').click()")
        assert centre.book.entry(entry.id).state == "paused"
        assert "Paused after 0 of 3 rounds." in visit.tab.run("document.querySelector('.now').textContent")

        visit.tab.submits("document.querySelector('.button.danger').click()")
        visit.tab.picture(album / "stop-operator.png")
        visit.tab.submits("document.querySelector('button.danger').click()")
        assert centre.book.entry(entry.id).state == "stopping"
    finally:
        visit.tab.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_log_in_and_error_pages_are_photographed_too(
    lively: tuple[ConsoleCentre, StudyEntry, Visit], album: Path
) -> None:
    _, _, visit = lively
    for name, size in SIZES.items():
        visit.tab.look(size)
        visit.tab.go(f"{visit.address}/runs/nobody")
        visit.tab.picture(album / f"no-such-study-{name}.png")
        assert visit.tab.run("document.documentElement.scrollWidth") == size[0]
    visit.log_in("wrong")
    visit.tab.picture(album / "log-in-refused-desktop.png")
    assert "Not logged in" in visit.tab.run("document.querySelector('[role=alert]').textContent")
