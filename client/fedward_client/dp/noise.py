"""The one operation that makes a clipped sum public: noise whose scale is read from the sum itself.

Both tiers keep this promise: what is known of a patient from `noised` is at most what is known from the Gaussian
mechanism whose standard deviation is ``noise_multiplier`` times the sensitivity, so one accountant serves both. The
tiers differ in whom they keep it against.

**gaussian.** Against everybody who takes the numbers for real ones. Draws are float64 (NumPy's ziggurat over SFC64),
added in float64 and rounded once to float32. Not float32 draws: over the same generator they are no faster
(docs/benchmarks.md), each layer of the ziggurat has only 2**23 places, and 24 bits end its tail. Not torch's generator:
on the CPU it keeps 32 bits of any seed, few enough to try them all and take the noise off again. SFC64 is keyed with
192 bits of the operating system's for each 2**20 values; it passes the statistical batteries, but is no cipher: who
knows a sum but for one patient sees nearly raw output and might compute the rest. Nor does this tier hide the grid of
floating point (Mironov, CCS 2012; Haney et al., arXiv:2207.13793).

**discrete_gaussian.** Against these as well. The sum is rounded to a grid of a power of two, and integers are added
from the exact discrete Gaussian (`fedward_client.dp.discrete`), whose bits are AES-256 in counter mode (`AesStream`).
The proof, with the rounding's effect on the sensitivity, is docs/adr/0012; `Grid.of` is its arithmetic, done in
rationals. The result is rounded to float32 afterwards, which is post-processing: a function of what is private already.

Neither tier covers what float32 summation does to the sensitivity: `l2_bound` must hold for the sum as it was computed.

**Devices.** Noise is made on the CPU and copied, whatever device the sum is on: torch's generator on CUDA takes 64 bits
of seed and no more, half of what a key should have. `fedward_simulations.bench.noise` says what the CPU costs.

**Freshness.** Each call asks the operating system for its own keys and drops them. There is no generator to be resumed
after a restart or shared by a fork, and no seed of torch, NumPy or Python that matters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from fedward_client.dp.discrete import discrete_gaussian
from fedward_client.dp.stream import SEED_BYTES, AesStream, Source
from fedward_client.dp.sums import ClippedSum

__all__ = ["SMOOTHING", "Grid", "Tier", "noised"]

Tier = Literal["gaussian", "discrete_gaussian"]

SMOOTHING: Final = 3
"""s, in grid steps: the part of the discrete noise that pays for the grid (docs/adr/0012)."""

_PIECE: Final = 1 << 20  # values for each key; what a key is used for does not depend on the number of threads
_CHUNK: Final = 1 << 14  # float64 values that stay in a core's cache
_BOUNDS: Final = (2.0**-60, 2.0**60)  # of an L2 bound: within, nothing here over- or underflows float64
_MULTIPLIERS: Final = (2.0**-60, 2.0**30)  # a study may ask for 10**5; the noise of its loss is larger
_GRID_BITS: Final = 20  # rounding adds at most 2**-20 of the bound to the sensitivity, unless the noise is huge
_NOISE_BITS: Final = 42  # the noise's σ is below 2**43 steps, within what the sampler takes
_LARGEST_STEPS: Final = 2.0**62  # of a sum, so that it and its noise fit 64 bits
_NOT_A_SUM: Final = "the sum is not finite or beyond any sum of clipped gradients: its engine breaks its contract"

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the strict tier works: multiples of ``2**exponent``, and the noise on them.

    Attributes:
        exponent: log2 of the step.
        variance: the discrete noise's variance parameter, in squared steps.
    """

    exponent: int
    variance: int

    @classmethod
    def of(cls, l2_bound: float, noise_multiplier: float, size: int) -> Grid:
        """Return the grid for a sum of `size` values, and the noise that keeps what `noise_multiplier` promises.

        With g the step, rounding moves each of two sums by at most g·√size/2 in L2 norm, so their distance grows from
        ``l2_bound`` to at most Δ = l2_bound + g·√size. The variance is at least (noise_multiplier·Δ/g)² + s², in exact
        arithmetic and rounded up.

        Args:
            l2_bound: the sensitivity before rounding, 2**-60 to 2**60.
            noise_multiplier: 2**-60 to 2**30.
            size: number of values, at least 1; above ``noise_multiplier * √size`` = 2**42 the sampler refuses the grid.
        """
        root_bits = ((size - 1).bit_length() + 1) // 2  # 2**root_bits ≥ √size
        bound_bits = math.frexp(l2_bound)[1] - 1  # 2**bound_bits ≤ l2_bound
        noise_bits = bound_bits + math.frexp(noise_multiplier)[1]
        exponent = max(bound_bits - _GRID_BITS - root_bits, noise_bits - _NOISE_BITS)
        root = math.isqrt(size - 1) + 1
        steps = Fraction(noise_multiplier) * (Fraction(l2_bound) / Fraction(2) ** exponent + root)
        return cls(exponent, math.ceil(steps * steps) + SMOOTHING**2)


