"""The strict tier: words that are AES-256's, a law that is exact, and a grid whose noise keeps the promise."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from fedward_client.dp.discrete import (
    LARGEST_VARIANCE,
    MARGIN,
    Integers,
    discrete_gaussian,
    exp_bounds,
    uniform_below,
)
from fedward_client.dp.noise import SMOOTHING, Grid, noised
from fedward_client.dp.stream import SEED_BYTES, AesStream, Words
from fedward_client.dp.sums import ClippedSum

Floats = npt.NDArray[np.float64]


def stream(number: int = 0) -> AesStream:
    return AesStream(number.to_bytes(SEED_BYTES, "little"))


class Script:
    """Words written down, then those of a stream; counts what was drawn."""

    def __init__(self, *blocks: list[int]) -> None:
        self._blocks = list(blocks)
        self._after = stream(99)
        self.drawn = 0

    def words(self, count: int) -> Words:
        self.drawn += count
        if not self._blocks:
            return self._after.words(count)
        block = self._blocks.pop(0)
        assert len(block) == count
        return np.array(block, dtype=np.uint64)


def pmf(points: Integers, variance: float) -> Floats:
    """Return the discrete Gaussian's probabilities, the sum taken over all that float64 can tell from zero."""
    far = math.ceil(40 * math.sqrt(variance))
    whole = np.exp(-(np.arange(-far, far + 1.0) ** 2) / (2 * variance)).sum()
    found: Floats = np.exp(-(points.astype(np.float64) ** 2) / (2 * variance)) / whole
    return found


def assert_law(found: Integers, variance: int) -> None:
    """Chi-square of every value that is expected ten times, and of the two tails together."""
    reach = 0
    while len(found) * pmf(np.array([reach + 1]), variance)[0] >= 10:
        reach += 1
    points = np.arange(-reach, reach + 1)
    counts = np.array([(found == point).sum() for point in points])
    expected = pmf(points, variance) * len(found)
    observed = np.append(counts, len(found) - counts.sum())
    assert stats.chisquare(observed, np.append(expected, len(found) - expected.sum())).pvalue > 1e-4


# ---------------------------------------------------------------------------------------------------------- the stream
def test_stream_is_that_of_nist_sp_800_38a_f_5_5() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    words = AesStream(key + counter).words(8)
    assert words.astype("<u8").tobytes() == bytes(a ^ b for a, b in zip(plain, cipher, strict=True))


def test_stream_goes_on_where_it_stopped_and_hands_out_separate_memory() -> None:
    whole, pieces = stream().words(1000), stream()
    parts = [pieces.words(count) for count in (1, 0, 2, 500, 497)]
    assert np.array_equal(np.concatenate(parts), whole)
    parts[0][:] = 0
    assert np.array_equal(np.concatenate(parts[1:]), whole[1:])


@pytest.mark.parametrize("size", [0, 32, 47, 49])
def test_stream_takes_a_whole_key_and_counter_only(size: int) -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        AesStream(bytes(size))


# -------------------------------------------------------------------------------------------------------- the sampler
@pytest.mark.parametrize("variance", [1, 2, 3, 4, 7, 9, 15, 16, 17, 100, 1000])
def test_small_variances_follow_the_exact_law(variance: int) -> None:
    assert_law(discrete_gaussian(variance, 200_000, stream(variance)), variance)


@pytest.mark.parametrize("variance", [1 << 40, (1 << 61) + 12345, LARGEST_VARIANCE])
def test_large_variances_follow_the_normal_law(variance: int) -> None:
    found = discrete_gaussian(variance, 500_000, stream(7)).astype(np.float64) / math.sqrt(variance)
    assert found.std() == pytest.approx(1, abs=0.005)
    assert stats.kstest(found, "norm").pvalue > 1e-4


@pytest.mark.parametrize("variance", [0, -1, LARGEST_VARIANCE + 1])
def test_a_variance_out_of_range_is_refused(variance: int) -> None:
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(variance, 1, stream())


