"""The only module of the campaigns that imports internal Flower names: messages as a SuperLink hands them out.

A hostile SuperLink is bound to no rule that Flower's own keeps, so everything here takes what it is given.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from flwr.app import Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import recorddict_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, recorddict_pb2, run_pb2
from flwr.supercore.inflatable import inflatable_object, inflatable_utils

__all__ = [
    "ANSWERS",
    "BROKEN_INLINE",
    "COORDINATOR",
    "RUN",
    "Parcel",
    "Reply",
    "Tree",
    "announcement",
    "answer_activation",
    "answer_bundle",
    "answer_pull_object",
    "answer_push",
    "answer_run",
    "asked_bundle",
    "asked_object",
    "asked_run",
    "deep_announcement",
    "digest_of",
    "inflated",
    "inline_content",
    "parcel",
    "pushed_object",
    "tree_ids",
    "with_object",
]

COORDINATOR: Final = 1
"""Flower's node id of every ServerApp."""

RUN: Final = 77
"""A run whose bundle is the pinned one."""

Tree = tuple[str, "tuple[Tree, ...]"]
"""An object's identifier, and the trees of its children."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message as it is announced and handed out; nothing of it needs to fit together.

    Attributes:
        metadata: fields of Flower's ``Metadata``.
        tree: what is announced; None: no tree at all.
        objects: what is handed out for an identifier that is asked for.
        inline: content within the announcement, where an honest SuperLink puts none.
    """

    metadata: Mapping[str, Any]
    tree: Tree | None
    objects: Mapping[str, bytes]
    inline: bytes = b""


@dataclass(slots=True)
class Reply:
    """What a site sent back: its announcement, then its objects as they come."""

    head: message_pb2.Message
    tree: message_pb2.ObjectTree
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def answers(self) -> str:
        """Identifier of the message that it answers."""
        return str(self.head.metadata.reply_to_message_id)

    @property
    def wanted(self) -> list[str]:
        """Identifiers of its objects."""
        return [node.object_id for node in inflatable_object.iterate_object_tree(self.tree)]

    @property
    def whole(self) -> bool:
        """Whether every object has come."""
        return set(self.wanted) <= set(self.objects)

    def content(self) -> RecordDict:
        """Return its records.

        Raises:
            ValueError: they are none.
        """
        return inflated(self.tree.children[0].object_id, self.objects)


def digest_of(content: bytes) -> str:
    """Return the identifier that Flower gives an object."""
    return hashlib.sha256(content).hexdigest()


def parcel(content: RecordDict, *, target: int, message_type: str, run: int = RUN) -> Parcel:
    """Return `content` as an honest SuperLink would hand it out to the node `target`; no two are the same message."""
    metadata: dict[str, Any] = {
        "run_id": run, "src_node_id": COORDINATOR, "dst_node_id": target, "reply_to_message_id": "",
        "group_id": uuid4().hex, "ttl": 600.0, "message_type": message_type, "created_at": time.time(),
    }  # fmt: skip
    message = make_message(Metadata(message_id="", **metadata), content=content)
    objects = {key: item.deflate() for key, item in inflatable_object.get_all_nested_objects(message).items()}
    tree = _tree(inflatable_object.get_object_tree(message))
    return Parcel(metadata | {"message_id": tree[0]}, tree, objects)


def _tree(proto: message_pb2.ObjectTree) -> Tree:
    return str(proto.object_id), tuple(_tree(child) for child in proto.children)


def tree_ids(tree: Tree | None) -> list[str]:
    """Return every identifier in a tree, children first."""
    return [name for child in tree[1] for name in tree_ids(child)] + [tree[0]] if tree else []


def with_object(sent: Parcel, name: str, content: bytes) -> Parcel:
    """Return a parcel in which the object `name` has other content, and everything above it the digests that follow.

    An object above it that is not handed out stays away, under the digest that it was announced by.
    """
    objects, tree = dict(sent.objects), sent.tree
    renamed = {name: digest_of(content)}
    objects.pop(name)
    objects[renamed[name]] = content
    for parent in _ancestors(tree, name):
        if parent not in objects:
            break
        new = objects.pop(parent)
        for former, later in renamed.items():
            new = new.replace(former.encode(), later.encode())
        renamed[parent] = digest_of(new)
        objects[renamed[parent]] = new
    message = renamed.get(str(sent.metadata["message_id"]), sent.metadata["message_id"])
    return replace(
        sent, objects=objects, tree=_renamed(tree, renamed), metadata={**sent.metadata, "message_id": message}
    )


def _ancestors(tree: Tree | None, name: str) -> list[str]:
    """Return the identifiers above `name`, the nearest first."""
    if tree is None or tree[0] == name:
        return []
    for child in tree[1]:
        if name in tree_ids(child):
            return [*_ancestors(child, name), tree[0]]
    return []


def _renamed(tree: Tree | None, names: Mapping[str, str]) -> Tree | None:
    if tree is None:
        return None
    return names.get(tree[0], tree[0]), tuple(child for each in tree[1] if (child := _renamed(each, names)))


