"""Flower's internal names for the coordinator's side of a run: messages out, replies in.

A message of Flower's is a tree of objects, addressed by their SHA-256, and each object is a request of its own at both
ends. Small content therefore travels inside the announcement of its message, in the field that Flower's protocol has
for it, to everybody who reads it there; a stock SuperNode does not, and gets objects.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto, recorddict_from_proto
from flwr.common.serde_utils import error_from_proto, metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata as ProtoMetadata
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable import inflatable_object, inflatable_protobuf_utils, inflatable_utils
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import RunNotRunningException
from flwr.superlink.grid import HttpGrid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedward_common.errors import CoordinatorError, RejectedReply, TransportError
from fedward_common.flower_adapter import INLINE_BYTES, entry_on_demand
from fedward_common.lean_http import LeanClient
from fedward_common.packing import PART_KEY

__all__ = ["INTERNAL_NAMES", "PATIENCE_S", "CoordinatorGrid", "RunEndedError", "in_run", "patient", "translated"]

INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.app.message": "make_message remove_content_from_message",
    "flwr.common.constant": "ErrorCode.MESSAGE_UNAVAILABLE",
    "flwr.common.serde": "message_to_proto recorddict_from_proto",
    "flwr.common.serde_utils": "error_from_proto metadata_from_proto",
    "flwr.supercore.inflatable.inflatable_object": "get_all_nested_objects get_object_tree iterate_object_tree"
    " no_object_id_recompute",
    "flwr.supercore.inflatable.inflatable_protobuf_utils": "make_pull_object_fn_protobuf make_push_object_fn_protobuf",
    "flwr.supercore.inflatable.inflatable_utils": "ObjectPullError ObjectPushError ObjectUnavailableError"
    " inflate_object_from_contents pull_objects",
    "flwr.supercore.retry": "RetryInvoker.invoke exponential",
    "flwr.supercore.run": "RunNotRunningException",
    "flwr.superlink.grid": "HttpGrid._check_message HttpGrid._connect HttpGrid._runtime_client",
}
"""Module and names of all that is used here beyond Flower's public API."""

PATIENCE_S: Final = 50.0
"""A task that is silent for 60 s is given up by the SuperLink, so is a longer outage."""

_WAIT_MS: Final = 1000
_LOOK_MS: Final = 100  # while an upload goes on
_BATCH: Final = 64  # announcements in one request; with content inside, 16 MiB
_LEAVING_S: Final = 2.0

Objects = dict[str, inflatable_object.InflatableObject]


class _DoorbellInterceptor:
    """Lets our SuperLink hold a request for messages until there is one, at most `wait_ms` milliseconds.

    With `resuming`, the first request asks as well for what a former session was handed and has not confirmed.
    """

    def __init__(self, wait_ms: int, *, resuming: bool = False) -> None:
        self.wait_ms = wait_ms
        self._seen = ""
        self._resuming = resuming

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request; if it asks for messages, say which have been seen."""
        if not context.rpc_method.endswith("/PullMessages"):
            return call_next(context)
        if self._seen:
            context.request.headers.update({"fedward-seen": self._seen, "fedward-wait-ms": str(self.wait_ms)})
        if self._resuming:
            context.request.headers["fedward-resume"] = "1"
        response = call_next(context)
        self._resuming = self._resuming and not response.is_success
        self._seen = response.headers.get("fedward-seen", "")
        return response


class _Later:
    """Runs calls one after another in the background; what becomes of them is nobody's concern."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="grid-later", daemon=True)
        self._thread.start()

    def __call__(self, call: Callable[[], object]) -> None:
        """Run `call` soon."""
        self._calls.put(call)

    def drain(self) -> None:
        """Wait for the calls so far, for 2 s at most."""
        done = threading.Event()
        self._calls.put(done.set)
        done.wait(_LEAVING_S)

    def close(self) -> None:
        """Wait for the calls so far, for 2 s at most; there are no more."""
        self._calls.put(None)
        self._thread.join(_LEAVING_S)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            with contextlib.suppress(httpx.HTTPError, ValueError, RuntimeError, RunNotRunningException):
                call()


