"""The doctor on the way to the coordinator: each check against a real server that is right, and one that is wrong."""

from __future__ import annotations

import datetime as dt
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from fedward_client.config import create_site
from fedward_client.doctor import network
from fedward_client.doctor.place import Place
from fedward_client.doctor.rules import Finding, Level
from fedward_client.health import Health
from fedward_client.local_server import LocalServer
from fedward_client.loopback import loopback
from fedward_common.certificates import Authority
from fedward_common.errors import InstallationError
from tests.https import (
    closed_port,
    connect_proxy,
    enrolled_home,
    https_server,
    new_authority,
    server_certificate,
)

Check = Callable[[Place], Iterable[Finding]]
ASKING: list[Check] = [network.dns, network.proxy, network.tls, network.clock]


def found(check: Check, home: Path, **around: object) -> list[Finding]:
    return list(check(Place(home, **({"environment": {}} | around))))  # type: ignore[arg-type]


def one(check: Check, home: Path, **around: object) -> Finding:
    findings = found(check, home, **around)
    assert len(findings) == 1, findings
    return findings[0]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


@pytest.fixture(scope="module")
def address(authority: Authority) -> Iterator[str]:
    """Yield host:port of a coordinator with which everything is right."""
    with https_server(server_certificate(authority)) as here:
        yield here


@pytest.fixture
def home(tmp_path: Path, authority: Authority, address: str) -> Path:
    return enrolled_home(tmp_path / "north", authority, address)


# ----------------------------------------------------------------------------------------------- nothing there yet


@pytest.mark.parametrize("check", [*ASKING, network.certificates])
def test_a_site_that_is_not_enrolled_yet_is_warned_and_told_how(check: Check, tmp_path: Path) -> None:
    finding = one(check, tmp_path)

    assert finding.level is Level.WARN
    assert "fedward client enroll" in finding.remedy


@pytest.mark.parametrize("check", [*ASKING, network.certificates])
def test_a_broken_connection_file_is_named_not_taken_for_none(check: Check, home: Path) -> None:
    (home / "connection.yaml").write_text("superlink: here\n")

    with pytest.raises(InstallationError, match=r"connection\.yaml"):
        found(check, home)


@pytest.mark.parametrize("check", ASKING)
def test_everything_passes_where_everything_is_right(check: Check, home: Path) -> None:
    assert one(check, home).level is Level.PASS


# ------------------------------------------------------------------------------------------------------------ dns


def test_a_name_that_is_no_address_fails(tmp_path: Path, authority: Authority) -> None:
    home = enrolled_home(tmp_path / "north", authority, "a" * 64 + ".example:443")

    finding = one(network.dns, home)

    assert finding.level is Level.FAIL
    assert "looked up" in finding.what
    assert "superlink" in finding.remedy


def test_behind_a_proxy_it_is_the_proxy_s_name_that_counts(tmp_path: Path, authority: Authority) -> None:
    home = enrolled_home(tmp_path / "north", authority, "coordinator.invalid:443", proxy="http://127.0.0.1:3128")

    finding = one(network.dns, home)

    assert finding.level is Level.PASS
    assert "coordinator.invalid" in finding.what


# ---------------------------------------------------------------------------------------------------------- proxy


def test_a_proxy_with_a_password_opens_the_way(home: Path) -> None:
    with connect_proxy(user="north", password="s3cret") as proxy:
        finding = one(network.proxy, home, environment={"https_proxy": f"http://north:s3cret@{proxy}"})

    assert finding.level is Level.PASS
    assert proxy in finding.what
    assert "s3cret" not in finding.what


def test_a_proxy_that_wants_a_password_fails_and_says_where_it_goes(home: Path) -> None:
    with connect_proxy(user="north", password="s3cret") as proxy:
        finding = one(network.proxy, home, environment={"HTTPS_PROXY": f"http://{proxy}"})

    assert finding.level is Level.FAIL
    assert "407" in finding.what
    assert "proxy_password_file" in finding.remedy


def test_a_proxy_that_does_not_let_us_through_fails(home: Path) -> None:
    with connect_proxy(opens=False) as proxy:
        finding = one(network.proxy, home, environment={"HTTPS_PROXY": f"http://{proxy}"})

    assert finding.level is Level.FAIL
    assert "403" in finding.what


def test_a_proxy_that_is_not_there_fails(home: Path) -> None:
    finding = one(network.proxy, home, environment={"HTTPS_PROXY": f"http://127.0.0.1:{closed_port()}"})

    assert finding.level is Level.FAIL
    assert "does not answer" in finding.what


