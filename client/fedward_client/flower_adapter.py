"""The only module of the client side that imports internal Flower names: the connection to the Fleet API.

Flower's own `http_request_response` ends the process when activation fails (`flwr_exit`, with a timer thread that
calls `os._exit`) and signals it on HTTP 401. A hospital's daemon must outlive both, so this module stands one level
lower: on Flower's `FleetHttpClient` and its node-key signatures, with the same requests in the same order.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import httpx
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto import fleet_pb2
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable import inflatable_object, inflatable_protobuf_utils, inflatable_utils
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedward_common.certificates import public_key_bytes
from fedward_common.errors import Refusal, RefusalCode, TransportError
from fedward_common.flower_adapter import check_flower_version

__all__ = [
    "INTERNAL_NAMES",
    "Doorbell",
    "FleetConnection",
    "Incoming",
    "NotAdmittedError",
    "RunOverError",
    "WireLimits",
    "check_flower_version",
    "decode_content",
    "decode_message",
    "encode_content",
    "encode_message",
    "open_fleet",
]


INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.app.message": "make_message remove_content_from_message",
    "flwr.common.serde": "message_to_proto recorddict_from_proto recorddict_to_proto",
    "flwr.common.serde_utils": "metadata_from_proto metadata_to_proto",
    "flwr.proto.fleet_pb2": "ActivateNodeRequest DeactivateNodeRequest PullMessagesRequest PushMessagesRequest",
    "flwr.supercore.inflatable.inflatable_object": "get_all_nested_objects get_object_id get_object_tree"
    " iterate_object_tree no_object_id_recompute",
    "flwr.supercore.inflatable.inflatable_protobuf_utils": "make_pull_object_fn_protobuf make_push_object_fn_protobuf",
    "flwr.supercore.inflatable.inflatable_utils": "ObjectPullError ObjectPushError inflate_object_from_contents"
    " pull_objects push_objects",
    "flwr.supercore.interceptors.http.utils": "add_headers",
    "flwr.supercore.protobuf.client": "ProtobufClient._send ProtobufClientInterceptor",
    "flwr.supercore.runtime_version_compatibility": "RuntimeVersionMetadata.from_local_component",
    "flwr.supernode.fleet_http_client": "FleetHttpClient.ActivateNode FleetHttpClient.ConfirmMessageReceived"
    " FleetHttpClient.DeactivateNode FleetHttpClient.GetFab FleetHttpClient.GetRun FleetHttpClient.PullMessages"
    " FleetHttpClient.PullObject FleetHttpClient.PushMessages FleetHttpClient.PushObject"
    " FleetHttpClient.SendNodeHeartbeat",
    "flwr.supernode.node_auth_http_interceptor": "NodeAuthHttpInterceptor.intercept",
}
"""Module and names of all that is used here beyond Flower's public API; a contract test resolves every entry."""

_CALL_TIMEOUT_S: Final = 30.0
_OBJECT_WAIT_S: Final = 120.0  # how long the coordinator may take to upload what it has announced
_RETRIED_STATUS: Final = frozenset({502, 503, 504})
_log = structlog.get_logger("fedward.fleet")

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class NotAdmittedError(TransportError):
    """The SuperLink does not let this site in, for now or for good; asking again later is harmless."""

    code = "not_admitted"


class RunOverError(TransportError):
    """The run that a message belongs to has ended; there is nobody to answer."""

    code = "run_over"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that has been announced; its content is still at the SuperLink.

    `head` is a message with empty content: enough to decide on, and to reply to.
    """

    head: Message
    tree: ObjectTree


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one message may cost this site before its content is looked at."""

    message_bytes: int = 512 * 1024 * 1024
    objects: int = 4096
    response_bytes: int = 64 * 1024 * 1024


class _VersionInterceptor:
    """Says which flwr this is, as Flower's interceptor does, and never ends the process."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request with the version headers."""
        add_headers(context.request, self._headers)
        return call_next(context)


