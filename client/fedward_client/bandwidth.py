"""How fast a site may send or receive: a token bucket over bytes. Pure: the time is an argument."""

from __future__ import annotations

from typing import Final

__all__ = ["PIECE_BYTES", "TokenBucket", "bytes_per_second"]

PIECE_BYTES: Final = 64 * 1024
"""Bytes that pass at a time: what a limited link carries comes in pieces of this size."""

_BURST_S: Final = 0.25


def bytes_per_second(mbit_s: float) -> float:
    """Return a rate in bytes for one in megabits, 10**6 bits, per second."""
    return mbit_s * 1e6 / 8


class TokenBucket:
    """Lets `rate` bytes pass in a second, and as many at once as pass in a quarter of one, or a piece if that is more.

    Whoever takes more than there is goes into debt and waits for it to be paid off, so whatever the sizes are, at most
    ``burst + rate * t`` bytes, and the last take, have passed `t` seconds after the first.

    Args:
        rate: bytes per second, above 0.
        now: the time, in seconds on any clock that does not go back.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._most = self._tokens = max(float(PIECE_BYTES), rate * _BURST_S)
        self._now = now

    def take(self, size: int, now: float) -> float:
        """Take `size` bytes at the time `now`; return how many seconds to wait before they may pass."""
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._now) * self._rate)
        self._now = max(now, self._now)
        self._tokens -= size
        return max(0.0, -self._tokens / self._rate)
