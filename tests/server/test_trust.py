"""FLTrust: the paper's formula, the root rows that nothing is measured on, and what hostile updates can do to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward_client.policy import admit
from fedward_common.errors import CoordinatorError, QuorumLostError, Refusal, RefusalCode, StudyError
from fedward_common.fixed_point import encode_weighted
from fedward_common.models import build_model, initial_weights, load_weights, parameter_spec, weights_of
from fedward_common.study import Study
from fedward_common.tables import Rows
from fedward_common.wire import Update
from fedward_server.aggregation import Aggregator, aggregator_for
from fedward_server.coordinator import Coordinator
from fedward_server.evaluation import HoldOut, TorchPredictor, point_metrics
from fedward_server.root import LEAST_PATIENTS, TorchRootTrainer, judged_part, root_rows
from tests.builders import hold_out, open_policy, small_study
from tests.server.killings import LastingGrid, Reaper, Scene, files_of

SITES = ("a", "b", "c", "d", "e")
Vector = npt.NDArray[np.float64]
Packed = npt.NDArray[np.float32]


def study(**rule: Any) -> Study:
    return small_study(
        sites=list(SITES), aggregation={"rule": "fltrust", "deadline_seconds": 10, "root_share": 0.5, **rule}
    )


SIZE = parameter_spec(study()).size


def drawn(seed: int, count: int = len(SITES)) -> list[Vector]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 0.5, SIZE).astype(np.float32).astype(np.float64) for _ in range(count)]


def fixed(root: Vector) -> Callable[[Packed], Packed]:
    return lambda _: root.astype(np.float32)


def one_round(rule: Aggregator, start: Vector | Packed, updates: list[Vector], order: tuple[int, ...] = ()) -> Packed:
    rule.start(start.astype(np.float32))
    for number in order or range(len(updates)):
        values = encode_weighted(updates[number].astype(np.float32), 1, bound=64.0)
        rule.add(Update(SITES[number], "", 1, 1, 0, values, {}))
    return rule.finish()


def by_the_paper(root: list[float], updates: list[list[float]]) -> list[float]:
    """Equations 2 to 4 of the paper, a number at a time."""

    def norm(vector: list[float]) -> float:
        return math.sqrt(sum(x * x for x in vector))

    def trust(vector: list[float]) -> float:
        return max(0.0, sum(x * y for x, y in zip(vector, root, strict=True)) / (norm(vector) * norm(root)))

    scores = [trust(vector) for vector in updates]
    return [
        sum(s * norm(root) / norm(g) * g[place] for s, g in zip(scores, updates, strict=True)) / sum(scores)
        for place in range(len(root))
    ]


# ----------------------------------------------------------------------------------------------------------- the rule
@pytest.mark.parametrize("seed", range(5))
def test_a_round_is_the_paper_s_formula(seed: int) -> None:
    root, *updates = drawn(seed, 6)
    updates[:2] = [(update + root).astype(np.float32).astype(np.float64) for update in updates[:2]]
    start = drawn(seed + 100, 1)[0]
    expected = start + 0.5 * np.array(by_the_paper(root.tolist(), [u.tolist() for u in updates]))
    new = one_round(aggregator_for(study(server_learning_rate=0.5), root=fixed(root)), start, updates)
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6])
def test_a_root_update_of_any_length_keeps_its_precision(scale: float) -> None:
    root, *updates = drawn(7, 6)
    root = (root * scale).astype(np.float32).astype(np.float64)
    new = one_round(aggregator_for(study(), root=fixed(root)), np.zeros(SIZE), updates)
    expected = np.array(by_the_paper(root.tolist(), [u.tolist() for u in updates]))
    np.testing.assert_allclose(new, expected, rtol=2e-5, atol=2e-5 * scale)


def test_order_of_arrival_changes_no_bit() -> None:
    root, *updates = drawn(3, 6)
    found = {
        one_round(aggregator_for(study(), root=fixed(root)), np.zeros(SIZE), updates, order).tobytes()
        for order in permutations(range(5))
    }
    assert len(found) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 60.0), st.integers(0, 4))
def test_no_update_makes_a_step_longer_than_the_root_s(seed: int, size: float, bad: int) -> None:
    root, *updates = drawn(seed, 6)
    draw = np.random.default_rng(seed)
    for place in range(bad):
        updates[place] = draw.choice([-1.0, 1.0], SIZE) * size
    step = one_round(aggregator_for(study(), root=fixed(root)), np.zeros(SIZE), updates).astype(np.float64)
    assert np.linalg.norm(step) <= np.linalg.norm(root) * (1 + 1e-5)
    assert float(step @ root) >= -1e-6


def test_updates_that_point_away_from_the_root_count_for_nothing_even_as_a_majority() -> None:
    root, first, second, *_ = (np.abs(v) for v in drawn(4))
    honest = [first, second]
    alone = one_round(aggregator_for(study(), root=fixed(root)), np.zeros(SIZE), honest)
    attacked = one_round(aggregator_for(study(), root=fixed(root)), np.zeros(SIZE), [*honest, *[-20 * first] * 3])
    assert attacked.tobytes() == alone.tobytes()


@pytest.mark.parametrize("trusted", [0, 1])
def test_the_model_stays_where_fewer_than_the_quorum_are_trusted(trusted: int) -> None:
    """Else the next model would be made of one hospital's update alone."""
    root = np.abs(drawn(5, 1)[0])
    updates = [root] * trusted + [-root] * (4 - trusted)
    start = drawn(6, 1)[0].astype(np.float32)
    assert one_round(aggregator_for(study(), root=fixed(root)), start, updates).tobytes() == start.tobytes()


