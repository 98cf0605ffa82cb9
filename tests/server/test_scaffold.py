"""SCAFFOLD, both sides: the paper's algorithm, variates that only counted updates move, kills, and hostile tasks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedward_client.site import Site
from fedward_client.variates import Variate
from fedward_common.errors import CoordinatorError, Refusal, RefusalCode, StudyError
from fedward_common.fixed_point import SCALE, decode_mean, encode_weighted
from fedward_common.models import initial_weights, parameter_spec
from fedward_common.study import Study
from fedward_common.tables import encode
from fedward_common.wire import Task, Update, read_refusal, read_task, read_update, write_task
from fedward_server.aggregation import aggregator_for
from fedward_server.checkpoint import read_checkpoint
from fedward_server.resume import CHECKPOINT
from tests.builders import contract, hold_out, private_study, site_home, small_study, table
from tests.doubles import Behaviour, Delivery, Exchange
from tests.server.killings import LastingGrid, Scene, die_everywhere

SITES = ("north", "south", "west")
Vector = npt.NDArray[np.float64]
STEPS, RATE = 3, 0.4


def study(sites: tuple[str, ...] = SITES, **more: Any) -> Study:
    rule = {"rule": "scaffold", "deadline_seconds": 10, "server_learning_rate": 0.8}
    training = {"rounds": 4, "local_steps": STEPS, "learning_rate": RATE}
    return small_study(sites=list(sites), training=training | more.pop("training", {}), aggregation=rule | more)


SIZE = parameter_spec(study()).size


def scene_of(a: Study, folder: Path, script: Mapping[Any, Behaviour] | None = None) -> Scene:
    """Return a scene of sites with homes of their own, with unlike rows."""
    folder.mkdir()
    homes = {site: site_home(folder, a, name=site, frame=rows(site)) for site in a.sites}
    grid = LastingGrid(homes, script)
    return Scene(a, folder / "centre", grid, grid.roster)


def rows(site: str) -> Any:
    return table(30, seed=SITES.index(site))


def variate(home: Path, a: Study, round_: int) -> Vector:
    with np.load(home / "variates" / f"{a.digest}.npz") as found:
        kept: dict[int, Vector] = dict(zip(found["rounds"].tolist(), (found["settled"], found["pending"]), strict=True))
    return kept[round_]


# ------------------------------------------------------------------------------------------------------------ reference
def reference(a: Study, present: Mapping[int, tuple[str, ...]]) -> tuple[Vector, Vector, dict[str, Vector]]:
    """Algorithm 1 of the paper with option II, all rows in each step; who is absent keeps the variate that it had."""
    data = {site: encode(rows(site), a.cohort) for site in a.sites}
    x, c = initial_weights(a).astype(float), np.zeros(SIZE)
    own = {site: np.zeros(SIZE) for site in a.sites}
    for round_ in range(1, a.training.rounds + 1):
        moves, drifts = [], []
        for site in present.get(round_, a.sites):
            y, features, labels = x.copy(), data[site].features, data[site].labels
            for _ in range(STEPS):
                error = 1 / (1 + np.exp(-(features @ y[:-1] + y[-1]))) - labels
                gradient = np.append(features.T @ error, error.sum()) / len(labels)
                y = y - RATE * (gradient - own[site] + c)
            new = own[site] - c + (x - y) / (STEPS * RATE)
            moves.append(y - x)
            drifts.append(new - own[site])
            own[site] = new
        x = x + 0.8 * np.mean(moves, axis=0)
        c = c + len(moves) / len(a.sites) * np.mean(drifts, axis=0)
    return x, c, own


def lost(exchange: Exchange) -> Iterator[Delivery]:
    """Train, as asked, and let the reply get lost."""
    assert exchange.honest is not None
    return iter(())


def test_a_run_is_the_paper_s_algorithm_and_a_lost_update_moves_no_variate(tmp_path: Path) -> None:
    """West trains in round 2 and its reply is lost: in round 3 it goes on from what the centre reckons with."""
    a = study()
    scene = scene_of(a, tmp_path / "run", {("west", 2): lost})
    result = scene.run()
    assert [entry.sites for entry in result.rounds] == [SITES, SITES[:2], SITES, SITES]
    x, c, own = reference(a, {2: SITES[:2]})
    found = read_checkpoint(scene.folder / CHECKPOINT).arrays
    np.testing.assert_allclose(found["weights"], x, atol=2e-6)
    np.testing.assert_allclose(found["control"], c, atol=2e-6)
    for site in SITES:
        np.testing.assert_allclose(variate(tmp_path / "run" / site, a, 4), own[site], atol=2e-6)


def test_the_centre_s_variate_is_the_mean_of_the_sites_(tmp_path: Path) -> None:
    """To rounding: what both sides derive, they derive from the same fixed-point numbers."""
    a = study()
    scene = scene_of(a, tmp_path / "run", {("south", 3): lost})
    scene.run()
    kept = np.mean([variate(tmp_path / "run" / site, a, 4) for site in SITES], axis=0)
    assert np.abs(read_checkpoint(scene.folder / CHECKPOINT).arrays["control"] - kept).max() < 1e-12


def test_the_first_round_is_fedavg_s(tmp_path: Path) -> None:
    """All variates are zero then."""
    models = []
    for number, rule in enumerate(({"rule": "scaffold"}, {"rule": "fedavg", "weighting": "uniform"})):
        a = small_study(sites=list(SITES), training={"rounds": 1}, aggregation=rule)
        scene = scene_of(a, tmp_path / str(number))
        scene.run()
        models.append(scene.model[-4 * SIZE :])
    assert models[0] == models[1]


def test_unlike_hospitals_end_nearer_to_the_pooled_optimum_than_with_fedavg(tmp_path: Path) -> None:
    """Many local steps move FedAvg's fixed point away from where the mean gradient is nothing, SCAFFOLD's not."""
    lengths = []
    for number, rule in enumerate(({"rule": "scaffold"}, {"rule": "fedavg", "weighting": "uniform"})):
        training = {"rounds": 50, "local_steps": 20, "learning_rate": 1.0}
        a = small_study(sites=list(SITES), training=training, aggregation=rule)
        scene = scene_of(a, tmp_path / str(number))
        scene.run()
        w = read_checkpoint(scene.folder / CHECKPOINT).arrays["weights"].astype(float)
        gradients = []
        for site in SITES:
            data = encode(rows(site), a.cohort)
            error = 1 / (1 + np.exp(-(data.features @ w[:-1] + w[-1]))) - data.labels
            gradients.append(np.append(data.features.T @ error, error.sum()) / len(error))
        lengths.append(float(np.linalg.norm(np.mean(gradients, axis=0))))
    assert lengths[0] < 0.5 * lengths[1]


# ------------------------------------------------------------------------------------------------------------- kills
@pytest.mark.reduced
def test_killed_at_any_instant_it_ends_with_the_same_bits_and_variates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = study(SITES[:2], training={"rounds": 2})
    die_everywhere(scene_of(a, tmp_path / "fresh"), tmp_path, monkeypatch, lambda home: variate(home, a, 2))


def test_state_goes_through_a_checkpoint_and_another_rule_s_is_not_taken() -> None:
    a = study()
    updates = [np.full(SIZE, 0.1 * n) for n in range(1, 4)]
    whole, first = aggregator_for(a), aggregator_for(a)

    def play(rule: Any, start: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        rule.start(start)
        for site, change in zip(SITES, updates, strict=True):
            rule.add(Update(site, "", 1, 1, 0, encode_weighted(change.astype(np.float32), 1, bound=64), {}))
        new: npt.NDArray[np.float32] = rule.finish()
        return new

    start = play(whole, np.zeros(SIZE, np.float32))
    play(first, np.zeros(SIZE, np.float32))
    resumed = aggregator_for(a, first.state())
    assert play(whole, start).tobytes() == play(resumed, start).tobytes()
    assert whole.state()["control"].tobytes() == resumed.state()["control"].tobytes()
    with pytest.raises(CoordinatorError):
        aggregator_for(small_study(aggregation={"rule": "fedadam"}), {"first": np.zeros(SIZE)})


# ------------------------------------------------------------------------------------------------------------- the wire
def task(a: Study, round_: int = 1, **more: Any) -> RecordDict:
    return write_task(a, round_, initial_weights(a), **more)


def test_a_task_carries_the_variate_and_what_counted() -> None:
    a = study()
    control = np.arange(SIZE, dtype=np.float32)
    read = read_task(task(a, 3, control=control, counted={"north": 2, "west": 1}))
    assert read.weights is not None
    assert read.control is not None
    assert (read.weights == initial_weights(a)).all()
    assert (read.control == control).all()
    assert read.counted == {"north": 2, "south": 0, "west": 1}
    plain = read_task(task(small_study(), 1, control=control, counted={"north": 2}))
    assert plain.control is None
    assert plain.counted == {}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"counted": [0, 0]}, RefusalCode.MESSAGE_INVALID),
        ({"counted": [0, 0, 2]}, RefusalCode.MESSAGE_INVALID),
        ({"counted": [0, 0, -1]}, RefusalCode.MESSAGE_INVALID),
        ({"counted": [0.0, 0.0, 0.0]}, RefusalCode.MESSAGE_INVALID),
        ({"counted": "000"}, RefusalCode.MESSAGE_INVALID),
        ({"length": SIZE}, RefusalCode.MODEL_MISMATCH),
        ({"length": SIZE, "vector": bytes(4 * SIZE)}, RefusalCode.MODEL_MISMATCH),
        ({"vector": bytes(4 * SIZE)}, RefusalCode.MODEL_MISMATCH),
        ({"vector": bytes(12 * SIZE), "length": 3 * SIZE}, RefusalCode.MODEL_MISMATCH),
        ({"vector": np.full(2 * SIZE, np.nan, np.float32).tobytes()}, RefusalCode.MODEL_MISMATCH),
    ],
)
def test_a_hostile_task_is_refused_by_its_size_and_its_rounds(change: dict[str, Any], code: RefusalCode) -> None:
    content = task(study(), 2)
    header = content["fedward"]
    assert isinstance(header, ConfigRecord)
    for key, value in change.items():
        header[key] = value
    with pytest.raises(Refusal) as refused:
        read_task(content)
    assert refused.value.reason is code


def test_a_task_without_what_counted_and_one_of_another_rule_with_it_are_refused() -> None:
    content = task(study(), 2)
    header = content["fedward"]
    assert isinstance(header, ConfigRecord)
    del header["counted"]
    with pytest.raises(Refusal):
        read_task(content)
    content = task(small_study())
    header = content["fedward"]
    assert isinstance(header, ConfigRecord)
    header["counted"] = [0, 0]
    with pytest.raises(Refusal):
        read_task(content)


# ------------------------------------------------------------------------------------------------------------- the site
def asked(home: Path, a: Study, round_: int, **more: Any) -> RecordDict:
    return Site(home).answer(task(a, round_, **more))


def test_a_repeated_round_gives_the_same_update_and_a_dropped_one_leaves_nothing(tmp_path: Path) -> None:
    a = study()
    home = site_home(tmp_path, a)
    control = np.full(SIZE, 0.05, np.float32)
    first = read_update(asked(home, a, 1), size=SIZE).values
    assert (read_update(asked(home, a, 1), size=SIZE).values == first).all()
    shutil.copytree(home, tmp_path / "lost" / "north")
    counted = read_update(asked(home, a, 2, control=control, counted={"north": 1}), size=SIZE).values
    dropped = read_update(asked(tmp_path / "lost" / "north", a, 2, control=control), size=SIZE).values
    assert (dropped != counted).any()
    assert (variate(tmp_path / "lost" / "north", a, 0) == 0).all()
    assert read_refusal(asked(home, a, 3, control=control)) == "model_mismatch asked=0 key=variates"


def test_a_variate_is_the_one_of_the_update_that_was_sent(tmp_path: Path) -> None:
    a = study()
    home = site_home(tmp_path, a)
    control = np.full(SIZE, 0.05, np.float32)
    sent = decode_mean(read_update(asked(home, a, 1, control=control), size=SIZE).values, 1)
    expected = -control.astype(np.float64) - sent / (STEPS * RATE)
    assert np.abs(variate(home, a, 1) - expected).max() < 1e-15 * SCALE
    assert (home / "variates" / f"{a.digest}.npz").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_a_site_whose_variate_is_lost_or_broken_refuses_and_says_so(tmp_path: Path, content: bytes | None) -> None:
    a = study()
    home = site_home(tmp_path, a)
    asked(home, a, 1)
    path = home / "variates" / f"{a.digest}.npz"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    refusal = read_refusal(asked(home, a, 2, counted={"north": 1}))
    assert refusal == "model_mismatch asked=1 key=variates"


def test_under_privacy_the_variate_follows_from_the_noised_update_and_a_refused_round_keeps_it(tmp_path: Path) -> None:
    a = private_study(sites=list(SITES), aggregation={"rule": "scaffold"})
    home = site_home(tmp_path, a)
    Site(home).enrol(Task(a, 0, None))
    sent = decode_mean(read_update(asked(home, a, 1), size=SIZE).values, 1)
    steps, rate = a.training.local_steps, a.training.learning_rate
    before = variate(home, a, 1)
    np.testing.assert_allclose(before, -sent / (steps * rate), atol=1e-12)
    assert (decode_mean(read_update(asked(home, a, 1), size=SIZE).values, 1) == sent).all()
    moved = np.full(SIZE, 0.05, np.float32)
    assert read_refusal(asked(home, a, 1, control=moved)) == "round_replayed round=1"
    assert (variate(home, a, 1) == before).all()
    read_update(asked(home, a, 2, counted={"north": 1}), size=SIZE)
    assert (variate(home, a, 1) == before).all()


def test_the_correction_is_c_less_the_site_s_own(tmp_path: Path) -> None:
    a = study()
    found = Variate.of(tmp_path, "north", read_task(task(a, 1, control=np.ones(SIZE, np.float32))))
    assert found is not None
    assert (replace(found, settled=np.full(SIZE, 0.25)).correction == np.full(SIZE, 0.75, np.float32)).all()
    assert Variate.of(tmp_path, "north", read_task(task(small_study()))) is None


# ---------------------------------------------------------------------------------------------------------- the study
@pytest.mark.parametrize(
    "training", [{"optimizer": "adam"}, {"momentum": 0.5}, {"weight_decay": 0.1}], ids=lambda t: next(iter(t))
)
def test_a_study_whose_steps_are_not_plain_is_refused(training: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="scaffold"):
        study(training=training)


def test_a_study_that_weighs_by_patients_is_refused() -> None:
    with pytest.raises(StudyError, match="weighting"):
        Study.of(contract(aggregation={"rule": "scaffold", "weighting": "patients"}))
    assert hold_out(study()).names == SITES
