"""One site's round: reproducible without privacy, never with it; drawn by patient, divided by the expected number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedward_client import trainer
from fedward_client.cohorts import Patients
from fedward_client.dp import plan
from fedward_client.losses import patient_losses
from fedward_client.trainer import train_round
from fedward_common.errors import StudyError
from fedward_common.models import build_model, initial_weights, load_weights, weights_of
from fedward_common.study import Study
from tests.builders import patients_of, private_study, small_study

MLP = {"name": "mlp", "hidden": [4]}
Vector = npt.NDArray[np.float32]


def change(study: Study, patients: Patients | None = None, *, site: str = "north", round_: int = 1) -> Vector:
    start = initial_weights(study)
    return train_round(study, patients or patients_of(study), start, site=site, round_=round_)[0]


def minibatch(**changes: object) -> Study:
    return small_study(model=MLP, training={"sampling_rate": 0.5, "local_steps": 3}, **changes)


def test_training_without_privacy_is_the_same_bit_for_bit() -> None:
    torch.manual_seed(1)
    first = change(minibatch())
    torch.manual_seed(2)
    assert first.tobytes() == change(minibatch()).tobytes()
    assert first.any()


def test_training_without_privacy_differs_by_site_round_and_seed() -> None:
    base = change(minibatch())
    others = [change(minibatch(), site="south"), change(minibatch(), round_=2)]
    start = initial_weights(minibatch())
    others.append(train_round(minibatch(seed=2), patients_of(minibatch()), start, site="north", round_=1)[0])
    for other in others:
        assert (other != base).any()


def test_global_model_is_left_as_it_was() -> None:
    study = minibatch()
    start = initial_weights(study)
    kept = start.copy()
    train_round(study, patients_of(study), start, site="north", round_=1)
    assert (start == kept).all()


def test_model_read_from_the_wire_is_trained_on_without_a_warning() -> None:
    study = minibatch()
    start = np.frombuffer(initial_weights(study).tobytes(), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_round(study, patients_of(study), start, site="north", round_=1)


@pytest.mark.parametrize(
    ("training", "make"),
    [
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ({"optimizer": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ({"optimizer": "sgd", "weight_decay": 0.3}, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3)),
        (
            {"optimizer": "sgd", "weight_decay": 0.3, "momentum": 0.5},
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.3, momentum=0.5),
        ),
        ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, lr=0.1)),
        ({"optimizer": "adam", "weight_decay": 0.3}, lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3)),
    ],
)
def test_full_batch_training_is_what_torch_s_own_optimiser_does(
    training: dict[str, object], make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
) -> None:
    study = small_study(model=MLP, training={"learning_rate": 0.1, "local_steps": 5} | training)
    patients, start = patients_of(study), initial_weights(study)
    model = build_model(study)
    load_weights(model, start)
    optimiser = make(list(model.parameters()))
    tensors = [torch.from_numpy(a) for a in (patients.features, patients.labels, patients.mask)]
    for _ in range(5):
        optimiser.zero_grad()
        patient_losses(model, tuple(tensors)).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert change(study, patients) == pytest.approx(weights_of(model) - start, abs=1e-5)


def test_loss_is_the_mean_of_the_patients_seen() -> None:
    study = small_study(training={"local_steps": 1})
    patients, start = patients_of(study), initial_weights(study)
    loss = train_round(study, patients, start, site="north", round_=1)[1]
    assert loss == pytest.approx(math.log(2), rel=1e-5)


def test_sum_is_divided_by_the_expected_number_not_by_the_drawn_one() -> None:
    """One step of a linear model at zero: the gradient's length follows how many were drawn."""
    study = small_study(training={"sampling_rate": 0.3, "local_steps": 1, "learning_rate": 1.0})
    patients = patients_of(study, rows=50)
    gradients = (0.5 - patients.labels[:, :1]) * np.c_[patients.features[:, 0], np.ones(50)]
    for round_ in range(1, 6):
        generator = trainer._generator(study, "north", round_)
        drawn = generator.random(50) < 0.3
        expected = -gradients[drawn].sum(axis=0) / (0.3 * 50)
        assert change(study, patients, round_=round_) == pytest.approx(expected, abs=1e-5)


def test_patient_with_many_rows_weighs_what_one_with_one_row_does() -> None:
    study = small_study(training={"local_steps": 3}, model=MLP)
    one = patients_of(study)
    many = Patients(*(np.repeat(a, 50, axis=1) for a in (one.features, one.labels, one.mask)))
    assert change(study, many) == pytest.approx(change(study, one), abs=1e-5)


