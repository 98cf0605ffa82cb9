"""A signature belongs to one study and one key; keys are readable by their owner only."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

from fedward_common.errors import SignatureError
from fedward_common.signing import create_key, load_private_key, load_public_key, public_text, sign, verify
from tests.builders import small_study

KEY = ed25519.Ed25519PrivateKey.generate()


def test_signature_of_a_study_verifies_after_a_round_trip_of_keys_through_files(tmp_path: Path) -> None:
    create_key(tmp_path / "key.pem")
    private = load_private_key(tmp_path / "key.pem")
    public = load_public_key((tmp_path / "key.pub").read_text(encoding="ascii"))
    payload = small_study().canonical()
    verify(public, payload, sign(private, payload))


def test_tampered_study_is_refused() -> None:
    signature = sign(KEY, small_study().canonical())
    with pytest.raises(SignatureError):
        verify(KEY.public_key(), small_study(seed=2).canonical(), signature)


def test_one_flipped_bit_anywhere_is_refused() -> None:
    payload = small_study().canonical()
    signature = sign(KEY, payload)
    for at in range(0, len(payload), 97):
        bent = bytearray(payload)
        bent[at] ^= 1
        with pytest.raises(SignatureError):
            verify(KEY.public_key(), bytes(bent), signature)


def test_signature_of_another_key_is_refused() -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(SignatureError):
        verify(KEY.public_key(), b"study", sign(other, b"study"))


def test_bare_signature_made_for_another_use_is_refused() -> None:
    bare = base64.urlsafe_b64encode(KEY.sign(b"study")).decode("ascii")
    with pytest.raises(SignatureError):
        verify(KEY.public_key(), b"study", bare)


@pytest.mark.parametrize("text", ["", "x", "é", "AAAA", "=" * 88, "A" * 86 + "==", "\x00"])
def test_garbage_is_no_signature(text: str) -> None:
    with pytest.raises(SignatureError):
        verify(KEY.public_key(), b"study", text)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 43, "ed25519:" + "é" * 43, "A" * 43])
def test_garbage_is_no_public_key(text: str) -> None:
    with pytest.raises(SignatureError):
        load_public_key(text)


def test_public_key_is_one_line_of_44_characters_with_its_kind() -> None:
    text = public_text(KEY.public_key())
    assert text.startswith("ed25519:")
    assert len(text) == len("ed25519:") + 43
    assert load_public_key(f" {text}\n").public_bytes_raw() == KEY.public_key().public_bytes_raw()


def test_private_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    create_key(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600


def test_key_is_never_overwritten(tmp_path: Path) -> None:
    create_key(tmp_path / "key.pem")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError):
        create_key(tmp_path / "key.pem")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_public_half_of_another_key_is_never_overwritten(tmp_path: Path) -> None:
    create_key(tmp_path / "key.pem")
    before = (tmp_path / "key.pub").read_bytes()
    with pytest.raises(FileExistsError):
        create_key(tmp_path / "key.other")
    assert (tmp_path / "key.pub").read_bytes() == before
    assert not (tmp_path / "key.other").exists()


def test_private_key_is_not_written_under_the_name_of_its_public_half(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        create_key(tmp_path / "key.pub")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_garbage_is_no_private_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SignatureError, match="no readable private key"):
        load_private_key(tmp_path / "key")


def test_missing_private_key_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="nowhere") as caught:
        load_private_key(tmp_path / "nowhere")
    assert "fedward study key" in caught.value.remedy


def test_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = x25519.X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key").write_bytes(pem)
    with pytest.raises(SignatureError, match="not an Ed25519 key"):
        load_private_key(tmp_path / "key")
