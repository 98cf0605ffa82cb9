from __future__ import annotations

import datetime as dt
import email.utils
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fedward_client.connection import tls_context
from fedward_client.diagnosis import Cause, clock_text, diagnose, skew_s
from fedward_common.certificates import create_authority, issue_server_certificate
from fedward_common.enrolment import refused
from fedward_common.errors import EnrolmentCode, TransportError
from tests.network import NOW, proxy
from tests.tls_server import tls_server


def failure(url: str, *, through: str | None = None, tls: ssl.SSLContext | None = None) -> Exception:
    """Return what a call that must fail raises."""
    with (
        httpx.Client(trust_env=False, timeout=5, proxy=through, verify=tls or True) as client,
        pytest.raises(httpx.HTTPError) as error,
    ):
        client.get(url).raise_for_status()
    return error.value


def test_an_unknown_name_is_dns() -> None:
    cause = diagnose(failure("https://hub.invalid/"))

    assert cause.kind == "dns"
    assert "superlink" in cause.remedy


def test_the_name_of_a_proxy_is_named_as_such() -> None:
    cause = diagnose(failure("https://hub.example/", through="http://proxy.invalid:3128"), proxy="proxy.invalid:3128")

    assert cause.kind == "dns"
    assert "proxy.invalid:3128" in cause.text


def test_a_closed_port_is_the_network() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cause = diagnose(failure(f"https://127.0.0.1:{free.getsockname()[1]}/"))

    assert cause.kind == "network"
    assert "firewall" in cause.remedy


def test_a_proxy_that_is_down_is_the_proxy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{free.getsockname()[1]}"
        cause = diagnose(failure("https://hub.example/", through=f"http://{name}"), proxy=name)

    assert cause == Cause("proxy", f"the proxy {name} does not answer", cause.remedy)


def test_a_proxy_that_wants_a_password_is_the_proxy() -> None:
    with proxy("fedward:s3cret") as between:
        error = failure("https://127.0.0.1:9/", through=between.address)

    cause = diagnose(error, proxy="127.0.0.1:3128")
    assert cause.kind == "proxy"
    assert "407" in cause.text
    assert "proxy_password_file" in cause.remedy


def test_a_proxy_that_forbids_the_port_is_the_proxy() -> None:
    cause = diagnose(httpx.ProxyError("403 Forbidden"), proxy="p:1")

    assert (cause.kind, "CONNECT" in cause.remedy) == ("proxy", True)


@contextmanager
def server(folder: Path, *, starts: dt.timedelta, host: str = "127.0.0.1") -> Iterator[tuple[str, Path]]:
    """Run a TLS server whose certificate is valid from now + `starts`; yield its address and its authority's file."""
    authority = create_authority(NOW - dt.timedelta(days=100), days=1000)
    (folder / "ca.pem").write_bytes(authority.certificate_pem())
    issued = issue_server_certificate(authority, NOW + starts, [host], days=10)
    with tls_server(folder, issued) as port:
        yield f"https://127.0.0.1:{port}/", folder / "ca.pem"


@pytest.mark.parametrize(
    ("starts", "host", "kind", "word"),
    [
        (dt.timedelta(days=-30), "127.0.0.1", "tls", "expired"),
        (dt.timedelta(days=30), "127.0.0.1", "clock", "not valid yet"),
        (dt.timedelta(0), "hub.example.org", "tls", "another host"),
    ],
)
def test_a_certificate_s_fault_is_told_from_the_clock_s(
    tmp_path: Path, starts: dt.timedelta, host: str, kind: str, word: str
) -> None:
    with server(tmp_path, starts=starts, host=host) as (url, ca):
        cause = diagnose(failure(url, tls=tls_context(ca)))

    assert cause.kind == kind
    assert word in cause.text