def test_proximal_penalty_pulls_towards_the_global_model() -> None:
    training = {"local_steps": 60, "learning_rate": 0.3}
    lengths = [
        float(np.linalg.norm(change(small_study(training=training, model=MLP, aggregation=rule))))
        for rule in ({"rule": "fedavg"}, {"rule": "fedprox", "mu": 0.1}, {"rule": "fedprox", "mu": 1.0})
    ]
    assert lengths[0] > lengths[1] > lengths[2] > 0


def test_first_step_has_no_proximal_penalty() -> None:
    training = {"local_steps": 1}
    plain = change(small_study(training=training))
    assert plain.tobytes() == change(small_study(training=training, aggregation={"rule": "fedprox", "mu": 9})).tobytes()


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_hospital_with_one_class_trains(label: float) -> None:
    for study in (small_study(), private_study()):
        patients = patients_of(study)
        one = Patients(patients.features, np.full_like(patients.labels, label), patients.mask)
        assert np.isfinite(change(study, one)).all()


def test_hospital_with_one_patient_trains() -> None:
    for study in (small_study(), private_study()):
        assert np.isfinite(change(study, patients_of(study, rows=1))).all()


# ----------------------------------------------------------------------------------------------------------- privacy


def test_private_training_is_never_the_same_twice_and_tells_no_loss() -> None:
    study = private_study(model=MLP)
    patients, start = patients_of(study), initial_weights(study)
    torch.manual_seed(1)
    first, loss = train_round(study, patients, start, site="north", round_=1)
    torch.manual_seed(1)
    second, _ = train_round(study, patients, start, site="north", round_=1)
    assert (first != second).all()
    assert math.isnan(loss)


def test_private_training_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        change(private_study(model=MLP))


def test_private_training_tells_a_loss_that_is_paid_for() -> None:
    study = private_study(model=MLP, privacy={"loss": "noised", "loss_bound": 3.0})
    patients, start = patients_of(study), initial_weights(study)
    losses = [train_round(study, patients, start, site="north", round_=1)[1] for _ in range(5)]
    assert len(set(losses)) == 5
    assert all(0.0 <= loss <= 3.0 for loss in losses)


def test_private_change_has_the_noise_that_was_paid_for() -> None:
    """A model with no gradient left: what remains is σ·C / expected patients, times the learning rate."""
    study = private_study(
        model={"name": "mlp", "hidden": [2000]},
        training={"local_steps": 1, "learning_rate": 1.0},
        privacy={"noise_multiplier": 5.0, "clip_norm": 1e-3},
    )
    patients = patients_of(study, rows=20)
    found = change(study, patients)
    assert found.std() == pytest.approx(5.0 * 1e-3 / 20, rel=0.03)


def test_empty_batch_takes_the_same_path() -> None:
    """Who sees that a step did nothing knows that nobody was drawn: noise is added, and the step counts."""
    study = private_study(
        training={"sampling_rate": 1e-9, "local_steps": 1, "learning_rate": 1.0}, privacy={"noise_multiplier": 2.0}
    )
    assert np.abs(change(study)).min() > 0


def test_empty_batch_without_privacy_changes_nothing_and_has_no_loss() -> None:
    study = small_study(training={"sampling_rate": 1e-9})
    found, loss = train_round(study, patients_of(study), initial_weights(study), site="north", round_=1)
    assert not found.any()
    assert math.isnan(loss)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_patient_with_a_poisonous_record_does_not_spoil_a_private_round(value: float) -> None:
    study = private_study(model=MLP)
    patients = patients_of(study)
    patients.features[3] = value
    assert np.isfinite(change(study, patients)).all()


def test_uncalibrated_study_does_not_train() -> None:
    privacy = {"mechanism": "dp_sgd", "epsilon": 8, "delta": 1e-4, "clip_norm": 1}
    with pytest.raises(StudyError, match="not calibrated"):
        change(small_study(privacy=privacy))


def test_one_patient_moves_a_private_round_by_no_more_than_the_bound_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise taken out: the change of the weights after one step moves by at most lr·C / expected."""
    monkeypatch.setattr(plan, "noised", lambda total, _sigma, _tier: total.tensors)
    study = private_study(training={"local_steps": 1, "learning_rate": 1.0}, privacy={"clip_norm": 0.1})
    patients = patients_of(study, rows=30)
    with_all = change(study, patients)
    zeroed = patients.features.copy()
    zeroed[4] = np.nan  # contributes zero: the cohort's size is public and stays
    without = change(study, Patients(zeroed, patients.labels, patients.mask))
    moved = float(np.linalg.norm(with_all - without))
    assert 0 < moved <= 0.1 / 30 * (1 + 1e-4)
