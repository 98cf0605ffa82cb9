"""Messages as bytes: what is kept on the disk between announcement and reply, and what is decoded from the wire."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flwr.app import Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import validate_message_type
from flwr.common.serde import message_to_proto, recorddict_from_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto import fleet_pb2
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata as ProtoMetadata
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.inflatable import inflatable_object, inflatable_utils
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedward_common.errors import Refusal, RefusalCode
from fedward_common.flower_adapter import INLINE_BYTES

__all__ = ["UNKNOWN_TYPE", "Incoming", "PackedReply", "announced", "inflate", "opened", "pack_reply"]

UNKNOWN_TYPE: Final = "query.unknown"
"""Stands for every message type of which Flower makes no message, so that it can be refused."""

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that has been announced; its content is still at the SuperLink, or came along, unread.

    `head` is a message with empty content: enough to decide on, and to reply to. `content` is what came along: small
    content does, from Fedward's coordinator to a site that has answered that way.
    """

    head: Message
    tree: ObjectTree
    content: bytes = b""

    def object_ids(self) -> list[str]:
        """Return the SHA-256 of every object of the message, each once, its root (the metadata) included."""
        return list(dict.fromkeys(node.object_id for node in inflatable_object.iterate_object_tree(self.tree)))

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        head = ProtoMessage(metadata=metadata_to_proto(self.head.metadata))
        tree = self.tree.SerializeToString(deterministic=True)
        return _joined([head.SerializeToString(deterministic=True), tree, self.content])

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Incoming:
        """Return the announcement that was kept.

        Raises:
            ValueError: the bytes are none.
        """
        try:
            head, tree, content = map(bytes, _split(data))
            whole = ProtoMessage.FromString(head)
            whole.content.CopyFrom(ProtoRecordDict.FromString(content))
            return announced(whole, ObjectTree.FromString(tree))
        except DecodeError as error:
            msg = "no announced message"
            raise ValueError(msg) from error


def announced(head: ProtoMessage, tree: ObjectTree) -> Incoming:
    """Return a message as the SuperLink announces it; one of a type that Flower does not know is of `UNKNOWN_TYPE`."""
    metadata = head.metadata
    if not validate_message_type(metadata.message_type):
        metadata = ProtoMetadata()
        metadata.CopyFrom(head.metadata)
        metadata.message_type = UNKNOWN_TYPE
    empty = make_message(metadata_from_proto(metadata), content=RecordDict())
    return Incoming(empty, tree, head.content.SerializeToString(deterministic=True))


@dataclass(frozen=True, slots=True)
class PackedReply:
    """A reply as it crosses the wire: sent twice, it is the same bytes, and the SuperLink takes it for one.

    Args:
        request: metadata and object tree.
        objects: content of every object, by its SHA-256.
    """

    request: fleet_pb2.PushMessagesRequest
    objects: Mapping[str, bytes | memoryview]

    @property
    def run_id(self) -> int:
        """The run that it belongs to."""
        return int(self.request.messages_list[0].metadata.run_id)

    @property
    def answers(self) -> str:
        """Identifier of the message that it answers."""
        return str(self.request.messages_list[0].metadata.reply_to_message_id)

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield what `to_bytes` returns, an object at a time."""
        for part in itertools.chain([self.request.SerializeToString(deterministic=True)], self.objects.values()):
            yield _LENGTH.pack(len(part))
            yield part

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> PackedReply:
        """Return the reply that was kept; its objects are views of `data`, if that is one.

        Raises:
            ValueError: the bytes are none.
        """
        try:
            request, *objects = _split(data)
            parsed = fleet_pb2.PushMessagesRequest.FromString(bytes(request))
        except DecodeError as error:
            msg = "no packed reply"
            raise ValueError(msg) from error
        if len(parsed.messages_list) != 1:
            msg = "no packed reply"
            raise ValueError(msg)
        return cls(parsed, {hashlib.sha256(content).hexdigest(): content for content in objects})


def pack_reply(message: Message, runtime_s: float) -> PackedReply:
    """Return the answer to a message, ready to be sent; `runtime_s` is how long the work took, in seconds.

    Small content goes along with the announcement. Fedward's SuperLink then asks for no objects; Flower's own does.
    Large content is encoded an object at a time, whenever it is looked at.
    """
    with inflatable_object.no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        nested = inflatable_object.get_all_nested_objects(message)
        small = _is_small(nested)
        objects = {name: item.deflate() for name, item in nested.items()} if small else _Deflated(nested)
        request = fleet_pb2.PushMessagesRequest(
            messages_list=[message_to_proto(message if small else remove_content_from_message(message))],
            message_object_trees=[inflatable_object.get_object_tree(message)],
            clientapp_runtime_list=[runtime_s],
        )
        return PackedReply(request, objects)


def _is_small(objects: Mapping[str, inflatable_object.InflatableObject]) -> bool:
    left = INLINE_BYTES
    for item in objects.values():
        left -= len(item.deflate())
        if left < 0:
            return False
    return True


class _Deflated(Mapping[str, bytes]):
    """Objects, each encoded anew whenever it is looked at."""

    def __init__(self, objects: Mapping[str, inflatable_object.InflatableObject]) -> None:
        self._objects = objects

    def __getitem__(self, object_id: str) -> bytes:
        with inflatable_object.no_object_id_recompute():
            return self._objects[object_id].deflate()

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)


def opened(incoming: Incoming) -> Message:
    """Return a message with the content that came along with its announcement.

    Raises:
        Refusal: the bytes are no content.
    """
    return _decoded(incoming.head, lambda: recorddict_from_proto(ProtoRecordDict.FromString(incoming.content)))


def inflate(head: Message, object_id: str, contents: dict[str, bytes]) -> Message:
    """Return a message under the metadata of `head`, with the content that `object_id` is the root of.

    Raises:
        Refusal: the bytes are no content.
    """
    return _decoded(head, lambda: inflatable_utils.inflate_object_from_contents(object_id, contents))


def _decoded(head: Message, decode: Callable[[], object]) -> Message:
    try:
        content = decode()
    except Exception as error:  # bytes from the network: whatever the decoder raises, the message is at fault
        raise Refusal(RefusalCode.MESSAGE_INVALID, f"decoder: {type(error).__name__}") from error
    if not isinstance(content, RecordDict):
        raise Refusal(RefusalCode.MESSAGE_INVALID, "no content")
    return make_message(head.metadata, content=content)


def _joined(parts: list[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def _split(data: bytes | memoryview) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    at = 0
    while at < len(data):
        try:
            (length,) = _LENGTH.unpack_from(data, at)
        except struct.error as error:
            msg = "cut short"
            raise ValueError(msg) from error
        at += _LENGTH.size
        if at + length > len(data):
            msg = "cut short"
            raise ValueError(msg)
        parts.append(data[at : at + length])
        at += length
    return parts