def test_the_model_stays_where_the_root_learns_nothing_and_updates_of_nothing_do_not_count() -> None:
    start = drawn(6, 1)[0].astype(np.float32)
    still = one_round(aggregator_for(study(), root=fixed(np.zeros(SIZE))), start, drawn(1))
    assert still.tobytes() == start.tobytes()
    root, *updates = drawn(2, 4)
    without = one_round(aggregator_for(study(), root=fixed(root)), start, updates)
    with_nothing = one_round(aggregator_for(study(), root=fixed(root)), start, [*updates, np.zeros(SIZE)])
    assert with_nothing.tobytes() == without.tobytes()


def test_fewer_updates_than_the_quorum_give_no_model() -> None:
    with pytest.raises(QuorumLostError):
        one_round(aggregator_for(study(quorum=3), root=fixed(drawn(1, 1)[0])), np.zeros(SIZE), drawn(2, 2))


@pytest.mark.parametrize("root", [np.full(SIZE, np.nan), np.full(SIZE, np.inf), np.zeros(SIZE + 1)])
def test_a_root_update_that_is_none_ends_the_run(root: Vector) -> None:
    with pytest.raises(CoordinatorError, match="root rows"):
        one_round(aggregator_for(study(), root=fixed(root)), np.zeros(SIZE), drawn(2))


def test_the_root_is_trained_once_in_a_round_from_that_round_s_model() -> None:
    seen: list[bytes] = []

    def train(weights: Packed) -> Packed:
        seen.append(weights.tobytes())
        return np.ones(SIZE, np.float32)

    rule = aggregator_for(study(), root=train)
    for start in (np.zeros(SIZE), np.ones(SIZE)):
        one_round(rule, start, drawn(1))
    assert seen == [np.zeros(SIZE, np.float32).tobytes(), np.ones(SIZE, np.float32).tobytes()]


def test_without_a_root_there_is_no_such_rule() -> None:
    with pytest.raises(StudyError, match="central rows"):
        aggregator_for(study())


# ------------------------------------------------------------------------------------------------------- the root rows
def test_root_and_judged_patients_are_disjoint_and_together_the_hold_out() -> None:
    a = study(root_share=0.4)
    central = hold_out(a, rows=100)
    root = root_rows(a, central)
    judged, _ = judged_part(a, central, lambda _: np.zeros(100))
    lines = [row.tobytes() for row in (*root.features, *judged.rows.features)]
    assert sorted(lines) == sorted(row.tobytes() for row in central.rows.features)
    assert 38 <= len(root.labels) <= 42
    positive = central.rows.labels.mean()
    assert abs(root.labels.mean() - positive) < 0.03
    assert len(judged.centres) == len(judged.rows.labels)


def test_a_patient_with_several_rows_is_wholly_on_one_side() -> None:
    a = study()
    central = hold_out(a, rows=120)
    codes = np.repeat(np.arange(60), 2)
    rows = Rows(central.rows.features, central.rows.labels, codes, tuple(f"p{n}" for n in range(60)), 0)
    shared = HoldOut(rows, central.centres, central.names)
    root = root_rows(a, shared)
    judged, _ = judged_part(a, shared, lambda _: np.zeros(120))
    assert root.identifiers is not None
    assert judged.rows.identifiers is not None
    assert not set(root.identifiers) & set(judged.rows.identifiers)
    assert len(root.identifiers) + len(judged.rows.identifiers) == 60
    assert all(np.bincount(root.patients) == 2)


def test_the_split_is_the_seed_s() -> None:
    a, b = study(), small_study(seed=2, sites=list(SITES), aggregation={"rule": "fltrust", "root_share": 0.5})
    central = hold_out(a, rows=100)
    assert root_rows(a, central).features.tobytes() == root_rows(a, central).features.tobytes()
    assert root_rows(a, central).features.tobytes() != root_rows(b, central).features.tobytes()


@pytest.mark.parametrize(("share", "rows"), [(0.1, 60), (0.9, 60), (0.5, 2 * LEAST_PATIENTS - 2)])
def test_a_hold_out_too_small_for_its_root_is_refused_before_anything_starts(
    share: float, rows: int, tmp_path: Path
) -> None:
    a = study(root_share=share)
    with pytest.raises(StudyError, match="root_share"):
        Coordinator(a, hold_out(a, rows=rows), lambda _: np.zeros(rows), tmp_path, "test")
    assert not list(tmp_path.iterdir())