def test_another_authority_may_be_a_proxy_that_inspects(tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(create_authority(NOW).certificate_pem())
    with server(tmp_path, starts=dt.timedelta(0)) as (url, _):
        cause = diagnose(failure(url, tls=tls_context(tmp_path / "other.pem")))

    assert cause.kind == "tls"
    assert "extra_ca" in cause.remedy


def test_a_port_without_tls_is_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def greet() -> None:
            with plain.accept()[0] as caller:
                caller.sendall(b"220 mail.hospital.example ESMTP\r\n")
                caller.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        cause = diagnose(failure(f"https://127.0.0.1:{plain.getsockname()[1]}/"))
        thread.join()

    assert cause.kind == "tls"


def answer(status: int, **headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://hub.example/")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status, headers=headers, request=request))


@pytest.mark.parametrize(
    ("ahead", "kind"),
    [(-400, "clock"), (-301, "clock"), (-200, "authentication"), (0, "authentication"), (4, "authentication"),
     (6, "clock"), (3600, "clock")],
)  # fmt: skip
def test_a_refused_signature_is_the_clock_s_fault_only_outside_the_window(ahead: int, kind: str) -> None:
    now = dt.datetime(2026, 11, 24, 12, 0, 0, tzinfo=dt.UTC)
    date = email.utils.format_datetime(now - dt.timedelta(seconds=ahead), usegmt=True)

    cause = diagnose(answer(401, date=date), now=now)

    assert cause.kind == kind
    if kind == "clock":
        assert f"{abs(ahead)} s {'ahead' if ahead > 0 else 'behind'}" in cause.text
        assert "NTP" in cause.remedy


def test_an_answer_that_was_held_for_ten_seconds_is_no_wrong_clock() -> None:
    now = dt.datetime(2026, 11, 24, 12, 0, 10, tzinfo=dt.UTC)
    error = answer(401, date="Tue, 24 Nov 2026 12:00:00 GMT")
    assert diagnose(error, now=now).kind == "clock"

    error.response.elapsed = dt.timedelta(seconds=10)

    assert diagnose(error, now=now).kind == "authentication"


@pytest.mark.parametrize("date", ["", "yesterday", "Tue, 24 Nov 2026 12:00:00 -0000"])
def test_without_a_date_a_refused_signature_is_the_key_s_fault(date: str) -> None:
    assert diagnose(answer(401, date=date), now=NOW).kind == "authentication"


@pytest.mark.parametrize("status", [404, 500, 502, 503, 504])
def test_other_answers_are_the_server_s(status: int) -> None:
    assert diagnose(answer(status)).kind == "server"


@pytest.mark.parametrize("error", [httpx.ReadError(""), httpx.ReadTimeout(""), httpx.RemoteProtocolError("")])
def test_a_cut_connection_is_the_network(error: Exception) -> None:
    assert diagnose(error).kind == "network"


def test_what_was_wrapped_is_unwrapped() -> None:
    outer = TransportError("the SuperLink refuses this site")
    outer.__cause__ = answer(401)

    assert diagnose(outer).kind == "authentication"


def test_the_centre_s_no_is_authentication_and_its_clock_s_is_the_clock() -> None:
    assert diagnose(refused(EnrolmentCode.KEY_EXPIRED)).kind == "authentication"
    assert diagnose(refused(EnrolmentCode.CLOCK_SKEW)).kind == "clock"


def test_anything_else_is_unknown_and_its_text_is_not_repeated() -> None:
    cause = diagnose(KeyError("patient 4711"))

    assert cause.kind == "unknown"
    assert "4711" not in cause.text + cause.remedy


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first

    assert diagnose(first).kind == "unknown"


def test_every_cause_has_a_remedy() -> None:
    errors = [answer(401), answer(404), answer(503), httpx.ReadError(""), httpx.ConnectError(""), httpx.ProxyError("")]

    assert all(diagnose(error).remedy for error in [*errors, socket.gaierror(), ssl.SSLError(), ValueError()])


def test_skew_is_measured_from_the_date_header() -> None:
    assert skew_s("Tue, 24 Nov 2026 12:00:00 GMT", dt.datetime(2026, 11, 24, 12, 0, 7, tzinfo=dt.UTC)) == 7
    assert skew_s("", NOW) is None
    assert clock_text(-412.2) == "this computer's clock is 412 s behind the coordinator's"
