"""A SuperLink that keeps no rule: it hands a site whatever it is told to, over real TLS, and notes what comes back.

It listens on a free loopback port and ends with its context.
"""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, Self

from fedward_common.certificates import create_authority, issue_server_certificate
from fedward_server.superlink_client import code_free_bundle
from fedward_simulations.faults import flower_adapter as wire
from fedward_simulations.faults.flower_adapter import Parcel, Reply

__all__ = ["FOREIGN_RUN", "HostileSuperLink", "Raw"]

FOREIGN_RUN: Final = 78
"""A run whose bundle ships code."""

_FLEET: Final = "/v1/fleet/"
_HOLD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Raw:
    """One answer as bytes, in the place of the right one."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] | None = None


class HostileSuperLink:
    """The server, as a context manager.

    Args:
        node: the node id that every key is given.
        foreign: the bundle of `FOREIGN_RUN`.
    """

    def __init__(self, node: int, foreign: bytes = b"") -> None:
        self._node = node
        self._bundles = {FOREIGN_RUN: foreign}
        self._pinned = code_free_bundle().content
        self._parcels: deque[Parcel] = deque()
        self._objects: dict[str, bytes] = {}
        self._replies: deque[Reply] = deque()
        self._open: list[Reply] = []
        self._closing = False
        self._changed = threading.Condition()
        self._stack = ExitStack()
        self.raw: dict[str, Raw] = {}
        """The next answer of a call (for example ``pull-messages``), used once."""
        self.calls: dict[str, int] = {}
        """How often each call was made."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedward-hostile-")))
            now = dt.datetime.now(dt.UTC)
            authority = create_authority(now, days=1)
            certificate = issue_server_certificate(authority, now, days=1)
            (folder / "chain.pem").write_bytes(certificate.certificate_pem + certificate.key_pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "chain.pem")
            server = _Server(context, self._answer, self.hears)
            stack.callback(server.server_close)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            self.ca_pem = authority.certificate_pem()
            self.public_address = f"127.0.0.1:{server.server_address[1]}"
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hears(self, head: bytes, body: bytes) -> None:
        """Be told of each request: its first line with its headers, and its body; for who listens in."""

    def send(self, parcel: Parcel) -> None:
        """Hand out one message to whoever asks next."""
        with self._changed:
            self._objects.update(parcel.objects)
            self._parcels.append(parcel)
            self._changed.notify_all()

    def reply(self, timeout_s: float) -> Reply | None:
        """Return the next whole reply, or None if there is none within the time."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._replies), timeout_s)
            return self._replies.popleft() if self._replies else None

    def await_calls(self, call: str, count: int, timeout_s: float) -> bool:
        """Return whether `call` has been made `count` times by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self.calls.get(call, 0) >= count, timeout_s)

    def answer_next(self, call: str, raw: Raw) -> None:
        """Answer the next request of this call, or the one that is kept waiting now, with `raw`."""
        with self._changed:
            self.raw[call] = raw
            self._changed.notify_all()

    def wake(self) -> None:
        """Answer whoever is kept waiting."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def forget(self) -> None:
        """Drop what was not handed out and not looked at."""
        with self._changed:
            self._parcels.clear()
            self._objects.clear()
            self._replies.clear()
            self._open.clear()

    def _answer(self, path: str, body: bytes, wait_s: float) -> Raw:
        call = path.removeprefix(_FLEET)
        with self._changed:
            self.calls[call] = self.calls.get(call, 0) + 1
            self._changed.notify_all()
            if call == "pull-messages" and wait_s and call not in self.raw:
                self._changed.wait_for(
                    lambda: bool(self._parcels or call in self.raw or self._closing), min(wait_s, _HOLD_S)
                )
            if call in self.raw:
                return self.raw.pop(call)
            return Raw(self._honest(call, body))

    def _honest(self, call: str, body: bytes) -> bytes:
        answers: dict[str, Callable[[bytes], bytes]] = {
            "activate-node": lambda _: wire.answer_activation(self._node),
            "send-node-heartbeat": lambda _: wire.ANSWERS["alive"],
            "pull-messages": lambda _: wire.announcement([self._parcels.popleft()] if self._parcels else []),
            "pull-object": lambda asked: wire.answer_pull_object(self._objects.get(wire.asked_object(asked))),
            "get-run": self._run,
            "get-fab": lambda asked: wire.answer_bundle(self._bundle(wire.asked_bundle(asked))),
            "push-messages": self._announced,
            "push-object": self._take,
        }
        answer = answers.get(call)
        return answer(body) if answer else wire.ANSWERS["nothing"]

    def _run(self, asked: bytes) -> bytes:
        run = wire.asked_run(asked)
        return wire.answer_run(run, wire.digest_of(self._bundle(run)))

    def _announced(self, pushed: bytes) -> bytes:
        replies, answer = wire.answer_push(pushed, "session")
        self._open += replies
        return answer

    def _bundle(self, run: int) -> bytes:
        return self._bundles.get(run, self._pinned)

    def _take(self, pushed: bytes) -> bytes:
        name, content = wire.pushed_object(pushed)
        for reply in self._open:
            if name in reply.wanted:
                reply.objects[name] = content
        done = [reply for reply in self._open if reply.whole]
        self._open = [reply for reply in self._open if not reply.whole]
        self._replies.extend(done)
        self._changed.notify_all()
        return wire.ANSWERS["stored"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self,
        context: ssl.SSLContext,
        answer: Callable[[str, bytes, float], Raw],
        hears: Callable[[bytes, bytes], None],
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.hears = answer, hears
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that hangs up is part of every campaign."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_POST(self) -> None:
        """Answer one call."""
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.hears(f"{self.requestline}\n{self.headers}".encode(), body)
        wait = self.headers.get("fedward-wait-ms", "0")
        raw = self.server.answer(self.path, body, int(wait) / 1000 if wait.isdigit() else 0.0)
        self.send_response(raw.status)
        headers = {"content-length": str(len(raw.body)), "fedward-seen": "1", **(raw.headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw.body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Write no log."""
