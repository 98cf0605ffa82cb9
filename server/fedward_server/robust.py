"""Rules that bear poisoned sites. They compare single updates: a mode of its own, which each hospital must allow.

None returns one hospital's update: each weight of the next model averages at least two. All are deterministic and
independent of the order of arrival. Each site counts as one, whatever it says of its patients.

Memory: every update of the round is kept as float64, 8 bytes x parameters x sites; beside them, for a while, the means
of the buckets if there are any, and up to four vectors of one model's size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from fedward_common.errors import QuorumLostError, StudyError
from fedward_common.fixed_point import decode_mean
from fedward_common.study import CentredClipping, Median, MultiKrum, RobustRule, Study, TrimmedMean
from fedward_common.wire import Update
from fedward_server.server_steps import State, kept

__all__ = ["Robust", "centred_clipping", "coordinate_median", "in_buckets", "multi_krum", "trimmed_mean"]

Weights = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

_BLOCK = 1 << 16  # weights that are sorted at a time: a few megabytes, whatever the model


class Robust:
    """The study's robust rule as an `Aggregator`.

    No weight moves by more than ``server_learning_rate * update_bound`` in a round: every rule's result lies, weight
    by weight, between the least and the largest of the updates (and of the momentum, which does as well).

    Args:
        study: its rule, its sites and the seed that deals the buckets.
        rule: the study's aggregation.
        state: what `state` returned, to go on from there; None: from the beginning.

    Raises:
        StudyError: the study has too few sites for this rule, or the rule would bear none.
        CoordinatorError: the state is not this rule's.
    """

    def __init__(self, study: Study, rule: RobustRule, state: Mapping[str, Vector] | None = None) -> None:
        self._rule = rule
        self._seed = study.seed
        self._least = rule.least_updates(len(study.sites))
        self._poisoned = 0 if isinstance(rule, Median | CentredClipping) else rule.poisoned_sites(len(study.sites))
        self._state: State = kept(state, "momentum") if state and isinstance(rule, CentredClipping) else {}
        self._weights: Weights = np.zeros(0, dtype=np.float32)
        self._updates: list[tuple[str, Vector]] = []
        self._round = 0
        shortfall = rule.shortfall(len(study.sites))
        if shortfall:
            raise StudyError(shortfall, remedy="name more sites, or change poisoned, bucket_size or quorum")

    def start(self, weights: Weights) -> None:
        """See `Aggregator.start`."""
        self._weights, self._updates = weights, []

    def add(self, update: Update) -> None:
        """See `Aggregator.add`. The update is kept until `finish`."""
        self._round = update.round
        self._updates.append((update.site, decode_mean(update.values, update.weight)))

    def finish(self) -> Weights:
        """See `Aggregator.finish`. The updates are let go.

        Raises:
            QuorumLostError: too few updates for what the rule promises.
        """
        updates, self._updates = self._updates, []
        if len(updates) < self._least:
            msg = f"{len(updates)} updates, but {self._rule.rule} needs {self._least} to bear what the study allows for"
            raise QuorumLostError(msg, remedy="a longer deadline, or lower poisoned, bucket_size or quorum")
        vectors = in_buckets(updates, self._rule.bucket_size, seed=self._seed, round_=self._round)
        del updates
        step = self._rule.server_learning_rate * self._combined(vectors)
        return (self._weights.astype(np.float64) + step).astype(np.float32)

    def state(self) -> State:
        """See `Aggregator.state`: the momentum of centred clipping, else nothing."""
        return dict(self._state)

    def _combined(self, vectors: Sequence[Vector]) -> Vector:
        match self._rule:
            case Median():
                return coordinate_median(vectors)
            case TrimmedMean():
                return trimmed_mean(vectors, self._poisoned)
            case MultiKrum():
                return multi_krum(vectors, self._poisoned)
            case CentredClipping(radius=radius, momentum=momentum, iterations=times):
                centre = self._state.get("momentum", np.zeros_like(vectors[0]))
                moved = centred_clipping(vectors, centre, radius, times)
                self._state = {"momentum": centre + (1 - momentum) * (moved - centre)}
                return self._state["momentum"]


def in_buckets(updates: Sequence[tuple[str, Vector]], size: int, *, seed: int, round_: int) -> list[Vector]:
    """Return the means of `size` updates each, dealt by a permutation of the sites (Karimireddy, He, Jaggi 2022).

    The permutation orders the sites by SHA-256 of seed, round and name. It is another one in each round, and the same
    on every machine; it is no secret, so sites that collude know their buckets. The last bucket may be smaller.
    f poisoned sites spoil at most f buckets. With `size` 1 the updates come back in the order of the sites' names.

    Args:
        updates: site and update.
        size: of a bucket, at least 1.
        seed: the study's.
        round_: 1-based.
    """
    if size == 1:
        return [vector for _, vector in sorted(updates, key=itemgetter(0))]

    def place(entry: tuple[str, Vector]) -> bytes:
        return hashlib.sha256(f"fedward bucket {seed} {round_} {entry[0]}".encode()).digest()

    dealt = [vector for _, vector in sorted(updates, key=place)]
    return [_mean(dealt[start : start + size]) for start in range(0, len(dealt), size)]


def coordinate_median(vectors: Sequence[Vector]) -> Vector:
    """Return of each weight the middle, as a mean of two: of an odd number the middle and its nearer neighbour.

    The plain median of an odd number is, weight by weight, one hospital's value, and where one hospital lies between
    the others in all weights, its whole model. This one keeps the breakdown point: with fewer than half of the vectors
    arbitrary, each weight stays within the hull of the others, widened by half its width; of an even number, within
    the hull itself.

    Args:
        vectors: at least two.
    """
    middle, odd = divmod(len(vectors), 2)

    def between(ordered: Vector) -> Vector:
        centre, partner = ordered[middle], ordered[middle - 1]
        if odd:
            above = ordered[middle + 1]
            partner = np.where(centre - partner <= above - centre, partner, above)
        mean: Vector = 0.5 * (partner + centre)
        return mean

    return _by_weight(vectors, between)


def trimmed_mean(vectors: Sequence[Vector], poisoned: int) -> Vector:
    """Return of each weight the mean without the `poisoned` least and largest (Yin et al. 2018, algorithm 1).

    With at most `poisoned` arbitrary vectors, each weight stays within the hull of the others.

    Args:
        vectors: at least ``2 * poisoned + 2``.
        poisoned: how many are cut off at each end.
    """
    end = len(vectors) - poisoned
    return _by_weight(vectors, lambda ordered: _mean(ordered[poisoned:end]))


def multi_krum(vectors: Sequence[Vector], poisoned: int) -> Vector:
    """Return the mean of the n - f vectors that lie closest to their n - f - 2 nearest (Blanchard et al. 2017).

    With at most f arbitrary vectors and n >= 2f + 3, each vector that is taken lies within D * sqrt((n - f - 2) /
    (n - 2f - 1)) of one of the others, where D is the largest distance between two of these: the n - f others score
    at most (n - f - 2) * D^2 each, so the n - f best do; and of the n - f - 2 squared distances in such a score at
    least n - 2f - 1 end at one of the others. Equal scores are taken in the order given.

    Args:
        vectors: at least ``2 * poisoned + 3``.
        poisoned: f.
    """
    count = len(vectors)
    squared = np.zeros((count, count))
    for row in range(count):
        for column in range(row):
            squared[row, column] = squared[column, row] = np.square(vectors[row] - vectors[column]).sum()
    np.fill_diagonal(squared, np.inf)
    scores = np.sort(squared, axis=1)[:, : count - poisoned - 2].sum(axis=1)
    best = np.argsort(scores, kind="stable")[: count - poisoned]
    return _mean([vectors[number] for number in sorted(best)])


def centred_clipping(vectors: Sequence[Vector], centre: Vector, radius: float, iterations: int = 1) -> Vector:
    """Return the centre, moved `iterations` times by the mean of the clipped differences (ICML 2021, algorithm 1).

    In each iteration a vector moves the result by at most radius / n, so f arbitrary ones among n move it by at most
    2 f radius / n in the first; and the result is a convex combination of the centre and the vectors.

    Args:
        vectors: at least one.
        centre: where to start; the paper takes the last round's result.
        radius: tau, the longest difference that counts.
        iterations: L.
    """
    for _ in range(iterations):
        moved = np.zeros_like(centre)
        for vector in vectors:
            difference = vector - centre
            length = float(np.sqrt(np.square(difference).sum()))
            moved += difference * (min(1.0, radius / length) if length else 1.0)
        centre = centre + moved / len(vectors)
    return centre


def _mean(vectors: Sequence[Vector] | Vector) -> Vector:
    """Return the mean, added up in the order given."""
    total = np.array(vectors[0])
    for vector in vectors[1:]:
        total += vector
    total /= len(vectors)
    return total


def _by_weight(vectors: Sequence[Vector], combine: Callable[[Vector], Vector]) -> Vector:
    """Return what `combine` makes of the sorted values of each weight, a block of weights at a time."""
    result = np.empty_like(vectors[0])
    for start in range(0, len(result), _BLOCK):
        part = slice(start, start + _BLOCK)
        result[part] = combine(np.sort([vector[part] for vector in vectors], axis=0))
    return result
