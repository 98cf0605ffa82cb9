"""Ed25519 (RFC 8032) keys and detached signatures for studies."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedward_common.errors import SignatureError

__all__ = [
    "create_key",
    "is_public_key",
    "key_fingerprint",
    "load_private_key",
    "load_public_key",
    "public_text",
    "sign",
    "verify",
]

_CONTEXT = b"fedward study signature v1\x00"
_SIGNATURE: Final = re.compile(r"[A-Za-z0-9_-]{86}==", re.ASCII)
_PUBLIC: Final = re.compile(r"ed25519:([A-Za-z0-9_-]{43})", re.ASCII)


def create_key(path: Path) -> Ed25519PrivateKey:
    """Create a private key at `path` (PEM, mode 0600) and its public half beside it (``.pub``, one line).

    Raises:
        FileExistsError: a key or a public half is there already, or `path` ends in ``.pub``; nothing is overwritten.
    """
    public = path.with_suffix(".pub")
    if public == path or public.exists():
        raise FileExistsError(public)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    public.write_text(public_text(key.public_key()) + "\n", encoding="ascii")
    return key


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in the PEM file `path`.

    Raises:
        SignatureError: no file, or not an Ed25519 key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        msg = f"{path} holds no readable private key"
        raise SignatureError(msg, remedy="make one with: fedward study key FILE") from error
    if not isinstance(key, Ed25519PrivateKey):
        msg = f"{path} is not an Ed25519 key"
        raise SignatureError(msg)
    return key


def public_text(key: Ed25519PublicKey) -> str:
    """Return a public key as one line of text, ``ed25519:`` and 43 base64url characters."""
    return "ed25519:" + base64.urlsafe_b64encode(key.public_bytes_raw()).decode("ascii").rstrip("=")


def load_public_key(text: str) -> Ed25519PublicKey:
    """Return the public key written by `public_text`.

    Raises:
        SignatureError: the text is no such key.
    """
    match = _PUBLIC.fullmatch(text.strip())
    try:
        return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(f"{match[1]}=") if match else b"")
    except ValueError as error:
        msg = "not an Ed25519 public key"
        raise SignatureError(msg, remedy="expected ed25519:… as written in the .pub file") from error


def is_public_key(text: str) -> bool:
    """Return whether `text` is exactly what `public_text` writes for some key."""
    try:
        return public_text(load_public_key(text)) == text
    except SignatureError:
        return False


def key_fingerprint(text: str) -> str:
    """Return the fingerprint of a public key, ``sha256:`` and the SHA-256 of its 32 bytes in hexadecimal.

    Two people can compare it over the telephone; a policy may hold it in place of the key.

    Raises:
        SignatureError: the text is no key written by `public_text`.
    """
    return "sha256:" + hashlib.sha256(load_public_key(text).public_bytes_raw()).hexdigest()


def sign(key: Ed25519PrivateKey, payload: bytes) -> str:
    """Return the signature over `payload`, bound to this use, as base64url text."""
    return base64.urlsafe_b64encode(key.sign(_CONTEXT + payload)).decode("ascii")


def verify(key: Ed25519PublicKey, payload: bytes, signature: str) -> None:
    """Return if `signature` is `key`'s over exactly these bytes.

    Raises:
        SignatureError: it is not.
    """
    try:
        raw = base64.urlsafe_b64decode(signature) if _SIGNATURE.fullmatch(signature) else b""
        key.verify(raw, _CONTEXT + payload)
    except (InvalidSignature, ValueError) as error:
        msg = "the signature does not belong to this study and this key"
        raise SignatureError(
            msg, remedy="the study was changed after it was signed, or signed by somebody else"
        ) from error
