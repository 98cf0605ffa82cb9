from __future__ import annotations

import contextlib
import http.server
import ssl
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedward_client.connection import (
    DIRECT,
    ConnectionSettings,
    choose_proxy,
    environment_proxy,
    load_connection,
    open_way,
    read_secret,
    tls_context,
    write_connection,
)
from fedward_client.enrolment_calls import fetch_authority
from fedward_common.certificates import ServerCertificate, create_authority, fingerprint, issue_server_certificate
from fedward_common.errors import InstallationError
from tests.network import NOW

PINNED = "a" * 64
HOST = "hub.example.org"


def write_settings(home: Path, **changes: object) -> Path:
    raw: dict[str, object] = {"superlink": "a:1", "ca": "ca.pem", "node_key": "node.key", "bundle_sha256": PINNED}
    raw |= changes
    text = yaml.safe_dump({key: value for key, value in raw.items() if value is not None})
    (home / "connection.yaml").write_text(text)
    return home


# --------------------------------------------------------------------------------------------------- connection.yaml
def test_files_are_relative_to_the_home(tmp_path: Path) -> None:
    settings = load_connection(write_settings(tmp_path, heartbeat_s=12.0, extra_ca="/etc/ssl/hospital.pem"))

    assert settings == ConnectionSettings(
        "a:1",
        tmp_path / "ca.pem",
        tmp_path / "node.key",
        PINNED,
        heartbeat_s=12.0,
        extra_ca=Path("/etc/ssl/hospital.pem"),
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ca": None}, "ca is missing"),
        ({"sperlink": "a:1"}, "did you mean 'superlink'"),
        ({"bundle_sha256": "abc"}, "bundle_sha256"),
        ({"superlink": "https://a:1/"}, "superlink"),
        ({"superlink": "a"}, "superlink"),
        ({"heartbeat_s": 5}, "heartbeat_s"),
        ({"wait_s": "long"}, "wait_s"),
        ({"message_bytes": -1}, "message_bytes"),
        ({"proxy": "proxy:3128"}, "proxy"),
        ({"proxy": "socks5://proxy:1080"}, "proxy"),
        ({"proxy": "http://user:password@proxy:3128"}, "without a password"),
        ({"study_keys": ["rsa:abc"]}, "study_keys"),
    ],
)
def test_a_missing_unknown_or_malformed_key_is_named(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    with pytest.raises(InstallationError, match=named):
        load_connection(write_settings(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "- a", "{", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "connection.yaml").write_text(text)

    with pytest.raises(InstallationError):
        load_connection(tmp_path)


@pytest.mark.parametrize("address", ["hub.example.org:8443", "10.1.2.3:443", "[2001:db8::1]:8443"])
def test_an_address_is_a_name_or_a_number_with_a_port(tmp_path: Path, address: str) -> None:
    assert load_connection(write_settings(tmp_path, superlink=address)).superlink == address


def test_what_is_written_is_read_and_keeps_what_a_person_set(tmp_path: Path) -> None:
    write_settings(tmp_path, heartbeat_s=60.0, proxy="http://proxy:3128")

    write_connection(tmp_path, {"superlink": "b:2", "proxy": None, "study_keys": ["ed25519:" + "x" * 43]})

    settings = load_connection(tmp_path)
    assert (settings.superlink, settings.heartbeat_s, settings.proxy) == ("b:2", 60.0, "")
    assert settings.study_keys == ("ed25519:" + "x" * 43,)
    assert (tmp_path / "connection.yaml").stat().st_mode & 0o777 == 0o600


def test_settings_that_could_not_be_read_are_not_written(tmp_path: Path) -> None:
    before = (write_settings(tmp_path) / "connection.yaml").read_bytes()

    with pytest.raises(InstallationError):
        write_connection(tmp_path, {"superlink": "no address"})
    assert (tmp_path / "connection.yaml").read_bytes() == before


# -------------------------------------------------------------------------------------------------------- the proxy
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ""),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"https_proxy": "http://q:1", "HTTPS_PROXY": "http://p:3128"}, "http://q:1"),
        ({"HTTPS_PROXY": "p:3128"}, "http://p:3128"),
        ({"ALL_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, ""),
        ({"HTTPS_PROXY": "  "}, ""),
    ],
)
def test_the_environment_names_the_proxy(environ: dict[str, str], expected: str) -> None:
    assert environment_proxy(HOST, environ) == expected