class Doorbell:
    """Lets Fedward's SuperLink hold a request for messages until there is one; others ignore the headers.

    Args:
        wait_ms: how long it may hold the request, in milliseconds.
    """

    def __init__(self, wait_ms: int) -> None:
        self._wait_ms = str(wait_ms)
        self._seen = ""

    @property
    def answered(self) -> bool:
        """Whether the SuperLink does the waiting, so that nobody needs to pause between requests."""
        return bool(self._seen)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request; if it asks for messages, say which have been seen."""
        if not context.rpc_method.endswith("/PullMessages"):
            return call_next(context)
        if self._seen:
            context.request.headers.update({"fedward-seen": self._seen, "fedward-wait-ms": self._wait_ms})
        response = call_next(context)
        seen = response.headers.get("fedward-seen", "")
        self._seen = seen if seen.isdigit() else ""
        return response


class _BoundedClient(FleetHttpClient):
    """Flower's client over connections that stay open, follow no redirect and read no unbounded answer."""

    def __init__(
        self, base_url: str, interceptors: Sequence[ProtobufClientInterceptor], tls: ssl.SSLContext, limits: WireLimits
    ) -> None:
        super().__init__(base_url, interceptors=interceptors, verify=tls)
        self._client.close()
        self._client = httpx.Client(
            verify=tls,
            timeout=_CALL_TIMEOUT_S,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
            limits=httpx.Limits(keepalive_expiry=60.0),
            event_hooks={"response": [_bounded(limits.response_bytes)]},
        )


def _bounded(limit: int) -> Callable[[httpx.Response], None]:
    """Return a check that runs before a byte of the body is read."""

    def check(response: httpx.Response) -> None:
        length = response.headers.get("content-length", "")
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        if response.is_redirect or encoded or not length.isdigit() or int(length) > limit:
            response.close()
            msg = "the SuperLink's answer is a redirect, encoded, or larger than allowed"
            raise httpx.RemoteProtocolError(msg, request=response.request)

    return check


