"""A cap on a site's bandwidth holds over any time, for any sizes, and costs nothing where there is none."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.bandwidth import PIECE_BYTES, TokenBucket, bytes_per_second
from fedward_client.flower_adapter.calls import Pace, _Paced


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_a_megabit_is_a_hundred_and_twenty_five_thousand_bytes() -> None:
    assert bytes_per_second(8.0) == 1_000_000


@given(
    rate=st.floats(1e3, 1e9),
    steps=st.lists(st.tuples(st.integers(1, 1 << 22), st.floats(0, 10)), min_size=1, max_size=40),
)
def test_no_more_passes_than_the_rate_allows_whatever_is_taken_when(
    rate: float, steps: list[tuple[int, float]]
) -> None:
    bucket, now, passed = TokenBucket(rate, 0.0), 0.0, 0
    burst = max(PIECE_BYTES, rate / 4)
    for size, pause in steps:
        now += pause
        now += bucket.take(size, now)
        passed += size
        assert passed <= (burst + rate * now) * (1 + 1e-9) + 1


def test_a_quiet_link_is_used_at_once_and_saves_up_no_more_than_a_quarter_of_a_second() -> None:
    bucket = TokenBucket(1e6, 0.0)
    assert bucket.take(250_000, 1000.0) == 0.0
    assert bucket.take(1_000_000, 1000.0) == pytest.approx(1.0)
    assert bucket.take(1_000_000, 1000.0) == pytest.approx(2.0)


def test_a_clock_that_goes_back_lets_nothing_pass_twice() -> None:
    bucket = TokenBucket(1e6, 50.0)
    bucket.take(250_000, 50.0)
    assert bucket.take(1_000_000, 10.0) == pytest.approx(1.0)
    assert bucket.take(0, 50.0) == pytest.approx(1.0)


def test_a_body_passes_in_pieces_at_the_pace_and_is_unchanged() -> None:
    clock = Clock()
    content = bytes(range(256)) * 8192  # 2 MiB

    got = list(_Paced(httpx.ByteStream(content), Pace(8.0, clock.wait, clock)))

    assert b"".join(got) == content
    assert max(map(len, got)) == PIECE_BYTES
    assert clock.now - 100.0 == pytest.approx((len(content) - 250_000) / 1e6)
