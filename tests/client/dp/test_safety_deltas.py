"""After the first step, exactly what should train has changed, by what the optimiser was told."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedward_client.dp.deltas import Snapshot, snapshot, verify
from fedward_common.errors import InstallationError, WeightDeltaError

RATE = 0.1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    model[0].register_buffer("scale", torch.ones(2))
    return model


def stepped(
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None, model: nn.Module | None = None
) -> tuple[Snapshot, nn.Module, list[torch.Tensor]]:
    """Return a model before and after one step on random gradients, and these."""
    model = model or network()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [torch.randn_like(parameter) for parameter in trained]
    before = snapshot(model)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient.clone()
    (optimiser(trained) if optimiser else torch.optim.SGD(trained, RATE)).step()
    return before, model, gradients


OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda trained: torch.optim.SGD(trained, RATE),
    "momentum": lambda trained: torch.optim.SGD(trained, RATE, momentum=0.9),
    "adam": lambda trained: torch.optim.Adam(trained, RATE),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_sound_step_passes(name: str) -> None:
    before, model, gradients = stepped(OPTIMISERS[name])
    verify(before, model, gradients)
    if name != "adam":
        verify(before, model, gradients, learning_rate=RATE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_sound_step_passes_in_other_types(dtype: torch.dtype) -> None:
    before, model, gradients = stepped(model=network().to(dtype))
    verify(before, model, gradients, learning_rate=RATE)


def test_a_gradient_of_zero_changes_nothing_and_passes() -> None:
    model = network()
    zeros = [torch.zeros_like(parameter) for parameter in model.parameters() if parameter.requires_grad]
    verify(snapshot(model), model, zeros, learning_rate=RATE)


def test_an_optimiser_of_tensors_that_the_model_no_longer_uses_is_found() -> None:
    """opacus#820: the model was moved after it was wrapped."""
    model = network()
    stale = copy.deepcopy(model)
    before = snapshot(model)
    _, _, gradients = stepped(model=stale)
    with pytest.raises(WeightDeltaError, match=r"parameter 1\.weight has not changed, though") as caught:
        verify(before, model, gradients)
    assert isinstance(caught.value, InstallationError)
    assert "device" in caught.value.remedy


def change(model: nn.Module, name: str, value: float) -> None:
    dict([*model.named_parameters(), *model.named_buffers()])[name].data.reshape(-1)[0] = value


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("0.weight", 1.0, r"frozen parameter 0\.weight has changed"),
        ("0.bias", float("nan"), r"frozen parameter 0\.bias has changed"),
        ("0.scale", 2.0, r"buffer 0\.scale has changed"),
        ("1.weight", float("nan"), r"parameter 1\.weight is not finite"),
        ("2.bias", float("inf"), r"parameter 2\.bias is not finite"),
    ],
)
def test_what_a_step_must_not_do_is_named(name: str, value: float, reason: str) -> None:
    before, model, gradients = stepped()
    change(model, name, value)
    with pytest.raises(WeightDeltaError, match=reason):
        verify(before, model, gradients)


def test_bits_count_for_frozen_parameters() -> None:
    model = network()
    change(model, "0.bias", 0.0)
    before, _, gradients = stepped(model=model)
    change(model, "0.bias", -0.0)
    with pytest.raises(WeightDeltaError, match=r"0\.bias has changed"):
        verify(before, model, gradients)


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.001, -1.0])
def test_a_step_of_another_size_is_found_where_the_optimiser_is_known(factor: float) -> None:
    def optimiser(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(trained, RATE * abs(factor), maximize=factor < 0)

    before, model, gradients = stepped(optimiser)
    verify(before, model, gradients)
    with pytest.raises(WeightDeltaError, match=r"1\.weight is not its old value less the learning rate"):
        verify(before, model, gradients, learning_rate=RATE)


def test_one_value_of_many_is_enough() -> None:
    before, model, gradients = stepped()
    change(model, "1.bias", float(before.parameters["1.bias"][0]))
    verify(before, model, gradients)
    with pytest.raises(WeightDeltaError, match=r"1\.bias is not its old value"):
        verify(before, model, gradients, learning_rate=RATE)


def test_a_parameter_that_was_frozen_thawed_added_or_dropped_is_named() -> None:
    before, model, gradients = stepped()
    dict(model.named_parameters())["1.bias"].requires_grad = False
    with pytest.raises(WeightDeltaError, match=r"trainable parameters are not what they were: 1\.bias"):
        verify(before, model, gradients)
    before, model, gradients = stepped()
    model.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    with pytest.raises(WeightDeltaError, match="parameters are not what they were: extra"):
        verify(before, model, gradients)
    before, model, gradients = stepped()
    model.register_buffer("extra", torch.zeros(1))
    with pytest.raises(WeightDeltaError, match="buffers are not what they were: extra"):
        verify(before, model, gradients)


def test_shapes_types_and_numbers_of_gradients_have_to_fit() -> None:
    before, model, gradients = stepped()
    with pytest.raises(WeightDeltaError, match="4 parameters are trainable, but the step has 3 gradients"):
        verify(before, model, gradients[:-1])
    with pytest.raises(WeightDeltaError, match=r"1\.weight does not have its gradient's shape"):
        verify(before, model, [gradients[0].T, *gradients[1:]])
    with pytest.raises(WeightDeltaError, match="has another shape, type or device"):
        verify(before, model.double(), gradients)


def test_a_snapshot_does_not_follow_the_model() -> None:
    model = network()
    before = snapshot(model)
    change(model, "1.weight", 5.0)
    change(model, "0.scale", 5.0)
    assert before.parameters["1.weight"][0, 0] != 5
    assert before.buffers["0.scale"][0] == 1
    assert before.trainable == {"1.weight", "1.bias", "2.weight", "2.bias"}
