"""``study.json``: a study, its digest and the signatures over it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedward_common.errors import SignatureError, StudyError
from fedward_common.signing import key_fingerprint, load_public_key, public_text, sign, verify
from fedward_common.study import Study

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["MAX_BYTES", "MAX_SIGNATURES", "Signature", "StudyFile", "parse_study_file", "read_study_file"]

MAX_BYTES: Final = 4 << 20
"""No study file is larger."""
MAX_SIGNATURES: Final = 8
"""A study carries no more: each is verified wherever the study is read."""

_REMEDY: Final = "fedward study compose writes one"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: the signer's public key and the signature, both as text."""

    key: str
    signature: str


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A study and who signed it."""

    study: Study
    signatures: tuple[Signature, ...] = ()

    def signed(self, key: Ed25519PrivateKey) -> StudyFile:
        """Return the file with `key`'s signature added, or renewed.

        Raises:
            SignatureError: it carries `MAX_SIGNATURES` others already.
        """
        mine = public_text(key.public_key())
        others = tuple(s for s in self.signatures if s.key != mine)
        if len(others) >= MAX_SIGNATURES:
            msg = f"the study carries {MAX_SIGNATURES} signatures already"
            raise SignatureError(msg, remedy="compose it anew, and let fewer sign it")
        return replace(self, signatures=(*others, Signature(mine, sign(key, self.study.canonical()))))

    def signed_by(self, trusted: Sequence[str]) -> tuple[str, ...]:
        """Return those of `trusted` who signed exactly this study, in the order of `trusted`.

        Args:
            trusted: public keys as text, or their fingerprints.

        Raises:
            SignatureError: a signature that bears a trusted key is not that key's over this study.
        """
        wanted = set(trusted)
        found = set()
        for signature in self.signatures:
            names = wanted & _names_of(signature.key)
            if names:
                verify(load_public_key(signature.key), self.study.canonical(), signature.signature)
                found |= names
        return tuple(key for key in trusted if key in found)

    def verify(self, trusted: Sequence[str]) -> str:
        """Return the first of the `trusted` public keys that signed exactly this study.

        Raises:
            SignatureError: none did, or a signature of theirs is wrong.
        """
        for signer in self.signed_by(trusted):
            return signer
        msg = "no trusted key signed this study"
        raise SignatureError(msg, remedy="fedward study sign FILE --key KEY, and trust the key in KEY.pub")

    def dump(self) -> bytes:
        """Return the file's bytes."""
        content = {
            "study": self.study.contract(),
            "digest": self.study.digest,
            "signatures": [{"key": s.key, "signature": s.signature} for s in self.signatures],
        }
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _names_of(key: str) -> set[str]:
    """Return what a trusting party may have written for `key`; nothing for what is no key."""
    try:
        return {public_text(load_public_key(key)), key_fingerprint(key)}
    except SignatureError:
        return set()


def read_study_file(path: Path) -> StudyFile:
    """Return the study in `path`.

    Raises:
        StudyError: not a study file, not a valid study, or its digest is not the one written beside it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            msg = f"{path} is larger than {MAX_BYTES} bytes"
            raise StudyError(msg)
        content = path.read_bytes()
    except OSError as error:
        msg = f"{path} is no study file"
        raise StudyError(msg, remedy=_REMEDY) from error
    return parse_study_file(content, str(path))


def parse_study_file(raw: bytes, where: str) -> StudyFile:
    """Return the study in the bytes of a study file.

    Args:
        raw: at most `MAX_BYTES`.
        where: how errors call it.

    Raises:
        StudyError: as `read_study_file`.
    """
    try:
        if len(raw) > MAX_BYTES:
            msg = f"{where} is larger than {MAX_BYTES} bytes"
            raise StudyError(msg)
        content = json.loads(raw.decode("utf-8"))
        study, stated = content["study"], content["digest"]
        signatures = tuple(Signature(str(s["key"]), str(s["signature"])) for s in content["signatures"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"{where} is no study file"
        raise StudyError(msg, remedy=_REMEDY) from error
    if not isinstance(study, dict) or len(signatures) > MAX_SIGNATURES:
        msg = f"{where} holds no study" if not isinstance(study, dict) else f"{where} has too many signatures"
        raise StudyError(msg)
    parsed = Study.of(study, where=where)
    if parsed.digest != stated:
        msg = f"{where} was changed: its study has digest {parsed.digest[:12]}…, the file says {str(stated)[:12]}…"
        raise SignatureError(msg, remedy="take the file from its author again")
    return StudyFile(parsed, signatures)