def noised(
    total: ClippedSum, noise_multiplier: float, tier: Tier, *, source: Source | None = None
) -> tuple[torch.Tensor, ...]:
    """Return `total` plus independent noise of standard deviation ``noise_multiplier * total.l2_bound``.

    For ``discrete_gaussian`` the deviation is larger: by a factor of at most 1 + 2**-20 while ``noise_multiplier * √d``
    is below 2**21 for d values, and its square by s² squared grid steps.

    Args:
        total: what may leave once noised.
        noise_multiplier: σ over the sensitivity, 2**-60 to 2**30.
        tier: which noise; see the module.
        source: for tests only; by default the operating system.

    Returns:
        float32, the shapes and devices of ``total.tensors``, in new memory.

    Raises:
        ValueError: multiplier or bound is not finite or out of range, a tensor is not float32, the tier is unknown, or
            the sum holds a value that no sum of clipped gradients can have. No message holds a value of the sum.
    """
    _check(total, noise_multiplier, tier)
    if not total.tensors:
        return ()
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in total.tensors])  # a copy, which becomes the result
    device, values = flat.device, flat.cpu().numpy()
    if len(values):
        _each_piece(_adder(total.l2_bound, noise_multiplier, len(values), tier), values, source or os.urandom)
    parts = torch.split_with_sizes(torch.from_numpy(values).to(device), [t.numel() for t in total.tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, total.tensors, strict=True))


def _check(total: ClippedSum, noise_multiplier: float, tier: str) -> None:
    """Raise ValueError for what `noised` does not take; NaN is within no range."""
    for name, value, (low, high) in (
        ("noise_multiplier", noise_multiplier, _MULTIPLIERS),
        ("l2_bound", total.l2_bound, _BOUNDS),
    ):
        if not low <= value <= high:
            msg = f"{name} {value:g} is not within {low:g} to {high:g}: no sound noise would come of it"
            raise ValueError(msg)
    narrow = {tensor.dtype for tensor in total.tensors} - {torch.float32}
    if narrow:
        msg = f"a clipped sum is float32, not {narrow}: another type has another rounding"
        raise ValueError(msg)
    if tier not in get_args(Tier):
        msg = f"there is no noise {tier!r}: gaussian or discrete_gaussian"
        raise ValueError(msg)


def _adder(l2_bound: float, noise_multiplier: float, size: int, tier: Tier) -> Callable[[Values, bytes], None]:
    """Return what adds the tier's noise to values in place, given `SEED_BYTES` bytes for them alone."""
    if tier == "gaussian":
        return partial(_add_gaussian, noise_multiplier * l2_bound)
    return partial(_add_discrete, Grid.of(l2_bound, noise_multiplier, size))


def _each_piece(add: Callable[[Values, bytes], None], values: Values, source: Source) -> None:
    """Call `add` on each piece of `values` with a key of its own, in as many threads as torch would take."""
    pieces = [values[start : start + _PIECE] for start in range(0, len(values), _PIECE)]
    keys = [source(SEED_BYTES) for _ in pieces]
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for piece, key in zip(pieces, keys, strict=True):
            add(piece, key)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="noise") as pool:
        list(pool.map(add, pieces, keys))


def _add_gaussian(scale: float, values: Values, key: bytes) -> None:
    """Add Gaussian noise of standard deviation `scale`, in place."""
    seed = np.random.SeedSequence(int.from_bytes(key, "little"), pool_size=len(key) // 4)
    generator = np.random.Generator(np.random.SFC64(seed))
    buffer = np.empty(min(_CHUNK, len(values)))
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        noise = buffer[: len(chunk)]
        generator.standard_normal(out=noise)
        noise *= scale
        noise += chunk
        if not math.isfinite(noise.sum()):
            raise ValueError(_NOT_A_SUM)
        chunk[:] = noise


def _add_discrete(grid: Grid, values: Values, key: bytes) -> None:
    """Round to the grid, add discrete Gaussian noise, and write the result back as float32, in place."""
    stream = AesStream(key)
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        steps = np.rint(np.ldexp(chunk.astype(np.float64), -grid.exponent))
        if not np.abs(steps).max() <= _LARGEST_STEPS:  # NaN is not below either
            raise ValueError(_NOT_A_SUM)
        noisy = steps.astype(np.int64) + discrete_gaussian(grid.variance, len(chunk), stream)
        chunk[:] = np.ldexp(noisy.astype(np.float64), grid.exponent)
