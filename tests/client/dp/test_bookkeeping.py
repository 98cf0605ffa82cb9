"""The book-keeping engine keeps the contract of `fedward_client.dp.sums`, whatever a patient's values are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedward_client.dp.bookkeeping import BookkeepingEngine, unsupported
from fedward_client.dp.sums import Records, clipped_sum
from fedward_common.errors import StudyError
from tests.client.dp.plain import Lora, Network, Text, apart, biggest, flattened, kept_apart, plain_sums

BAD = [float("nan"), float("inf"), -float("inf"), 1e30]


def _tokens(patients: int, records: int = 2, length: int = 5) -> Records:
    return torch.randint(0, 20, (patients, records, length)), torch.ones(patients, records)


def _images(patients: int, records: int = 2) -> Records:
    return torch.randn(patients, records, 3, 8, 8), torch.ones(patients, records)


def _norm(tensors: tuple[torch.Tensor, ...]) -> float:
    return float(kept_apart(tensors).norm())


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 100])
def test_sum_does_not_depend_on_the_micro_batch(micro_batch: int) -> None:
    torch.manual_seed(0)
    model, records = Network(), _images(7)
    clip = biggest(model, records, flattened)
    engine = BookkeepingEngine(model, flattened)
    sums = clipped_sum(engine, model, records, clip, micro_batch=micro_batch)
    expected = plain_sums(model, records, flattened, clip)
    assert torch.allclose(kept_apart(sums.gradient.tensors), expected, atol=1e-5 * float(expected.norm()))
    assert torch.allclose(sums.losses, flattened(model, records).detach(), rtol=1e-5)


def test_empty_batch_gives_zeros() -> None:
    model = Network()
    sums = clipped_sum(BookkeepingEngine(model, flattened), model, _images(0), 1.0, micro_batch=4)
    assert [t.shape for t in sums.gradient.tensors] == [p.shape for p in model.parameters()]
    assert _norm(sums.gradient.tensors) == 0
    assert sums.losses.shape == (0,)


def _wide_model() -> nn.Module:
    """Return a model in which gradients are kept, booked with ghost norms, and computed twice."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.Conv2d(24, 48, 3, padding=1), nn.Flatten(2),
        nn.Linear(4, 64), nn.LayerNorm(64), nn.Linear(64, 48), nn.RMSNorm(48), nn.Flatten(1), nn.Linear(48 * 48, 2),
    )  # fmt: skip


def test_bad_patients_contribute_zero_and_change_no_bit_of_the_others() -> None:
    torch.manual_seed(0)
    model = _wide_model()
    images = torch.randn(6, 1, 3, 2, 2)
    found = []
    for bad in BAD:
        poisoned = images.clone()
        poisoned[2, 0, 1, 1, 0] = bad
        found.append(BookkeepingEngine(model, flattened).part((poisoned, torch.ones(6, 1)), 0.5))
    rest = [0, 1, 3, 4, 5]
    expected = plain_sums(model, (images[rest], torch.ones(5, 1)), flattened, 0.5)
    for part in found:
        assert torch.allclose(kept_apart(part.tensors), expected, atol=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(part.tensors, found[0].tensors, strict=True))


def test_a_batch_of_bad_patients_gives_zeros() -> None:
    model = _wide_model()
    part = BookkeepingEngine(model, flattened).part((torch.full((3, 1, 3, 2, 2), float("nan")), torch.ones(3, 1)), 1.0)
    assert _norm(part.tensors) == 0


@given(
    scales=st.lists(st.floats(-30, 30), min_size=1, max_size=5), clip=st.floats(1e-3, 1e3), length=st.integers(1, 40),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=40)
