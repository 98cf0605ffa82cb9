"""Certificate authorities, server certificates and node keys.

A site trusts the coordinator through one CA file and is known to it by one elliptic-curve key (P-384). The
functions here make, write and load these; they know nothing of sockets. Every private key is written with mode
0600 and never over an existing file.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedward_common.errors import InstallationError

__all__ = [
    "Authority",
    "ServerCertificate",
    "certificate_expiry",
    "certificate_hosts",
    "create_authority",
    "create_node_key",
    "fingerprint",
    "issue_server_certificate",
    "issued_by",
    "load_authority",
    "load_node_key",
    "node_public_key",
    "public_key_bytes",
    "sign_as_node",
    "sole_certificate",
    "verify_as_node",
    "write_private",
]

LOOPBACK: tuple[str, ...] = ("127.0.0.1", "::1", "localhost")
_CONTEXT = b"fedward node signature v1\x00"  # Flower signs time stamps with the same key
_CLOCK_ALLOWANCE = dt.timedelta(minutes=10)  # a client whose clock runs late still accepts a fresh certificate


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in memory. The private key is left out of `repr`."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority(subject={self.certificate.subject.rfc4514_string()!r}, key=<hidden>)"

    def certificate_pem(self) -> bytes:
        """Return what a site needs to trust this authority, as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """Return the private key as PEM; whoever has it can be any server."""
        return _private_pem(self.key)


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A server's certificate and private key, both PEM. The key is left out of `repr`."""

    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return f"ServerCertificate({len(self.certificate_pem)} bytes, key=<hidden>)"


def create_authority(now: dt.datetime, *, days: int = 30, name: str = "Fedward throw-away CA") -> Authority:
    """Return a new self-signed authority, valid from `now` (aware) for `days` days.

    It may sign server certificates and nothing below them (path length 0).
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _key_usage(sign_certificates=True)
    certificate = (
        _builder(subject, subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Authority(certificate, key)


def issue_server_certificate(
    authority: Authority, now: dt.datetime, hosts: Sequence[str] = LOOPBACK, *, days: int = 30
) -> ServerCertificate:
    """Return a new key and certificate for a server reached as any of `hosts` (names or IP addresses).

    Raises:
        ValueError: `hosts` is empty.
    """
    if not hosts:
        msg = "a server certificate needs at least one host name or address"
        raise ValueError(msg)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer_key = authority.key.public_key()
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), now, days)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        .sign(authority.key, hashes.SHA384())
    )
    return ServerCertificate(certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def load_authority(certificate: Path, key: Path) -> Authority:
    """Return the authority whose certificate and private key are in these PEM files.

    Raises:
        InstallationError: a file is missing, is no such thing, or the two do not belong together.
    """
    try:
        parsed = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        msg = f"{certificate} and {key} are no certificate authority"
        raise InstallationError(msg, remedy="restore both files from the backup of the centre's folder") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != parsed.public_key():
        msg = f"{key} is not the key of {certificate}"
        raise InstallationError(msg, remedy="restore both files from the same backup")
    return Authority(parsed, private)


def fingerprint(certificate_pem: bytes) -> str:
    """Return the SHA-256 of a certificate's DER form as 64 lower-case hexadecimal digits.

    Raises:
        ValueError: the bytes are no PEM certificate.
    """
    return x509.load_pem_x509_certificate(certificate_pem).fingerprint(hashes.SHA256()).hex()


def sole_certificate(pem: bytes) -> bytes:
    """Return the first certificate in `pem`, the one that `fingerprint` is of, and nothing that stands beside it.

    Raises:
        ValueError: the bytes are no PEM certificate.
    """
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.PEM)


def certificate_expiry(certificate_pem: bytes) -> dt.datetime:
    """Return the instant (UTC) after which a certificate is no longer valid.

    Raises:
        ValueError: the bytes are no PEM certificate.
    """
    return x509.load_pem_x509_certificate(certificate_pem).not_valid_after_utc


def certificate_hosts(certificate_pem: bytes) -> list[str]:
    """Return the names and addresses that a server's certificate is for.

    Raises:
        ValueError: the bytes are no PEM certificate.
    """
    parsed = x509.load_pem_x509_certificate(certificate_pem)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def issued_by(certificate_der: bytes, authority_pem: bytes) -> bool:
    """Return whether the authority itself signed this certificate; dates and names of hosts are not looked at."""
    try:
        authority = x509.load_pem_x509_certificate(authority_pem)
        x509.load_der_x509_certificate(certificate_der).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def create_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Create a site's P-384 key in the PEM file `path` (mode 0600) and return it.

    Raises:
        FileExistsError: a key is there already; it is never overwritten.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, _private_pem(key))
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the site's key in the PEM file `path`.

    Raises:
        InstallationError: no file, no P-384 key in it, or others than its owner may read it.
    """
    try:
        mode = path.stat().st_mode & 0o077
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        msg = f"{path} holds no readable private key"
        raise InstallationError(msg, remedy="name the node key file in connection.yaml, key `node_key`") from error
    if mode:
        msg = f"{path} may be read by others than its owner"
        raise InstallationError(msg, remedy=f"chmod 600 {path}")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        msg = f"{path} holds no P-384 key"
        raise InstallationError(msg, remedy="a node key is an elliptic-curve key on P-384 (secp384r1)")
    return key


def public_key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public half as PEM; these exact bytes are what the coordinator registers."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def node_public_key(pem: str) -> bytes:
    """Return a node's public key in the one PEM form that is registered.

    Raises:
        ValueError: the text is no P-384 public key.
    """
    key = _public_key(pem.encode("ascii", "replace"))
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign_as_node(key: ec.EllipticCurvePrivateKey, payload: bytes) -> str:
    """Return the node key's signature (ECDSA, SHA-384) over `payload`, bound to this use, as base64url text."""
    return base64.urlsafe_b64encode(key.sign(_CONTEXT + payload, ec.ECDSA(hashes.SHA384()))).decode("ascii")


def verify_as_node(public_pem: bytes, payload: bytes, signature: str) -> bool:
    """Return whether `signature` was made by `sign_as_node` with this key over exactly these bytes."""
    try:
        raw = base64.urlsafe_b64decode(signature)
        _public_key(public_pem).verify(raw, _CONTEXT + payload, ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature):
        return False
    return True


def _public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        msg = "no public key"
        raise ValueError(msg) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        msg = "no P-384 public key"
        raise ValueError(msg)  # noqa: TRY004  (bytes of the wrong content, not an argument of the wrong type)
    return key


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to a new file that only its owner may read and write (0600).

    Raises:
        FileExistsError: something is there already.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_ALLOWANCE)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
