"""Real servers on loopback for the way to a coordinator: one that speaks TLS, one that opens tunnels (CONNECT)."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import email.utils
import http.server
import select
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from fedward_common.certificates import Authority, ServerCertificate, create_authority, create_node_key
from fedward_common.certificates import issue_server_certificate as issue
from fedward_simulations.ports import free_ports

PINNED = "a" * 64


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that refuse a certificate are the subject of the tests."""


@contextlib.contextmanager
def https_server(
    certificate: ServerCertificate, *, ahead_s: float = 0.0, headers: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield host:port of a server that answers 404 to every GET, by a clock that is `ahead_s` seconds ahead.

    Args:
        certificate: its own.
        ahead_s: of this computer's clock.
        headers: sent besides; one with an empty text takes the header of that name out.
    """
    given = {"Date": email.utils.formatdate(time.time() + ahead_s, usegmt=True), **(headers or {})}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(404)
            for name, value in {**given, "Content-Length": "0"}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()

    with _Quiet(("127.0.0.1", 0), Handler) as server, tempfile.TemporaryDirectory() as folder:
        pem, key = Path(folder) / "server.pem", Path(folder) / "server.key"
        pem.write_bytes(certificate.certificate_pem)
        key.write_bytes(certificate.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        with _serving(server):
            yield f"127.0.0.1:{server.server_address[1]}"


@contextlib.contextmanager
def connect_proxy(*, user: str = "", password: str = "", opens: bool = True) -> Iterator[str]:
    """Yield host:port of a proxy that opens tunnels, to those who name `user` and `password`, or to nobody."""
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            if wanted and self.headers.get("Proxy-Authorization") != wanted:
                self.send_error(407)
                return
            if not opens:
                self.send_error(403)
                return
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                self.send_response_only(200)
                self.end_headers()
                _relay(self.connection, there)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with _Quiet(("127.0.0.1", 0), Handler) as server, _serving(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@contextlib.contextmanager
def _serving(server: http.server.HTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def _relay(one: socket.socket, other: socket.socket) -> None:
    ends = {one: other, other: one}
    while True:
        for ready in select.select(list(ends), [], [], 5.0)[0]:
            data = ready.recv(65536)
            if not data:
                return
            ends[ready].sendall(data)


def closed_port() -> int:
    """Return a port on which nobody listens."""
    return free_ports(1)[0]


def new_authority(*, valid_from: dt.timedelta = dt.timedelta(0), days: int = 90) -> Authority:
    """Return an authority that is valid for `days` days, counted from `valid_from` after now."""
    return create_authority(dt.datetime.now(dt.UTC) + valid_from, days=days)


def server_certificate(
    authority: Authority,
    *,
    valid_from: dt.timedelta = dt.timedelta(0),
    days: int = 60,
    hosts: tuple[str, ...] = ("127.0.0.1",),
) -> ServerCertificate:
    """Return a server's certificate for `hosts`, valid for `days` days, counted from `valid_from` after now."""
    return issue(authority, dt.datetime.now(dt.UTC) + valid_from, hosts, days=days)


def enrolled_home(home: Path, authority: Authority, address: str, **changes: object) -> Path:
    """Write a connection to `address` that trusts `authority` into `home`, and return it."""
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "ca.pem").write_bytes(authority.certificate_pem())
    (home / "ca.pem").chmod(0o600)
    if not (home / "node.key").exists():
        create_node_key(home / "node.key")
    values = {"superlink": address, "ca": "ca.pem", "node_key": "node.key", "bundle_sha256": PINNED, **changes}
    path = home / "connection.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    path.chmod(0o600)
    return home
