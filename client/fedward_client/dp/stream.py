"""Random words that nobody can predict: AES-256 in counter mode, and the sources that key it.

A stream is keyed for one release and dropped. It holds no state that outlives the call, so nothing can be resumed after
a restart or copied by a fork.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

__all__ = ["SEED_BYTES", "AesStream", "Source", "WordStream", "Words"]

Source = Callable[[int], bytes]
"""From a number to that many bytes. In production ``os.urandom`` and nothing else."""

Words = npt.NDArray[np.uint64]

_KEY_BYTES: Final = 32
_BLOCK_BYTES: Final = 16
SEED_BYTES: Final = _KEY_BYTES + _BLOCK_BYTES
"""What keys an `AesStream`: 32 bytes of key, then 16 bytes of first counter."""


class WordStream(Protocol):
    """A source of independent, uniform 64-bit words."""

    def words(self, count: int) -> Words:
        """Return the next `count` words, shape (count,)."""


class AesStream:
    """The key stream of AES-256 in counter mode (NIST SP 800-38A, section 6.5) as little-endian 64-bit words.

    Blocks never repeat, as uniform ones would. For 2**32 of them, 64 GiB and more than any release takes, this tells
    the stream from uniform bits with an advantage of at most 2**-65 (the PRP/PRF switching lemma); a larger one would
    break AES-256.

    Args:
        seed: `SEED_BYTES` bytes, used for this stream alone.

    Raises:
        ValueError: `seed` has another length.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            msg = f"a stream is keyed with {SEED_BYTES} bytes, not {len(seed)}"
            raise ValueError(msg)
        self._encryptor = Cipher(AES(seed[:_KEY_BYTES]), CTR(seed[_KEY_BYTES:])).encryptor()

    def words(self, count: int) -> Words:
        """Return the next `count` words, shape (count,), in memory of their own."""
        out = np.zeros(count, dtype="<u8")
        plain = out.data.cast("B")
        self._encryptor.update_into(plain, plain)
        return out.astype(np.uint64, copy=False)
