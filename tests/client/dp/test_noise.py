"""Both tiers of noise: the law is Gaussian, the scale the sum's own, and no release repeats another."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from fedward_client.dp.noise import Tier, noised
from fedward_client.dp.sums import ClippedSum

TIERS: tuple[Tier, ...] = ("gaussian", "discrete_gaussian")
MANY = 1_000_000

Floats = npt.NDArray[np.float64]


def drawn(tier: Tier, count: int = 2000, bound: float = 1.0, sigma: float = 1.0) -> Floats:
    """Return one release of a sum of zeros."""
    (found,) = noised(ClippedSum((torch.zeros(count),), bound), sigma, tier)
    return found.numpy().astype(np.float64)


def related(one: Floats, other: Floats) -> bool:
    """Return whether two releases share noise: six standard errors of a correlation, or any run of equal values."""
    correlation = abs(np.corrcoef(one, other)[0, 1])
    return bool(correlation > 6 / math.sqrt(len(one)) or (one == other).mean() > 0.01)


# ------------------------------------------------------------------------------------------------------------ the law
@pytest.mark.parametrize("tier", TIERS)
def test_a_million_values_follow_the_normal_law_at_the_promised_scale(tier: Tier) -> None:
    found = drawn(tier, MANY, bound=0.25, sigma=3.0) / 0.75

    assert found.std() == pytest.approx(1.0, abs=0.0035)
    assert abs(found.mean()) < 6 / math.sqrt(MANY)
    assert abs(float(stats.skew(found))) < 6 * math.sqrt(6 / MANY)
    assert abs(float(stats.kurtosis(found))) < 6 * math.sqrt(24 / MANY)
    assert stats.kstest(found, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 6 / math.sqrt(MANY)


@pytest.mark.parametrize("tier", TIERS)
def test_tails_are_as_heavy_as_the_normal_law_s(tier: Tier) -> None:
    sizes = np.abs(drawn(tier, MANY))
    for height in (3.0, 3.7, 4.3):  # the middle one is beyond the ziggurat's last layer
        expected = MANY * 2 * stats.norm.sf(height)
        assert abs((sizes > height).sum() - expected) < 6 * math.sqrt(expected)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(("bound", "sigma"), [(0.5, 1.0), (2.0, 1.0), (1.0, 4.0), (1e-3, 1e5), (1000.0, 1e-3)])
def test_scale_is_the_multiplier_times_what_the_sum_says_of_itself(tier: Tier, bound: float, sigma: float) -> None:
    assert drawn(tier, 100_000, bound, sigma).std() == pytest.approx(bound * sigma, rel=6 / math.sqrt(200_000))


@pytest.mark.parametrize("tier", TIERS)
def test_noise_is_added_to_each_tensor_in_its_place_and_the_sum_stays(tier: Tier) -> None:
    tensors = (
        torch.arange(6.0).reshape(2, 3),
        torch.tensor(7.0),
        torch.zeros(0),
        torch.arange(8.0).reshape(2, 4).T,
        torch.full((1,), -3.0, requires_grad=True),
    )
    before = [tensor.detach().clone() for tensor in tensors]

    found = noised(ClippedSum(tensors, 0.1), 1.0, tier)

    assert [t.shape for t in found] == [t.shape for t in tensors]
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in found)
    for new, old, then in zip(found, tensors, before, strict=True):
        assert torch.allclose(new, then, atol=1.0)
        assert not len(new.reshape(-1)) or not torch.equal(new, then)
        assert torch.equal(old.detach(), then)


@pytest.mark.parametrize("tier", TIERS)
def test_a_model_without_parameters_releases_nothing(tier: Tier) -> None:
    assert noised(ClippedSum((), 1.0), 1.0, tier) == ()
    (empty,) = noised(ClippedSum((torch.zeros(0, 3),), 1.0), 1.0, tier)
    assert empty.shape == (0, 3)


# -------------------------------------------------------------------------------------------------------- independence
@pytest.mark.parametrize("tier", TIERS)
def test_noise_is_independent_between_tensors_pieces_and_releases(tier: Tier) -> None:
    twins = ClippedSum((torch.zeros(1 << 20), torch.zeros(1 << 20)), 1.0)
    releases = [t.numpy().astype(np.float64) for _ in range(2) for t in noised(twins, 1.0, tier)]
    for one, other in itertools.combinations(releases, 2):
        assert not related(one, other)


@pytest.mark.parametrize("tier", TIERS)
def test_no_seed_of_the_user_s_matters(tier: Tier) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  (the seed that must not matter)
        random.seed(1)
        found.append(drawn(tier))
    assert not related(*found)


@pytest.mark.parametrize("tier", TIERS)
def test_drawing_noise_moves_no_generator_of_the_user_s(tier: Tier) -> None:
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    drawn(tier)
    assert torch.equal(torch.randn(3), expected)


def send(pipe: Any) -> None:
    pipe.send([drawn(tier) for tier in TIERS])


def test_forked_children_share_no_noise_with_each_other_or_their_parent() -> None:
    """Two sites of a simulation, or two rounds of one, are children of one warm process."""
    context = multiprocessing.get_context("fork")
    families = [[drawn(tier) for tier in TIERS]]
    for _ in range(2):
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=send, args=(theirs,))
        child.start()
        families.append(mine.recv())
        child.join()
        assert child.exitcode == 0
    families.append([drawn(tier) for tier in TIERS])
    for one, other in itertools.combinations(families, 2):
        assert not any(related(a, b) for a, b in zip(one, other, strict=True))


RESTARTED = """
import sys, torch
from fedward_client.dp.noise import noised
from fedward_client.dp.sums import ClippedSum
torch.manual_seed(0)
for tier in ("gaussian", "discrete_gaussian"):
    (found,) = noised(ClippedSum((torch.zeros(2000),), 1.0), 1.0, tier)
    sys.stdout.buffer.write(found.numpy().tobytes())