@pytest.mark.parametrize("variance", [1, 9, 1000, (1 << 60) + 1])
def test_exact_arithmetic_takes_the_decisions_of_floating_point(variance: int) -> None:
    """With a margin of 2 every comparison counts as undecided and is made in integers."""
    fast = discrete_gaussian(variance, 1500, stream(3))
    exact = discrete_gaussian(variance, 1500, stream(3), margin=2.0)
    assert np.array_equal(fast, exact)


def test_an_undecided_comparison_is_made_exactly_and_not_in_floating_point() -> None:
    """p(0) = exp(-c) where t = 1: three units below are accepted, three above are not, and float64 sees no difference.

    For V = 1 the largest bracket is that of v = 1, so c = ln 2 - 1/2 + 2**-30 as a float64.
    """
    low, _ = exp_bounds(Fraction(math.log(2) - 0.5 + 2.0**-30), 64)
    assert float(low - 3) == float(low + 3)
    drawn = []
    for uniform in (low - 3, low + 3):
        script = Script([0] * 66 + [1] * 66 + [uniform] * 66)  # U = 0, positive, v = 0
        discrete_gaussian(1, 1, script)
        drawn.append(script.drawn)
    assert drawn[0] == 198
    assert drawn[1] > 198, "the whole block is refused"


def test_a_tie_of_64_bits_is_broken_by_further_ones() -> None:
    gamma = Fraction(1, 3)
    low, high = exp_bounds(gamma, 64)
    ends = (0, 2**64 - 1)
    (tie,) = [w for w in range(low, high) if [uniform_below(w, gamma, 0, Script([x])) for x in ends] == [True, False]]
    spared = Script()
    assert uniform_below(tie - 1, gamma, 0, spared)
    assert not uniform_below(tie + 1, gamma, 0, spared)
    assert spared.drawn == 0


def test_doublings_shift_the_threshold() -> None:
    gamma = Fraction(9, 4)
    threshold = exp_bounds(gamma, 64)[0] * 4
    assert uniform_below(threshold - 16, gamma, 2, Script())
    assert not uniform_below(threshold + 16, gamma, 2, Script())


def test_minus_zero_and_a_coin_of_all_zeros_are_dropped() -> None:
    minus_zero = [1 << 63] * 66 + [1] * 66 + [0] * 66
    endless = [0] * 66 + [0] * 66 + [0] * 66
    for block in (minus_zero, endless):
        script = Script(block)
        discrete_gaussian(4, 1, script)
        assert script.drawn > 198
    kept = Script([0] * 66 + [1] * 66 + [0] * 66)
    assert discrete_gaussian(4, 1, kept).tolist() == [0]
    assert kept.drawn == 198


@pytest.mark.parametrize("variance", [1, 50, 1 << 80])
def test_work_does_not_depend_on_what_is_drawn(variance: int) -> None:
    values = set()
    for number in range(200):
        script = Script()
        script._after = stream(number)
        values.add(int(discrete_gaussian(variance, 1, script)[0]))
        assert script.drawn == 198
    assert len(values) > 3


# --------------------------------------------------------------------------------------------------- exact exponentials
@given(st.fractions(min_value=0, max_value=3000), st.integers(min_value=1, max_value=300))
def test_bounds_of_the_exponential_hold_and_are_tight(gamma: Fraction, bits: int) -> None:
    low, high = exp_bounds(gamma, bits)
    with localcontext() as context:
        context.prec = 150
        truth = (-Decimal(gamma.numerator) / Decimal(gamma.denominator)).exp() * Decimal(2) ** bits
    assert low <= truth <= high
    assert high - low <= 2


@given(st.integers(min_value=0, max_value=63), st.floats(min_value=0, max_value=1))
def test_floating_point_is_far_closer_than_the_margin(doublings: int, above: float) -> None:
    """The module bounds the error by 2**-46; the margin is 2**-40."""
    gamma = Fraction(doublings * math.log(2) + 40 * above + 2.0**-30)
    chance = np.exp(np.array([-float(gamma)]))[0] * 2.0**doublings
    low, _ = exp_bounds(gamma, 200)
    assert abs(Fraction(float(chance)) - Fraction(low << doublings, 1 << 200)) < Fraction(MARGIN) / 64