@dataclass(slots=True)
class FleetConnection:
    """An admitted site's connection: ask for messages, fetch their content, reply.

    Each call repeats itself through outages for at most `patience_s` seconds, and gives up at once when `stop` is
    set. Used by one thread; the heartbeat has its own.

    Raises (every method):
        NotAdmittedError: the site's key is not, or no longer, accepted, or its clock is wrong.
        RunOverError: the message's run has ended.
        TransportError: anything else on the wire.
    """

    node_id: int
    client: FleetHttpClient
    limits: WireLimits
    stop: threading.Event
    patience_s: float
    doorbell: Doorbell
    _node: Node = field(init=False)

    def __post_init__(self) -> None:
        self._node = Node(node_id=self.node_id)

    def receive(self) -> Incoming | None:
        """Return the oldest message waiting for this site, or None. A message is handed out once."""
        response = self._call(self.client.PullMessages, fleet_pb2.PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        head = response.messages_list[0]
        message = make_message(metadata_from_proto(head.metadata), content=recorddict_from_proto(head.content))
        return Incoming(message, response.message_object_trees[0])

    def fetch(self, incoming: Incoming) -> Message:
        """Return the message with its content, checked against its SHA-256 and `limits`.

        The content stands under the metadata that was admitted, not under a copy that came with it.

        Raises:
            Refusal: too large, or not what was announced.
        """
        if len(incoming.tree.children) != 1:
            raise Refusal(RefusalCode.MESSAGE_INVALID, "no content")
        # The tree's root only repeats the metadata that was admitted. It is fetched all the same: confirming a message
        # deletes it, so the coordinator must have finished uploading.
        ids = [node.object_id for node in inflatable_object.iterate_object_tree(incoming.tree)]
        if len(ids) > self.limits.objects:
            raise Refusal(RefusalCode.MESSAGE_TOO_LARGE, f"{len(ids)} objects")
        head = incoming.head.metadata
        try:
            contents = inflatable_utils.pull_objects(
                ids,
                self._bounded_pull(head.run_id),
                initial_backoff=0.02,
                backoff_cap=0.5,
                max_time=_OBJECT_WAIT_S,
                max_tries_per_object=None,
            )
        except inflatable_utils.ObjectPullError as error:
            raise Refusal(RefusalCode.MESSAGE_INVALID, "objects are missing") from error
        confirm = ConfirmMessageReceivedRequest(node=self._node, run_id=head.run_id, message_object_id=head.message_id)
        self._call(self.client.ConfirmMessageReceived, confirm)
        return _inflate(incoming.head, incoming.tree.children[0].object_id, contents)

    def reply(self, message: Message, runtime_s: float) -> None:
        """Send the answer to a message; `runtime_s` is how long the work took, in seconds."""
        with inflatable_object.no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            objects = inflatable_object.get_all_nested_objects(message)
            request = fleet_pb2.PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[inflatable_object.get_object_tree(message)],
                clientapp_runtime_list=[runtime_s],
            )
            response = self._call(self.client.PushMessages, request)
            push = inflatable_protobuf_utils.make_push_object_fn_protobuf(
                lambda part: self._call(self.client.PushObject, part),
                self._node,
                message.metadata.run_id,
                response.session_id,
            )
            try:
                inflatable_utils.push_objects(objects, push, object_ids_to_push=set(response.objects_to_push))
            except inflatable_utils.ObjectPushError as error:
                msg = "the SuperLink does not take the reply's content"
                raise TransportError(msg) from error

    def bundle_sha256(self, run_id: int) -> str:
        """Return the SHA-256 of a run's bundle, computed here from its bytes, which are then dropped."""
        run = self._call(self.client.GetRun, GetRunRequest(node=self._node, run_id=run_id)).run
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
        return hashlib.sha256(self._call(self.client.GetFab, request).fab.content).hexdigest()

    def _bounded_pull(self, run_id: int) -> Callable[[str], bytes]:
        pull = inflatable_protobuf_utils.make_pull_object_fn_protobuf(
            lambda part: self._call(self.client.PullObject, part), self._node, run_id
        )
        lock = threading.Lock()
        left = self.limits.message_bytes

        def bounded(object_id: str) -> bytes:
            nonlocal left
            content = pull(object_id)
            if inflatable_object.get_object_id(content) != object_id:
                raise Refusal(RefusalCode.MESSAGE_INVALID, "an object does not have its announced digest")
            with lock:
                left -= len(content)
                if left < 0:
                    raise Refusal(RefusalCode.MESSAGE_TOO_LARGE, "more bytes than allowed")
            return content

        return bounded

    def _call(self, method: Callable[[RequestT], ResponseT], request: RequestT) -> ResponseT:
        deadline = time.monotonic() + self.patience_s
        wait = 0.05
        while True:
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in _RETRIED_STATUS:
                    raise _status_error(error) from error
                cause: httpx.HTTPError = error
            except httpx.TransportError as error:
                cause = error
            if time.monotonic() + wait > deadline or self.stop.wait(wait):
                msg = f"the SuperLink cannot be reached: {type(cause).__name__}"
                raise TransportError(msg, remedy="check the network, the address and the CA file") from cause
            wait = min(wait * 2, 5.0)


def _status_error(error: httpx.HTTPStatusError) -> TransportError:
    match error.response.status_code:
        case 401:
            remedy = "is the site registered, and its clock within 5 s (fast) or 300 s (slow) of the coordinator's?"
            return NotAdmittedError("the SuperLink does not accept this site's key (HTTP 401)", remedy=remedy)
        case 403:
            return RunOverError("the run is not running (HTTP 403)")
        case status:
            return TransportError(f"the SuperLink answers HTTP {status}")


def _inflate(head: Message, object_id: str, contents: dict[str, bytes]) -> Message:
    try:
        content = inflatable_utils.inflate_object_from_contents(object_id, contents)
    except Exception as error:  # bytes from the network: whatever the decoder raises, the message is at fault
        raise Refusal(RefusalCode.MESSAGE_INVALID, f"decoder: {type(error).__name__}") from error
    if not isinstance(content, RecordDict):
        raise Refusal(RefusalCode.MESSAGE_INVALID, "no content")
    return make_message(head.metadata, content=content)