"""


def test_a_restart_does_not_bring_old_noise_back() -> None:
    torch.manual_seed(0)
    before = [drawn(tier) for tier in TIERS]
    run = subprocess.run([sys.executable, "-c", RESTARTED], capture_output=True, check=True, timeout=120)
    after = np.frombuffer(run.stdout, dtype=np.float32).astype(np.float64).reshape(2, 2000)
    for one, other in zip(before, after, strict=True):
        assert not related(one, other)


@pytest.mark.parametrize("tier", TIERS)
def test_each_release_and_each_piece_has_a_key_of_its_own(tier: Tier) -> None:
    keys: list[bytes] = []

    def listening(size: int) -> bytes:
        keys.append(os.urandom(size))
        return keys[-1]

    for _ in range(3):
        noised(ClippedSum((torch.zeros((1 << 20) + 1),), 1.0), 1.0, tier, source=listening)

    assert len(keys) == len(set(keys)) == 6
    assert all(len(key) >= 32 for key in keys)


@pytest.mark.parametrize("tier", TIERS)
def test_the_source_alone_decides_whatever_the_threads(tier: Tier) -> None:
    """That a fixed source repeats the noise shows that nothing else feeds it; a bit more or less changes all of it."""

    def fixed(flip: int, threads: int) -> Floats:
        keys = (bytes([index, flip]) + bytes(46) for index in itertools.count())
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            total = ClippedSum((torch.zeros((1 << 20) + 5000),), 1.0)
            (found,) = noised(total, 1.0, tier, source=lambda _: next(keys))
        finally:
            torch.set_num_threads(before)
        return found.numpy().astype(np.float64)

    one = fixed(0, threads=1)
    assert np.array_equal(one, fixed(0, threads=2))
    assert not related(one, fixed(1, threads=2))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("byte", [0, 7, 8, 23])
def test_every_part_of_the_key_counts(tier: Tier, byte: int) -> None:
    """Torch's CPU generator ignores all but 32 bits of a seed: two releases in 65,000 would share theirs."""

    def with_bit(value: int) -> Floats:
        key = bytearray(48)
        key[byte] = value
        (found,) = noised(ClippedSum((torch.zeros(2000),), 1.0), 1.0, tier, source=lambda _: bytes(key))
        return found.numpy().astype(np.float64)

    assert not related(with_bit(0), with_bit(0x80))


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-30, 1e30])
@pytest.mark.parametrize("which", ["noise_multiplier", "l2_bound"])
def test_a_scale_of_which_no_noise_would_come_is_refused(tier: Tier, value: float, which: str) -> None:
    bound, sigma = (value, 1.0) if which == "l2_bound" else (1.0, value)
    with pytest.raises(ValueError, match=which):
        drawn(tier, bound=bound, sigma=sigma)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_sum_that_is_not_float32_is_refused(tier: Tier, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="float32"):
        noised(ClippedSum((torch.zeros(2), torch.zeros(2, dtype=dtype)), 1.0), 1.0, tier)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sum_that_is_not_finite_is_refused(tier: Tier, value: float) -> None:
    broken = torch.zeros(40_000)
    broken[-1] = value
    with pytest.raises(ValueError, match="not finite"):
        noised(ClippedSum((broken,), 1.0), 1.0, tier)


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(ValueError, match="laplace"):
        noised(ClippedSum((torch.zeros(2),), 1.0), 1.0, "laplace")  # type: ignore[arg-type]