def inflated(root: str, objects: Mapping[str, bytes]) -> RecordDict:
    """Return the records that `root` names, as Flower itself decodes them.

    Raises:
        ValueError: they are none.
    """
    try:
        content = inflatable_utils.inflate_object_from_contents(root, dict(objects), keep_object_contents=True)
    except Exception as error:  # whatever Flower's decoder raises
        msg = f"{type(error).__name__}: {error}"
        raise ValueError(msg) from error
    if not isinstance(content, RecordDict):
        msg = f"a {type(content).__name__}"
        raise ValueError(msg)  # noqa: TRY004  (one error for the caller)
    return content


# ------------------------------------------------------------------------------------------- the Fleet API, server side
def announcement(parcels: Iterable[Parcel]) -> bytes:
    """Return a ``PullMessagesResponse`` with `parcels`."""
    response = fleet_pb2.PullMessagesResponse()
    for each in parcels:
        message = response.messages_list.add()
        message.metadata.CopyFrom(message_pb2.Metadata(**each.metadata))
        if each.inline:
            message.content.MergeFromString(each.inline)
        if each.tree is not None:
            _fill(response.message_object_trees.add(), each.tree)
    return bytes(response.SerializeToString())


def _fill(proto: message_pb2.ObjectTree, tree: Tree) -> None:
    proto.object_id = tree[0]
    for child in tree[1]:
        _fill(proto.children.add(), child)


def inline_content(content: RecordDict) -> bytes:
    """Return records as an announcement could carry them."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def _valueless() -> bytes:
    entry = recorddict_pb2.ConfigRecord.Item(key="a", value=recorddict_pb2.ConfigRecordValue())
    record = recorddict_pb2.RecordDict.Item(key="a", config_record=recorddict_pb2.ConfigRecord(items=[entry]))
    return bytes(recorddict_pb2.RecordDict(items=[record]).SerializeToString())


BROKEN_INLINE: Final = _valueless()
"""Records within an announcement that are well-formed and have no meaning: a value of no kind."""


def deep_announcement(depth: int) -> bytes:
    """Return an announcement whose tree is `depth` objects deep."""
    tree = b""
    for _ in range(depth):
        tree = b"\x12" + _varint(len(tree)) + tree
    return b"\x12\x00\x1a" + _varint(len(tree)) + tree


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:  # noqa: PLR2004  (seven bits a byte)
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def asked_object(body: bytes) -> str:
    """Return the identifier in a ``PullObjectRequest``."""
    return str(message_pb2.PullObjectRequest.FromString(body).object_id)


def answer_pull_object(content: bytes | None) -> bytes:
    """Return a ``PullObjectResponse``; None: there is no such object."""
    response = message_pb2.PullObjectResponse(
        object_found=content is not None, object_available=content is not None, object_content=content or b""
    )
    return bytes(response.SerializeToString())


def asked_run(body: bytes) -> int:
    """Return the run in a ``GetRunRequest``."""
    return int(run_pb2.GetRunRequest.FromString(body).run_id)


def asked_bundle(body: bytes) -> int:
    """Return the run in a ``GetFabRequest``."""
    return int(fab_pb2.GetFabRequest.FromString(body).run_id)


def answer_run(run: int, bundle_sha256: str) -> bytes:
    """Return a ``GetRunResponse``."""
    return bytes(run_pb2.GetRunResponse(run=run_pb2.Run(run_id=run, fab_hash=bundle_sha256)).SerializeToString())


def answer_push(body: bytes, session: str) -> tuple[list[Reply], bytes]:
    """Return the replies that a ``PushMessagesRequest`` announces, and the answer that asks for all their objects."""
    request = fleet_pb2.PushMessagesRequest.FromString(body)
    pairs = zip(request.messages_list, request.message_object_trees, strict=True)
    replies = [Reply(head, tree) for head, tree in pairs]
    wanted = [name for reply in replies for name in reply.wanted]
    answer = fleet_pb2.PushMessagesResponse(objects_to_push=wanted, session_id=session)
    return replies, bytes(answer.SerializeToString())


def pushed_object(body: bytes) -> tuple[str, bytes]:
    """Return identifier and content in a ``PushObjectRequest``."""
    request = message_pb2.PushObjectRequest.FromString(body)
    return str(request.object_id), bytes(request.object_content)


ANSWERS: Final[Mapping[str, bytes]] = {
    "stored": bytes(message_pb2.PushObjectResponse(stored=True).SerializeToString()),
    "alive": bytes(heartbeat_pb2.SendNodeHeartbeatResponse(success=True).SerializeToString()),
    "nothing": b"",
}
"""Answers that are always the same."""


def answer_activation(node: int) -> bytes:
    """Return an ``ActivateNodeResponse``."""
    return bytes(fleet_pb2.ActivateNodeResponse(node_id=node).SerializeToString())


def answer_bundle(content: bytes) -> bytes:
    """Return a ``GetFabResponse``."""
    fab = fab_pb2.Fab(hash_str=digest_of(content), content=content)
    return bytes(fab_pb2.GetFabResponse(fab=fab).SerializeToString())
