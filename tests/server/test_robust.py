"""The robust rules against plain references, and what they promise with poisoned updates among the honest ones."""

from __future__ import annotations

import hashlib
import math
from itertools import combinations, permutations
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_common.errors import CoordinatorError, QuorumLostError, StudyError
from fedward_common.fixed_point import encode_weighted
from fedward_common.models import parameter_spec
from fedward_common.study import SINGLE_UPDATE_RULES, RobustRule, Study
from fedward_common.wire import Update
from fedward_server.aggregation import Aggregator, aggregator_for
from fedward_server.robust import centred_clipping, coordinate_median, in_buckets, multi_krum, trimmed_mean
from tests.builders import small_study

SITES = ("a", "b", "c", "d", "e", "f", "g")
SIZE = parameter_spec(small_study()).size
Vector = npt.NDArray[np.float64]

Options = dict[str, Any]
MEDIAN: Options = {"rule": "median"}
TRIMMED: Options = {"rule": "trimmed_mean", "poisoned": 0.3}
KRUM: Options = {"rule": "multi_krum", "poisoned": 0.3}
CLIPPING: Options = {"rule": "centred_clipping", "radius": 0.8, "momentum": 0.5, "iterations": 2}
EVERY: list[Options] = [MEDIAN, TRIMMED, KRUM, CLIPPING]
BUCKETED: list[Options] = [
    {**MEDIAN, "bucket_size": 2}, {**CLIPPING, "bucket_size": 3}, {**TRIMMED, "poisoned": 0.15, "bucket_size": 2},
]  # fmt: skip
NAMES = [str(rule["rule"]) for rule in EVERY] + [f"{rule['rule']}-buckets" for rule in BUCKETED]


def study(rule: dict[str, Any], sites: tuple[str, ...] = SITES, **more: Any) -> Study:
    return small_study(sites=list(sites), aggregation=rule, **more)


def changes(seed: int, count: int = len(SITES)) -> list[Vector]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 0.5, SIZE).astype(np.float32).astype(np.float64) for _ in range(count)]


def one_round(
    rule: Aggregator, start: Vector, updates: list[Vector], *, order: tuple[int, ...] | None = None, round_: int = 1
) -> npt.NDArray[np.float32]:
    rule.start(start.astype(np.float32))
    for number in order or range(len(updates)):
        values = encode_weighted(updates[number].astype(np.float32), 1, bound=64.0)
        rule.add(Update(SITES[number], "", round_, 1, 0, values, {}))
    return rule.finish()


# --------------------------------------------------------------------------------------- references, one weight a time


def plain_median(updates: list[Vector]) -> Vector:
    found = []
    for column in zip(*updates, strict=True):
        ordered = sorted(column)
        half = len(ordered) // 2
        if len(ordered) % 2 == 0:
            found.append((ordered[half - 1] + ordered[half]) / 2)
        else:
            down, up = ordered[half] - ordered[half - 1], ordered[half + 1] - ordered[half]
            found.append(ordered[half] - down / 2 if down <= up else ordered[half] + up / 2)
    return np.array(found)


def plain_trimmed(updates: list[Vector], cut: int) -> Vector:
    columns = [sorted(column)[cut : len(updates) - cut] for column in zip(*updates, strict=True)]
    return np.array([math.fsum(column) / len(column) for column in columns])


def plain_krum(updates: list[Vector], bad: int) -> Vector:
    scores = []
    for one in updates:
        distances = sorted(math.dist(one, other) ** 2 for other in updates if other is not one)
        scores.append(math.fsum(distances[: len(updates) - bad - 2]))
    best = sorted(range(len(updates)), key=lambda number: (scores[number], number))[: len(updates) - bad]
    mean: Vector = np.mean([updates[number] for number in best], axis=0)
    return mean


def plain_clipping(updates: list[Vector], centre: Vector, radius: float, times: int) -> Vector:
    for _ in range(times):
        lengths = [math.dist(one, centre) for one in updates]
        steps = [(one - centre) * min(1, radius / length) for one, length in zip(updates, lengths, strict=True)]
        centre = centre + np.mean(steps, axis=0)
    return centre


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_median_equals_the_plain_one(seed: int, count: int) -> None:
    start, updates = changes(seed + 50)[0], changes(seed, count)
    new = one_round(aggregator_for(study(MEDIAN)), start, updates)
    np.testing.assert_allclose(new, start + plain_median(updates), atol=1e-6, rtol=0)
    assert new.dtype == np.float32