def test_the_environment_s_proxy_is_not_used_where_the_file_says_direct(tmp_path: Path, authority: Authority) -> None:
    home = enrolled_home(tmp_path / "north", authority, "127.0.0.1:1", proxy="direct")

    finding = one(network.proxy, home, environment={"HTTPS_PROXY": "http://127.0.0.1:1"})

    assert finding.level is Level.PASS
    assert "directly" in finding.what


# ------------------------------------------------------------------------------------------------------------ tls


def test_another_authority_than_the_pinned_one_fails(tmp_path: Path, address: str) -> None:
    home = enrolled_home(tmp_path / "north", new_authority(), address)

    finding = one(network.tls, home)

    assert finding.level is Level.FAIL
    assert "authority" in finding.what


def test_a_certificate_for_another_host_fails(tmp_path: Path, authority: Authority) -> None:
    with https_server(server_certificate(authority, hosts=("coordinator.example",))) as address:
        finding = one(network.tls, enrolled_home(tmp_path / "north", authority, address))

    assert finding.level is Level.FAIL
    assert "another host" in finding.what


def test_an_expired_certificate_fails(tmp_path: Path, authority: Authority) -> None:
    expired = server_certificate(authority, valid_from=-dt.timedelta(days=9), days=8)
    with https_server(expired) as address:
        finding = one(network.tls, enrolled_home(tmp_path / "north", authority, address))

    assert finding.level is Level.FAIL
    assert "expired" in finding.what


def test_a_port_on_which_nobody_listens_fails(tmp_path: Path, authority: Authority) -> None:
    home = enrolled_home(tmp_path / "north", authority, f"127.0.0.1:{closed_port()}")

    finding = one(network.tls, home)

    assert finding.level is Level.FAIL
    assert "firewall" in finding.remedy


def test_a_service_without_tls_fails(home: Path, authority: Authority) -> None:
    with connect_proxy() as plain:
        finding = one(network.tls, enrolled_home(home, authority, plain))

    assert finding.level is Level.FAIL
    assert "TLS" in finding.what


def test_an_authority_that_may_read_along_is_warned_of(home: Path, authority: Authority, address: str) -> None:
    (home / "inspector.pem").write_bytes(new_authority().certificate_pem())
    enrolled_home(home, authority, address, extra_ca="inspector.pem")

    passed, warned = found(network.tls, home)

    assert passed.level is Level.PASS
    assert warned.level is Level.WARN
    assert "extra_ca" in warned.what


# --------------------------------------------------------------------------------------------------- certificates


def _levels(home: Path, **around: object) -> dict[str, Level]:
    return {f.what.removeprefix("the ").partition(" is ")[0].partition(" exp")[0]: f.level
            for f in found(network.certificates, home, **around)}  # fmt: skip


def test_certificates_with_months_to_go_pass(home: Path) -> None:
    assert _levels(home) == {"CA certificate": Level.PASS, "coordinator's certificate": Level.PASS}


@pytest.mark.parametrize(("days", "level"), [(29, Level.WARN), (6, Level.WARN), (1, Level.FAIL)])
def test_the_coordinator_s_certificate_is_warned_of_before_it_expires(
    days: int, level: Level, tmp_path: Path, authority: Authority
) -> None:
    with https_server(server_certificate(authority, days=days)) as address:
        found = _levels(enrolled_home(tmp_path / "north", authority, address))

    assert found == {"CA certificate": Level.PASS, "coordinator's certificate": level}


def test_an_expired_certificate_is_dated_although_no_tls_client_takes_it(tmp_path: Path, authority: Authority) -> None:
    expired = server_certificate(authority, valid_from=-dt.timedelta(days=9), days=8)
    with https_server(expired) as address:
        home = enrolled_home(tmp_path / "north", authority, address)
        finding = next(f for f in found(network.certificates, home) if "coordinator" in f.what)

    assert finding.level is Level.FAIL
    assert "expired on" in finding.what
    assert "centre" in finding.remedy


def test_offline_the_certificate_that_was_last_seen_counts(tmp_path: Path, authority: Authority) -> None:
    home = enrolled_home(tmp_path / "north", authority, f"127.0.0.1:{closed_port()}")
    (home / "server.pem").write_bytes(server_certificate(authority, days=5).certificate_pem)

    assert _levels(home) == {"CA certificate": Level.PASS, "coordinator's certificate": Level.WARN}