@contextlib.contextmanager
def open_fleet(  # noqa: PLR0913  (keyword-only beyond the four that every caller has)
    address: str,
    tls: ssl.SSLContext,
    key: ec.EllipticCurvePrivateKey,
    stop: threading.Event,
    *,
    known_node_id: int | None = None,
    limits: WireLimits | None = None,
    heartbeat_s: float = 30.0,
    patience_s: float = 60.0,
    wait_s: float = 10.0,
) -> Iterator[FleetConnection]:
    """Activate this site at the SuperLink and yield the connection; deactivate it on leaving.

    Activation is refused while a former session that was never closed (a crash) has not expired, up to two
    heartbeat intervals. A site that remembers its node id takes that session up again with a heartbeat instead.

    Args:
        address: host:port of the Fleet API.
        tls: what verifies the SuperLink's certificate.
        key: the site's P-384 key; it signs every request.
        stop: once set, calls give up.
        known_node_id: the node id of the former session, if the site remembers one.
        limits: what a message may cost.
        heartbeat_s: 10 to 1800; after two of these without a sign of life the SuperLink calls the site offline.
        patience_s: how long a call is repeated through an outage, in seconds.
        wait_s: how long the SuperLink may hold a request for messages, in seconds.

    Raises:
        NotAdmittedError: unknown key, wrong clock, or the former session has not expired yet.
        TransportError: the SuperLink cannot be reached.
    """
    limits = limits or WireLimits()
    doorbell = Doorbell(round(wait_s * 1000))
    interceptors: list[ProtobufClientInterceptor] = [
        _VersionInterceptor(),
        doorbell,
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    with _BoundedClient(f"https://{address}", interceptors, tls, limits) as client:
        node = _admit(client, public_key_bytes(key), known_node_id, heartbeat_s)
        try:
            with _heartbeats(client, node, heartbeat_s):
                yield FleetConnection(node.node_id, client, limits, stop, patience_s, doorbell)
        finally:
            with contextlib.suppress(httpx.HTTPError, RuntimeError):
                client.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=node.node_id))


def _admit(client: FleetHttpClient, public_key: bytes, known_node_id: int | None, heartbeat_s: float) -> Node:
    try:
        request = fleet_pb2.ActivateNodeRequest(public_key=public_key, heartbeat_interval=heartbeat_s)
        return Node(node_id=client.ActivateNode(request).node_id)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
            raise _status_error(error) from error
        cause = error
    except httpx.TransportError as error:
        msg = f"the SuperLink cannot be reached: {type(error).__name__}"
        raise TransportError(msg, remedy="check the network, the address and the CA file") from error
    if known_node_id is not None:
        node = Node(node_id=known_node_id)
        with contextlib.suppress(httpx.HTTPError):
            if client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=heartbeat_s)).success:
                _log.info("session_resumed", cause="the former session was never closed")
                return node
    remedy = (
        f"either the former session of this site has not expired yet (at most {2 * heartbeat_s:.0f} s after a crash), "
        "or the coordinator has not registered the site's public key"
    )
    msg = "the SuperLink does not activate this site (HTTP 412)"
    raise NotAdmittedError(msg, remedy=remedy) from cause


@contextlib.contextmanager
def _heartbeats(client: FleetHttpClient, node: Node, interval_s: float) -> Iterator[None]:
    """Give a sign of life twice in every interval; a failure is logged here and met by the next call elsewhere."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(interval_s / 2):
            try:
                request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=interval_s)
                if not client.SendNodeHeartbeat(request).success:
                    _log.warning("heartbeat_refused", remedy="the coordinator no longer knows this site")
            except (httpx.HTTPError, RuntimeError) as error:
                _log.warning("heartbeat_failed", cause=type(error).__name__)

    thread = threading.Thread(target=beat, name="node-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2.0)


def encode_message(message: Message) -> bytes:
    """Return a message with content as bytes for another process of this machine."""
    proto = ProtoMessage(metadata=metadata_to_proto(message.metadata), content=recorddict_to_proto(message.content))
    return bytes(proto.SerializeToString())


def decode_message(data: bytes) -> Message:
    """Return the message written by `encode_message`."""
    proto = ProtoMessage.FromString(data)
    return make_message(metadata_from_proto(proto.metadata), content=recorddict_from_proto(proto.content))


def encode_content(content: RecordDict) -> bytes:
    """Return a record dictionary as bytes for another process of this machine."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def decode_content(data: bytes) -> RecordDict:
    """Return the record dictionary written by `encode_content`.

    Raises:
        ValueError: the bytes are none.
    """
    return recorddict_from_proto(ProtoRecordDict.FromString(data))