def test_a_hold_out_with_one_outcome_has_no_root() -> None:
    a = study()
    central = hold_out(a, rows=100)
    one = Rows(central.rows.features, np.ones_like(central.rows.labels), central.rows.patients, None, 0)
    with pytest.raises(StudyError, match="both outcomes"):
        root_rows(a, HoldOut(one, central.centres, central.names))


def test_the_root_takes_the_study_s_steps_of_plain_gradient_descent() -> None:
    """Two steps over all root patients, the rows of a patient averaged; the gradient by hand."""
    a = study()
    features = np.random.default_rng(1).uniform(-1, 1, (5, SIZE - 1)).astype(np.float32)
    rows = Rows(features, np.array([1, 0, 1, 1, 0]), np.array([0, 0, 1, 2, 2]), ("p", "q", "r"), 0)
    shares = np.array([0.5, 0.5, 1.0, 0.5, 0.5]) / 3
    weights = np.linspace(-0.5, 0.5, SIZE)
    for _ in range(a.training.local_steps):
        error = 1 / (1 + np.exp(-(features @ weights[:-1] + weights[-1]))) - rows.labels
        gradient = np.append(features.T @ (shares * error), (shares * error).sum())
        weights = weights - a.training.learning_rate * gradient
    start = np.linspace(-0.5, 0.5, SIZE).astype(np.float32)
    trainer = TorchRootTrainer(a, rows)
    np.testing.assert_allclose(trainer(start), weights - start, atol=1e-6)
    assert trainer(start).tobytes() == trainer(start).tobytes()
    load_weights(model := build_model(a), start)
    assert weights_of(model).tobytes() == start.tobytes()


# ------------------------------------------------------------------------------------------------------- the whole run
def settled(a: Study, folder: Path) -> Scene:
    scene = Scene.of(a, folder)
    scene.root = TorchRootTrainer(a, root_rows(a, scene.central))
    return scene


def test_a_run_is_judged_on_the_patients_that_its_root_does_not_have(tmp_path: Path) -> None:
    a = study()
    scene = settled(a, tmp_path / "run")
    result = scene.run()
    assert result.status == "completed"
    judged, predictor = judged_part(a, scene.central, scene.predictor)
    coordinator = scene.coordinator()
    assert coordinator.hold_out is not None
    assert len(coordinator.hold_out.rows.labels) == len(judged.rows.labels) < len(scene.central.rows.labels)
    released = coordinator_weights(scene)
    assert result.rounds[-1].central == pytest.approx(point_metrics(a, judged, predictor(released)), nan_ok=True)


def coordinator_weights(scene: Scene) -> Packed:
    arrays = safetensors.numpy.load((scene.folder / "model.safetensors").read_bytes())
    return np.concatenate([arrays[name].ravel() for name in parameter_spec(scene.study).names])


def instants(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    assert isinstance(scene.grid, LastingGrid)
    scene.grid.reaper = reaper = Reaper()
    with files_of(reaper, monkeypatch):
        scene.run()
    return iter(reaper.seen)


@pytest.mark.reduced
def test_killed_at_any_instant_it_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = small_study(
        sites=list(SITES[:3]),
        training={"rounds": 2},
        aggregation={"rule": "fltrust", "root_share": 0.5, "deadline_seconds": 10, "average_last": 0.5},
    )
    whole = settled(a, tmp_path / "whole")
    for at, name in enumerate(instants(whole, monkeypatch), start=1):
        scene = settled(a, tmp_path / f"run-{at}")
        assert scene.killed_at(at, monkeypatch), name
        scene.run()
        assert scene.model == whole.model, name


# ---------------------------------------------------------------------------------------------------------- consent
def test_a_site_that_does_not_allow_single_updates_refuses_it() -> None:
    with pytest.raises(Refusal) as refused:
        admit(study(), SITES[0], open_policy(allow_single_updates=False), now=None)
    assert refused.value.reason is RefusalCode.POLICY_LIMIT
    assert refused.value.fields["asked"] == "fltrust"
    admit(study(), SITES[0], open_policy(), now=None)


@pytest.mark.parametrize(
    "wrong", [{"root_share": 0.0}, {"root_share": 0.95}, {"bucket_size": 2}, {"weighting": "patients"}]
)
def test_a_study_with_impossible_settings_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StudyError):
        study(**wrong)


def test_predictions_of_the_judged_rows_are_those_of_the_whole_hold_out() -> None:
    a = study()
    central = hold_out(a, rows=100)
    whole = TorchPredictor(a, central.rows.features)
    judged, predictor = judged_part(a, central, whole)
    own = TorchPredictor(a, judged.rows.features)
    weights = np.linspace(-1, 1, SIZE).astype(np.float32) + initial_weights(a)
    np.testing.assert_allclose(predictor(weights), own(weights), atol=1e-7)