# ---------------------------------------------------------------------------------------------------------- clock


@pytest.mark.parametrize(
    ("server_ahead_s", "level", "words"),
    [
        (0, Level.PASS, ""),
        (30, Level.PASS, "behind"),
        (120, Level.WARN, "120 s behind"),
        (412, Level.FAIL, "412 s behind"),
        (-20, Level.FAIL, "20 s ahead"),
        (-400, Level.FAIL, "400 s ahead"),
    ],
)
def test_a_clock_is_held_against_the_coordinator_s(
    server_ahead_s: float, level: Level, words: str, tmp_path: Path, authority: Authority
) -> None:
    at = 1_900_000_000.0  # both clocks stand still, so that the machine's speed changes nothing
    date = dt.datetime.fromtimestamp(at + server_ahead_s, dt.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    with https_server(server_certificate(authority), headers={"Date": date}) as address:
        finding = one(network.clock, enrolled_home(tmp_path / "north", authority, address), clock=lambda: at + 0.5)

    assert finding.level is level
    assert words in finding.what


def test_a_clock_so_wrong_that_no_certificate_is_valid_is_still_measured(tmp_path: Path, authority: Authority) -> None:
    """The chain proves who says what time it is; the dates in it are what a wrong clock would get wrong."""
    future = server_certificate(authority, valid_from=dt.timedelta(days=3), days=8)
    with https_server(future, ahead_s=4 * 86400) as address:
        home = enrolled_home(tmp_path / "north", authority, address)
        clock, tls = one(network.clock, home), one(network.tls, home)

    assert clock.level is Level.FAIL
    assert "behind" in clock.what
    assert tls.level is Level.FAIL


def test_a_stranger_s_date_is_not_believed(tmp_path: Path, address: str) -> None:
    finding = one(network.clock, enrolled_home(tmp_path / "north", new_authority(), address))

    assert finding.level is Level.WARN
    assert "not compared" in finding.what


def test_an_answer_without_a_date_is_said_to_have_none(tmp_path: Path, authority: Authority) -> None:
    with https_server(server_certificate(authority), headers={"Date": ""}) as address:
        finding = one(network.clock, enrolled_home(tmp_path / "north", authority, address))

    assert finding.level is Level.WARN
    assert "no date" in finding.what


# --------------------------------------------------------------------------------------------------------- daemon


def _site(folder: Path, address: str | None) -> Path:
    create_site(folder, "north")
    path = folder / "site.yaml"
    line = f"local_page: {address}\n" if address else ""
    path.write_text(path.read_text().replace("local_page: 127.0.0.1:8470\n", line))
    return folder


def test_a_daemon_that_is_ready_passes(tmp_path: Path) -> None:
    now = time.monotonic()
    health = Health(now)
    health.policy_read()
    health.probed()
    health.admitted(now)
    create_site(tmp_path / "running", "north")
    with LocalServer(health, tmp_path / "running", loopback("127.0.0.1:0")) as server:
        finding = one(network.daemon, _site(tmp_path / "north", server.address.netloc))

    assert finding.level is Level.PASS
    assert "ready" in finding.what


def test_a_daemon_that_runs_and_is_not_ready_fails_with_each_reason(tmp_path: Path) -> None:
    with LocalServer(Health(time.monotonic()), tmp_path, loopback("127.0.0.1:0")) as server:
        findings = found(network.daemon, _site(tmp_path / "north", server.address.netloc))

    assert [finding.level for finding in findings] == [Level.FAIL] * 4
    assert "authenticated" in findings[-1].what


def test_a_daemon_that_does_not_run_is_warned_of(tmp_path: Path) -> None:
    finding = one(network.daemon, _site(tmp_path / "north", f"127.0.0.1:{closed_port()}"))

    assert finding.level is Level.WARN
    assert "fedward client run" in finding.remedy


def test_another_program_on_that_port_is_not_taken_for_the_daemon(tmp_path: Path) -> None:
    with connect_proxy() as other:
        finding = one(network.daemon, _site(tmp_path / "north", other))

    assert finding.level is Level.WARN


def test_a_site_without_a_page_is_not_asked(tmp_path: Path) -> None:
    assert one(network.daemon, _site(tmp_path / "north", None)).level is Level.PASS


def test_the_chain_is_checked_even_where_dates_are_not() -> None:
    context = network._dateless(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
