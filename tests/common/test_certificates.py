from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedward_common.certificates import (
    Authority,
    ServerCertificate,
    create_authority,
    create_node_key,
    issue_server_certificate,
    load_node_key,
    public_key_bytes,
    write_private,
)
from fedward_common.errors import InstallationError

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority(NOW, days=2)


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> ServerCertificate:
    return issue_server_certificate(authority, NOW, ["127.0.0.1", "coordinator.example"], days=1)


def handshake(certificate: ServerCertificate, trusted: Authority, host: str, folder: Path) -> None:
    """Shake hands over a socket pair as a client that trusts `trusted` and wants to talk to `host`."""
    (folder / "chain.pem").write_bytes(certificate.certificate_pem + certificate.key_pem)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / "chain.pem")
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.load_verify_locations(cadata=trusted.certificate_pem().decode())
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            try:
                server_side.wrap_socket(theirs, server_side=True).close()
            except (OSError, ssl.SSLError):
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client_side.wrap_socket(ours, server_hostname=host):
            pass
    finally:
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "coordinator.example"])
def test_a_site_that_trusts_the_authority_reaches_each_named_host(
    authority: Authority, certificate: ServerCertificate, host: str, tmp_path: Path
) -> None:
    handshake(certificate, authority, host, tmp_path)


def test_a_server_under_another_name_is_refused(
    authority: Authority, certificate: ServerCertificate, tmp_path: Path
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(certificate, authority, "elsewhere.example", tmp_path)


def test_a_server_of_another_authority_is_refused(certificate: ServerCertificate, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(certificate, create_authority(NOW), "127.0.0.1", tmp_path)


def test_an_expired_server_is_refused(authority: Authority, tmp_path: Path) -> None:
    old = issue_server_certificate(authority, NOW - dt.timedelta(days=3), days=1)

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(old, authority, "127.0.0.1", tmp_path)


def test_a_server_certificate_cannot_sign_others(certificate: ServerCertificate) -> None:
    parsed = x509.load_pem_x509_certificate(certificate.certificate_pem)

    assert parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert parsed.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False


def test_validity_is_as_long_as_asked(authority: Authority) -> None:
    assert authority.certificate.not_valid_after_utc == (NOW + dt.timedelta(days=2)).replace(microsecond=0)
    assert authority.certificate.not_valid_before_utc < NOW


def test_a_certificate_for_no_host_is_an_error(authority: Authority) -> None:
    with pytest.raises(ValueError, match="host name"):
        issue_server_certificate(authority, NOW, [])


def test_no_private_key_is_shown(authority: Authority, certificate: ServerCertificate) -> None:
    assert "hidden" in repr(authority)
    assert "PRIVATE" not in repr(certificate)


def test_node_key_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    key = create_node_key(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert public_key_bytes(load_node_key(path)) == public_key_bytes(key)
    assert isinstance(serialization.load_pem_public_key(public_key_bytes(key)), ec.EllipticCurvePublicKey)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_node_key(path)

    with pytest.raises(FileExistsError):
        create_node_key(path)
    with pytest.raises(FileExistsError):
        write_private(path, b"")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_node_key(path)
    path.chmod(0o640)

    with pytest.raises(InstallationError, match="others") as refused:
        load_node_key(path)
    assert "chmod 600" in refused.value.remedy


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    write_private(tmp_path / "node.key", content)

    with pytest.raises(InstallationError, match="no readable private key"):
        load_node_key(tmp_path / "node.key")


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="no readable private key"):
        load_node_key(tmp_path / "node.key")


def test_a_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(tmp_path / "node.key", pem)

    with pytest.raises(InstallationError, match="P-384"):
        load_node_key(tmp_path / "node.key")