def test_one_patient_moves_the_sum_by_at_most_the_bound(
    scales: list[float], clip: float, length: int, widths: tuple[int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(widths[0], widths[1]), nn.LayerNorm(widths[1]), nn.Linear(widths[1], 3))
    engine = BookkeepingEngine(model, flattened)
    for scale in scales:
        inputs = torch.randn(1, 1, length, widths[0]) * 10.0**scale
        assert _norm(engine.part((inputs, torch.ones(1, 1)), clip).tensors) <= clip * (1 + 1e-5)


def _cancelling(model: nn.Module, records: Records) -> torch.Tensor:
    """Return losses whose gradient for the layer cancels to a ten-millionth: Σ ± ⟨v, f(x)⟩ over pairs of tokens."""
    inputs, directions = records
    losses: torch.Tensor = (model(inputs) * directions).sum(dim=(1, 2))
    return losses


@pytest.mark.parametrize("crumb", [0.0, 1e-7, 3e-7, 1e-6, 1e-5, 1e-4])
def test_crafted_tokens_that_cancel_do_not_exceed_the_bound(crumb: float) -> None:
    """A Gram matrix in float32 sees nothing of a gradient of norm thousands; the patient must not get through."""
    torch.manual_seed(0)
    layer = nn.Linear(96, 96, bias=False)
    inputs, directions = 1e3 * torch.randn(4, 8, 96), torch.randn(4, 8, 96)
    records = (
        torch.cat([inputs, inputs * (1 + crumb * torch.randn(inputs.shape))], dim=1),
        torch.cat([directions, -directions], dim=1),
    )
    for place in range(4):
        one = tuple(tensor[place : place + 1] for tensor in records)
        (found,) = BookkeepingEngine(layer, _cancelling).part(one, 1.0).tensors
        true = torch.einsum("pto,pti->oi", one[1].double(), one[0].double())
        factor = float((found.double() * true).sum() / true.square().sum()) if crumb else 0.0
        assert factor * float(true.norm()) <= 1 + 1e-5


@pytest.mark.parametrize("model", [Network(), Text()])
def test_bfloat16_sums_are_float32(model: nn.Module) -> None:
    torch.manual_seed(0)
    records = _images(3) if isinstance(model, Network) else _tokens(3, 1)
    half = copy.deepcopy(model).to(torch.bfloat16)

    def losses(of: nn.Module, batch: Records) -> torch.Tensor:
        inputs = batch[0].to(torch.bfloat16) if batch[0].is_floating_point() else batch[0]
        return flattened(of, (inputs, batch[1])).to(torch.float32)

    expected = plain_sums(half, records, losses, 0.1)
    part = BookkeepingEngine(half, losses).part(records, 0.1)
    assert {tensor.dtype for tensor in part.tensors} == {torch.float32}
    assert float((kept_apart(part.tensors) - expected).norm()) < 0.03 * float(expected.norm())
    alone = BookkeepingEngine(half, losses).part(tuple(tensor[:1] for tensor in records), 1e-3)
    assert _norm(alone.tensors) <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize("model", [Network(), Text()])
def test_autocast(model: nn.Module) -> None:
    torch.manual_seed(0)
    records = _images(3) if isinstance(model, Network) else _tokens(3, 1)

    def losses(of: nn.Module, batch: Records) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return flattened(of, batch).to(torch.float32)

    expected = plain_sums(model, records, losses, 0.1)
    part = BookkeepingEngine(model, losses).part(records, 0.1)
    assert {tensor.dtype for tensor in part.tensors} == {torch.float32}
    assert float((kept_apart(part.tensors) - expected).norm()) < 0.03 * float(expected.norm())


def _state(model: nn.Module) -> list[Any]:
    return [
        [(id(p), None if p.grad is None else id(p.grad), p.requires_grad, p.detach().clone().tolist())
         for p in model.parameters()],
        [(m.training, sorted(vars(m)), len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()],
    ]  # fmt: skip


class _Interrupted(Exception):  # noqa: N818
    pass


def test_model_is_as_before_even_after_an_exception() -> None:
    torch.manual_seed(0)
    model, records = Text(), _tokens(3)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.blocks[0].eval()
    before = _state(model)
    BookkeepingEngine(model, flattened).part(records, 1.0)
    assert _state(model) == before

    def losses(of: nn.Module, batch: Records) -> torch.Tensor:
        flattened(of, batch)
        raise _Interrupted

    with pytest.raises(_Interrupted):
        BookkeepingEngine(model, losses).part(records, 1.0)
    assert _state(model) == before


def test_frozen_layers_are_left_alone() -> None:
    layer = Lora(8, 8, 2)
    seen: list[bool] = []

    def look(module: nn.Module, *_: object) -> None:
        seen.append("forward" in vars(module))

    for part in (layer.base, layer.down):
        part.register_forward_hook(look)
    BookkeepingEngine(layer, flattened).part((torch.randn(1, 2, 8), torch.ones(1, 2)), 1.0)
    assert seen == [False, True]


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(torch.tanh(self.layer(inputs)))
        return result


class _Around(_Twice):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.layer(inputs), self.layer.weight)


class _Mixing(_Twice):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(inputs)
        return hidden - hidden.mean(dim=0)


class _TimeFirst(_Twice):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(inputs.transpose(0, 1))
        return hidden.transpose(0, 1)


class _Odd(_Twice):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layer(inputs.new_ones(1, 4)) + self.layer.bias * 0 + inputs
        return hidden


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Twice(), "layer: used twice"),
        (_Around(), r"layer\.weight: it is used outside"),
        (_Mixing(), "layer: one patient's loss depends"),
        (_TimeFirst(), "layer: one patient's loss depends"),
        (_Odd(), r"layer: its output's shape \(1, 4\)"),
    ],
)
def test_what_shows_only_when_the_model_runs_is_refused_by_name(model: nn.Module, words: str) -> None:
    engine = BookkeepingEngine(model, flattened)
    before = _state(model)
    with pytest.raises(StudyError, match=words) as caught:
        engine.part((torch.randn(4, 1, 4, 4), torch.ones(4, 1)), 1.0)
    assert "privacy.engine=hooks" in caught.value.remedy
    assert _state(model) == before