# ------------------------------------------------------------------------------------------------------------- the grid
@given(
    st.floats(min_value=2.0**-60, max_value=2.0**60),
    st.floats(min_value=2.0**-60, max_value=2.0**30),
    st.integers(min_value=1, max_value=1 << 44),
)
def test_grid_s_noise_covers_rounding_and_smoothing(bound: float, sigma: float, size: int) -> None:
    assume(sigma * math.sqrt(size) <= 2.0**42)
    grid = Grid.of(bound, sigma, size)
    step = Fraction(2) ** grid.exponent
    smooth = grid.variance - SMOOTHING**2
    # (σ·(C/g + √d))² with √d from below to 2**-40, exactly
    root = Fraction(math.isqrt(size << 80), 1 << 40)
    assert smooth >= (Fraction(sigma) * (Fraction(bound) / step + root)) ** 2
    assert grid.variance <= LARGEST_VARIANCE
    if sigma * math.sqrt(size) <= 2.0**21:
        assert smooth <= (Fraction(sigma) * Fraction(bound) / step * (1 + Fraction(1, 1 << 20))) ** 2 + 1


@pytest.mark.parametrize("s", [0.4, 0.6, 1.0])
def test_discrete_gaussian_is_a_rounded_continuous_one(s: float) -> None:
    """The lemma of docs/adr/0012, step 2, at smoothings where it can be seen: by quadrature, for V = s² + 1.

    At s = 0.4 the bound is loose but not idle: the two laws do differ.
    """
    eta = 2 * sum(math.exp(-2 * math.pi**2 * s**2 * k**2) for k in range(1, 20))
    points, ys = np.arange(-6, 7), np.arange(-40, 41)
    w = np.linspace(-20, 20, 200_001)
    kernel_sum = np.exp(-((ys[:, None] - w) ** 2) / (2 * s**2)).sum(axis=0)
    kernel = np.exp(-((points[:, None] - w) ** 2) / (2 * s**2)) / kernel_sum
    rounded = (kernel * stats.norm.pdf(w)).sum(axis=1) * (w[1] - w[0])
    ratio = rounded / pmf(points, s**2 + 1)
    assert (ratio <= (1 + eta) / (1 - eta) * (1 + 1e-9)).all()
    assert (ratio >= (1 - eta) / (1 + eta) * (1 - 1e-9)).all()
    if s == 0.4:
        assert np.abs(ratio - 1).max() > 1e-4


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_privacy_loss_is_at_most_that_of_the_continuous_gaussian(sigma: float, steps: int) -> None:
    """Hockey-stick divergence of integers moved by `steps`, beside the analytic Gaussian's (Balle and Wang 2018)."""
    variance = math.ceil((sigma * steps) ** 2) + SMOOTHING**2
    far = 30 * math.ceil(math.sqrt(variance))
    points = np.arange(-far, far + 1)
    here, there = pmf(points, variance), pmf(points - steps, variance)
    for epsilon in (0.0, 0.5, 1.0, 4.0):
        found = np.maximum(here - math.exp(epsilon) * there, 0).sum()
        mu = 1 / sigma
        allowed = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        assert found <= allowed * (1 + 1e-9) + 1e-15


def test_a_release_is_the_rounded_sum_and_exact_noise_on_the_grid() -> None:
    """A multiplier so small that smoothing is most of the noise: each step of it can be counted."""
    bound, sigma, size = 1.0, 2.0**-30, 200_000
    grid = Grid.of(bound, sigma, size)
    assert grid.variance == SMOOTHING**2 + 1
    sums = torch.linspace(-0.015, 0.015, size)

    (found,) = noised(ClippedSum((sums,), bound), sigma, "discrete_gaussian", source=lambda size: bytes(range(size)))

    scale = 2.0**-grid.exponent
    noise = np.rint(found.numpy() * np.float64(scale)) - np.rint(sums.numpy() * np.float64(scale))
    assert np.abs(found.numpy()).max() < 2.0 ** (24 + grid.exponent), "float32 holds every step"
    assert_law(noise.astype(np.int64), grid.variance)
