"""The road of the network campaigns carries every byte in order, loses by its seed, and can be cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from fedward_simulations.faults.road import Road, Weather

SOME = bytes(range(256)) * 400


@contextmanager
def echo() -> Iterator[str]:
    """Serve on loopback whoever connects: what comes goes back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while data := connection.recv(65536):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def there_and_back(address: str, content: bytes) -> bytes:
    """Return what comes back of what is sent, until the other end has no more."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        sender = threading.Thread(target=_send, args=(connection, content), daemon=True)
        sender.start()
        found = b""
        with suppress(ConnectionError):
            while len(found) < len(content) and (data := connection.recv(65536)):
                found += data
        sender.join(20)
    return found


def _send(connection: socket.socket, content: bytes) -> None:
    with suppress(OSError):
        connection.sendall(content)


@pytest.mark.parametrize("weather", [Weather(), Weather(delay_s=0.01, loss=0.02)], ids=["clear", "bad"])
def test_every_byte_arrives_in_order(weather: Weather) -> None:
    with echo() as address, Road(weather) as road:
        assert there_and_back(road.to(address), SOME) == SOME
        assert road.segments >= 2 * len(SOME) / 65536
        assert bool(road.lost) == bool(weather.loss)


def test_a_lost_segment_that_resets_ends_the_connection() -> None:
    with echo() as address, Road(Weather(loss=1.0, resets=1.0)) as road:
        assert there_and_back(road.to(address), b"x") == b""
        assert road.reset == 1


def test_a_cut_road_lets_nobody_through_until_it_is_mended() -> None:
    with echo() as address, Road(Weather()) as road:
        start = road.to(address)
        assert there_and_back(start, b"before") == b"before"
        road.cut()
        assert there_and_back(start, b"meanwhile") == b""
        road.mend()
        assert there_and_back(start, b"after") == b"after"
        assert (road.connections, road.refused) == (3, 1)


def test_a_cut_ends_connections_that_are_open() -> None:
    with echo() as address, Road(Weather()) as road:
        host, port = road.to(address).split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            road.cut()
            with suppress(ConnectionError):
                assert connection.recv(1) == b""


def test_a_lost_segment_comes_after_a_round_trip_and_a_timeout() -> None:
    assert Weather(delay_s=0.2).again_s == pytest.approx(0.6)
