"""One request to the Fleet API: what it carries, who signs it, and what of the answer is read."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedward_client.bandwidth import PIECE_BYTES, TokenBucket, bytes_per_second
from fedward_common.certificates import sign_as_node
from fedward_common.lean_http import LeanClient
from fedward_common.protocol import OURS, Release

__all__ = [
    "BoundedClient",
    "Doorbell",
    "KeySource",
    "Observer",
    "Pace",
    "PacedUpload",
    "Signer",
    "VersionInterceptor",
    "Watching",
    "WireLimits",
]

_CALL_TIMEOUT_S: Final = 30.0

KeySource = Callable[[], ec.EllipticCurvePrivateKey]
"""Returns the site's key as it is now; another one once the key was renewed."""


Watching = Callable[[int, int, httpx.Response], None]
"""Hears of each answer: bytes of the request's body and of the answer's, and the answer, whose body it leaves alone."""


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one message may cost this site before its content is looked at."""

    message_bytes: int = 512 * 1024 * 1024
    objects: int = 4096
    response_bytes: int = 64 * 1024 * 1024


class VersionInterceptor:
    """Says which flwr and which Fedward this is, and never ends the process, as Flower's interceptor does.

    Args:
        ours: what this side speaks.
    """

    def __init__(self, ours: Release = OURS) -> None:
        flower = RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()
        self._headers = {**dict(flower), **ours.headers()}

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request with the version headers."""
        add_headers(context.request, self._headers)
        return call_next(context)


class Doorbell:
    """Lets Fedward's SuperLink hold a request for messages until there is one; others ignore the headers.

    The first request of a session also asks for what was handed out before and neither confirmed nor answered: an
    answer that was lost with the process, or the connection, that asked for it.

    Args:
        wait_ms: how long it may hold the request, in milliseconds.
    """

    def __init__(self, wait_ms: int) -> None:
        self._wait_ms = str(wait_ms)
        self._seen = ""
        self._resume = True

    @property
    def answered(self) -> bool:
        """Whether the SuperLink does the waiting, so that nobody needs to pause between requests."""
        return bool(self._seen)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request; if it asks for messages, say which have been seen."""
        if not context.rpc_method.endswith("/PullMessages"):
            return call_next(context)
        if self._resume:
            context.request.headers["fedward-resume"] = "1"
        elif self._seen:
            context.request.headers.update({"fedward-seen": self._seen, "fedward-wait-ms": self._wait_ms})
        self._resume = True  # until this request has been answered
        response = call_next(context)
        self._resume = not response.is_success
        seen = response.headers.get("fedward-seen", "")
        self._seen = seen if seen.isdigit() else ""
        return response


class Observer:
    """Tells somebody what each request came to; a request without an answer is not told."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request and pass on what comes back."""
        response = call_next(context)
        length = response.headers.get("content-length", "")
        self._watching(len(context.request.content), int(length) if length.isdigit() else 0, response)
        return response


class Signer:
    """Signs each request with the site's key, as Flower does, and a reply's announcement whole.

    Flower's signature is over a time stamp only: whoever reads one request may send others for five minutes. Fedward's
    second one binds a reply, and through the object tree every byte of its content, to the site.
    """

    def __init__(self, key: KeySource) -> None:
        self._source = key
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._lock = threading.Lock()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request with the headers that prove who asks."""
        with self._lock:
            key = self._source()
            if key is not self._key:
                self._key, self._flower = key, NodeAuthHttpInterceptor(key, key.public_key())
            flower = self._flower
        if context.rpc_method.endswith("/PushMessages"):
            context.request.headers["fedward-signature"] = sign_as_node(key, context.request.content)
        return flower.intercept(context, call_next)


class Pace:
    """Lets bytes of one direction pass as fast as allowed; several threads may share it.

    Args:
        mbit_s: 10**6 bits per second.
        wait: waits for so many seconds, or less.
        clock: monotonic seconds.
    """

    def __init__(
        self, mbit_s: float, wait: Callable[[float], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bucket = TokenBucket(bytes_per_second(mbit_s), clock())
        self._wait, self._clock = wait, clock
        self._lock = threading.Lock()

    def __call__(self, size: int) -> None:
        """Return when `size` bytes may pass."""
        with self._lock:
            seconds = self._bucket.take(size, self._clock())
        if seconds:
            self._wait(seconds)


class _Paced(httpx.SyncByteStream):
    """A body that passes piece by piece."""

    def __init__(self, body: httpx.SyncByteStream, pace: Pace) -> None:
        self._body, self._pace = body, pace

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body:
            for start in range(0, len(chunk), PIECE_BYTES):
                piece = chunk[start : start + PIECE_BYTES]
                self._pace(len(piece))
                yield piece

    def close(self) -> None:
        """Close what is behind it."""
        self._body.close()


class PacedUpload:
    """Sends the bodies of requests at a pace."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request piece by piece."""
        context.request.stream = _Paced(httpx.ByteStream(context.request.content), self._pace)
        return call_next(context)


class BoundedClient(FleetHttpClient):
    """Flower's client over connections that stay open, follow no redirect and read no unbounded answer.

    Args:
        base_url: ``https://host:port``.
        interceptors: what each request passes.
        tls: what verifies the other end.
        limits: see `WireLimits`.
        proxy: the HTTP proxy that opens tunnels; None for none, whatever the environment says.
        download: the pace of answers; None: as fast as they come.
    """

    def __init__(
        self,
        base_url: str,
        interceptors: Sequence[ProtobufClientInterceptor],
        tls: ssl.SSLContext,
        limits: WireLimits,
        proxy: httpx.Proxy | None = None,
        download: Pace | None = None,
    ) -> None:
        # Not Flower's own constructor: it makes a client that takes its proxy from the environment, or fails to.
        self._base_url = base_url
        self._interceptors = tuple(interceptors)
        self._retry_invoker = None
        self.peer: bytes | None = None
        """Certificate (DER) that the other end showed last."""
        self.answered: httpx.Response | None = None
        """The last answer, of which the headers count."""
        self._client = LeanClient(
            verify=tls,
            proxy=proxy,
            trust_env=False,
            timeout=_CALL_TIMEOUT_S,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
            limits=httpx.Limits(keepalive_expiry=60.0),
            event_hooks={"response": [_bounded(limits.response_bytes), self._note_peer]},
        )
        if download is not None:
            hooks = self._client.event_hooks
            hooks["response"].append(_paced(download))
            self._client.event_hooks = hooks

    def _unary_unary(self, **call: Any) -> Any:
        """Make one request; an answer that is no message is an error on the wire, as one that is cut short.

        Raises:
            httpx.HTTPError: as Flower's own, and for bytes that are no message.
        """
        try:
            return super()._unary_unary(**call)
        except ValueError as error:
            msg = "the SuperLink's answer is no message"
            raise httpx.RemoteProtocolError(msg) from error

    def _note_peer(self, response: httpx.Response) -> None:
        self.answered = response
        stream = response.extensions.get("network_stream")
        tls: Any = stream.get_extra_info("ssl_object") if stream else None
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a connection that closes under our hands
            self.peer = tls.getpeercert(True) or self.peer  # noqa: FBT003  (the standard library's only way)


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


def _paced(pace: Pace) -> Callable[[httpx.Response], None]:
    """Return what lets an answer's body in piece by piece; the other end waits meanwhile, as TCP has it."""

    def slow(response: httpx.Response) -> None:
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _Paced(response.stream, pace)

    return slow
