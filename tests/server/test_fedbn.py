"""FedBN, both sides: what stays at a site is neither sent nor overwritten, and is kept through kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import RecordDict
from torch import nn

from fedward_client.site import Site
from fedward_common.errors import RejectedReply, StudyError
from fedward_common.models import build_model, initial_weights, load_weights, parameter_spec, parted, whole
from fedward_common.study import Study
from fedward_common.tables import encode
from fedward_common.wire import Task, read_refusal, read_update, write_task
from fedward_server.checkpoint import read_checkpoint
from fedward_server.evaluation import TorchPredictor
from fedward_server.resume import CHECKPOINT
from tests.builders import hold_out, private_study, site_home, small_study, table
from tests.server.killings import LastingGrid, Scene, die_everywhere

SITES = ("north", "south", "west")
MODEL = {"name": "mlp", "hidden": [4], "activation": "tanh", "norm": "layer"}
Packed = npt.NDArray[np.float32]


def study(sites: tuple[str, ...] = SITES, rounds: int = 3, **more: Any) -> Study:
    rule = {"rule": "fedbn", "deadline_seconds": 10, "server_learning_rate": 0.9}
    return small_study(sites=list(sites), model=MODEL, training={"rounds": rounds}, aggregation=rule | more)


def rows(site: str) -> Any:
    return table(20 + 10 * SITES.index(site), seed=SITES.index(site))


def scene_of(a: Study, folder: Path) -> Scene:
    folder.mkdir()
    homes = {site: site_home(folder, a, name=site, frame=rows(site)) for site in a.sites}
    grid = LastingGrid(homes)
    return Scene(a, folder / "centre", grid, grid.roster)


def kept(home: Path, a: Study, which: str = "after") -> Packed:
    with np.load(home / "local" / f"{a.digest}.npz") as found:
        values: Packed = found[which]
    return values


SHARED = parameter_spec(study()).size


# ----------------------------------------------------------------------------------------------------------- the parts
def test_the_shared_part_is_all_but_the_normalisation() -> None:
    assert parameter_spec(study()).names == ("0.weight", "0.bias", "3.weight", "3.bias")
    everything = small_study(model=MODEL)
    assert parameter_spec(everything).names == ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    assert parameter_spec(everything).size == SHARED + 8
    assert len(initial_weights(study())) == SHARED


def test_whole_and_parted_undo_each_other_and_a_part_that_is_missing_begins_at_scale_one() -> None:
    a = study()
    vector = np.random.default_rng(1).normal(size=SHARED + 8).astype(np.float32)
    shared, local = parted(a, vector)
    assert (len(shared), len(local)) == (SHARED, 8)
    assert (whole(a, shared, local) == vector).all()
    assert (parted(a, whole(a, shared))[1] == [1, 1, 1, 1, 0, 0, 0, 0]).all()
    model = build_model(a)
    load_weights(model, vector)
    normalisation = np.concatenate([model.get_parameter(n).detach().numpy() for n in ("1.weight", "1.bias")])
    assert (normalisation == local).all()


@pytest.mark.parametrize("other", [small_study(), small_study(model=MODEL)])
def test_of_every_other_rule_all_is_shared(other: Study) -> None:
    vector = initial_weights(other)
    assert whole(other, vector) is vector
    assert len(parted(other, vector)[1]) == 0


# ------------------------------------------------------------------------------------------------------------- the run
def reference(a: Study) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Packed]]:
    """Train each hospital with torch's own optimiser; average all but module 1 by the patients."""
    begun = whole(a, initial_weights(a))
    models: dict[str, nn.Sequential] = {}
    for site in a.sites:
        models[site] = nn.Sequential(nn.Linear(7, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))
        load_weights(models[site], begun)
    shared = {n: p.detach().clone() for n, p in models["north"].named_parameters() if not n.startswith("1.")}
    data = {site: encode(rows(site), a.cohort) for site in a.sites}
    total = sum(len(found.labels) for found in data.values())
    for _ in range(a.training.rounds):
        moved = {name: torch.zeros_like(value) for name, value in shared.items()}
        for site, model in models.items():
            with torch.no_grad():
                for name, value in shared.items():
                    model.get_parameter(name).copy_(value)
            optimiser = torch.optim.SGD(model.parameters(), lr=a.training.learning_rate)
            labels = torch.from_numpy(data[site].labels.astype(np.float32))
            for _ in range(a.training.local_steps):
                optimiser.zero_grad()
                logits = model(torch.from_numpy(data[site].features)).squeeze(-1)
                nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            for name, value in shared.items():
                moved[name] += (model.get_parameter(name).detach() - value) * len(labels) / total
        shared = {name: value + 0.9 * moved[name] for name, value in shared.items()}
    local = {
        site: np.concatenate([m.get_parameter(n).detach().numpy() for n in ("1.weight", "1.bias")])
        for site, m in models.items()
    }
    return {name: value.numpy() for name, value in shared.items()}, local


