from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward_common.notify import Notifier, Watchdog
from tests.doubles import FakeClock


class Manager:
    """systemd's end of the protocol: a real datagram socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.settimeout(5.0)

    def heard(self) -> list[str]:
        """Return the lines of the next datagram."""
        return self.socket.recv(4096).decode().splitlines()

    def silent(self) -> bool:
        """Return whether nothing is waiting."""
        self.socket.settimeout(0.0)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(5.0)
        return False


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@fedward-{secrets.token_hex(8)}"
    found = Manager(name)
    yield found
    found.socket.close()


def test_ready_is_said_once_and_the_status_whenever_it_changes(manager: Manager) -> None:
    notifier = Notifier(manager.address)

    notifier.ready("connected as node 7")
    assert manager.heard() == ["READY=1", "STATUS=connected as node 7"]
    notifier.status("connected as node 7")
    assert manager.silent()
    notifier.ready("connected as node 8")
    assert manager.heard() == ["STATUS=connected as node 8"]


def test_stopping_is_said(manager: Manager) -> None:
    Notifier(manager.address).stopping()

    assert manager.heard()[0] == "STOPPING=1"


def test_a_status_is_one_line_whatever_is_in_it(manager: Manager) -> None:
    Notifier(manager.address).status("not connected\nREADY=1")

    assert manager.heard() == ["STATUS=not connected READY=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@fedward-nobody-listens"])
def test_without_a_service_manager_nothing_happens(address: str) -> None:
    notifier = Notifier(address)

    notifier.ready("up")
    notifier.alive()
    notifier.stopping()


def test_a_sign_of_life_is_given_as_long_as_the_promise_holds(manager: Manager) -> None:
    clock = FakeClock()
    watchdog = Watchdog(Notifier(manager.address), 10.0, clock)

    watchdog.allow(3600.0)
    clock.now = 3600.0
    assert watchdog.look()
    assert manager.heard() == ["WATCHDOG=1"]
    clock.now = 3600.1
    assert not watchdog.look()
    assert manager.silent()


def test_a_loop_that_never_turns_gives_no_sign_of_life(manager: Manager) -> None:
    clock = FakeClock()
    watchdog = Watchdog(Notifier(manager.address), 10.0, clock)
    clock.now = 0.1

    assert not watchdog.look()
    assert manager.silent()


def test_signs_come_by_themselves_while_the_loop_waits(manager: Manager) -> None:
    watchdog = Watchdog(Notifier(manager.address), 0.1)
    watchdog.allow(60.0)

    with watchdog.watching():
        assert [manager.heard() for _ in range(3)] == [["WATCHDOG=1"]] * 3
    while not manager.silent():  # what was on its way
        pass
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("usec", "pid", "watched"),
    [("30000000", "", True), ("30000000", "own", True), ("30000000", "1", False), ("", "", False), ("0", "", False),
     ("x", "", False)],
)  # fmt: skip
def test_the_environment_says_whether_a_sign_is_wanted(manager: Manager, usec: str, pid: str, watched: bool) -> None:  # noqa: FBT001  (a table)
    pid = str(os.getpid()) if pid == "own" else pid
    watchdog = Watchdog.from_environment({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid})

    with watchdog.watching():
        assert ("watchdog" in {thread.name for thread in threading.enumerate()}) is watched
    watchdog.notifier.status("up")
    assert manager.heard() == ["STATUS=up"]
