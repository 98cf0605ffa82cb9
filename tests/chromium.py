"""A headless Chromium, steered through its DevTools protocol: a page as a person's browser shows it."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.sync.client import ClientConnection, connect

__all__ = ["DESKTOP", "PHONE", "Tab", "browser", "program"]

PHONE: Final = (360, 740)
DESKTOP: Final = (1280, 900)
REQUIRED: Final = "FEDWARD_REQUIRE_CHROMIUM"
_START_S: Final = 30.0
_ANSWER_S: Final = 30.0
_OPTIONS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip


def program() -> str:
    """Return the browser, or skip the test where there is none; with FEDWARD_REQUIRE_CHROMIUM that fails."""
    found = os.environ.get("FEDWARD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    if os.environ.get(REQUIRED):
        pytest.fail(f"no chromium, and {REQUIRED} is set")
    pytest.skip("no chromium on this computer")


@dataclass
class Tab:
    """One tab.

    Attributes:
        complaints: errors of the console, exceptions, and what the page's policy has blocked.
    """

    socket: ClientConnection
    session: str
    complaints: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1000))
    _events: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to one command; events that come in between are kept."""
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "sessionId": self.session, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=_ANSWER_S))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(told["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled" if told["type"] in {"error", "warning", "assert"}:
                self.complaints.append(str([argument.get("value") for argument in told["args"]]))
            case "Log.entryAdded" if told["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case _:
                self._events.append(message)

    def wait_for(self, event: str) -> None:
        """Return once `event` has come since the last `go`."""
        end = time.monotonic() + _ANSWER_S
        while not any(message.get("method") == event for message in self._events):
            self._take(json.loads(self.socket.recv(timeout=end - time.monotonic())))

    def look(self, size: tuple[int, int], *, dark: bool = False, media: str = "screen") -> None:
        """Show pages at this size, in light or dark, on a screen or on paper."""
        width, height = size
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def go(self, address: str) -> None:
        """Open a page and return when it is loaded."""
        self._events.clear()
        answer = self.ask("Page.navigate", url=address)
        assert not answer.get("errorText"), answer
        self.wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Return the value of an expression; a promise is waited for."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def submits(self, script: str) -> None:
        """Run what leads to another page, and return when that one is loaded."""
        self._events.clear()
        self.run(script)
        self.wait_for("Page.loadEventFired")

    def press(self, key: str) -> None:
        """Press and release a key, for example ``Tab`` or ``Enter``."""
        codes = {"Tab": 9, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key],
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def picture(self, path: Path) -> Path:
        """Write the whole page, from top to bottom, as PNG."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Run a browser with an empty profile in `folder` and yield its one tab."""
    profile = folder / "profile"
    command = [program(), *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_address(profile, process), max_size=None, open_timeout=_START_S) as socket:
                yield _tab(socket)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    port = profile / "DevToolsActivePort"
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            number, path = port.read_text(encoding="ascii").split()
            return f"ws://127.0.0.1:{number}{path}"
        time.sleep(0.05)
    pytest.fail(f"chromium did not start (exit code {process.poll()})")


def _tab(socket: ClientConnection) -> Tab:
    root = Tab(socket, "")
    target = _plain(root, "Target.createTarget", url="about:blank")["targetId"]
    session = _plain(root, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    tab = Tab(socket, session)
    for domain in ("Page", "Runtime", "Log", "Network"):
        tab.ask(f"{domain}.enable")
    return tab


def _plain(root: Tab, method: str, **parameters: Any) -> dict[str, Any]:
    """Return the browser's own answer, before there is a tab."""
    number = next(root._numbers)
    root.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
    while True:
        message = json.loads(root.socket.recv(timeout=_ANSWER_S))
        if message.get("id") == number:
            result: dict[str, Any] = message["result"]
            return result