def test_a_run_is_fedavg_of_the_shared_part_and_each_site_s_own_training_of_the_other(tmp_path: Path) -> None:
    a = study()
    scene = scene_of(a, tmp_path / "run")
    assert scene.run().status == "completed"
    shared, local = reference(a)
    found = parameter_spec(a).split(read_checkpoint(scene.folder / CHECKPOINT).arrays["weights"])
    assert found.keys() == shared.keys()
    for name, value in shared.items():
        np.testing.assert_allclose(found[name], value, atol=3e-6)
    for site in SITES:
        np.testing.assert_allclose(kept(tmp_path / "run" / site, a), local[site], atol=3e-6)
    assert np.abs(local["north"] - local["west"]).max() > 1e-3


def test_the_centre_judges_with_the_normalisation_that_the_model_began_with() -> None:
    a = study()
    central = hold_out(a)
    weights = np.random.default_rng(1).normal(size=SHARED).astype(np.float32)
    model = build_model(a)
    load_weights(model, whole(a, weights, np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)))
    with torch.no_grad():
        expected = torch.sigmoid(model(torch.from_numpy(central.rows.features)).squeeze(-1).double()).numpy()
    assert (TorchPredictor(a, central.rows.features)(weights) == expected).all()


@pytest.mark.reduced
def test_killed_at_any_instant_it_ends_with_the_same_bits_at_the_sites_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = study(SITES[:2], rounds=2)
    die_everywhere(scene_of(a, tmp_path / "fresh"), tmp_path, monkeypatch, lambda home: kept(home, a))


# ------------------------------------------------------------------------------------------------------------ the site
def asked(home: Path, a: Study, round_: int) -> RecordDict:
    return Site(home).answer(write_task(a, round_, initial_weights(a)))


def sent(home: Path, a: Study, round_: int) -> npt.NDArray[np.int64]:
    return read_update(asked(home, a, round_), size=SHARED).values


def test_a_repeated_round_begins_where_it_began_and_the_next_one_where_it_ended(tmp_path: Path) -> None:
    a = study()
    home = site_home(tmp_path, a)
    first = sent(home, a, 1)
    after = kept(home, a)
    assert (sent(home, a, 1) == first).all()
    assert (kept(home, a) == after).all()
    second = sent(home, a, 2)
    assert (kept(home, a, "before") == after).all()
    assert (second != first).any()
    assert (home / "local" / f"{a.digest}.npz").stat().st_mode & 0o777 == 0o600


def test_a_reply_of_the_whole_model_s_size_is_turned_away(tmp_path: Path) -> None:
    everything = small_study(model=MODEL)
    reply = Site(site_home(tmp_path, everything)).answer(write_task(everything, 1, initial_weights(everything)))
    with pytest.raises(RejectedReply, match=f"{SHARED} numbers"):
        read_update(reply, size=SHARED)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_a_site_whose_part_is_broken_refuses_and_says_so(tmp_path: Path, content: bytes) -> None:
    a = study()
    home = site_home(tmp_path, a)
    asked(home, a, 1)
    (home / "local" / f"{a.digest}.npz").write_bytes(content)
    assert read_refusal(asked(home, a, 2)) == "model_mismatch asked=2 key=local"


def test_a_round_before_the_one_that_was_kept_is_refused(tmp_path: Path) -> None:
    a = study()
    home = site_home(tmp_path, a)
    asked(home, a, 2)
    assert read_refusal(asked(home, a, 1)) == "model_mismatch asked=1 key=local"


def test_under_privacy_the_part_is_trained_with_the_same_noised_steps_and_stays(tmp_path: Path) -> None:
    a = private_study(sites=list(SITES), model=MODEL, aggregation={"rule": "fedbn"})
    home = site_home(tmp_path, a)
    Site(home).enrol(Task(a, 0, None))
    first = sent(home, a, 1)
    assert len(first) == SHARED
    before = kept(home, a)
    assert (before != kept(home, a, "before")).any()
    assert (sent(home, a, 1) == first).all()
    assert (kept(home, a) == before).all()


@pytest.mark.parametrize("model", [{"name": "linear"}, {"name": "mlp", "hidden": [4]}])
def test_a_model_without_a_normalisation_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"model\.norm=layer"):
        small_study(model=model, aggregation={"rule": "fedbn"})
