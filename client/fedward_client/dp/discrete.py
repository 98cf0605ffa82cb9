"""The discrete Gaussian on the integers, sampled from 64-bit words without a rounding error.

After Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (NeurIPS 2020, arXiv:2004.00010),
algorithms 1 to 3: a two-sided staircase of geometrically falling steps is proposed and thinned by Bernoulli(exp(-γ)).
Two changes make it vectorise, neither changes the law:

* The steps, of width t, fall by a half and not by 1/e, so their number v is the count of trailing zeros of a word.
* Both thinnings are one. With U uniform on 0..t-1 and x = U + t·v, P(v, U) = 2**-(v + 1) / t. The proposal is kept
  with probability p(x) = 2**v · exp(-(x²/2V + c)), so x is proposed and kept with probability
  exp(-x²/2V) · exp(-c) / 2t: the discrete Gaussian of variance parameter V on x ≥ 0. A fair sign, -0 dropped, makes it
  two-sided (their algorithm 2). c is so large that p ≤ 1: x²/2V ≥ (t·v)²/2V, so c ≥ max over v of
  v·ln 2 - (t·v)²/2V is enough.

**Exactness.** U, v and the sign are uniform bits. Only "W < p(x)" meets real numbers. It is decided in float64 where
W, the first 64 bits of a uniform number, is further than `MARGIN` = 2**-40 from the float64 value of p; else in integer
arithmetic with as many further words as it takes. The float64 error is below the margin: x < 2**51 is exact, the
exponent y = x²/2V + c has a relative error of at most 5·2**-53, the exponential one of a few ulp (NumPy tests at most
4), and the product with 2**v none; so p has an absolute error of at most 2**-53 · p · (5·y + 8). With p = exp(-a),
y = v·ln 2 + a, and a ≥ v²/8 - v·ln 2 because t > σ/2: p·y < 6 for each v, and the error is below 2**-47; rounding W
adds 2**-54. What is left is that v stops at 63: a proposal of |x| ≥ 64·t > 32·σ is dropped, which changes the law by
less than exp(-500) in total variation. That is the only deviation from the exact law, given uniform words.

**Time.** A block of proposals takes the same operations whatever its words are, but for the undecided comparisons (one
in 2**39 proposals) and arithmetic on subnormal numbers (only beyond |x| = 37·σ). How many blocks are needed is random,
but independent of the values that are kept: in rejection sampling from independent proposals, the pattern of
acceptances says nothing about the accepted values. So the duration does not tell large noise from small, as that of
earlier samplers did (Jin et al., IEEE S&P 2022, arXiv:2112.05307). Caches and the time of later code are not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_client.dp.stream import Words, WordStream

__all__ = ["LARGEST_VARIANCE", "MARGIN", "Integers", "discrete_gaussian", "exp_bounds", "uniform_below"]

Integers = npt.NDArray[np.int64]

LARGEST_VARIANCE: Final = 1 << 88
"""Above it a proposal would not be an exact float64."""

MARGIN: Final = 2.0**-40
"""A float64 comparison closer than this is made again in integers; its error is below 2**-46."""

_BLOCK: Final = 1 << 14  # proposals at once: six arrays of it fit a core's second-level cache
_WORD_BITS: Final = 64
_EXPONENT_BIAS, _MANTISSA_BITS = 1023, 52


@dataclass(frozen=True, slots=True)
class _Law:
    """What is public about a draw.

    Attributes:
        variance: V, the variance parameter.
        step_bits: log2 of t, the largest power of two with t ≤ sqrt(V).
        excess: c, as exact as it is used.
    """

    variance: int
    step_bits: int
    excess: Fraction

    @classmethod
    def of(cls, variance: int) -> _Law:
        step_bits = (variance.bit_length() - 1) // 2
        ratio = (1 << 2 * step_bits) / variance  # t²/V, in (1/4, 1]: beyond v = 8 the bracket is negative
        most = max(v * math.log(2) - v * v * ratio / 2 for v in range(9))
        return cls(variance, step_bits, Fraction(most + 2.0**-30))


def discrete_gaussian(variance: int, count: int, stream: WordStream, *, margin: float = MARGIN) -> Integers:
    """Return independent integers, P(x) proportional to exp(-x²/(2·variance)), int64, shape (count,).

    Args:
        variance: the variance parameter, 1 to `LARGEST_VARIANCE`; from 9 on the variance up to a relative 1e-70.
        count: how many.
        stream: where the uniform bits come from.
        margin: for tests only; the result is the same for each margin of at least `MARGIN`.

    Raises:
        ValueError: `variance` is out of range.
    """
    if not 1 <= variance <= LARGEST_VARIANCE:
        msg = f"variance {variance} is not within 1 to 2**{LARGEST_VARIANCE.bit_length() - 1}"
        raise ValueError(msg)
    law = _Law.of(variance)
    out = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        kept = _kept(law, min(_BLOCK, 2 * (count - filled) + _WORD_BITS), stream, margin)[: count - filled]
        out[filled : filled + len(kept)] = kept
        filled += len(kept)
    return out


def _kept(law: _Law, proposals: int, stream: WordStream, margin: float) -> Integers:
    """Return those of a block of proposals that are accepted, in their order, shape (0 to proposals,)."""
    places, coins, uniforms = stream.words(3 * proposals).reshape(3, proposals)
    doublings = (coins & (~coins + np.uint64(1))).astype(np.float64)  # 2**v, exact: v is the number of trailing zeros
    steps = (doublings.view(np.int64) >> _MANTISSA_BITS) - _EXPONENT_BIAS
    steps[steps < 0] = 0  # of a word of zeros, which `doublings` = 0 rejects
    sizes = (places & np.uint64((1 << law.step_bits) - 1)).view(np.int64) + (steps << law.step_bits)
    wide = sizes.astype(np.float64)
    chance = np.exp(wide * wide * (-0.5 / law.variance) - float(law.excess)) * doublings
    slack = chance - uniforms.astype(np.float64) * 2.0**-_WORD_BITS
    keep = slack > 0
    unsure = np.flatnonzero((np.abs(slack) <= margin) & (doublings > 0))
    negative = places >> np.uint64(_WORD_BITS - 1) != 0
    for index in unsure:
        keep[index] = _decided(law, int(sizes[index]), int(steps[index]), int(uniforms[index]), stream)
    keep &= ~(negative & (sizes == 0))
    signed: Integers = np.where(negative, -sizes, sizes)[keep]
    return signed


def _decided(law: _Law, size: int, doublings: int, uniform: int, stream: WordStream) -> bool:
    """Return whether the proposal `size` is accepted, exactly."""
    return uniform_below(uniform, Fraction(size * size, 2 * law.variance) + law.excess, doublings, stream)


def uniform_below(first: int, gamma: Fraction, doublings: int, stream: WordStream) -> bool:
    """Return whether a uniform number of [0, 1) is below ``2**doublings * exp(-gamma)``, without any error.

    Args:
        first: the number's first 64 bits; further ones are drawn from `stream` while these do not decide.
        gamma: at least ``doublings * ln 2``.
        doublings: at least 0.
        stream: see `first`.
    """
    drawn, bits = first, _WORD_BITS
    while True:
        scale = bits + doublings + _WORD_BITS
        low, high = exp_bounds(gamma, scale)
        if (drawn + 1) << _WORD_BITS <= low:
            return True
        if drawn << _WORD_BITS >= high:
            return False
        (word,) = _plain(stream.words(1))
        drawn, bits = (drawn << _WORD_BITS) | word, bits + _WORD_BITS


def _plain(words: Words) -> list[int]:
    return [int(word) for word in words]


def exp_bounds(gamma: Fraction, bits: int) -> tuple[int, int]:
    """Return integers with ``low <= exp(-gamma) * 2**bits <= high`` that differ by a few units at most.

    The argument is halved below 1/2, its exponential summed as a Taylor series in fixed point with `bits` and a guard,
    and squared as often as it was halved. In units of the last place: each of n terms is rounded down and wrong by less
    than 2 (its own rounding and half of the one before), the rest of the alternating series is below 2, and rounding
    the argument makes less than 1.

    Args:
        gamma: at least 0.
        bits: of the result, at least 1.
    """
    halvings = max(0, math.ceil(gamma).bit_length() + 1)
    guard = bits + 2 * halvings + _WORD_BITS
    small = (gamma.numerator << guard) // (gamma.denominator << halvings)  # floor: wrong by less than one unit
    term = total = 1 << guard
    terms = 0
    while term:
        terms += 1
        term = (term * small // terms) >> guard
        total += -term if terms % 2 else term
    slack = 2 * terms + 4
    low, high = max(0, total - slack), total + slack
    for _ in range(halvings):
        low, high = (low * low) >> guard, ((high * high) >> guard) + 1
    return low >> (guard - bits), (high >> (guard - bits)) + 1
