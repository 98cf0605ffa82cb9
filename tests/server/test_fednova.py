"""FedNova, both sides: the paper's formula, steps that follow the patients, and what it is without unlike sites."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedward_client.site import Site
from fedward_common.errors import RefusalCode, StudyError
from fedward_common.fixed_point import decode_mean, encode_weighted
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.normalised import accumulated, normaliser
from fedward_common.study import Study
from fedward_common.tables import encode
from fedward_common.wire import Update, read_refusal, read_update, write_task
from fedward_server.aggregation import aggregator_for
from fedward_server.checkpoint import read_checkpoint
from fedward_server.resume import CHECKPOINT
from tests.builders import open_policy, site_home, small_study, table
from tests.server.killings import LastingGrid, Reaper, Scene, files_of

ROWS = {"north": 20, "south": 40, "west": 60}
SITES = tuple(ROWS)
Vector = npt.NDArray[np.float64]


def study(*, momentum: float = 0.0, rounds: int = 3, **more: Any) -> Study:
    rule = {"rule": "fednova", "deadline_seconds": 10, "server_learning_rate": 0.9}
    training = {"rounds": rounds, "local_steps": 6, "reference_patients": 60, "learning_rate": 0.3}
    training["momentum"] = momentum
    return small_study(sites=list(SITES), training=training | more.pop("training", {}), aggregation=rule | more)


SIZE = parameter_spec(study()).size


def scene_of(a: Study, folder: Path) -> Scene:
    folder.mkdir()
    homes = {site: site_home(folder, a, name=site, frame=rows(site)) for site in a.sites}
    grid = LastingGrid(homes)
    return Scene(a, folder / "centre", grid, grid.roster)


def rows(site: str) -> Any:
    return table(ROWS[site], seed=SITES.index(site))


def reference(a: Study, steps: dict[str, int], momentum: float) -> Vector:
    """Equation 7 of the paper: x + tau_eff * sum of p_i d_i, with d_i = (y_i - x) / |a_i|; a by its recurrence."""
    data = {site: encode(rows(site), a.cohort) for site in a.sites}
    share = {site: count / sum(ROWS.values()) for site, count in ROWS.items()}
    x = initial_weights(a).astype(float)
    for _ in range(a.training.rounds):
        direction, effective = np.zeros(SIZE), 0.0
        for site in a.sites:
            y, buffer, features, labels = x.copy(), np.zeros(SIZE), data[site].features, data[site].labels
            counts = np.zeros(steps[site])  # how often each step's gradient is in y
            waiting = np.zeros(steps[site])
            for step in range(steps[site]):
                error = 1 / (1 + np.exp(-(features @ y[:-1] + y[-1]))) - labels
                buffer = momentum * buffer + np.append(features.T @ error, error.sum()) / len(labels)
                waiting *= momentum
                waiting[step] = 1
                counts += waiting
                y = y - 0.3 * buffer
            length = counts.sum()
            direction += share[site] * (y - x) / length
            effective += share[site] * length
        x = x + 0.9 * effective * direction
    return x


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_a_run_is_the_paper_s_formula_with_steps_that_follow_the_patients(tmp_path: Path, momentum: float) -> None:
    a = study(momentum=momentum)
    scene = scene_of(a, tmp_path / "run")
    assert scene.run().status == "completed"
    expected = reference(a, {"north": 2, "south": 4, "west": 6}, momentum)
    np.testing.assert_allclose(read_checkpoint(scene.folder / CHECKPOINT).arrays["weights"], expected, atol=3e-6)


def test_fedavg_with_the_same_unequal_steps_is_another_model(tmp_path: Path) -> None:
    a = study()
    models = []
    for number, rule in enumerate((a, small_study(**parts(a), aggregation={"rule": "fedavg"}))):
        scene = scene_of(rule, tmp_path / str(number))
        scene.run()
        models.append(scene.model)
    assert models[0] != models[1]


def parts(a: Study) -> dict[str, Any]:
    contract = a.contract()
    return {"sites": contract["sites"], "training": contract["training"]}


def test_with_equal_hospitals_it_is_fedavg() -> None:
    a = small_study(
        sites=list(SITES),
        training={"reference_patients": 40},
        aggregation={"rule": "fednova", "server_learning_rate": 1.0},
    )
    b = small_study(sites=list(SITES), training={"reference_patients": 40})
    changes = np.random.default_rng(1).normal(0, 0.3, (3, SIZE)).astype(np.float32)
    found = [combined(rule, changes, (40, 40, 40)).astype(float) for rule in (a, b)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert normaliser(a, 40) == 1.0


def combined(
    a: Study, changes: npt.NDArray[np.float32], weights: tuple[int, ...], order: tuple[int, ...] = (0, 1, 2)
) -> npt.NDArray[np.float32]:
    rule = aggregator_for(a)
    rule.start(np.zeros(SIZE, np.float32))
    for place in order:
        values = encode_weighted(changes[place], weights[place], bound=64)
        rule.add(Update(SITES[place], "", 1, weights[place], 0, values, {}))
    return rule.finish()


def test_order_of_arrival_changes_no_bit_and_a_round_leaves_nothing_to_the_next() -> None:
    a = study(momentum=0.9)
    changes = np.random.default_rng(1).normal(0, 0.3, (3, SIZE)).astype(np.float32)
    found = {combined(a, changes, (20, 41, 63), order).tobytes() for order in permutations(range(3))}
    assert len(found) == 1
    rule = aggregator_for(a)
    for _ in range(2):
        rule.start(np.zeros(SIZE, np.float32))
        for site, weight, change in zip(SITES, (20, 41, 63), changes, strict=True):
            rule.add(Update(site, "", 1, weight, 0, encode_weighted(change, weight, bound=64), {}))
        assert rule.finish().tobytes() in found
    assert rule.state() == {}


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_length_with_momentum_is_the_paper_s_closed_form(steps: int, momentum: float) -> None:
    closed = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert accumulated(steps, momentum) == pytest.approx(closed, rel=1e-12)
    assert accumulated(steps, 0.0) == steps


@pytest.mark.parametrize(
    ("patients", "steps", "rate"), [(1, 1, 1.0), (20, 2, 1.0), (60, 6, 0.5), (65, 7, 30 / 65), (600, 60, 0.05)]
)
def test_steps_and_rate_keep_the_passes_over_a_cohort(patients: int, steps: int, rate: float) -> None:
    a = study(training={"sampling_rate": 0.5})
    assert (a.steps_of(patients), a.sampling_rate_of(patients)) == (steps, rate)
    plain = small_study(training={"local_steps": 4, "sampling_rate": 0.5})
    assert (plain.steps_of(patients), plain.sampling_rate_of(patients)) == (4, 0.5)


def test_steps_are_counted_by_the_capped_weight_that_the_centre_sees(tmp_path: Path) -> None:
    a = study(max_weight=10)
    home = site_home(tmp_path, a, frame=table(40))
    got = read_update(Site(home).answer(write_task(a, 1, initial_weights(a))), size=SIZE)
    assert got.weight == 10
    assert a.steps_of(40) == a.steps_of(got.weight) == 1


def test_a_site_sends_its_update_at_the_study_s_own_length(tmp_path: Path) -> None:
    """A third of the steps, so three times the change; but for that the same training."""
    sent = []
    for rule in (study(), small_study(**parts(study()), aggregation={"rule": "fedavg"})):
        home = site_home(tmp_path / rule.aggregation.rule, rule, frame=rows("north"))
        got = read_update(Site(home).answer(write_task(rule, 1, initial_weights(rule))), size=SIZE)
        sent.append(decode_mean(got.values, got.weight))
    np.testing.assert_allclose(sent[0], 3 * sent[1], atol=1e-6)


def test_a_site_refuses_more_steps_than_its_policy_allows_for_its_own_patients(tmp_path: Path) -> None:
    a = study()
    home = site_home(tmp_path, a, frame=table(80), policy=open_policy(max_local_steps=6))
    reply = read_refusal(Site(home).answer(write_task(a, 1, initial_weights(a))))
    assert reply is not None
    assert reply.split(" ")[0] == RefusalCode.POLICY_LIMIT
    assert "asked=8" in reply


def test_killed_at_any_fourth_instant_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = study(momentum=0.5, rounds=2)
    whole = Scene.of(a, tmp_path / "whole")
    assert isinstance(whole.grid, LastingGrid)
    whole.grid.reaper = reaper = Reaper()
    with files_of(reaper, monkeypatch):
        whole.run()
    for at in range(1, len(reaper.seen) + 1, 4):
        scene = Scene.of(a, tmp_path / f"run-{at}")
        assert scene.killed_at(at, monkeypatch)
        scene.run()
        assert scene.model == whole.model, reaper.seen[at - 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": {"reference_patients": None}}, "is fedavg where all sites take the same steps"),
        ({"training": {"optimizer": "adam"}}, "optimizer=sgd"),
        ({"training": {"weight_decay": 0.1}}, "weight_decay"),
        ({"weighting": "uniform"}, "weighting"),
    ],
)
def test_a_study_for_which_it_is_not_defined_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study(**change)


def test_unequal_steps_do_not_go_with_privacy_or_scaffold() -> None:
    for other in (
        {"privacy": {"mechanism": "dp_sgd", "epsilon": 8.0, "delta": 1e-4, "clip_norm": 1.0}},
        {"aggregation": {"rule": "scaffold"}},
    ):
        with pytest.raises(StudyError, match="reference_patients"):
            small_study(training={"reference_patients": 40}, **other)
