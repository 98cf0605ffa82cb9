"""Content that comes along with a message's announcement: not read before the message is admitted, and bounded."""

from __future__ import annotations

import threading
from typing import cast

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_from_proto
from flwr.proto import fleet_pb2
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse

from fedward_client.flower_adapter import (
    Doorbell,
    FleetConnection,
    Incoming,
    PackedReply,
    WireLimits,
    announced,
    pack_reply,
)
from fedward_client.flower_adapter.calls import BoundedClient
from fedward_client.flower_adapter.codec import UNKNOWN_TYPE
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.flower_adapter import INLINE_BYTES, assume_identity, detached_message

NODE = 7
CONTENT = RecordDict({"fedward": ConfigRecord({"text": "x" * 1000})})


class SuperLink:
    """The part of the Fleet client that answers and confirms; it asks for `missing` objects of a reply."""

    def __init__(self, missing: tuple[str, ...] = ()) -> None:
        self.missing = missing
        self.calls: list[str] = []
        self.pushed: list[str] = []
        self.announced: fleet_pb2.PushMessagesRequest | None = None
        self.waiting = fleet_pb2.PullMessagesResponse()

    def PullMessages(self, _: object) -> fleet_pb2.PullMessagesResponse:  # noqa: N802
        self.calls.append("pull")
        return self.waiting

    def ConfirmMessageReceived(self, _: object) -> None:  # noqa: N802  (Flower's names)
        self.calls.append("confirm")

    def PushMessages(self, request: fleet_pb2.PushMessagesRequest) -> fleet_pb2.PushMessagesResponse:  # noqa: N802
        self.calls.append("announce")
        self.announced = request
        return fleet_pb2.PushMessagesResponse(objects_to_push=self.missing, session_id="s")

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        self.pushed.append(request.object_id)
        return PushObjectResponse(stored=True)


def connection(superlink: SuperLink, limits: WireLimits | None = None) -> FleetConnection:
    client = cast("BoundedClient", superlink)
    return FleetConnection(NODE, client, limits or WireLimits(), threading.Event(), 1.0, Doorbell(0))


def incoming(content: RecordDict = CONTENT) -> Incoming:
    """Return a message as our SuperLink announces it to a site that reads content there."""
    message = detached_message(content, source=1, target=NODE)
    message.metadata.__dict__["_message_id"] = message.object_id
    return announced(message_to_proto(message), ObjectTree(object_id=message.object_id))


def reply_of(size: int) -> PackedReply:
    assume_identity(run=1, node=NODE)
    question = detached_message(CONTENT, source=1, target=NODE)
    question.metadata.__dict__["_message_id"] = "q" * 64
    return pack_reply(Message(RecordDict({"fedward": ConfigRecord({"v": bytes(size)})}), reply_to=question), 0.5)


# ------------------------------------------------------------------------------------------------------------ incoming
def test_content_that_came_along_is_opened_without_another_request_but_the_confirmation() -> None:
    superlink = SuperLink()

    message = connection(superlink).fetch(incoming())

    assert message.content == CONTENT
    assert superlink.calls == ["confirm"]


def test_nothing_of_it_is_read_before_the_message_is_admitted() -> None:
    """A refusal for type or bundle is decided on the head; content that no decoder takes does no harm until then."""
    head = message_to_proto(detached_message(RecordDict(), source=1, target=NODE))
    head.content.items.add(key="rows").array_record.items.add(key="x").value.data = b"\x93NUMPY"
    head.content.items.add(key="nothing")

    found = announced(head, ObjectTree(object_id="r"))

    assert found.head.content == RecordDict()
    assert found.content
    with pytest.raises(Refusal) as refused:
        connection(SuperLink()).fetch(found)
    assert refused.value.reason is RefusalCode.MESSAGE_INVALID


@pytest.mark.parametrize("kind", ["", "shell", "train.", "os.system", "train.a.b", "évaluer", "x" * 100_000])
def test_a_type_of_which_flower_makes_no_message_is_one_that_can_be_refused(kind: str) -> None:
    """Flower raises ValueError; raised here it would end the daemon."""
    head = message_to_proto(detached_message(CONTENT, source=1, target=NODE))
    head.metadata.message_type = kind

    assert announced(head, ObjectTree()).head.metadata.message_type == UNKNOWN_TYPE


def test_an_announcement_without_a_tree_has_no_content() -> None:
    superlink = SuperLink()
    message = detached_message(CONTENT, source=1, target=NODE)
    superlink.waiting = fleet_pb2.PullMessagesResponse(messages_list=[message_to_proto(message)])
    superlink.waiting.messages_list[0].ClearField("content")

    found = connection(superlink).receive()

    assert found is not None
    with pytest.raises(Refusal) as refused:
        connection(superlink).fetch(found)
    assert refused.value.reason is RefusalCode.MESSAGE_INVALID


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x0a\x05ab", b"x"])
def test_bytes_that_are_no_content_are_refused(content: bytes) -> None:
    found = incoming()

    with pytest.raises(Refusal) as refused:
        connection(SuperLink()).fetch(Incoming(found.head, found.tree, content))
    assert refused.value.reason is RefusalCode.MESSAGE_INVALID


def test_more_bytes_than_allowed_are_refused_and_not_confirmed() -> None:
    superlink = SuperLink()

    with pytest.raises(Refusal) as refused:
        connection(superlink, WireLimits(message_bytes=500)).fetch(incoming())
    assert refused.value.reason is RefusalCode.MESSAGE_TOO_LARGE
    assert superlink.calls == []


def test_content_stands_under_the_metadata_that_was_admitted() -> None:
    found = incoming()

    assert connection(SuperLink()).fetch(found).metadata is found.head.metadata


def test_an_announcement_with_its_content_survives_the_disk() -> None:
    found = incoming()

    twin = Incoming.from_bytes(found.to_bytes())

    assert twin.content == found.content
    assert connection(SuperLink()).fetch(twin).content == CONTENT


@pytest.mark.parametrize("at", [8, 60, 200, -1])
def test_a_damaged_announcement_is_an_error_or_a_refusal(at: int) -> None:
    data = bytearray(incoming().to_bytes())
    del data[at]

    with pytest.raises((ValueError, Refusal)):
        connection(SuperLink()).fetch(Incoming.from_bytes(bytes(data)))


# ------------------------------------------------------------------------------------------------------------ outgoing
def test_a_small_reply_is_one_request() -> None:
    superlink = SuperLink()

    connection(superlink).push(reply_of(1000))

    assert superlink.calls == ["announce"]
    assert superlink.announced is not None
    content = recorddict_from_proto(superlink.announced.messages_list[0].content)
    assert content["fedward"]["v"] == bytes(1000)


def test_a_superlink_that_asks_for_objects_all_the_same_gets_them() -> None:
    """Flower's own does: it stores what came along and looks for the objects."""
    packed = reply_of(1000)
    superlink = SuperLink(tuple(packed.objects))

    connection(superlink).push(packed)

    assert sorted(superlink.pushed) == sorted(packed.objects)
    assert len(packed.objects) == 3


def test_a_large_reply_is_announced_without_its_content() -> None:
    packed = reply_of(INLINE_BYTES + 1)

    assert packed.request.messages_list[0].content.ByteSize() == 0
    assert sum(map(len, packed.objects.values())) > INLINE_BYTES


@pytest.mark.parametrize("size", [10, INLINE_BYTES + 1])
def test_a_reply_that_was_kept_is_the_same_request(size: int) -> None:
    packed = reply_of(size)

    assert PackedReply.from_bytes(packed.to_bytes()) == packed
