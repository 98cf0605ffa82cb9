"""Health, metrics and the page over real HTTP on loopback, asked by monitors, browsers and those who should not ask."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedward_client.config import create_site
from fedward_client.health import Health
from fedward_client.local_server import LocalServer
from fedward_client.loopback import Loopback, loopback
from fedward_common.errors import InstallationError

Answer = tuple[int, dict[str, str], bytes]
PATHS = ("/", "/healthz", "/readyz", "/metrics")


def ready() -> Health:
    """Return the health of a daemon that is ready."""
    now = time.monotonic()
    health = Health(now, within_s=600.0)
    health.policy_read()
    health.probed()
    health.admitted(now)
    return health


@pytest.fixture
def health() -> Health:
    return ready()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_site(tmp_path / "north", "north")
    return tmp_path / "north"


@pytest.fixture
def address(health: Health, home: Path) -> Iterator[Loopback]:
    with LocalServer(health, home, loopback("127.0.0.1:0"), stale_s=600.0) as server:
        yield server.address


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Yield the address of a server whose state no test changes."""
    home = tmp_path_factory.mktemp("homes") / "north"
    create_site(home, "north")
    with LocalServer(ready(), home, loopback("127.0.0.1:0"), stale_s=600.0) as server:
        yield server.address


def ask(address: Loopback, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def unmet(address: Loopback) -> tuple[int, list[str]]:
    status, _, body = ask(address, "/readyz")
    return status, [condition["name"] for condition in json.loads(body)["conditions"] if not condition["met"]]


# --------------------------------------------------------------------------------------------------------- health


def test_a_daemon_that_turns_is_alive(address: Loopback) -> None:
    status, headers, body = ask(address, "/healthz")

    assert status == 200
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["alive"] is True


def test_a_daemon_that_hangs_is_not_alive(address: Loopback, health: Health) -> None:
    health.turn(time.monotonic() - 100.0, within_s=10.0)

    status, _, body = ask(address, "/healthz")

    assert status == 503
    assert "90 s ago" in json.loads(body)["conditions"][0]["why"]


def test_a_daemon_with_everything_is_ready(address: Loopback) -> None:
    assert unmet(address) == (200, [])


def test_each_thing_that_is_missing_makes_it_not_ready_and_is_named(
    address: Loopback, health: Health, home: Path
) -> None:
    health.probed("the task process: exit -9")
    assert unmet(address) == (503, ["training"])

    (home / "site.yaml").write_text("site: north\npolcy: {}\n")
    assert unmet(address) == (503, ["policy", "training"])

    health.shut_out("HTTP 401", "enroll")
    assert unmet(address) == (503, ["policy", "training", "authenticated"])

    health.shut_out("HTTP 412", "enroll", unknown=True)
    assert unmet(address) == (503, ["policy", "training", "registered", "authenticated"])

    health.turn(time.monotonic() - 100.0, within_s=10.0)
    assert unmet(address) == (503, ["serving", "policy", "training", "registered", "authenticated"])


def test_a_site_that_recovers_is_ready_again_without_a_restart(address: Loopback, health: Health) -> None:
    health.shut_out("HTTP 401", "enroll")
    before = unmet(address)
    health.admitted(time.monotonic())

    assert before == (503, ["authenticated"])
    assert unmet(address) == (200, [])


def test_a_policy_that_is_mended_is_seen_without_a_restart(address: Loopback, home: Path) -> None:
    path = home / "site.yaml"
    good = path.read_text()
    path.write_text(good.replace("max_rounds", "max_runds"))
    status, _, body = ask(address, "/readyz")
    path.write_text(good)

    assert status == 503
    assert "max_runds" in next(c["why"] for c in json.loads(body)["conditions"] if c["name"] == "policy")
    assert unmet(address) == (200, [])


def test_a_signature_that_is_too_old_does_not_count(health: Health, home: Path) -> None:
    health.admitted(time.monotonic() - 91.0)

    with LocalServer(health, home, loopback("127.0.0.1:0")) as server:
        assert unmet(server.address) == (503, ["authenticated"])


# ------------------------------------------------------------------------------------------------ metrics and page


def test_prometheus_can_read_the_metrics(shared: Loopback) -> None:
    status, headers, body = ask(shared, "/metrics")
    names = {family.name for family in text_string_to_metric_families(body.decode())}

    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    assert {"fedward_ready", "fedward_messages", "fedward_task_seconds", "fedward_epsilon_spent"} <= names


def test_the_page_is_html_that_its_own_policy_allows(shared: Loopback) -> None:
    status, headers, body = ask(shared, "/")
    (style,) = re.findall(rb"<style>(.*?)</style>", body, re.DOTALL)

    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert b"Ready to train" in body
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert f"style-src 'sha256-{digest}'" in headers["content-security-policy"]


def test_a_folder_that_is_broken_is_shown_not_a_server_error(health: Health, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("site: [")
    (tmp_path / "audit.jsonl").write_text("{}\n")

    with LocalServer(health, tmp_path, loopback("127.0.0.1:0")) as server:
        page, metrics = ask(server.address, "/"), ask(server.address, "/metrics")

    assert page[0] == metrics[0] == 200
    assert b"site.yaml cannot be read" in page[2]
    assert b"fedward_problems 0" not in metrics[2]


# ------------------------------------------------------------------------------------------- those who should not


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "169.254.169.254", "127.0.0.1.evil.example", ""])
def test_dns_rebinding_reads_nothing(shared: Loopback, path: str, host: str) -> None:
    status, _, body = ask(shared, path, Host=host)

    assert status == 421
    assert b"north" not in body
    assert b"fedward" not in body


