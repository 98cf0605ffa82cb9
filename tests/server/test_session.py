"""A run that outlives its coordinator: another process rejoins it and finds every message and every reply."""

from __future__ import annotations

import contextlib
import importlib
import operator
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.common.constant import ErrorCode, SubStatus

from fedward_client.flower_adapter import FleetConnection, NotAdmittedError, open_fleet
from fedward_common.certificates import create_node_key, public_key_bytes
from fedward_common.errors import CoordinatorError, Refusal, TransportError
from fedward_common.packing import PART_BYTES
from fedward_server import runtime_flower_adapter, session_flower_adapter
from fedward_server.grid_flower_adapter import CoordinatorGrid, RunEndedError
from fedward_server.runtime_flower_adapter import LEASE_S
from fedward_server.session_flower_adapter import LastingSession, lasting_session
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.engines.deployed import SuperLinkProcess
from tests.server.centre_sites import Site, connected_site, large, small, trust

pytestmark = pytest.mark.deployed


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("logs")) as process:
        process.await_ready()
        yield process


@pytest.fixture
def ticket(tmp_path: Path) -> Path:
    return tmp_path / "session.json"


@pytest.fixture
def site(superlink: SuperLinkProcess, tmp_path: Path) -> Iterator[Site]:
    with connected_site(superlink, tmp_path, "north") as site:
        yield site


@contextlib.contextmanager
def coordinator(superlink: SuperLinkProcess, ticket: Path) -> Iterator[LastingSession]:
    with superlink.client.lasting_session(ticket, code_free_bundle()) as session:
        yield session


def ask(grid: CoordinatorGrid, site: Site, number: int = 0) -> str:
    (identifier,) = grid.push_messages([Message(small(number), site.node, "train", ttl=60)])
    return identifier


def await_reply(grid: CoordinatorGrid, identifier: str) -> Message:
    deadline = time.monotonic() + 30
    while not (replies := list(grid.pull_messages([identifier]))):
        assert time.monotonic() < deadline
    (reply,) = replies
    return reply


def database(superlink: SuperLinkProcess) -> Path:
    return Path(superlink.process._command[-2]).with_name("state.db")