@pytest.mark.parametrize("count", [6, 7])
@pytest.mark.parametrize("seed", range(5))
def test_trimmed_mean_cuts_the_share_of_the_studys_sites_whoever_answers(seed: int, count: int) -> None:
    start, updates = changes(seed + 50)[0], changes(seed, count)
    new = one_round(aggregator_for(study({**TRIMMED, "server_learning_rate": 0.5})), start, updates)
    np.testing.assert_allclose(new, start + 0.5 * plain_trimmed(updates, cut=2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("outlier", range(8))
def test_multi_krum_averages_the_sites_that_blanchard_et_al_would_take(outlier: int) -> None:
    for seed in range(8):
        start, updates = changes(seed + 50)[0], changes(seed)
        if outlier < len(updates):  # else nobody stands out, and the number of neighbours decides
            updates[outlier] = updates[outlier] + 3
        new = one_round(aggregator_for(study(KRUM)), start, updates)
        np.testing.assert_allclose(new, start + plain_krum(updates, bad=2), atol=1e-6, rtol=0)


def test_centred_clipping_goes_on_from_the_momentum_of_the_round_before() -> None:
    rule, momentum = aggregator_for(study(CLIPPING)), np.zeros(SIZE)
    weights = changes(9)[0].astype(np.float32)
    for round_ in range(1, 5):
        updates = changes(round_)
        momentum = 0.5 * momentum + 0.5 * plain_clipping(updates, momentum, 0.8, times=2)
        expected = weights.astype(np.float64) + momentum
        weights = one_round(rule, weights.astype(np.float64), updates, round_=round_)
        np.testing.assert_allclose(weights, expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(rule.state()["momentum"], momentum, atol=1e-7, rtol=0)


def test_sites_that_agree_are_not_clipped_and_divide_nothing_by_zero() -> None:
    same = [np.full(SIZE, 0.25)] * 3
    assert centred_clipping(same, np.full(SIZE, 0.25), radius=1e-9).tolist() == [0.25] * SIZE


def test_blocks_of_weights_come_back_in_their_places() -> None:
    updates = [np.random.default_rng(seed).normal(size=(1 << 16) + 3) for seed in range(4)]
    np.testing.assert_allclose(coordinate_median(updates), np.median(updates, axis=0), atol=1e-15)


# ------------------------------------------------------------------------------------------------------------- buckets


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_buckets_are_dealt_by_the_hash_of_seed_round_and_site(round_: int) -> None:
    updates = changes(3)
    names = sorted(SITES, key=lambda s: hashlib.sha256(f"fedward bucket 7 {round_} {s}".encode()).hexdigest())
    groups = [names[:3], names[3:6], names[6:]]
    means = [np.mean([updates[SITES.index(name)] for name in group], axis=0) for group in groups]
    rule = aggregator_for(study({**MEDIAN, "bucket_size": 3}, seed=7))
    new = one_round(rule, np.zeros(SIZE), updates, round_=round_)
    np.testing.assert_allclose(new, plain_median(means), atol=1e-6, rtol=0)


def test_each_round_deals_other_buckets_and_a_poisoned_site_spoils_one() -> None:
    updates = [(site, np.array([0.0 if site != "c" else 9.0])) for site in SITES]
    dealt = {tuple(v[0] for v in in_buckets(updates, 2, seed=1, round_=round_)) for round_ in range(30)}
    assert len(dealt) > 1
    assert all(sum(value != 0 for value in means) == 1 for means in dealt)


# --------------------------------------------------------------------------------- promises of every rule, as they run


@pytest.mark.parametrize("rule", EVERY + BUCKETED, ids=NAMES)
def test_every_order_of_arrival_gives_the_same_bits(rule: dict[str, Any]) -> None:
    """In double precision too, where an order of addition would show: the momentum goes on to the next round."""
    start, updates, found = changes(3)[0], changes(4), set()
    for order in [*permutations(range(7))][::61]:
        aggregator = aggregator_for(study(rule))
        model = one_round(aggregator, start, updates, order=order)
        found.add((model.tobytes(), *(kept.tobytes() for kept in aggregator.state().values())))
    assert len(found) == 1


@pytest.mark.parametrize("rule", EVERY + BUCKETED, ids=NAMES)
def test_no_hospitals_update_is_the_next_step(rule: dict[str, Any]) -> None:
    """One hospital lies between the others in every weight: the plain median would be its model to the last bit."""
    direction = np.abs(changes(5)[0]) + 0.01
    updates = [direction * factor for factor in (0.1, 0.2, 0.4, 0.7, 1.1, 1.7, 2.9)]
    assert np.median(updates, axis=0).tobytes() == updates[3].tobytes()
    step = one_round(aggregator_for(study(rule)), np.zeros(SIZE), updates).astype(np.float64)
    assert min(np.abs(step - update).max() for update in updates) > 1e-3


@pytest.mark.parametrize("rule", EVERY + BUCKETED, ids=NAMES)
def test_a_run_that_goes_on_from_its_state_ends_with_the_same_bits(rule: dict[str, Any]) -> None:
    whole = aggregator_for(study(rule))
    weights = changes(1)[0].astype(np.float32)
    for round_ in (1, 2):
        weights = one_round(whole, weights.astype(np.float64), changes(round_), round_=round_)
    resumed = aggregator_for(study(rule), whole.state())
    forgetful = aggregator_for(study(rule))
    ends = [
        one_round(r, weights.astype(np.float64), changes(3), round_=3).tobytes() for r in (whole, resumed, forgetful)
    ]
    assert ends[0] == ends[1]
    assert (ends[0] == ends[2]) is not bool(whole.state())


@pytest.mark.parametrize("rule", EVERY + BUCKETED, ids=NAMES)
def test_no_weight_moves_by_more_than_the_bound(rule: dict[str, Any]) -> None:
    aggregator = aggregator_for(study({**rule, **({"radius": 1e6} if "radius" in rule else {})}))
    for round_, sign in enumerate((1, -1, 1), start=1):
        updates = [np.full(SIZE, 64.0 * sign)] * 7
        assert np.abs(one_round(aggregator, np.zeros(SIZE), updates, round_=round_)).max() <= 64


@pytest.mark.parametrize("rule", EVERY, ids=NAMES[:4])
def test_a_round_forgets_the_updates_of_the_round_before(rule: dict[str, Any]) -> None:
    aggregator = aggregator_for(study(rule))
    aggregator.start(np.zeros(SIZE, dtype=np.float32))
    aggregator.add(Update("a", "", 1, 1, 0, encode_weighted(np.full(SIZE, 9, np.float32), 1, bound=64.0), {}))
    fresh = one_round(aggregator_for(study(rule)), np.zeros(SIZE), changes(6))
    assert one_round(aggregator, np.zeros(SIZE), changes(6)).tobytes() == fresh.tobytes()


# ----------------------------------------------------------------------------------------------- poisoned among honest

values = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def attacks(draw: st.DrawFn, least: int, per_bad: int) -> tuple[list[Vector], list[int]]:
    """Return updates of three weights, up to 9 sites, and which are arbitrary: f, with n >= per_bad * f + least."""
    count = draw(st.integers(per_bad + least, 9))
    bad = draw(st.integers(1, (count - least) // per_bad))
    honest = [draw(st.lists(st.floats(-2, 2), min_size=3, max_size=3)) for _ in range(count - bad)]
    lies = [draw(st.lists(values, min_size=3, max_size=3)) for _ in range(bad)]
    order = draw(st.permutations(range(count)))
    everything = [np.array(vector) for vector in honest + lies]
    return [everything[number] for number in order], [at for at, number in enumerate(order) if number >= count - bad]


def honest(updates: list[Vector], poisoned: list[int]) -> Vector:
    return np.array([u for number, u in enumerate(updates) if number not in poisoned])


@given(attacks(least=1, per_bad=2))
def test_median_stays_near_the_honest_hull_with_any_minority_poisoned(attack: tuple[list[Vector], list[int]]) -> None:
    kept = honest(*attack)
    low, high = kept.min(axis=0), kept.max(axis=0)
    slack = (high - low) / 2 * (len(attack[0]) % 2) + 1e-9
    found = coordinate_median(attack[0])
    assert (found >= low - slack).all()
    assert (found <= high + slack).all()


@given(attacks(least=2, per_bad=2))
def test_trimmed_mean_stays_within_the_honest_hull(attack: tuple[list[Vector], list[int]]) -> None:
    kept, found = honest(*attack), trimmed_mean(attack[0], len(attack[1]))
    assert (found >= kept.min(axis=0) - 1e-9).all()
    assert (found <= kept.max(axis=0) + 1e-9).all()


@given(attacks(least=3, per_bad=2))
def test_multi_krum_stays_within_the_ball_that_its_scores_allow(attack: tuple[list[Vector], list[int]]) -> None:
    kept, count, bad = honest(*attack), len(attack[0]), len(attack[1])
    widest = max(math.dist(a, b) for a, b in combinations(kept, 2))
    reach = widest * (1 + math.sqrt((count - bad - 2) / (count - 2 * bad - 1)))
    assert math.dist(multi_krum(attack[0], bad), kept[0]) <= reach * (1 + 1e-9) + 1e-6


@given(attacks(least=1, per_bad=1), st.floats(0.01, 10))
def test_a_poisoned_site_moves_the_clipped_mean_by_radius_over_n(
    attack: tuple[list[Vector], list[int]], radius: float
) -> None:
    updates, poisoned = attack
    centre = np.array([0.5, -0.25, 1.0])
    silent = [centre if number in poisoned else update for number, update in enumerate(updates)]
    moved = math.dist(centred_clipping(updates, centre, radius), centred_clipping(silent, centre, radius))
    assert moved <= radius * len(poisoned) / len(updates) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 6), min_size=2, max_size=2), st.floats(-64, 64), st.sampled_from([MEDIAN, TRIMMED, KRUM]))
def test_two_of_seven_at_the_bound_lead_the_model_nowhere(bad: set[int], lie: float, rule: dict[str, Any]) -> None:
    updates = [np.full(SIZE, lie) if number in bad else 1 + update / 10 for number, update in enumerate(changes(8))]
    kept = honest(updates, [*bad])
    step = one_round(aggregator_for(study(rule)), np.zeros(SIZE), updates)
    width = (kept.max(axis=0) - kept.min(axis=0)).max()
    assert np.abs(step - kept.mean(axis=0)).max() <= 2.3 * math.sqrt(SIZE) * width
    assert np.abs(np.mean(updates, axis=0) - kept.mean(axis=0)).max() >= 2 / 7 * abs(lie - 1) - 1


# --------------------------------------------------------------------------------------------------------- fail closed


@pytest.mark.parametrize(("rule", "needed"), [(MEDIAN, 2), (TRIMMED, 6), (KRUM, 7), ({**TRIMMED, "quorum": 7}, 7)])
def test_fewer_updates_than_the_promise_needs_give_no_model(rule: dict[str, Any], needed: int) -> None:
    aggregator = aggregator_for(study(rule))
    with pytest.raises(QuorumLostError, match=f"{needed - 1} updates, but {rule['rule']} needs {needed}"):
        one_round(aggregator, np.zeros(SIZE), changes(1, needed - 1))
    assert np.isfinite(one_round(aggregator, np.zeros(SIZE), changes(1, needed))).all()


@pytest.mark.parametrize(
    ("rule", "count", "message"),
    [
        (TRIMMED, 3, "less than one site"),
        (KRUM, 4, "needs 5 updates"),
        ({**KRUM, "quorum": 6}, 7, "needs 8 updates"),
        ({**TRIMMED, "bucket_size": 2}, 7, "needs 11 updates"),
        ({**MEDIAN, "bucket_size": 7}, 7, "needs 8 updates"),
    ],
)
def test_study_whose_sites_are_too_few_for_its_rule_is_refused(rule: dict[str, Any], count: int, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(rule, SITES[:count])


@pytest.mark.parametrize("rule", [TRIMMED, KRUM])
def test_two_sites_may_draft_what_only_more_can_run(rule: dict[str, Any]) -> None:
    draft = study(rule, SITES[:2])
    with pytest.raises(StudyError, match="less than one site"):
        aggregator_for(draft)


@pytest.mark.parametrize("wrong", [{"poisoned": 0.5}, {"poisoned": 0}, {"weighting": "patients"}, {"bucket_size": 0}])
def test_a_rule_outside_its_limits_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=next(iter(wrong))):
        study({**TRIMMED, **wrong})


def test_every_robust_rule_counts_as_one_that_sees_single_updates() -> None:
    tags = {kind.model_fields["rule"].default for kind in get_args(RobustRule)}
    assert tags | {"flower", "fltrust"} == SINGLE_UPDATE_RULES
    assert all(study(rule).sees_single_updates for rule in EVERY)
    assert not study({"rule": "fedyogi"}).sees_single_updates


def test_state_of_another_rule_is_refused() -> None:
    with pytest.raises(CoordinatorError, match="first without second"):
        aggregator_for(study({"rule": "fedadam"}), {"first": np.zeros(SIZE)})
