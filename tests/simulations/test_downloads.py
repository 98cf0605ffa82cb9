"""A download ends with exactly the pinned bytes in place, or with an error and what was there before."""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.request import urlopen

import pytest

from fedward_common.errors import InstallationError, TransportError, UnknownKeyError
from fedward_simulations.downloads import DATA_SETS, DataSet, PinnedFile, Readable, fetch

GOOD = b"63.0,1.0,1.0,145.0\n" * 400


class Server(BaseHTTPRequestHandler):
    """Serves what `bodies` says, by file name; a body that is cut short announces its full length."""

    bodies: ClassVar[dict[str, bytes]] = {}
    announced: ClassVar[dict[str, int]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.asked.append(name)
        body = self.bodies.get(name)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.announced.get(name, len(body))))
        self.end_headers()
        with suppress(ConnectionError):  # the other side stops at its bound
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's signature)
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    Server.bodies, Server.announced, Server.asked = {"a.data": GOOD, "b.data": GOOD + b"1\n"}, {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/set/"
        server.shutdown()
        thread.join()


def pinned(name: str, content: bytes) -> PinnedFile:
    return PinnedFile(name, len(content), hashlib.sha256(content).hexdigest())


def opened(address: str, silence_s: float) -> AbstractContextManager[Readable]:
    body: AbstractContextManager[Readable] = urlopen(address, timeout=min(silence_s, 5.0))  # noqa: S310  (the test's own server)
    return body


def get(address: str, folder: Path) -> list[Path]:
    files = (pinned("a.data", GOOD), pinned("b.data", GOOD + b"1\n"))
    return fetch("mine", folder, opener=opened, data_sets={"mine": DataSet(address, files)})


def test_every_file_is_there_and_right(address: str, tmp_path: Path) -> None:
    paths = get(address, tmp_path / "new" / "mine")
    assert [path.name for path in paths] == ["a.data", "b.data"]
    assert [path.read_bytes() for path in paths] == [GOOD, GOOD + b"1\n"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["a.data", "b.data"]


def test_a_file_that_is_right_is_not_asked_for_again(address: str, tmp_path: Path) -> None:
    get(address, tmp_path)
    (tmp_path / "b.data").write_bytes(GOOD)
    Server.asked.clear()
    assert [path.read_bytes() for path in get(address, tmp_path)] == [GOOD, GOOD + b"1\n"]
    assert Server.asked == ["b.data"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (GOOD.replace(b"145", b"146"), "is not the pinned file: its SHA-256 is"),
        (GOOD + b"x" * 5_000_000, rf"more than {len(GOOD)} bytes"),
        (b"<html>Sign in to the hospital's network</html>", f"has 46 bytes instead of {len(GOOD)}"),
        (b"", "has 0 bytes"),
    ],
)
def test_other_content_is_refused_and_leaves_no_trace(body: bytes, message: str, address: str, tmp_path: Path) -> None:
    Server.bodies["a.data"] = body
    with pytest.raises(TransportError, match=message) as caught:
        get(address, tmp_path)
    assert "FEDWARD_DATA" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_breaks_off_is_refused(address: str, tmp_path: Path) -> None:
    Server.bodies["a.data"] = GOOD[:100]
    Server.announced["a.data"] = len(GOOD)
    with pytest.raises(TransportError, match=f"cannot be downloaded|has 100 bytes instead of {len(GOOD)}"):
        get(address, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_stays_until_the_right_one_is_here(address: str, tmp_path: Path) -> None:
    (tmp_path / "a.data").write_bytes(b"old")
    Server.bodies["a.data"] = b"corrupt"
    with pytest.raises(TransportError):
        get(address, tmp_path)
    assert (tmp_path / "a.data").read_bytes() == b"old"


def test_a_missing_page_names_the_address_and_the_status(address: str, tmp_path: Path) -> None:
    del Server.bodies["b.data"]
    with pytest.raises(TransportError, match=rf"{address}b\.data cannot be downloaded \(Not Found\)"):
        get(address, tmp_path)
    assert (tmp_path / "a.data").read_bytes() == GOOD


def test_without_a_network_the_remedy_says_what_to_copy_where(tmp_path: Path) -> None:
    def offline(_: str, __: float) -> AbstractContextManager[Readable]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(TransportError) as caught:
        fetch("heart_disease", tmp_path, opener=offline)
    for word in ("processed.cleveland.data", "processed.va.data", str(tmp_path), "FEDWARD_DATA", "https://"):
        assert word in caught.value.diagnostics()


def test_a_server_that_drips_is_given_up(tmp_path: Path) -> None:
    class Dripping(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            return super().read1(min(1, size or 1))

    data_sets = {"mine": DataSet("https://example.org/", (pinned("a.data", GOOD),))}
    minutes = itertools.count(step=60)
    with pytest.raises(TransportError, match=r"was not complete after 300 s"):
        fetch(
            "mine", tmp_path, opener=lambda *_: Dripping(GOOD), data_sets=data_sets, clock=lambda: float(next(minutes))
        )


def test_a_refused_connection_is_a_transport_error(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="cannot be downloaded"):
        get("http://127.0.0.1:1/", tmp_path)


def test_a_folder_that_cannot_be_written_is_said_plainly(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(InstallationError, match="cannot be written"):
        get(address, tmp_path / "file")


def test_an_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownKeyError, match=r"did you mean 'heart_disease'\? There are: heart_disease"):
        fetch("hart_disease", tmp_path)


def test_packaged_data_sets_are_pinned_and_read_over_https() -> None:
    for data_set in DATA_SETS.values():
        assert data_set.address.startswith("https://")
        for file in data_set.files:
            assert len(file.sha256) == 64
            assert set(file.sha256) <= set("0123456789abcdef")
            assert 0 < file.size_bytes < 1 << 26
