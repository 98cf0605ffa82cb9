"""A site's session at the SuperLink: admission, signs of life, messages in, replies out."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import httpx
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.proto import fleet_pb2
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable import inflatable_object, inflatable_protobuf_utils, inflatable_utils
from flwr.supercore.protobuf.client import ProtobufClientInterceptor

from fedward_client.diagnosis import diagnose
from fedward_client.flower_adapter.calls import (
    BoundedClient,
    Doorbell,
    KeySource,
    Observer,
    Pace,
    PacedUpload,
    Signer,
    VersionInterceptor,
    Watching,
    WireLimits,
)
from fedward_client.flower_adapter.codec import Incoming, PackedReply, announced, inflate, opened, pack_reply
from fedward_common.certificates import public_key_bytes
from fedward_common.errors import Refusal, RefusalCode, TransportError
from fedward_common.protocol import OURS, Release, compatible

__all__ = [
    "FleetConnection",
    "NotAdmittedError",
    "ObjectStore",
    "OtherReleaseError",
    "RejectedError",
    "RunOverError",
    "open_fleet",
]

_OBJECT_WAIT_S: Final = 120.0  # how long the coordinator may take to upload what it has announced
_RETRIED_STATUS: Final = frozenset({502, 503, 504})
_log = structlog.get_logger("fedward.fleet")

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class NotAdmittedError(TransportError):
    """The SuperLink does not let this site in, for now or for good; asking again later is harmless."""

    code = "not_admitted"


class OtherReleaseError(NotAdmittedError):
    """The centre's release and this one do not work together; the message says which one to upgrade to what.

    Args:
        ours: what this site speaks.
        theirs: what the centre says of itself; None where it told nothing that can be read.
    """

    def __init__(self, ours: Release, theirs: Release | None) -> None:
        why = compatible(ours, theirs) if theirs is not None else None
        why = why or f"ask the centre for its release: it does not work with Fedward {ours.version} here"
        super().__init__(f"the releases of Fedward do not work together: {why}", remedy=why.partition(":")[0])
        self.ours, self.theirs = ours, theirs

    def facts(self) -> dict[str, str]:
        """Return what the site's log keeps of it: both sides' protocols, and which side to upgrade."""
        if self.theirs is None:
            return {"limit": self.ours.span}
        behind = "site" if self.ours.newest < self.theirs.oldest else "centre"
        return {"asked": self.theirs.span, "key": f"upgrade_{behind}", "limit": self.ours.span}


class RunOverError(TransportError):
    """The run that a message belongs to has ended; there is nobody to answer."""

    code = "run_over"


class RejectedError(TransportError):
    """The SuperLink is there and does not take what it was sent; the same may pass a few seconds later, or never."""

    code = "rejected"


class ObjectStore(Protocol):
    """Where fetched objects wait until their message is answered; `fedward_client.mailbox.ObjectCache` is one."""

    def get(self, object_id: str) -> bytes | None:
        """Return an object, checked against its digest, or None."""

    def put(self, object_id: str, content: bytes) -> None:
        """Keep an object, if there is room."""

    def sync(self, object_ids: Iterable[str]) -> bool:
        """Return whether all these objects are here, once they survive a loss of power."""


@dataclass(slots=True)
class FleetConnection:
    """An admitted site's connection: ask for messages, fetch their content, reply.

    Each call repeats itself through outages for at most `patience_s` seconds, and gives up at once when `stop` is
    set. Used by one thread; the heartbeat has its own. `alive` is called before each request.

    Raises (every method):
        NotAdmittedError: the site's key is not, or no longer, accepted, or its clock is wrong.
        RunOverError: the message's run has ended.
        RejectedError: the SuperLink answers, with another no.
        TransportError: anything else on the wire.
    """

    node_id: int
    client: BoundedClient
    limits: WireLimits
    stop: threading.Event
    patience_s: float
    doorbell: Doorbell
    proxy: str = ""
    alive: Callable[[], None] = lambda: None
    _node: Node = field(init=False)

    def __post_init__(self) -> None:
        self._node = Node(node_id=self.node_id)

    @property
    def peer(self) -> bytes | None:
        """Certificate (DER) that the other end showed last."""
        return self.client.peer

    def receive(self) -> Incoming | None:
        """Return the oldest message waiting for this site, or None.

        A message is handed out once; one whose announcement was lost on the way is handed out again by Fedward's
        SuperLink to the first request of the next session.
        """
        response = self._call(self.client.PullMessages, fleet_pb2.PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        trees = response.message_object_trees  # without one, the message has no content and is refused as such
        return announced(response.messages_list[0], trees[0] if trees else ObjectTree())

    def fetch(self, incoming: Incoming, store: ObjectStore | None = None) -> Message:
        """Return the message with its content, checked against its SHA-256 and `limits`.

        The content stands under the metadata that was admitted, not under a copy that came with it.

        Args:
            incoming: the announcement.
            store: where objects of it may be already, and are kept. Confirming a message deletes it at the
                SuperLink, so with a store that is done only once all of it is on the disk here.

        Raises:
            Refusal: too large, or not what was announced.
        """
        if incoming.content:
            if len(incoming.content) > self.limits.message_bytes:
                raise Refusal(RefusalCode.MESSAGE_TOO_LARGE, "more bytes than allowed")
            self._confirm(incoming)
            return opened(incoming)
        if len(incoming.tree.children) != 1:
            raise Refusal(RefusalCode.MESSAGE_INVALID, "no content")
        # The tree's root only repeats the metadata that was admitted. It is fetched all the same: confirming a message
        # deletes it, so the coordinator must have finished uploading.
        ids = incoming.object_ids()
        if len(ids) > self.limits.objects:
            raise Refusal(RefusalCode.MESSAGE_TOO_LARGE, f"{len(ids)} objects")
        head = incoming.head.metadata
        try:
            contents = inflatable_utils.pull_objects(
                ids,
                self._bounded_pull(head.run_id, store),
                initial_backoff=0.02,
                backoff_cap=0.5,
                max_time=_OBJECT_WAIT_S,
                max_tries_per_object=None,
            )
        except inflatable_utils.ObjectPullError as error:
            raise Refusal(RefusalCode.MESSAGE_INVALID, "objects are missing") from error
        if store is None or store.sync(ids):
            self._confirm(incoming)
        return inflate(incoming.head, incoming.tree.children[0].object_id, contents)

    def _confirm(self, incoming: Incoming) -> None:
        head = incoming.head.metadata
        confirm = ConfirmMessageReceivedRequest(node=self._node, run_id=head.run_id, message_object_id=head.message_id)
        self._call(self.client.ConfirmMessageReceived, confirm)

    def reply(self, message: Message, runtime_s: float) -> None:
        """Send the answer to a message; `runtime_s` is how long the work took, in seconds."""
        self.push(pack_reply(message, runtime_s))

    def push(self, packed: PackedReply) -> None:
        """Send a reply that was packed, one object at a time; a whole one that is sent again is dropped there.

        Of one whose upload was cut, only what the SuperLink does not have yet is sent.
        """
        request = fleet_pb2.PushMessagesRequest()
        request.CopyFrom(packed.request)
        request.node.CopyFrom(self._node)
        response = self._call(self.client.PushMessages, request)
        push = inflatable_protobuf_utils.make_push_object_fn_protobuf(
            lambda part: self._call(self.client.PushObject, part), self._node, packed.run_id, response.session_id
        )
        wanted = set(response.objects_to_push)
        try:
            for object_id in packed.objects:  # the root last: once that is there, all is
                if object_id in wanted:
                    push(object_id, bytes(packed.objects[object_id]))
        except inflatable_utils.ObjectPushError as error:
            msg = "the SuperLink does not take the reply's content"
            raise RejectedError(msg) from error

    def bundle_sha256(self, run_id: int) -> str:
        """Return the SHA-256 of a run's bundle, computed here from its bytes, which are then dropped."""
        run = self._call(self.client.GetRun, GetRunRequest(node=self._node, run_id=run_id)).run
        request = GetFabRequest(node=self._node, hash_str=run.fab_hash, run_id=run_id)
        return hashlib.sha256(self._call(self.client.GetFab, request).fab.content).hexdigest()

    def _bounded_pull(self, run_id: int, store: ObjectStore | None) -> Callable[[str], bytes]:
        pull = inflatable_protobuf_utils.make_pull_object_fn_protobuf(
            lambda part: self._call(self.client.PullObject, part), self._node, run_id
        )
        lock = threading.Lock()
        left = self.limits.message_bytes

        def bounded(object_id: str) -> bytes:
            nonlocal left
            kept = store.get(object_id) if store else None
            content = pull(object_id) if kept is None else kept
            if kept is None and inflatable_object.get_object_id(content) != object_id:
                raise Refusal(RefusalCode.MESSAGE_INVALID, "an object does not have its announced digest")
            with lock:
                left -= len(content)
                if left < 0:
                    raise Refusal(RefusalCode.MESSAGE_TOO_LARGE, "more bytes than allowed")
            if store and kept is None:
                store.put(object_id, content)
            return content

        return bounded

    def _call(self, method: Callable[[RequestT], ResponseT], request: RequestT) -> ResponseT:
        deadline = time.monotonic() + self.patience_s
        wait = 0.05
        while True:
            self.alive()
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in _RETRIED_STATUS:
                    raise _status_error(error) from error
                cause: httpx.HTTPError = error
            except httpx.TransportError as error:
                cause = error
            if time.monotonic() + wait > deadline or self.stop.wait(wait):
                raise _unreachable(cause, self.proxy) from cause
            wait = min(wait * 2, 5.0)


