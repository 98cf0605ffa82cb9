from __future__ import annotations

import base64
import hashlib
import importlib
import itertools
import operator
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree

from fedward_client import flower_adapter
from fedward_client.flower_adapter import (
    Doorbell,
    FleetConnection,
    Incoming,
    NotAdmittedError,
    PackedReply,
    RunOverError,
    WireLimits,
    open_fleet,
    pack_reply,
)
from fedward_client.flower_adapter.calls import BoundedClient, Signer
from fedward_client.mailbox import ObjectCache
from fedward_common.certificates import create_node_key, public_key_bytes, verify_as_node
from fedward_common.errors import InstallationError, Refusal, RefusalCode, TransportError
from fedward_common.flower_adapter import assume_identity, detached_message

NODE = 7
PINNED = "a" * 64


# ---------------------------------------------------------------------------------------- fetching, bounded


class Store:
    """The part of the Fleet client that hands out objects, from a dictionary."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.confirmed = 0
        self._pulled = itertools.count()  # objects are pulled by several threads; a count is one step for them
        self.pulled = 0

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802  (Flower's name)
        content = self.objects.get(request.object_id)
        if content is not None:
            self.pulled = next(self._pulled) + 1
        return PullObjectResponse(
            object_found=content is not None, object_available=True, object_content=content or b""
        )

    def ConfirmMessageReceived(self, _: object) -> None:  # noqa: N802
        self.confirmed += 1


def stored(content: RecordDict) -> tuple[Incoming, Store]:
    message = detached_message(content, source=1, target=NODE)
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
    head = make_message(message.metadata, content=RecordDict())
    return Incoming(head, get_object_tree(message)), Store(objects)


def fetch(incoming: Incoming, store: Store, limits: WireLimits | None = None) -> Message:
    client = cast("BoundedClient", store)
    fleet = FleetConnection(NODE, client, limits or WireLimits(), threading.Event(), 1.0, Doorbell(0))
    return fleet.fetch(incoming)


CONTENT = RecordDict({"question": ConfigRecord({"text": "x" * 1000})})


def test_a_message_is_fetched_whole() -> None:
    incoming, store = stored(CONTENT)

    assert fetch(incoming, store).content == CONTENT
    assert store.confirmed == 1


def test_a_message_of_too_many_bytes_is_refused() -> None:
    with pytest.raises(Refusal) as refused:
        fetch(*stored(CONTENT), WireLimits(message_bytes=500))
    assert refused.value.reason is RefusalCode.MESSAGE_TOO_LARGE


def test_a_message_of_too_many_objects_is_refused_before_any_is_fetched() -> None:
    incoming, store = stored(CONTENT)
    store.objects.clear()

    with pytest.raises(Refusal) as refused:
        fetch(incoming, store, WireLimits(objects=2))
    assert refused.value.reason is RefusalCode.MESSAGE_TOO_LARGE


def test_an_object_that_was_swapped_is_refused() -> None:
    incoming, store = stored(CONTENT)
    other = stored(RecordDict({"question": ConfigRecord({"text": "y"})}))[1]
    store.objects = dict(zip(store.objects, other.objects.values(), strict=True))

    with pytest.raises(Refusal) as refused:
        fetch(incoming, store)
    assert refused.value.reason is RefusalCode.MESSAGE_INVALID


def test_an_object_that_is_missing_is_a_refusal() -> None:
    incoming, store = stored(CONTENT)
    store.objects.popitem()

    with pytest.raises(Refusal) as refused:
        fetch(incoming, store)
    assert refused.value.reason is RefusalCode.MESSAGE_INVALID


def test_an_object_of_another_kind_is_a_refusal() -> None:
    incoming, store = stored(CONTENT)
    (root,) = incoming.tree.children
    (record,) = root.children
    tree = ObjectTree(object_id=incoming.tree.object_id, children=[record])

    with pytest.raises(Refusal) as refused:
        fetch(Incoming(incoming.head, tree), store)
    assert refused.value.reason is RefusalCode.MESSAGE_INVALID


@pytest.mark.parametrize("garbage", [b"", b"\x00", b"RecordDict  5\x00hello", b"Nothing  0\x00", bytes(100)])
def test_garbage_with_the_right_digest_is_a_refusal(garbage: bytes) -> None:
    digest = hashlib.sha256(garbage).hexdigest()
    incoming, store = stored(CONTENT)
    store.objects[digest] = garbage
    tree = ObjectTree(object_id=incoming.tree.object_id, children=[ObjectTree(object_id=digest)])

    with pytest.raises(Refusal) as refused:
        fetch(Incoming(incoming.head, tree), store)
    assert refused.value.reason is RefusalCode.MESSAGE_INVALID


# ---------------------------------------------------------------------------------------- kept on the disk


def kept(incoming: Incoming, store: Store, folder: Path) -> ObjectCache:
    cache = ObjectCache(folder, 10**6)
    client = cast("BoundedClient", store)
    FleetConnection(NODE, client, WireLimits(), threading.Event(), 1.0, Doorbell(0)).fetch(incoming, cache)
    return cache


def test_what_was_fetched_is_never_fetched_again(tmp_path: Path) -> None:
    incoming, store = stored(CONTENT)
    kept(incoming, store, tmp_path)
    store.objects.clear()

    cache = ObjectCache(tmp_path, 10**6)
    client = cast("BoundedClient", store)
    again = FleetConnection(NODE, client, WireLimits(), threading.Event(), 1.0, Doorbell(0)).fetch(incoming, cache)

    assert again.content == CONTENT
    assert store.pulled == len(incoming.object_ids())


def test_a_transfer_that_was_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    incoming, store = stored(CONTENT)
    everything = dict(store.objects)
    del store.objects[incoming.object_ids()[1]]
    with pytest.raises(Refusal):
        kept(incoming, store, tmp_path)
    time.sleep(0.2)  # objects are pulled side by side: another may be on its way when one fails
    assert store.pulled == len([path for path in tmp_path.iterdir() if not path.suffix])
    store.objects = everything

    kept(incoming, store, tmp_path)

    assert store.pulled == len(incoming.object_ids())
    assert store.confirmed == 1


def test_an_object_that_was_changed_on_the_disk_is_fetched_again(tmp_path: Path) -> None:
    incoming, store = stored(CONTENT)
    kept(incoming, store, tmp_path)
    (tmp_path / incoming.object_ids()[-1]).write_bytes(b"another model")

    kept(incoming, store, tmp_path)

    assert store.pulled == len(incoming.object_ids()) + 1


def test_nothing_is_confirmed_that_is_not_on_the_disk(tmp_path: Path) -> None:
    incoming, store = stored(CONTENT)
    client = cast("BoundedClient", store)
    fleet = FleetConnection(NODE, client, WireLimits(), threading.Event(), 1.0, Doorbell(0))

    assert fleet.fetch(incoming, ObjectCache(tmp_path, 500)).content == CONTENT

    assert store.confirmed == 0


def test_what_the_disk_holds_counts_against_the_limits_too(tmp_path: Path) -> None:
    incoming, store = stored(CONTENT)
    cache = kept(incoming, store, tmp_path)
    client = cast("BoundedClient", store)
    fleet = FleetConnection(NODE, client, WireLimits(message_bytes=500), threading.Event(), 1.0, Doorbell(0))

    with pytest.raises(Refusal) as refused:
        fleet.fetch(incoming, cache)
    assert refused.value.reason is RefusalCode.MESSAGE_TOO_LARGE


def test_an_announcement_survives_the_disk() -> None:
    incoming, store = stored(CONTENT)

    twin = Incoming.from_bytes(incoming.to_bytes())

    assert vars(twin.head.metadata) == vars(incoming.head.metadata)
    assert twin.object_ids() == incoming.object_ids()
    assert fetch(twin, store).content == CONTENT


def answer() -> PackedReply:
    """Return the packed answer to a message."""
    assume_identity(run=1, node=NODE)
    question = detached_message(CONTENT, source=1, target=NODE)
    question.metadata.__dict__["_message_id"] = "q" * 64
    return pack_reply(Message(CONTENT, reply_to=question), 0.5)


def test_a_reply_that_was_kept_is_sent_as_the_same_bytes() -> None:
    packed = answer()

    twin = PackedReply.from_bytes(packed.to_bytes())

    assert twin == packed
    assert (twin.run_id, twin.answers) == (1, "q" * 64)
    tree = packed.request.message_object_trees[0]
    assert {node.object_id for node in iterate_object_tree(tree)} == set(packed.objects)


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 100])
def test_what_is_no_reply_and_no_announcement_is_an_error(cut: int) -> None:
    with pytest.raises(ValueError, match=r"cut short|no packed reply|unpack"):
        PackedReply.from_bytes(answer().to_bytes()[:cut])
    with pytest.raises(ValueError, match=r"cut short|no announced message|unpack"):
        Incoming.from_bytes(stored(CONTENT)[0].to_bytes()[:cut])


# ---------------------------------------------------------------------------------------- the wire, mocked


def calling(handler: Callable[[httpx.Request], httpx.Response]) -> FleetConnection:
    """Return a connection whose requests are answered by `handler`."""
    limits = WireLimits(response_bytes=1000)
    client = BoundedClient("https://x", [], ssl.create_default_context(), limits)
    hooks = client._client.event_hooks
    client._client.close()
    client._client = httpx.Client(transport=httpx.MockTransport(handler), event_hooks=hooks, follow_redirects=False)
    return FleetConnection(NODE, client, limits, threading.Event(), 0.2, Doorbell(0))


def empty(status: int) -> httpx.Response:
    return httpx.Response(status, headers={"content-length": "0"}, stream=httpx.ByteStream(b""))


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, NotAdmittedError), (403, RunOverError), (412, TransportError), (500, TransportError), (503, TransportError)],
)
def test_an_http_error_is_one_of_ours_and_no_signal(status: int, error: type[TransportError]) -> None:
    with pytest.raises(error):
        calling(lambda _: empty(status)).receive()


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, headers={"content-length": "5000"}, content=b""),
        httpx.Response(200, headers={"content-encoding": "gzip", "content-length": "10"}, stream=httpx.ByteStream(b"")),
        httpx.Response(200, stream=httpx.ByteStream(b"no length")),
        httpx.Response(302, headers={"location": "https://elsewhere.example/", "content-length": "0"}),
    ],
)
def test_an_unbounded_encoded_or_redirected_answer_is_not_read(response: httpx.Response) -> None:
    with pytest.raises(TransportError, match="RemoteProtocolError"):
        calling(lambda _: response).receive()


def test_an_outage_is_waited_out() -> None:
    answers: Iterator[httpx.Response] = iter([empty(503), empty(502), empty(200)])

    assert calling(lambda _: next(answers)).receive() is None


def test_a_stop_ends_the_patience() -> None:
    fleet = calling(lambda _: empty(503))
    fleet.patience_s = 60.0
    fleet.stop.set()

    with pytest.raises(TransportError):
        fleet.receive()


def asked(headers: list[httpx.Headers], *answers: httpx.Response) -> Callable[[httpx.Request], httpx.Response]:
    """Return a handler that notes the headers of each request."""
    left = iter(answers)

    def handler(request: httpx.Request) -> httpx.Response:
        headers.append(request.headers)
        return next(left)

    return handler


def test_a_lost_answer_is_asked_for_again_and_only_then() -> None:
    seen: list[httpx.Headers] = []
    rung = empty(200)
    rung.headers["fedward-seen"] = "7"
    fleet = calling(asked(seen, rung, rung, empty(503), rung, rung))
    fleet.client._interceptors = (fleet.doorbell,)

    for _ in range(4):
        fleet.receive()

    assert ["fedward-resume" in headers for headers in seen] == [True, False, False, True, False]
    assert [headers.get("fedward-seen") for headers in seen] == [None, "7", "7", None, "7"]


def test_a_renewed_key_signs_from_the_next_request_on(tmp_path: Path) -> None:
    keys = [create_node_key(tmp_path / name) for name in ("old", "new")]
    seen: list[httpx.Headers] = []
    fleet = calling(asked(seen, empty(200), empty(200), empty(200)))
    current = [keys[0]]
    fleet.client._interceptors = (Signer(lambda: current[0]),)

    fleet.receive()
    current[0] = keys[1]
    fleet.receive()
    fleet.receive()

    shown = [base64.b64decode(headers["flwr-public-key"]) for headers in seen]
    assert shown == [public_key_bytes(keys[0]), public_key_bytes(keys[1]), public_key_bytes(keys[1])]


def test_a_reply_is_signed_whole(tmp_path: Path) -> None:
    key = create_node_key(tmp_path / "node.key")
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return empty(200)

    fleet = calling(handler)
    fleet.client._interceptors = (Signer(lambda: key),)
    fleet.push(answer())
    fleet.receive()

    push, pull = requests
    assert verify_as_node(public_key_bytes(key), push.content, push.headers["fedward-signature"])
    assert not verify_as_node(public_key_bytes(key), push.content + b"\x00", push.headers["fedward-signature"])
    assert "fedward-signature" not in pull.headers


def test_an_address_where_nobody_listens_is_a_transport_error(tmp_path: Path) -> None:
    key = create_node_key(tmp_path / "node.key")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    with (
        pytest.raises(TransportError, match="cannot be reached"),
        open_fleet("127.0.0.1:9", tls, key, threading.Event()),
    ):
        pytest.fail("connected to nobody")


def test_flwr_version_contract() -> None:
    assert flower_adapter.check_flower_version().startswith("1.41.")
    for module, names in flower_adapter.INTERNAL_NAMES.items():
        for name in names.split():
            operator.attrgetter(name)(importlib.import_module(module))


def test_another_flwr_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.42.0")

    with pytest.raises(InstallationError, match=r"1\.42\.0"):
        flower_adapter.check_flower_version()
