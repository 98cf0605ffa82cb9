"""Answers are freed when nobody holds them, and read as those of httpx."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from fedward_common.lean_http import LeanClient


class _Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def left(client: httpx.Client, url: str) -> list[object]:
    """Return what of a request and its answer is still there once nobody holds them."""
    response = client.post(url, content=b"x" * 100_000)
    assert response.content == b"x" * 100_000
    assert response.read() == b"".join(response.iter_bytes())
    watched: list[weakref.ref[object]] = [weakref.ref(response), weakref.ref(response.request)]
    del response
    return [found for found in (watch() for watch in watched) if found is not None]


@pytest.mark.usefixtures("no_collection")
def test_nothing_of_an_answer_waits_for_the_collector(url: str) -> None:
    with LeanClient() as client:
        assert left(client, url) == []
    with httpx.Client() as client:  # or else there is nothing to do here any more
        assert len(left(client, url)) == 2


def test_an_answer_that_is_streamed_keeps_its_stream(url: str) -> None:
    with LeanClient() as client, client.stream("POST", url, content=b"abc") as response:
        assert response.read() == b"abc"
