"""The coordinator's grid and the SuperLink over real connections: small content in one request, large in parts."""

from __future__ import annotations

import contextlib
import importlib
import operator
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supernode.fleet_http_connection import http_request_response

from fedward_client.flower_adapter import pack_reply
from fedward_common.certificates import create_node_key, public_key_bytes
from fedward_common.errors import CoordinatorError, FedwardError, TransportError
from fedward_common.flower_adapter import ANNOUNCEMENT_BYTES, INLINE_BYTES
from fedward_common.packing import PART_BYTES, unpack
from fedward_server import grid_flower_adapter
from fedward_server.grid_flower_adapter import CoordinatorGrid, RunEndedError, in_run
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.engines.deployed import SuperLinkProcess
from tests.server.centre_sites import INT64, Site, connected_site, counted, large, small


@dataclass
class Centre:
    """The coordinator in its run, and which requests it has made."""

    superlink: SuperLinkProcess
    folder: Path
    grid: CoordinatorGrid
    requests: Counter[str]

    def ask(self, *nodes: int, content: RecordDict | None = None) -> list[str]:
        return self.grid.push_messages([Message(content or small(), node, "train", ttl=60) for node in nodes])

    def await_replies(self, identifiers: list[str]) -> list[Message]:
        deadline, replies = time.monotonic() + 30, list[Message]()
        while len(replies) < len(identifiers) and time.monotonic() < deadline:
            answered = {reply.metadata.reply_to_message_id for reply in replies}
            replies += self.grid.pull_messages([name for name in identifiers if name not in answered])
        return replies

    def settle(self) -> None:
        """Confirm what was fetched, and wait until that is done."""
        self.grid.settle(wait=True)

    def site(self, name: str) -> AbstractContextManager[Site]:
        return connected_site(self.superlink, self.folder, name)

    def rows(self, table: str) -> int:
        """Return how many rows of Flower's state a table has."""
        database = Path(self.superlink.process._command[-2]).with_name("state.db")
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  (a test's own)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("logs")) as process:
        process.await_ready()
        yield process


@pytest.fixture
def centre(superlink: SuperLinkProcess, tmp_path: Path) -> Iterator[Centre]:
    requests: Counter[str] = Counter()
    with superlink.client.session(superlink.client.start_run(code_free_bundle())) as (grid, _):
        counted(grid._runtime_client._client, requests)
        yield Centre(superlink, tmp_path, grid, requests)


def acquainted(centre: Centre, *sites: Site) -> None:
    """Let the sites answer once, as at the roll call, so that the centre knows how they read."""
    asked = centre.ask(*(site.node for site in sites))
    for site in sites:
        site.answer()
    assert len(centre.await_replies(asked)) == len(sites)
    centre.settle()
    for requests in (centre.requests, *(site.requests for site in sites)):
        requests.clear()


def test_flwr_version_contract() -> None:
    for module, names in grid_flower_adapter.INTERNAL_NAMES.items():
        for name in names.split():
            operator.attrgetter(name)(importlib.import_module(module))


# ----------------------------------------------------------------------------------------------------- small content
@pytest.mark.deployed
@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (500, TransportError, "HTTP 500"),  # a full disk, a busy database: no verdict on the run
        (503, TransportError, "HTTP 503"),
        (401, RunEndedError, "has ended the run"),
        (400, CoordinatorError, "HTTP 400"),
        (404, CoordinatorError, "HTTP 404"),
    ],
)
def test_a_superlink_in_trouble_is_no_verdict_on_the_run(status: int, error: type[FedwardError], words: str) -> None:
    request = httpx.Request("POST", "http://127.0.0.1/")
    with pytest.raises(error, match=words) as caught, in_run("messages cannot be sent"):
        httpx.Response(status, request=request).raise_for_status()
    assert caught.type is error