def query(superlink: SuperLinkProcess, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{database(superlink)}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def test_flwr_version_contract() -> None:
    for adapter in (runtime_flower_adapter, session_flower_adapter):
        for module, names in adapter.INTERNAL_NAMES.items():
            for name in names.split():
                operator.attrgetter(name)(importlib.import_module(module))


def test_the_next_process_rejoins_the_run_and_finds_what_was_answered_meanwhile(
    superlink: SuperLinkProcess, site: Site, ticket: Path
) -> None:
    with coordinator(superlink, ticket) as first:
        assert not first.rejoined
        asked = ask(first.grid, site)
        run = first.grid.lineage
    site.answer(small(7))
    with coordinator(superlink, ticket) as second:
        assert second.rejoined
        assert second.grid.lineage == run
        assert await_reply(second.grid, asked).content == small(7)
        later = ask(second.grid, site, 1)
        site.answer(small(8))
        assert await_reply(second.grid, later).content == small(8)


@pytest.mark.parametrize("size", [8, PART_BYTES // 8 + 3])
def test_a_reply_that_nobody_has_taken_is_handed_out_again(
    superlink: SuperLinkProcess, site: Site, ticket: Path, size: int
) -> None:
    content = large(size)
    with coordinator(superlink, ticket) as first:
        asked = ask(first.grid, site)
        site.answer(content)
        assert await_reply(first.grid, asked).content == content  # and killed before it is written down
    with coordinator(superlink, ticket) as second:
        assert await_reply(second.grid, asked).content == content


def test_a_reply_that_was_announced_beside_another_is_handed_out_again(
    superlink: SuperLinkProcess, site: Site, ticket: Path, tmp_path: Path
) -> None:
    with connected_site(superlink, tmp_path, "south") as south:
        with coordinator(superlink, ticket) as first:
            asked = [ask(first.grid, site), ask(first.grid, south)]
            site.answer(small(1))
            south.answer(small(2))
            (reply,) = first.grid.pull_messages(asked)
            assert len(first.grid._arrived) == 1
        with coordinator(superlink, ticket) as second:
            again = [*second.grid.pull_messages(asked), *second.grid.pull_messages(asked)]
    assert reply.content in [small(1), small(2)]
    assert {reply.metadata.src_node_id: reply.content for reply in again} == {site.node: small(1), south.node: small(2)}


def test_a_reply_that_is_safe_is_confirmed_and_gone(superlink: SuperLinkProcess, site: Site, ticket: Path) -> None:
    with coordinator(superlink, ticket) as first:
        asked = ask(first.grid, site)
        site.answer(small(3))
        await_reply(first.grid, asked)
        first.grid.settle(wait=True)
    with coordinator(superlink, ticket) as second:
        assert await_reply(second.grid, asked).error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_asking_again_says_that_the_last_reply_is_safe(superlink: SuperLinkProcess, site: Site, ticket: Path) -> None:
    with coordinator(superlink, ticket) as session:
        held = "select object_id from objects"
        before = len(query(superlink, held))
        asked = ask(session.grid, site)
        site.answer(large(PART_BYTES // 8 + 3))
        await_reply(session.grid, asked)
        assert len(query(superlink, held)) > before
        asked = ask(session.grid, site)
        site.answer(small())
        await_reply(session.grid, asked)
        session.grid.settle(wait=True)
        assert len(query(superlink, held)) == before


def cut_short(superlink: SuperLinkProcess, site: Site, ticket: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Announce a message, be killed before its objects are sent, and return its name."""
    named: list[str] = []

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with coordinator(superlink, ticket) as first:
        message = Message(large(PART_BYTES // 8 + 3), site.node, "train", ttl=60)
        monkeypatch.setattr(first.grid._runtime_client, "PushObject", killed)
        with pytest.raises(KeyboardInterrupt):
            first.grid.push_named([message], named.extend)
    return named


def test_a_message_whose_upload_was_cut_short_is_said_to_be_unavailable(
    superlink: SuperLinkProcess, site: Site, ticket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = cut_short(superlink, site, ticket, monkeypatch)
    with coordinator(superlink, ticket) as second:
        (reply,) = second.grid.pull_messages(named)
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_a_site_does_not_wait_for_the_rest_of_a_message_that_was_cut_short(
    superlink: SuperLinkProcess, site: Site, ticket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = cut_short(superlink, site, ticket, monkeypatch)
    incoming = site.fleet.receive()
    assert incoming is not None
    with coordinator(superlink, ticket) as second, ThreadPoolExecutor() as pool:
        fetched = pool.submit(site.fleet.fetch, incoming)
        assert await_reply(second.grid, named[0]).error.code == ErrorCode.MESSAGE_UNAVAILABLE
        with pytest.raises(Refusal, match="objects are missing"):
            fetched.result(30)


def test_a_site_is_free_of_a_roll_call_that_was_cut_short_and_that_nobody_has_written_down(
    superlink: SuperLinkProcess, site: Site, ticket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(superlink, site, ticket, monkeypatch)
    with coordinator(superlink, ticket) as second, ThreadPoolExecutor() as pool:
        asked = ask(second.grid, site)
        held = site.fleet.receive()
        assert held is not None
        fetched = pool.submit(site.fleet.fetch, held)
        assert list(second.grid.pull_messages([asked])) == []
        with pytest.raises(Refusal, match="objects are missing"):
            fetched.result(30)
        site.answer(small(6))
        assert await_reply(second.grid, asked).content == small(6)


def test_a_reply_that_came_in_time_is_there_however_late_it_is_fetched(
    superlink: SuperLinkProcess, site: Site, ticket: Path
) -> None:
    with coordinator(superlink, ticket) as first:
        (asked,) = first.grid.push_messages([Message(small(), site.node, "train", ttl=2)])
        site.answer(small(9))
        time.sleep(2.5)
    with coordinator(superlink, ticket) as second:
        assert await_reply(second.grid, asked).content == small(9)


def test_a_session_whose_beginning_was_lost_begins_anew_at_once_and_a_living_one_stays(
    superlink: SuperLinkProcess, tmp_path: Path
) -> None:
    """A SuperLink that is killed while it admits a site has admitted it, and the site does not know."""
    key, stop = create_node_key(tmp_path / "node.key"), threading.Event()
    superlink.client.register(public_key_bytes(key), "lost")

    def session() -> AbstractContextManager[FleetConnection]:
        return open_fleet(superlink.public_address, trust(superlink), key, stop, heartbeat_s=60.0, wait_s=0.0)

    with ExitStack() as stack:
        stack.enter_context(session())  # nothing is heard of it
        again = stack.enter_context(session())
        assert again.receive() is None
        with pytest.raises(NotAdmittedError, match="HTTP 412"):
            stack.enter_context(session())


def test_a_message_that_is_on_its_way_stays(superlink: SuperLinkProcess, site: Site, ticket: Path) -> None:
    with coordinator(superlink, ticket) as first:
        (asked,) = first.grid.push_messages([Message(large(PART_BYTES // 8 + 3), site.node, "train", ttl=60)])
    with coordinator(superlink, ticket) as second:
        assert list(second.grid.pull_messages([asked])) == []
        site.answer(small(5))
        assert await_reply(second.grid, asked).content == small(5)


def test_a_run_outlives_its_coordinator_by_days(superlink: SuperLinkProcess, ticket: Path) -> None:
    with coordinator(superlink, ticket) as session:
        run = int(session.grid.lineage)
    signed = run - (1 << 64) if run >= 1 << 63 else run
    ((seconds,),) = query(
        superlink,
        f"select (julianday(active_until) - julianday('now')) * 86400 from task where run_id = {signed}",  # noqa: S608  (a number)
    )
    assert LEASE_S - 600 < float(str(seconds)) <= LEASE_S + 1


def test_a_ticket_is_for_its_owner_only_and_goes_with_the_end_of_the_run(
    superlink: SuperLinkProcess, ticket: Path
) -> None:
    with coordinator(superlink, ticket) as session:
        assert stat.S_IMODE(ticket.stat().st_mode) == 0o600
        run = session.grid.lineage
        session.end()
    assert not ticket.exists()
    with coordinator(superlink, ticket) as another:
        assert another.grid.lineage != run
        assert not another.rejoined


@pytest.mark.parametrize("content", [b"", b"{}", b'{"run_id": 1, "token": "00", "input": "?"}', b"\xff"])
def test_a_damaged_ticket_begins_a_new_run(superlink: SuperLinkProcess, ticket: Path, content: bytes) -> None:
    ticket.write_bytes(content)
    with coordinator(superlink, ticket) as session:
        assert not session.rejoined


def test_a_ticket_of_a_run_that_is_over_begins_a_new_run(superlink: SuperLinkProcess, ticket: Path) -> None:
    with coordinator(superlink, ticket) as session:
        old, run = ticket.read_bytes(), session.grid.lineage
        session.end()
    ticket.write_bytes(old)
    with coordinator(superlink, ticket) as session:
        assert not session.rejoined
        assert session.grid.lineage != run


def test_a_run_that_the_superlink_ends_meanwhile_is_an_error_of_ours_and_another_begins(
    superlink: SuperLinkProcess, site: Site, ticket: Path
) -> None:
    with coordinator(superlink, ticket) as session:
        session_flower_adapter._push_output(session.grid, session.context, SubStatus.COMPLETED, "")
        with pytest.raises(RunEndedError, match="has ended the run"):
            session.grid.get_node_ids()
        with pytest.raises(RunEndedError, match="has ended the run"):
            ask(session.grid, site)
    with coordinator(superlink, ticket) as another:
        assert not another.rejoined
        assert another.grid.lineage != session.grid.lineage


def test_killed_before_the_task_is_begun_it_is_begun_by_the_next(superlink: SuperLinkProcess, ticket: Path) -> None:
    client = superlink.client
    client.start_run(code_free_bundle())
    acquired = session_flower_adapter._acquire(client.address, client.secret)
    assert acquired is not None
    run, token = acquired
    session_flower_adapter._write(ticket, run, token, session_flower_adapter.Input())
    with coordinator(superlink, ticket) as session:
        assert session.rejoined
        assert session.grid.lineage == str(run)


def test_a_run_that_nobody_became_the_server_app_of_is_taken(superlink: SuperLinkProcess, ticket: Path) -> None:
    run = superlink.client.start_run(code_free_bundle())
    with coordinator(superlink, ticket) as session:
        assert not session.rejoined
        assert session.grid.lineage == str(run)
        session.end()


def test_a_task_that_was_given_to_nobody_is_worth_another_start(
    superlink: SuperLinkProcess, ticket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_flower_adapter, "_acquire", lambda *_: None)
    with pytest.raises(TransportError, match="not there to be acquired"), coordinator(superlink, ticket):
        pytest.fail("nobody can be in this session")
    assert not ticket.exists()


def test_one_process_is_one_server_app(superlink: SuperLinkProcess, ticket: Path) -> None:
    with (
        coordinator(superlink, ticket),
        pytest.raises(CoordinatorError, match="already"),
        lasting_session(superlink.client.address, superlink.client.secret, ticket, lambda: 1),
    ):
        pass