class CoordinatorGrid(HttpGrid):
    """Flower's `HttpGrid` that survives an outage of the SuperLink and a malformed reply.

    A transport failure is repeated for at most `patience_s` seconds and then raises `TransportError`; no signal is
    ever sent to this process. A reply whose objects are missing or cannot be read comes back as a message with an
    error, so that one site cannot end a run. Objects that are still on their way are asked for every 10 to 200 ms
    where Flower waits a second.

    A node that has once answered inside the announcement is sent content of up to `INLINE_BYTES` that way: one request
    where objects take three at either end. To all others, and for all larger content, objects are uploaded.
    """

    def __init__(self, address: str, token: str, *, patience_s: float = PATIENCE_S, resuming: bool = False) -> None:
        super().__init__(runtime_api_address=address, insecure=True, token=token)
        self._retry_invoker = patient(patience_s)
        self._connect()
        client = self._runtime_client
        self._doorbell = _DoorbellInterceptor(_WAIT_MS, resuming=resuming)
        client._interceptors = (*client._interceptors, self._doorbell)  # noqa: SLF001
        client._client.close()  # noqa: SLF001
        client._client = LeanClient(  # noqa: SLF001  (as Flower's, but no proxy, and connections stay open)
            timeout=30.0, trust_env=False, limits=httpx.Limits(keepalive_expiry=60.0)
        )
        self._reads_announcements: set[int] = set()
        self._arrived: deque[tuple[ProtoMessage, ObjectTree]] = deque()
        self._taken: list[ProtoMetadata] = []
        self._later = _Later()

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected; raise as `push_messages` does."""
        with in_run("the connected nodes cannot be listed"):
            return list(super().get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their identifiers, in order; an empty one for what the SuperLink does not take.

        Of large content, one object at a time is encoded.

        Raises:
            CoordinatorError: the SuperLink does not accept the request.
            TransportError: the SuperLink stayed away for longer than the patience.
        """
        return self.push_named(messages, lambda _: None)

    @property
    def lineage(self) -> str:
        """What outlives this process: the run in its SuperLink, where messages are found by their identifiers."""
        return str(self.run.run_id)

    def push_named(self, messages: Iterable[Message], note: Callable[[list[str]], None]) -> list[str]:
        """Push messages as `push_messages` does; `note` is told the identifiers of each batch before it leaves."""
        identifiers: list[str] = []
        with in_run("messages cannot be sent"), inflatable_object.no_object_id_recompute():
            for batch in _batched(messages, _BATCH):
                request, objects = PushAppMessagesRequest(), Objects()
                for message in batch:
                    message.metadata.__dict__["_message_id"] = message.object_id
                    self._check_message(message)
                    objects |= self._announce(message, request)
                note([message.metadata.message_id for message in batch])
                identifiers += self._push(request, objects)
        return identifiers

    def _announce(self, message: Message, request: PushAppMessagesRequest) -> Objects:
        """Add a message to a request; return the objects that have to follow it."""
        if message.metadata.dst_node_id in self._reads_announcements and not _is_large(message):
            whole = message_to_proto(message)
            if whole.content.ByteSize() <= INLINE_BYTES:
                request.messages_list.append(whole)
                request.message_object_trees.append(ObjectTree(object_id=message.object_id))
                return {}
        request.messages_list.append(message_to_proto(remove_content_from_message(message)))
        request.message_object_trees.append(inflatable_object.get_object_tree(message))
        return inflatable_object.get_all_nested_objects(message)

    def _push(self, request: PushAppMessagesRequest, objects: Objects) -> list[str]:
        response = self._runtime_client.PushMessages(request)
        push = inflatable_protobuf_utils.make_push_object_fn_protobuf(
            self._runtime_client.PushObject, self.node, self.run.run_id, response.session_id
        )
        for object_id in response.objects_to_push:
            if object_id in objects:
                push(object_id, objects[object_id].deflate())
        return list(response.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return a reply to one of `message_ids`, as a list that is empty if none has arrived; each is returned once.

        Waits for the next reply, at most 1 s, so that asking again and again costs next to nothing. Of many replies
        that arrive together, one at a time is fetched. Whoever asks again says that the last reply is safe: until then
        it is not confirmed, and a session that resumes gets it once more.

        Raises:
            CoordinatorError: the SuperLink does not accept the request.
            TransportError: the SuperLink stayed away for longer than the patience.
        """
        wanted = list(message_ids)
        self.settle()
        with in_run("replies cannot be fetched"):
            reply = self._first_whole(set(wanted))
            if reply is None:
                self._doorbell.wait_ms = _WAIT_MS if not self._arrived else _LOOK_MS
                response = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=wanted))
                self._arrived.extend(zip(response.messages_list, response.message_object_trees, strict=True))
                reply = self._first_whole(set(wanted))
        return [] if reply is None else [reply]

    def _first_whole(self, wanted: set[str]) -> Message | None:
        """Return the first reply that has arrived and whose sender has uploaded all of it, if there is one.

        A slow upload keeps nobody waiting, and its own site only as long as the round lasts.
        """
        for _ in range(len(self._arrived)):
            head, tree = self._arrived.popleft()
            if head.metadata.reply_to_message_id not in wanted:
                self._confirm(head.metadata)  # nobody waits for it any more
            elif head.content.ByteSize() or head.HasField("error") or self._is_uploaded(tree):
                return self._fetch(head, tree)
            else:
                self._arrived.append((head, tree))
        return None

    def _is_uploaded(self, tree: ObjectTree) -> bool:
        """Return whether the last object that a site uploads is there, or will never be: its reply's metadata."""
        try:
            self._pull()(tree.object_id)
        except inflatable_utils.ObjectUnavailableError:
            return False
        except inflatable_utils.ObjectPullError:
            return True
        return True

    def _pull(self) -> Callable[[str], bytes]:
        return inflatable_protobuf_utils.make_pull_object_fn_protobuf(
            self._runtime_client.PullObject, self.node, self.run.run_id
        )

    def settle(self, *, wait: bool = False) -> None:
        """Confirm what has been fetched: it is safe. With `wait`, return once that is done, after 2 s at most."""
        while self._taken:
            self._confirm(self._taken.pop())
        if wait:
            self._later.drain()

    def close(self) -> None:
        """Disconnect, once what is to be confirmed has been; the last reply is not, unless `settle` was called."""
        self._later.close()
        super().close()

    def _fetch(self, head: ProtoMessage, tree: ObjectTree) -> Message:
        """Return one reply, to be confirmed later; its sender has finished uploading, so confirming may delete it.

        The parts of a large vector are not fetched: each is whenever it is looked at, until the reply is confirmed.
        """
        if head.content.ByteSize():
            self._reads_announcements.add(head.metadata.src_node_id)
            message = _decoded(head, lambda: recorddict_from_proto(head.content))
        else:
            message = self._fetch_objects(head, tree)
        self._taken.append(head.metadata)
        return message

    def _fetch_objects(self, head: ProtoMessage, tree: ObjectTree) -> Message:
        leaves = {node.object_id for root in tree.children for node in root.children if not node.children}
        in_parts = len(tree.children) == 1 and len(leaves) == len(tree.children[0].children) > 1
        left = leaves | {tree.object_id} if in_parts else {tree.object_id}  # the root only repeats the metadata
        ids = [node.object_id for node in inflatable_object.iterate_object_tree(tree)]
        try:
            contents = self._pull_all([object_id for object_id in ids if object_id not in left])
            if head.HasField("error"):
                return make_message(metadata_from_proto(head.metadata), error=error_from_proto(head.error))
            if in_parts:
                return self._in_parts(head, contents[tree.children[0].object_id], leaves)
        except inflatable_utils.ObjectPullError:
            return _unreadable(head.metadata, "reply_incomplete")

        def inflate() -> object:
            (root,) = tree.children
            return inflatable_utils.inflate_object_from_contents(root.object_id, contents)

        return _decoded(head, inflate)

    def _in_parts(self, head: ProtoMessage, contents: bytes, leaves: set[str]) -> Message:
        """Return a reply whose first record is there; the others are fetched whenever somebody looks at them."""
        records = {name: entry_on_demand(PART_KEY, partial(self._pull_part, name)) for name in leaves}
        message = _decoded(head, lambda: RecordDict.inflate(contents, dict(records)))
        if message.has_error():
            return message
        first = next((name for name in message.content if not name.startswith("part-")), None)
        if first is not None:
            (object_id,) = [known for known, record in records.items() if record is message.content[first]]
            header = self._pull_all([object_id])[object_id]
            try:
                message.content[first] = ConfigRecord.inflate(header)
            except Exception:  # noqa: BLE001  (see _decoded)
                return _unreadable(head.metadata, "reply_malformed")
        return message

    def _pull_all(self, ids: list[str]) -> dict[str, bytes]:
        return inflatable_utils.pull_objects(
            ids,
            self._pull(),
            initial_backoff=0.02,
            backoff_cap=0.2,
            max_time=PATIENCE_S,
            max_tries_per_object=None,
        )

    def _pull_part(self, object_id: str) -> bytes:
        """Return one part of a large vector.

        Raises:
            RejectedReply: it is not there, or no part.
        """
        with in_run("a part of a reply cannot be fetched"):
            try:
                record = ConfigRecord.inflate(self._pull_all([object_id])[object_id])
                (part,) = record.values()
            except (inflatable_utils.ObjectPullError, ValueError, DecodeError):
                check = "refused"
                raise RejectedReply(check, f"transport_error code={ErrorCode.MESSAGE_UNAVAILABLE}") from None
        return part if isinstance(part, bytes) and PART_KEY in record else b""

    def _confirm(self, head: ProtoMetadata) -> None:
        """Let the SuperLink delete a reply, in the background: nothing waits for that."""
        request = ConfirmMessageReceivedRequest(
            node=self.node, run_id=self.run.run_id, message_object_id=head.message_id
        )
        self._later(lambda: self._runtime_client.ConfirmMessageReceived(request))


def _is_large(message: Message) -> bool:
    """Return whether a record's bytes alone are too many for an announcement; of a large vector one part is read."""
    records = message.content.values() if message.has_content() else ()
    return any(
        sum(len(value) for value in record.values() if isinstance(value, bytes)) > INLINE_BYTES
        for record in records
        if isinstance(record, ConfigRecord)
    )


def _decoded(head: ProtoMessage, decode: Callable[[], object]) -> Message:
    """Return a reply's content under the SuperLink's metadata, and not under the site's copy of it."""
    try:
        content = decode()
    except Exception:  # noqa: BLE001  (bytes from a site: whatever the decoder raises, the reply is at fault)
        content = None
    if isinstance(content, RecordDict):
        return make_message(metadata_from_proto(head.metadata), content=content)
    return _unreadable(head.metadata, "reply_malformed")


def _unreadable(head: ProtoMetadata, reason: str) -> Message:
    return make_message(metadata_from_proto(head), error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def _batched(messages: Iterable[Message], size: int) -> Iterator[list[Message]]:
    """Yield the messages in lists of at most `size`."""
    rest = iter(messages)
    while batch := list(itertools.islice(rest, size)):
        yield batch


class RunEndedError(TransportError):
    """The SuperLink has ended the run; a process that starts anew goes on in another, from its journal."""

    code = "run_ended"


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what httpx and Flower's retries raise into errors of ours."""
    try:
        yield
    except RunNotRunningException as error:  # a BaseException: nothing else would catch it
        msg = f"{what}: the SuperLink has ended the run"
        raise RunEndedError(msg, remedy="start again: the study goes on in a new run of the SuperLink") from error
    except httpx.HTTPStatusError as error:
        msg = f"{what} (HTTP {error.response.status_code})"
        if error.response.is_server_error:  # its disk may be full, or its database busy: the run is not over
            raise TransportError(msg, remedy="the SuperLink's log says what hinders it; then start again") from error
        raise CoordinatorError(msg, remedy="does the coordinator's secret match the SuperLink's?") from error
    except httpx.HTTPError as error:
        msg = f"{what}: {type(error).__name__}"
        raise TransportError(msg, remedy="is the SuperLink running?") from error
    except inflatable_utils.ObjectPushError as error:
        msg = f"{what}: the SuperLink does not take an object"
        raise TransportError(
            msg, remedy="send it again: the upload took too long, or its session was replaced"
        ) from error


@contextlib.contextmanager
def in_run(what: str) -> Iterator[None]:
    """Do as `translated` for who has a run's token: the SuperLink forgets it when it ends the run."""
    with translated(what):
        try:
            yield
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise RunNotRunningException from error
            raise


def patient(seconds: float) -> RetryInvoker:
    """Return a retry rule for `seconds` s of outage; a run that has ended raises Flower's `RunNotRunningException`."""

    def hopeless(error: Exception) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            if error.response.status_code == httpx.codes.FORBIDDEN:
                raise RunNotRunningException
            return error.response.status_code not in {502, 503, 504}
        return isinstance(error, httpx.ConnectError) and "certificate" in str(error).lower()

    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=0.05, multiplier=2, max_delay=2),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=seconds,
        jitter=None,
        should_giveup=hopeless,
        wait_function=time.sleep,
    )