def test_two_host_headers_read_nothing(shared: Loopback) -> None:
    request = f"GET / HTTP/1.1\r\nHost: {shared.netloc}\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    with socket.create_connection((shared.host, shared.port), timeout=10) as connection:
        connection.sendall(request.encode())
        answer = connection.makefile("rb").read()

    assert answer.startswith((b"HTTP/1.1 421", b"HTTP/1.1 400"))
    assert b"north" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", PATHS)
def test_there_is_nothing_but_get(shared: Loopback, path: str, method: str) -> None:
    status, headers, _ = ask(shared, path, method)

    assert status == 405
    assert headers["allow"] == "GET"


@pytest.mark.parametrize(
    "path", ["/x", "/healthz/", "/../etc/passwd", "/%2e%2e/site.yaml", "//", "/docs", "/openapi.json"]
)
def test_there_are_four_paths_and_no_other(shared: Loopback, path: str) -> None:
    assert ask(shared, path)[0] == 404


@pytest.mark.parametrize("path", [*PATHS, "/x"])
def test_every_answer_is_closed_to_other_pages_and_kept_by_nobody(shared: Loopback, path: str) -> None:
    _, headers, _ = ask(shared, path, Origin="https://evil.example", Sec_Fetch_Site="cross-site")

    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not {"set-cookie", "access-control-allow-origin", "server", "location"} & set(headers)


def test_localhost_is_another_name_of_it(shared: Loopback) -> None:
    assert ask(shared, "/healthz", Host=f"localhost:{shared.port}")[0] == 200


@pytest.mark.parametrize(
    "text", ["\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET " + "a" * 100_000 + " HTTP/1.1\r\n\r\n", "\x16\x03\x01"]
)
def test_rubbish_gets_no_page_and_hurts_nobody(shared: Loopback, text: str) -> None:
    with socket.create_connection((shared.host, shared.port), timeout=10) as connection:
        connection.sendall(text.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()

    assert b"Ready" not in answer
    assert ask(shared, "/healthz")[0] == 200


def test_no_websocket_is_opened(shared: Loopback) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}

    status, _, _ = ask(shared, "/", Sec_WebSocket_Key="x" * 24, **upgrade)

    assert status != 101


# ------------------------------------------------------------------------------------------------------- listening


def test_nobody_outside_reaches_it(shared: Loopback) -> None:
    """Listening on 127.0.0.1 alone: another address of this computer, on the same port, has no listener."""
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {entry[1] for entry in entries if entry[3] == "0A" and int(entry[1].split(":")[1], 16) == shared.port}

    assert listening == {f"0100007F:{shared.port:04X}"}


def test_a_taken_port_is_named_with_the_key_to_change(health: Health, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]

        with pytest.raises(InstallationError, match=f"local_page.*127.0.0.1:{taken}") as caught:
            LocalServer(health, tmp_path, Loopback("127.0.0.1", taken)).__enter__()

    assert "site.yaml" in caught.value.remedy


def test_a_daemon_that_is_restarted_takes_its_port_again(health: Health, tmp_path: Path) -> None:
    with LocalServer(health, tmp_path, loopback("127.0.0.1:0")) as first:
        address = first.address
        assert ask(address, "/healthz")[0] == 200

    with LocalServer(health, tmp_path, address) as second:
        assert second.address == address
        assert ask(address, "/healthz")[0] == 200


def test_it_works_on_ipv6_too(health: Health, tmp_path: Path) -> None:
    try:
        with LocalServer(health, tmp_path, loopback("[::1]:0")) as server:
            assert ask(server.address, "/healthz")[0] == 200
    except InstallationError:
        pytest.skip("no IPv6 here")


def test_after_leaving_nobody_listens(health: Health, tmp_path: Path) -> None:
    with LocalServer(health, tmp_path, loopback("127.0.0.1:0")) as server:
        address = server.address

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port), timeout=10)