@pytest.mark.parametrize(
    ("exceptions", "host", "direct"),
    [
        ("*", HOST, True),
        (HOST, HOST, True),
        ("HUB.example.ORG", HOST, True),
        ("example.org", HOST, True),
        (".example.org", HOST, True),
        ("*.example.org", HOST, True),
        ("ample.org", HOST, False),
        ("other.org, example.org", HOST, True),
        ("", HOST, False),
        (",", HOST, False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", HOST, False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("127.0.0.1,localhost", "127.0.0.1", True),
    ],
)
def test_no_proxy_is_a_list_of_exceptions(exceptions: str, host: str, direct: bool) -> None:  # noqa: FBT001  (a table)
    found = environment_proxy(host, {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": exceptions})

    assert (found == "") is direct


def test_the_file_s_proxy_counts_before_the_environment_s(tmp_path: Path) -> None:
    secret = tmp_path / "proxy.password"
    secret.write_text("s3cret: with / signs\nsecond line\n")
    secret.chmod(0o600)
    environ = {"HTTPS_PROXY": "http://other:1"}

    proxy = choose_proxy(f"{HOST}:443", "http://fed%40ward@proxy:3128", secret, environ)

    assert proxy is not None
    assert (proxy.url.host, proxy.url.port) == ("proxy", 3128)
    assert proxy.raw_auth == (b"fed@ward", b"s3cret: with / signs")


def test_direct_means_no_proxy_whatever_the_environment_says() -> None:
    assert choose_proxy(f"{HOST}:443", DIRECT, None, {"HTTPS_PROXY": "http://p:1"}) is None


def test_the_environment_s_user_and_password_are_used() -> None:
    proxy = choose_proxy(f"{HOST}:443", "", None, {"HTTPS_PROXY": "http://us%40er:pa%3Ass@p:3128"})

    assert proxy is not None
    assert proxy.raw_auth == (b"us@er", b"pa:ss")


@pytest.mark.parametrize("address", ["socks5://p:1080", "http://", "http://[::1", "https://p:443"])
def test_a_proxy_of_another_kind_is_an_error_that_says_so(address: str) -> None:
    with pytest.raises(InstallationError, match="no HTTP proxy"):
        choose_proxy(f"{HOST}:443", "", None, {"HTTPS_PROXY": address})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_password_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    secret = tmp_path / "proxy.password"
    secret.write_text("s3cret")
    secret.chmod(mode)

    with pytest.raises(InstallationError, match="others") as refused:
        read_secret(secret)
    assert "s3cret" not in refused.value.diagnostics()


def test_a_password_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match=r"proxy\.password"):
        read_secret(tmp_path / "proxy.password")


# -------------------------------------------------------------------------------------------------- what is trusted
def test_nobody_is_trusted_but_the_named_authorities(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(create_authority(NOW).certificate_pem())
    (tmp_path / "hospital.pem").write_bytes(
        "# Krankenhaus-CA für den Proxy\n".encode() + create_authority(NOW).certificate_pem()
    )

    alone, both = tls_context(tmp_path / "ca.pem"), tls_context(tmp_path / "ca.pem", tmp_path / "hospital.pem")

    assert len(alone.get_ca_certs()) == 1
    assert len(both.get_ca_certs()) == 2
    assert alone.verify_mode is ssl.CERT_REQUIRED
    assert alone.check_hostname
    assert alone.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_without_a_certificate_is_named(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "ca.pem").write_bytes(create_authority(NOW).certificate_pem())
    if content is not None:
        (tmp_path / "extra.pem").write_bytes(content)

    with pytest.raises(InstallationError, match=r"extra\.pem") as refused:
        tls_context(tmp_path / "ca.pem", tmp_path / "extra.pem")
    assert "extra_ca" in refused.value.remedy


def test_the_way_out_says_that_somebody_may_read_along(tmp_path: Path) -> None:
    pem = create_authority(NOW).certificate_pem()
    (tmp_path / "ca.pem").write_bytes(pem)
    plain = ConnectionSettings("a:1", tmp_path / "ca.pem", tmp_path / "node.key", PINNED)
    through = ConnectionSettings(
        "a:1", tmp_path / "ca.pem", tmp_path / "node.key", PINNED, extra_ca=tmp_path / "ca.pem", proxy="http://p:3128"
    )

    assert not open_way(plain, {}).inspectable
    assert open_way(plain, {}).proxy_name == ""
    assert open_way(through, {}).inspectable
    assert open_way(through, {}).proxy_name == "p:3128"


def test_of_what_answers_an_enrolment_only_the_invite_s_own_authority_is_pinned() -> None:
    """A man in the middle may pass the true certificate on and add one of his own behind it."""
    genuine, his = create_authority(NOW), create_authority(NOW, name="his")
    with answering(issue_server_certificate(his, NOW), genuine.certificate_pem() + his.certificate_pem()) as address:
        pinned = fetch_authority(address, fingerprint(genuine.certificate_pem()), None)

    assert pinned == genuine.certificate_pem()


@contextlib.contextmanager
def answering(certificate: ServerCertificate, body: bytes) -> Iterator[str]:
    """Yield host:port of a TLS server that answers every POST with `body`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response_only(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server, tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "server.pem"
        pem.write_bytes(certificate.certificate_pem + certificate.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        thread.join(10)