def test_a_small_message_is_one_request_at_each_end(centre: Centre) -> None:
    """One announcement out and one back; beside these, each end confirms what it got."""
    with centre.site("north") as north, centre.site("south") as south:
        acquainted(centre, north, south)

        asked = centre.ask(north.node, south.node, content=small(7))
        got = [site.answer(small(8)) for site in (north, south)]
        replies = centre.await_replies(asked)
        centre.settle()
        counts = [dict(requests) for requests in (centre.requests, north.requests, south.requests)]

    assert [message.content["fedward"]["number"] for message in got] == [7, 7]
    assert [reply.content["fedward"]["number"] for reply in replies] == [8, 8]
    assert {reply.metadata.src_node_id for reply in replies} == {north.node, south.node}
    for count, confirmed in zip(counts, (2, 1, 1), strict=True):
        assert (count["push-messages"], count["confirm-message-received"]) == (1, confirmed)
        assert count.keys() <= {"push-messages", "pull-messages", "confirm-message-received", "send-task-heartbeat"}


@pytest.mark.deployed
def test_nothing_of_an_answered_message_is_left_at_the_superlink(centre: Centre) -> None:
    tables = ("objects", "object_children", "message_ins", "message_res", "object_push_session_pending")
    with centre.site("north") as north:
        acquainted(centre, north)
        before = [centre.rows(table) for table in tables]

        for content in (small(1), large(PART_BYTES // 8 + 1)):
            asked = centre.ask(north.node, content=content)
            north.answer()
            assert len(centre.await_replies(asked)) == 1
        centre.settle()

        assert [centre.rows(table) for table in tables] == before


@pytest.mark.deployed
def test_a_node_that_never_answered_inside_gets_objects(centre: Centre) -> None:
    with centre.site("north") as north:
        asked = centre.ask(north.node)
        north.answer()
        (reply,) = centre.await_replies(asked)

    assert reply.content == small()
    assert north.requests["pull-object"] >= centre.requests["push-object"] == 3  # metadata, table of contents, header
    assert north.requests["push-object"] == centre.requests["pull-object"] == 0


@pytest.mark.deployed
def test_a_reply_that_is_sent_twice_is_taken_once(centre: Centre) -> None:
    """A site that was killed before it saw the answer sends the very same bytes again."""
    with centre.site("north") as north:
        asked = centre.ask(north.node)
        packed = pack_reply(Message(small(3), reply_to=north.receive()), 0.1)
        north.fleet.push(packed)
        north.fleet.push(type(packed).from_bytes(packed.to_bytes()))
        assert centre.rows("message_res") == 1
        (reply,) = centre.await_replies(asked)

    assert reply.content == small(3)
    assert not centre.grid._arrived


@pytest.mark.deployed
def test_an_error_comes_back_as_an_error(centre: Centre) -> None:
    with centre.site("north") as north:
        acquainted(centre, north)
        asked = centre.ask(north.node)
        north.fleet.reply(Message(Error(8, "task_crashed"), reply_to=north.receive()), 0.1)
        (reply,) = centre.await_replies(asked)

    assert reply.has_error()
    assert reply.error.reason == "task_crashed"


@pytest.mark.deployed
def test_the_largest_small_content_and_the_smallest_large_one_both_arrive(centre: Centre) -> None:
    with centre.site("north") as north:
        acquainted(centre, north)
        for extra, objects in ((-512, 0), (1, 3)):
            content = RecordDict({"fedward": ConfigRecord({"vector": bytes(INLINE_BYTES + extra)})})
            centre.requests.clear()
            asked = centre.ask(north.node, content=content)
            got = north.answer()
            (reply,) = centre.await_replies(asked)

            assert got.content == reply.content == content
            assert centre.requests["push-object"] == centre.requests["pull-object"] == objects


# ----------------------------------------------------------------------------------------------------- large content
@pytest.mark.deployed
def test_a_large_vector_goes_there_and_back_part_by_part(centre: Centre) -> None:
    size = 2 * PART_BYTES // 8 + 5
    with centre.site("north") as north:
        acquainted(centre, north)
        asked = centre.ask(north.node, content=large(size))
        got = north.answer(large(size, first=9))
        (reply,) = centre.await_replies(asked)

    for content, first in ((got.content, 0), (reply.content, 9)):
        header = content.config_records["fedward"]
        values = unpack(content, header, dtype=INT64, length=size)
        assert (values == np.arange(first, first + size)).all()
    assert centre.requests["push-object"] == 5  # metadata, table of contents, header with the first part, two parts


@pytest.mark.deployed
def test_a_model_for_many_sites_is_uploaded_once(centre: Centre) -> None:
    with centre.site("north") as north, centre.site("south") as south:
        acquainted(centre, north, south)
        asked = centre.ask(north.node, south.node, content=large(PART_BYTES // 8 + 1))
        got = [site.answer(small()) for site in (north, south)]
        assert len(centre.await_replies(asked)) == 2

    assert got[0].content == got[1].content
    assert centre.requests["push-object"] == 5  # two messages' metadata; table of contents, header and part once


@pytest.mark.deployed
def test_one_of_many_replies_is_fetched_at_a_time(centre: Centre) -> None:
    with centre.site("north") as north, centre.site("south") as south:
        acquainted(centre, north, south)
        asked = centre.ask(north.node, south.node)
        for site in (north, south):
            site.answer(large(PART_BYTES // 8))
        fetched = []
        for _ in range(2):
            assert len(centre.grid.pull_messages(asked)) == 1
            fetched.append(centre.requests["pull-object"])

    assert 3 <= fetched[0] < fetched[1]
    assert centre.requests["pull-messages"] == 1


@pytest.mark.deployed
def test_messages_are_named_before_they_leave_and_found_again_by_another_connection_to_the_run(centre: Centre) -> None:
    named: list[str] = []

    def note(identifiers: list[str]) -> None:
        assert not centre.requests
        named.extend(identifiers)

    with centre.site("north") as north, centre.site("south") as south:
        acquainted(centre, north, south)
        messages = [Message(small(), site.node, "train", ttl=60) for site in (north, south)]
        assert centre.grid.push_named(messages, note) == named
        for site in (north, south):
            site.answer(small(site.node % 99))
        with closing(CoordinatorGrid(centre.grid._addr, centre.grid._token)) as other:
            other.set_run(centre.grid.run)
            assert other.lineage == centre.grid.lineage
            found = replace(centre, grid=other).await_replies(named)
            (unknown,) = other.pull_messages(["0" * 64])
    assert {reply.metadata.src_node_id: reply.content for reply in found} == {
        site.node: small(site.node % 99) for site in (north, south)
    }
    assert unknown.metadata.reply_to_message_id == "0" * 64
    assert unknown.error.code == ErrorCode.MESSAGE_UNAVAILABLE  # what the round loop takes for "ask again"


@pytest.mark.deployed
def test_a_reply_to_a_round_that_is_over_is_dropped(centre: Centre) -> None:
    with centre.site("north") as north, centre.site("south") as south:
        acquainted(centre, north, south)
        over = centre.ask(north.node, south.node)
        for site in (north, south):
            site.answer(large(PART_BYTES // 8))
        (first,) = centre.grid.pull_messages(over)  # the other one has been announced as well, and waits to be fetched
        next_round = centre.ask(north.node)
        north.answer(small(2))
        fetched = centre.requests["pull-object"]

        (reply,) = centre.await_replies(next_round)

    assert first.metadata.reply_to_message_id in over
    assert reply.content == small(2)
    assert centre.requests["pull-object"] == fetched


# ------------------------------------------------------------------------------------------------------ stock Flower
@pytest.mark.deployed
def test_a_stock_supernode_is_asked_and_answers_between_sites_of_ours(centre: Centre, tmp_path: Path) -> None:
    """Flower's own client knows objects only: nothing of ours may change what it sees."""
    key = create_node_key(tmp_path / "stock.key")
    node = centre.superlink.client.register(public_key_bytes(key), "stock")
    pair, address, authority = (key, key.public_key()), centre.superlink.public_address, centre.superlink.ca_pem
    with (
        centre.site("north") as north,
        http_request_response(address, insecure=False, root_certificates=authority, authentication_keys=pair) as stock,
    ):
        acquainted(centre, north)
        asked = centre.ask(north.node, node, content=small(5))
        got = answer_as_stock(stock, small(6))
        north.answer(small(6))
        replies = centre.await_replies(asked)

    assert got.content == small(5)
    assert {reply.metadata.src_node_id for reply in replies} == {north.node, node}
    assert all(reply.content == small(6) for reply in replies)


def answer_as_stock(stock: Any, content: RecordDict) -> Message:
    """Answer one message with the calls that Flower's SuperNode makes, in its order."""
    _, receive, send, _, _, pull_object, push_object, confirm = stock
    deadline = time.monotonic() + 30
    while (found := receive()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    head, tree = found
    run = head.metadata.run_id
    asked = pull_and_inflate_object_from_tree(
        tree, lambda name: pull_object(run, name), lambda name: confirm(run, name), return_type=Message
    )
    asked.metadata.__dict__["_message_id"] = head.metadata.message_id
    reply = Message(content, reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    missing, session = send(reply, get_object_tree(reply), 0.1)
    for name, item in get_all_nested_objects(reply).items():
        if name in missing:
            push_object(run, session, name, item.deflate())
    return asked


# ----------------------------------------------------------------------------------------------------------- attacks
@pytest.mark.deployed
@pytest.mark.parametrize("size", [ANNOUNCEMENT_BYTES, 8 * ANNOUNCEMENT_BYTES])
def test_a_site_cannot_fill_the_centre_s_memory_with_an_announcement(centre: Centre, size: int) -> None:
    """All announcements that wait are read at once, so each of them is small; large content waits at the SuperLink."""
    with centre.site("north") as north:
        acquainted(centre, north)
        asked = centre.ask(north.node)
        question = north.receive()
        packed = pack_reply(Message(small(), reply_to=question), 0.1)
        (head,) = packed.request.messages_list
        head.content.items[0].config_record.items[0].value.bytes = bytes(size)

        with pytest.raises(TransportError, match="413"):
            north.fleet.push(packed)
        north.fleet.push(pack_reply(Message(small(1), reply_to=question), 0.1))
        (reply,) = centre.await_replies(asked)

    assert reply.content == small(1)


def malformed(change: Callable[[Any], None]) -> Callable[[Site, Message], None]:
    """Return a site that exchanges the content inside its announcement."""

    def send(site: Site, question: Message) -> None:
        packed = pack_reply(Message(small(), reply_to=question), 0.1)
        change(packed.request.messages_list[0].content.items[0])
        site.fleet.push(packed)

    return send


def an_array_that_is_none(item: Any) -> None:
    item.array_record.items.add(key="rows").value.data = b"\x93NUMPY"


def a_record_without_a_kind(item: Any) -> None:
    item.ClearField("config_record")


def a_record_without_a_name(item: Any) -> None:
    item.key = ""


def an_entry_without_a_value(item: Any) -> None:
    item.config_record.items.add(key="nothing")


MALFORMED = (an_array_that_is_none, a_record_without_a_kind, a_record_without_a_name, an_entry_without_a_value)


@pytest.mark.deployed
def test_content_that_is_none_ends_neither_the_run_nor_another_site(centre: Centre) -> None:
    with centre.site("north") as north, centre.site("south") as south:
        acquainted(centre, north, south)
        for number, change in enumerate(MALFORMED):
            asked = centre.ask(north.node, south.node)
            with contextlib.suppress(TransportError):  # where the SuperLink itself reads that it is none
                malformed(change)(north, north.receive())
            south.answer(small(number))
            replies: dict[int, Message] = {}
            while south.node not in replies:
                replies |= {reply.metadata.src_node_id: reply for reply in centre.grid.pull_messages(asked)}

            assert replies[south.node].content == small(number)
