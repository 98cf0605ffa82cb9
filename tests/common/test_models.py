"""The packed vector is the whole model: the same names, shapes and order with torch and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedward_common.models import build_model, initial_weights, load_weights, parameter_spec, weights_of
from fedward_common.study import Study
from tests.builders import small_study

MODELS = [
    {"name": "linear"},
    {"name": "mlp", "hidden": [1]},
    {"name": "mlp", "hidden": [16], "activation": "tanh"},
    {"name": "mlp", "hidden": [5, 3, 4], "activation": "relu"},
    {"name": "mlp", "hidden": [5, 3], "activation": "tanh", "norm": "layer"},
]
STUDIES = [small_study(model=model) for model in MODELS]


@pytest.mark.parametrize("study", STUDIES)
def test_spec_is_what_the_built_model_has(study: Study) -> None:
    spec = parameter_spec(study)
    built = [(name, tuple(p.shape)) for name, p in build_model(study).named_parameters()]
    assert list(zip(spec.names, spec.shapes, strict=True)) == built
    assert spec.size == sum(p.numel() for p in build_model(study).parameters())


@pytest.mark.parametrize("study", STUDIES)
def test_model_has_no_buffers_and_no_batch_statistics(study: Study) -> None:
    model = build_model(study)
    assert not list(model.buffers())
    assert {type(module) for module in model.modules()} <= {nn.Sequential, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Tanh}
    assert set(model.state_dict()) == set(parameter_spec(study).names)


@pytest.mark.parametrize("study", STUDIES)
def test_model_takes_rows_of_patients_and_gives_one_logit_each(study: Study) -> None:
    assert build_model(study)(torch.zeros(4, 3, 7)).shape == (4, 3, 1)


@pytest.mark.parametrize("study", STUDIES)
def test_weights_loaded_are_the_weights_read(study: Study) -> None:
    model, size = build_model(study), parameter_spec(study).size
    vector = np.random.default_rng(0).normal(size=size).astype(np.float32)
    load_weights(model, vector)
    assert (weights_of(model) == vector).all()
    for name, array in parameter_spec(study).split(vector).items():
        assert (model.get_parameter(name).detach().numpy() == array).all()


def test_weights_from_the_wire_are_read_only_and_load_without_a_copy_by_the_caller() -> None:
    study = STUDIES[1]
    vector = np.frombuffer(initial_weights(study).tobytes(), dtype=np.float32)
    load_weights(build_model(study), vector)
    assert not vector.flags.writeable


def test_weights_read_are_a_copy() -> None:
    model = build_model(STUDIES[1])
    before = weights_of(model)
    kept = before.copy()
    load_weights(model, before + 1)
    assert (before == kept).all()


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_initial_weights_are_a_function_of_the_study_alone(seed: int) -> None:
    study = small_study(model={"name": "mlp", "hidden": [6]}, seed=seed)
    torch.manual_seed(seed + 1)
    first = initial_weights(study)
    torch.manual_seed(seed)
    assert (initial_weights(study) == first).all()
    assert first.dtype == np.float32


def test_initial_weights_differ_between_seeds_and_keep_their_bound() -> None:
    one, other = (initial_weights(small_study(model={"name": "mlp", "hidden": [64]}, seed=s)) for s in (1, 2))
    assert (one != other).any()
    split = parameter_spec(small_study(model={"name": "mlp", "hidden": [64]})).split(one)
    assert np.abs(split["0.weight"]).max() <= 1 / np.sqrt(7)
    assert np.abs(split["2.weight"]).max() <= 1 / 8
    assert not split["0.bias"].any()


def test_initial_weights_are_known_bits() -> None:
    """PCG64 is part of NumPy's promise of streams; a change here changes every model."""
    found = initial_weights(small_study(model={"name": "mlp", "hidden": [2]}, seed=1))[:3]
    expected = (np.random.Generator(np.random.PCG64(1)).uniform(-1, 1, 3) / np.sqrt(7)).astype(np.float32)
    assert found == pytest.approx(expected, rel=1e-6)


def test_linear_model_starts_at_zero() -> None:
    assert not initial_weights(STUDIES[0]).any()


def test_spec_digest_tells_shapes_apart() -> None:
    assert len({parameter_spec(study).digest for study in STUDIES}) == len(STUDIES)