def test_mixing_of_patients_is_refused_though_a_patient_is_not_a_number() -> None:
    inputs = torch.randn(4, 1, 4, 4)
    inputs[0] = float("nan")
    BookkeepingEngine(_Wanted(), flattened).part((inputs, torch.ones(4, 1)), 1.0)
    with pytest.raises(StudyError, match="one patient's loss depends"):
        BookkeepingEngine(_TimeFirst(), flattened).part((inputs, torch.ones(4, 1)), 1.0)


class _Wanted(_Twice):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(inputs)
        return result


class _Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(inputs + self.place)
        return result


class _Scaled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return 2 * super().forward(input)


class _Same(nn.Linear):
    """A subclass that runs what its parent runs."""


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Placed(), r"the model itself\) \(_Placed\): parameters place"),
        (nn.Sequential(_Scaled(4, 4)), r"0 \(_Scaled\)"),
        (_tied(), r"0\.weight, 1\.weight: one parameter under several names"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), r"0 \(Conv2d\): padding_mode reflect"),
        (nn.Sequential(nn.Conv2d(3, 3, 2, padding="same")), r"0 \(Conv2d\): padding 'same'"),
        (nn.Sequential(nn.BatchNorm2d(3)), r"0 \(BatchNorm2d\)"),
        (nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)), "running statistics"),
        (nn.Sequential(nn.Embedding(4, 4, max_norm=1.0)), "max_norm"),
        (nn.Sequential(nn.Embedding(4, 4, scale_grad_by_freq=True)), "scale_grad_by_freq"),
        (nn.Sequential(nn.Embedding(4, 4, sparse=True)), "sparse"),
        (nn.Sequential(nn.LSTM(4, 4)), r"0 \(LSTM\)"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "0"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "bias_k"),
        (nn.MultiheadAttention(4, 2, kdim=6, vdim=6), r"\(MultiheadAttention\)"),
    ],
)
def test_layer_that_cannot_be_booked_is_refused_by_name(model: nn.Module, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        BookkeepingEngine(model, flattened)
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert unsupported(model) == []


def test_model_without_trained_parameters_is_refused() -> None:
    with pytest.raises(StudyError, match="none of its parameters is trained"):
        BookkeepingEngine(nn.Sequential(nn.Linear(4, 4).requires_grad_(requires_grad=False)), flattened)


def test_subclass_without_a_forward_of_its_own_is_supported() -> None:
    assert unsupported(nn.Sequential(_Same(4, 4))) == []


def test_losses_of_another_shape_are_refused() -> None:
    engine = BookkeepingEngine(nn.Linear(3, 2), lambda model, records: flattened(model, records).mean())
    with pytest.raises(ValueError, match=r"losses of shape \(\)"):
        engine.part((torch.randn(4, 1, 3), torch.ones(4, 1)), 1.0)


def test_dropout_draws_as_if_the_layout_had_not_been_checked() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 1))
    records = (torch.randn(4, 2, 6), torch.ones(4, 2))
    engine = BookkeepingEngine(model, apart)
    torch.manual_seed(1)
    first = engine.part(records, 1.0)
    torch.manual_seed(1)
    again = engine.part(records, 1.0)
    assert torch.equal(first.losses, again.losses)
