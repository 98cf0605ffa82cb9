"""What stands between a hospital and the internet: a proxy that wants a password, and one that inspects TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedward_common.certificates import Authority, create_authority, issue_server_certificate

__all__ = ["NOW", "Proxy", "inspecting_authority", "proxy"]

NOW = dt.datetime.now(dt.UTC)


@dataclass
class Proxy:
    """An HTTP proxy that opens tunnels, for whoever says user and password.

    Args:
        credentials: ``user:password``; empty for everybody.
        inspector: the authority with which it poses as every host; None: it passes bytes on unread.
        folder: where an inspector keeps its certificates.
    """

    credentials: str = ""
    inspector: Authority | None = None
    folder: Path = Path()
    port: int = 0
    asked: list[str] = field(default_factory=list)
    read: bytearray = field(default_factory=bytearray)
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, whatever the other end does."""
        self.open.add(writer)
        try:
            await self._tunnel(reader, writer)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split(" ", 2)
        self.asked.append(target)
        headers = [line for line in head.split("\r\n") if line.lower().startswith("proxy-authorization:")]
        given = headers[0].split(" ")[-1] if headers else ""
        if method != "CONNECT" or (self.credentials and base64.b64decode(given).decode() != self.credentials):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            return
        host, _, port = target.rpartition(":")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()
        if self.inspector is not None:
            await writer.start_tls(self._pose_as(host))
        upstream, sink = await self._connect(host, int(port))
        self.open.add(sink)
        try:
            await asyncio.gather(self._pump(reader, sink, note=True), self._pump(upstream, writer))
        finally:
            sink.close()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.inspector is None:
            return await asyncio.open_connection(host, port)
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        return await asyncio.open_connection(host, port, ssl=unverified)

    def _pose_as(self, host: str) -> ssl.SSLContext:
        assert self.inspector is not None
        issued = issue_server_certificate(self.inspector, NOW, [host])
        (self.folder / "posing.pem").write_bytes(issued.certificate_pem + issued.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "posing.pem")
        return context

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, note: bool = False) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await source.read(65536):
                if note:
                    self.read += data
                sink.write(data)
                await sink.drain()
        sink.close()


@contextlib.contextmanager
def proxy(credentials: str = "", inspector: Authority | None = None, folder: Path = Path()) -> Iterator[Proxy]:
    """Run a proxy on a free loopback port, in a thread of its own."""
    served, started = Proxy(credentials, inspector, folder), threading.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(served.answer, "127.0.0.1", 0)
        served.port = server.sockets[0].getsockname()[1]
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()

    def run() -> None:
        asyncio.set_event_loop(loop)
        task = loop.create_task(serve())
        tasks.append(task)
        loop.run_until_complete(task)
        for other in asyncio.all_tasks(loop):
            other.cancel()
        loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
        for writer in served.open:
            writer.transport.abort()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()

    tasks: list[asyncio.Task[None]] = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(tasks[0].cancel)
        thread.join(10)


def inspecting_authority() -> Authority:
    """Return a hospital's own authority, with which its proxy reads TLS."""
    return create_authority(NOW, days=2, name="Hospital proxy CA")
