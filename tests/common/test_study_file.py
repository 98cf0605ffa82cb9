"""A study file says who signed exactly this study, and nothing that was changed passes for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.errors import SignatureError, StudyError
from fedward_common.signing import is_public_key, key_fingerprint, load_public_key, public_text, sign
from fedward_common.study_file import MAX_SIGNATURES, Signature, StudyFile, read_study_file
from tests.builders import small_study

STUDY = small_study()
CENTRE, BOARD = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
CENTRE_KEY, BOARD_KEY = public_text(CENTRE.public_key()), public_text(BOARD.public_key())
SIGNED = StudyFile(STUDY).signed(CENTRE).signed(BOARD)


def write(path: Path, file: StudyFile) -> Path:
    path.write_bytes(file.dump())
    return path


def test_file_is_read_back_with_its_signatures(tmp_path: Path) -> None:
    assert read_study_file(write(tmp_path / "study.json", SIGNED)) == SIGNED


def test_those_who_signed_are_told_by_key_and_by_fingerprint() -> None:
    fingerprint = key_fingerprint(BOARD_KEY)

    assert SIGNED.signed_by([BOARD_KEY, CENTRE_KEY]) == (BOARD_KEY, CENTRE_KEY)
    assert SIGNED.signed_by([fingerprint]) == (fingerprint,)
    assert SIGNED.signed_by(["sha256:" + "0" * 64, "ed25519:" + "A" * 43]) == ()
    assert SIGNED.verify([fingerprint, CENTRE_KEY]) == fingerprint


def test_unsigned_study_has_no_signer() -> None:
    assert StudyFile(STUDY).signed_by([CENTRE_KEY]) == ()
    with pytest.raises(SignatureError, match="no trusted key"):
        StudyFile(STUDY).verify([CENTRE_KEY])


def test_signature_of_another_study_is_refused() -> None:
    moved = StudyFile(small_study(seed=2), SIGNED.signatures)

    with pytest.raises(SignatureError):
        moved.signed_by([CENTRE_KEY])


def test_wrong_signature_of_an_untrusted_key_does_not_matter() -> None:
    file = StudyFile(STUDY, (Signature(BOARD_KEY, "A" * 86 + "=="), *StudyFile(STUDY).signed(CENTRE).signatures))

    assert file.signed_by([CENTRE_KEY]) == (CENTRE_KEY,)


def test_one_good_signature_does_not_excuse_a_wrong_one_of_the_same_key() -> None:
    file = StudyFile(STUDY, (Signature(CENTRE_KEY, "A" * 86 + "=="), *SIGNED.signatures))

    with pytest.raises(SignatureError):
        file.signed_by([CENTRE_KEY])


def test_signing_again_renews_and_does_not_add() -> None:
    assert SIGNED.signed(CENTRE).signed(CENTRE).signed_by([CENTRE_KEY, BOARD_KEY]) == (CENTRE_KEY, BOARD_KEY)
    assert len(SIGNED.signed(CENTRE).signatures) == 2


def test_number_of_signatures_is_bounded(tmp_path: Path) -> None:
    full = StudyFile(STUDY)
    for _ in range(MAX_SIGNATURES):
        full = full.signed(Ed25519PrivateKey.generate())
    more = StudyFile(STUDY, (*full.signatures, Signature(CENTRE_KEY, "x")))

    with pytest.raises(SignatureError, match="already"):
        full.signed(CENTRE)
    with pytest.raises(StudyError, match="too many signatures"):
        read_study_file(write(tmp_path / "more.json", more))
    assert read_study_file(write(tmp_path / "full.json", full)) == full


@pytest.mark.parametrize("key", ["study", "digest", "signatures"])
def test_file_without_a_part_is_no_study_file(tmp_path: Path, key: str) -> None:
    content = json.loads(SIGNED.dump())
    del content[key]
    (tmp_path / "study.json").write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(StudyError, match="no study file"):
        read_study_file(tmp_path / "study.json")


def test_edited_study_is_found_by_its_digest(tmp_path: Path) -> None:
    content = json.loads(SIGNED.dump())
    content["study"]["training"]["learning_rate"] = 0.9
    (tmp_path / "study.json").write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(SignatureError, match="was changed"):
        read_study_file(tmp_path / "study.json")


def test_edited_study_with_a_mended_digest_is_found_by_its_signature(tmp_path: Path) -> None:
    content = json.loads(SIGNED.dump())
    content["study"]["training"]["learning_rate"] = 0.9
    content["digest"] = small_study(training={"learning_rate": 0.9}).digest
    (tmp_path / "study.json").write_text(json.dumps(content), encoding="utf-8")

    with pytest.raises(SignatureError):
        read_study_file(tmp_path / "study.json").signed_by([CENTRE_KEY])


def test_fingerprint_is_that_of_the_key_s_32_bytes() -> None:
    assert key_fingerprint(CENTRE_KEY) == "sha256:" + hashlib.sha256(CENTRE.public_key().public_bytes_raw()).hexdigest()
    with pytest.raises(SignatureError):
        key_fingerprint("sha256:" + "0" * 64)


def test_key_has_one_text_only() -> None:
    """Base64 of 32 bytes leaves two bits over: four texts decode to one key, one of them is its own."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    raw = CENTRE.public_key().public_bytes_raw()
    texts = [CENTRE_KEY[:-1] + last for last in letters]
    twins = [text for text in texts if load_public_key(text).public_bytes_raw() == raw]

    assert len(twins) == 4
    assert [text for text in twins if is_public_key(text)] == [CENTRE_KEY]
    assert not is_public_key(f" {CENTRE_KEY}")


@pytest.mark.parametrize("change", ["\n", " ", "!", "="])
def test_signature_has_one_text_only(change: str) -> None:
    """Python's decoder skips characters that base64 has not; here such a text is no signature."""
    good = sign(CENTRE, STUDY.canonical())
    for text in (good + change, change + good, good[:20] + change + good[20:]):
        with pytest.raises(SignatureError):
            StudyFile(STUDY, (Signature(CENTRE_KEY, text),)).signed_by([CENTRE_KEY])
