"""What has gone wrong in published differentially private training, and what could here: each a `Mutant`."""

from __future__ import annotations

from typing import Final

from tests.mutants import Mutant

__all__ = ["MUTANTS"]

_DP: Final = "client/fedward_client/dp"
_NOISE: Final = f"{_DP}/noise.py"
_PLAN: Final = f"{_DP}/plan.py"
_SAMPLING: Final = f"{_DP}/sampling.py"
_SUMS: Final = f"{_DP}/sums.py"
_TESTS: Final = "tests/client/dp"

_ON_NOISE: Final = (f"{_TESTS}/test_noise.py", f"{_TESTS}/test_noise_discrete.py")
_ON_SUMS: Final = (f"{_TESTS}/test_clipped_sum.py",)
_ON_SAMPLING: Final = (f"{_TESTS}/test_sampling.py",)
_ON_PLAN: Final = (f"{_TESTS}/test_plan.py", "tests/client/test_trainer.py")
_ON_COSTS: Final = ("tests/common/test_privacy.py", "tests/client/test_ledger.py")

_GAUSSIAN: Final = "return partial(_add_gaussian, noise_multiplier * l2_bound)"
_KEYS: Final = "keys = [source(SEED_BYTES) for _ in pieces]"
_COIN: Final = "self._random.random(len(self._tensors[0])) < self._rate"
_SHUFFLED: Final = (
    "np.isin(np.arange(len(self._tensors[0])), self._random.permutation(len(self._tensors[0]))[: round(self.expected)])"
)
_RECORDS: Final = (
    "        there = mask > 0\n        return features[there][:, None], labels[there][:, None], mask[there][:, None]\n"
)

_OF_THE_ISSUE: Final = (
    Mutant("noise / 1.5", _NOISE, _GAUSSIAN, _GAUSSIAN.replace("l2_bound)", "l2_bound / 1.5)"), _ON_NOISE),
    Mutant("noise / 2", _NOISE, _GAUSSIAN, _GAUSSIAN.replace("l2_bound)", "l2_bound / 2)"), _ON_NOISE),
    Mutant("clip × 1.5", _SUMS, "factors = (clip_norm / norms)", "factors = (1.5 * clip_norm / norms)", _ON_SUMS),
    Mutant("shuffled batches of one size", _SAMPLING, _COIN, _SHUFFLED, _ON_SAMPLING),
    Mutant("one seed for every release", _NOISE, _KEYS, "keys = [bytes(range(SEED_BYTES)) for _ in pieces]", _ON_NOISE),
    Mutant("live batch normalisation", _PLAN, "checked(model)", "model", _ON_PLAN),
    Mutant(
        "one layer is not clipped",
        f"{_DP}/bookkeeping/tape.py",
        "self._squares[0] += squares.to(self._squares[0])",
        "self._squares[0] += squares.to(self._squares[0]) * (place > 0)",
        _ON_SUMS,
    ),
    Mutant(
        "steps under-counted: one for each round",
        "common/fedward_common/study.py",
        "return self.training.rounds * self.training.local_steps",
        "return self.training.rounds",
        _ON_COSTS,
    ),
    Mutant(
        "ε begins anew in each round",
        "client/fedward_client/books.py",
        "self.spend.sampling_rate, self.spend.steps * rounds)",
        "self.spend.sampling_rate, self.spend.steps * min(rounds, 1))",
        _ON_COSTS,
    ),
    Mutant(
        "a record is the unit, not a patient",
        _SAMPLING,
        "        return features, labels, mask\n",
        _RECORDS,
        (*_ON_SAMPLING, *_ON_PLAN),
    ),
)

_FURTHER: Final = (
    Mutant("a seed of 32 bits", _NOISE, _KEYS, "keys = [source(4) * (SEED_BYTES // 4) for _ in pieces]", _ON_NOISE),
    Mutant("drawn more often than paid for", _SAMPLING, "< self._rate", "< self._rate * 1.1", _ON_SAMPLING),
    Mutant(
        "records are drawn once and not in each step",
        _SAMPLING,
        "keys = self._random.random(mask.shape)",
        "keys = np.random.default_rng(1).random(mask.shape)",
        _ON_SAMPLING,
    ),
    Mutant(
        "the mean's divisor is the private batch size",
        _PLAN,
        "tensor / self._sampler.expected for",
        "tensor / max(1, len(records[0])) for",
        _ON_PLAN,
    ),
    Mutant("steps beyond the debited ones", _PLAN, "if self._left == 0:", "if self._left < -1000:", _ON_PLAN),
    Mutant(
        "the loss leaves without noise",
        _PLAN,
        "float(noised(total, self._plan.loss_noise, self._plan.tier)[0])",
        "float(total.tensors[0])",
        _ON_PLAN,
    ),
    Mutant("the loss is not paid for", _PLAN, " / math.sqrt(1.0 - share)", "", _ON_PLAN),
    Mutant("the loss is not bounded", _PLAN, ".clamp(0.0, bound)", "", _ON_PLAN),
    Mutant(
        "a NaN stays in the sum",
        _SUMS,
        "torch.isfinite(squared_norms) & (squared_norms <= LARGEST_NORM**2)",
        "torch.ones_like(squared_norms, dtype=torch.bool)",
        _ON_SUMS,
    ),
    Mutant(
        "a ghost norm is taken as it was rounded",
        f"{_DP}/bookkeeping/linear.py",
        " + share * reach + lost)",
        ")",
        (f"{_TESTS}/test_bookkeeping.py", f"{_TESTS}/test_bookkeeping_layers.py"),
    ),
    Mutant("the grid's own sensitivity is forgotten", _NOISE, "** exponent + root)", "** exponent)", _ON_NOISE),
    Mutant(
        "a round that was debited is trained again for nothing",
        "client/fedward_client/ledger.py",
        "if round_ <= max(debited, default=0):",
        "if round_ < max(debited, default=0):",
        _ON_COSTS,
    ),
)

MUTANTS: Final = _OF_THE_ISSUE + _FURTHER