def _unreachable(error: httpx.HTTPError, proxy: str) -> TransportError:
    cause = diagnose(error, proxy=proxy, now=_now())
    msg = f"the SuperLink cannot be reached: {type(error).__name__}: {cause.text} [{cause.kind}]"
    return TransportError(msg, remedy=cause.remedy)


def _status_error(error: httpx.HTTPStatusError) -> TransportError:
    match error.response.status_code:
        case 401:
            cause = diagnose(error, now=_now())
            return NotAdmittedError(f"the SuperLink refuses this site: {cause.text}", remedy=cause.remedy)
        case 403:
            return RunOverError("the run is not running (HTTP 403)")
        case 426:
            return _other_release(error.response) or OtherReleaseError(Release.of(error.request.headers), None)
        case status:
            return RejectedError(f"the SuperLink answers HTTP {status}")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _other_release(response: httpx.Response) -> OtherReleaseError | None:
    """Return why this site cannot work with the centre that gave this answer, or None if it can."""
    ours = Release.of(response.request.headers)
    try:
        theirs = Release.of(response.headers)
    except ValueError:
        return OtherReleaseError(ours, None)
    return OtherReleaseError(ours, theirs) if compatible(ours, theirs) else None


@contextlib.contextmanager
def open_fleet(  # noqa: PLR0913  (keyword-only beyond the four that every caller has)
    address: str,
    tls: ssl.SSLContext,
    key: ec.EllipticCurvePrivateKey | KeySource,
    stop: threading.Event,
    *,
    known_node_id: int | None = None,
    limits: WireLimits | None = None,
    proxy: httpx.Proxy | None = None,
    heartbeat_s: float = 30.0,
    patience_s: float = 60.0,
    wait_s: float = 10.0,
    watching: Watching = lambda *_: None,
    ours: Release = OURS,
    upload_mbit_s: float | None = None,
    download_mbit_s: float | None = None,
) -> Iterator[FleetConnection]:
    """Activate this site at the SuperLink and yield the connection; deactivate it on leaving.

    Activation is refused while a former session that was never closed (a crash) has not expired, up to two
    heartbeat intervals. A site that remembers its node id takes that session up again with a heartbeat instead.

    Args:
        address: host:port of the Fleet API.
        tls: what verifies the SuperLink's certificate.
        key: the site's P-384 key, or what returns it as it is now; it signs every request.
        stop: once set, calls give up.
        known_node_id: the node id of the former session, if the site remembers one.
        limits: what a message may cost.
        proxy: the HTTP proxy that opens tunnels.
        heartbeat_s: 10 to 1800; after two of these without a sign of life the SuperLink calls the site offline.
        patience_s: how long a call is repeated through an outage, in seconds.
        wait_s: how long the SuperLink may hold a request for messages, in seconds.
        watching: hears of each answer, those to the signs of life included, which come from a thread of their own.
        ours: what this site speaks.
        upload_mbit_s: 10**6 bits per second that all requests together may take; None: as many as there are.
        download_mbit_s: the same for the answers.

    Raises:
        OtherReleaseError: the centre's release and this one do not work together.
        NotAdmittedError: unknown key, wrong clock, or the former session has not expired yet.
        TransportError: the SuperLink cannot be reached.
    """
    limits = limits or WireLimits()
    source: KeySource = (lambda: key) if isinstance(key, ec.EllipticCurvePrivateKey) else key
    doorbell = Doorbell(round(wait_s * 1000))
    through = f"{proxy.url.host}:{proxy.url.port}" if proxy else ""
    interceptors: list[ProtobufClientInterceptor] = [
        VersionInterceptor(ours),
        doorbell,
        Observer(watching),
        Signer(source),
    ]
    if upload_mbit_s is not None:
        interceptors.append(PacedUpload(Pace(upload_mbit_s, stop.wait)))
    download = Pace(download_mbit_s, stop.wait) if download_mbit_s is not None else None
    with BoundedClient(f"https://{address}", interceptors, tls, limits, proxy, download) as client:
        node = _admit(client, source, known_node_id, heartbeat_s, through)
        try:
            if client.answered is not None and (other := _other_release(client.answered)) is not None:
                raise other
            with _heartbeats(client, node, heartbeat_s):
                yield FleetConnection(node.node_id, client, limits, stop, patience_s, doorbell, through)
        finally:
            with contextlib.suppress(httpx.HTTPError, RuntimeError):
                client.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=node.node_id))


def _admit(client: BoundedClient, key: KeySource, known_node_id: int | None, heartbeat_s: float, proxy: str) -> Node:
    try:
        request = fleet_pb2.ActivateNodeRequest(public_key=public_key_bytes(key()), heartbeat_interval=heartbeat_s)
        return Node(node_id=client.ActivateNode(request).node_id)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
            raise _status_error(error) from error
        cause = error
    except httpx.TransportError as error:
        raise _unreachable(error, proxy) from error
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
def _heartbeats(client: BoundedClient, node: Node, interval_s: float) -> Iterator[None]:
    """Give a sign of life twice in every interval; a failure is logged here and met by the next call elsewhere."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(interval_s / 2):
            try:
                request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=interval_s)
                if not client.SendNodeHeartbeat(request).success:
                    _log.warning("heartbeat_refused", remedy="the coordinator no longer knows this site")
            except (httpx.HTTPError, RuntimeError, ValueError, OSError) as error:
                _log.warning("heartbeat_failed", cause=type(error).__name__)

    thread = threading.Thread(target=beat, name="node-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2.0)
