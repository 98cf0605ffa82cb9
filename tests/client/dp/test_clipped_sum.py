"""One patient moves the sum by at most the clipping bound, whatever that patient's records are, by every engine."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedward_client.dp.choose import choose
from fedward_client.dp.sums import StepSums, clipped_sum
from fedward_client.losses import patient_losses
from fedward_common.models import build_model
from tests.builders import small_study
from tests.client.dp.plain import plain_sums

STUDY = small_study(model={"name": "mlp", "hidden": [4], "activation": "tanh"})
FEATURES = 7
CLIP = 0.5

Batch = tuple[torch.Tensor, ...]
Name = Literal["bookkeeping", "ghost", "hooks"]
each_engine = pytest.mark.parametrize("engine", ["bookkeeping", "ghost", "hooks"])
any_engine = st.sampled_from(["bookkeeping", "ghost", "hooks"])


def model(seed: int = 0, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    made = build_model(STUDY)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return made


def batch(patients: int, rows: int = 3, seed: int = 0, scale: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(patients, rows, generator=generator) < 0.7).float()
    mask[:, 0] = 1
    features = torch.randn(patients, rows, FEATURES, generator=generator) * scale
    return features, (torch.rand(patients, rows, generator=generator) < 0.5).float(), mask


def sums(engine: Name, inner: nn.Module, data: Batch, clip: float = CLIP, *, micro_batch: int = 1000) -> StepSums:
    return clipped_sum(choose(inner, patient_losses, engine), inner, data, clip, micro_batch=micro_batch)


def clipped(
    engine: Name, inner: nn.Module, data: Batch, clip: float = CLIP, *, micro_batch: int = 1000
) -> torch.Tensor:
    found = sums(engine, inner, data, clip, micro_batch=micro_batch).gradient
    return torch.cat([tensor.reshape(-1) for tensor in found.tensors])


def of(data: Batch, index: torch.Tensor) -> Batch:
    return tuple(tensor[index] for tensor in data)


@each_engine
@pytest.mark.parametrize("clip", [1e-3, 0.5, 2.0, 1e3])
def test_sum_is_that_of_a_plain_loop_over_patients(engine: Name, clip: float) -> None:
    inner, data = model(), batch(20)
    expected = plain_sums(inner, data, patient_losses, clip)
    assert torch.allclose(clipped(engine, inner, data, clip).double(), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    any_engine,
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-6, 1.0, 1e4, 1e12, 1e20, 1e30]),
    st.sampled_from([1e-3, 1.0, 1e6]),
    st.sampled_from([0.01, 1.0, 100.0]),
)
def test_one_patient_contributes_at_most_the_bound(
    engine: Name, seed: int, features: float, weights: float, clip: float
) -> None:
    total = clipped(engine, model(seed, weights), batch(1, seed=seed, scale=features), clip)
    assert torch.isfinite(total).all()
    assert float(total.double().norm()) <= clip * (1 + 1e-5)


@settings(max_examples=45, deadline=None)
@given(any_engine, st.integers(0, 1000), st.sampled_from([1.0, 1e6, 1e25]), st.integers(0, 11))
def test_adding_or_removing_a_patient_moves_the_sum_by_at_most_the_bound(
    engine: Name, seed: int, scale: float, who: int
) -> None:
    data = batch(12, seed=seed)
    data[0][who] *= scale
    inner, others = model(seed), torch.arange(12) != who
    moved = clipped(engine, inner, data) - clipped(engine, inner, of(data, others))
    assert float(moved.norm()) <= CLIP * (1 + 1e-5)


@each_engine
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, 3e38])
@pytest.mark.parametrize("where", ["features", "labels"])
def test_patient_whose_records_poison_the_gradient_contributes_nothing_or_a_bounded_part(
    engine: Name, value: float, where: str
) -> None:
    """A NaN in one record would otherwise make the whole sum NaN: lost rounds, and noise on nothing."""
    inner, data = model(), batch(12)
    data[0 if where == "features" else 1][5, 0] = value
    total = clipped(engine, inner, data)
    rest = clipped(engine, inner, of(data, torch.arange(12) != 5))
    assert torch.isfinite(total).all()
    assert float((total - rest).norm()) <= CLIP * (1 + 1e-5)
    if not np.isfinite(value):
        assert float((total - rest).abs().max()) < 1e-6


@each_engine
def test_nan_in_the_model_gives_zero_and_not_nan(engine: Name) -> None:
    inner = model()
    next(iter(inner.parameters())).data.fill_(float("nan"))
    assert not clipped(engine, inner, batch(5)).any()


@each_engine
def test_records_of_a_patient_are_averaged_before_the_clip(engine: Name) -> None:
    """Fifty copies of one record cost and count what the one does."""
    inner, one = model(), batch(1, rows=1)
    fifty = (one[0].expand(1, 50, -1), one[1].expand(1, 50), one[2].expand(1, 50))
    for clip in (CLIP, 1e3):
        found, expected = (clipped(engine, inner, data, clip) for data in (fifty, one))
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


@each_engine
def test_fifty_different_records_of_one_patient_stay_within_one_bound(engine: Name) -> None:
    data = batch(1, rows=50, scale=100.0)
    assert float(clipped(engine, model(), data).norm()) <= CLIP * (1 + 1e-5)


@each_engine
def test_padding_changes_nothing_whatever_it_holds(engine: Name) -> None:
    inner, (features, labels, mask) = model(), batch(10)
    filled = torch.where(mask[:, :, None] == 1, features, torch.full_like(features, 7.0))
    flipped = torch.where(mask == 1, labels, 1 - labels)
    before = clipped(engine, inner, (features, labels, mask))
    assert torch.allclose(clipped(engine, inner, (filled, flipped, mask)), before, rtol=1e-5, atol=1e-7)


@each_engine
def test_order_and_grouping_of_the_batch_change_nothing(engine: Name) -> None:
    inner, data = model(), batch(30)
    whole = clipped(engine, inner, data)
    mixed = clipped(engine, inner, of(data, torch.randperm(30, generator=torch.Generator().manual_seed(1))))
    assert torch.allclose(mixed, whole, rtol=1e-5, atol=1e-6)
    for micro_batch in (1, 7, 29):
        parts = clipped(engine, inner, data, micro_batch=micro_batch)
        assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)


@each_engine
def test_empty_batch_gives_zeros_of_the_right_shapes_and_the_bound(engine: Name) -> None:
    inner = model()
    found = sums(engine, inner, of(batch(3), torch.zeros(3, dtype=torch.bool)))
    assert [t.shape for t in found.gradient.tensors] == [p.shape for p in inner.parameters()]
    assert not any(bool(t.any()) for t in found.gradient.tensors)
    assert found.gradient.l2_bound == CLIP
    assert found.losses.shape == (0,)


@each_engine
def test_losses_come_back_by_patient_whatever_the_micro_batch(engine: Name) -> None:
    inner, data = model(), batch(10)
    expected = patient_losses(inner, data).detach()
    for micro_batch in (3, 100):
        found = sums(engine, inner, data, micro_batch=micro_batch).losses
        assert not found.requires_grad
        assert torch.allclose(found, expected)


@each_engine
def test_clipping_leaves_no_gradient_and_no_hook_behind(engine: Name) -> None:
    inner, data = model(), batch(8)
    first, second = clipped(engine, inner, data), clipped(engine, inner, data)
    assert torch.equal(first, second)
    assert all(p.grad is None for p in inner.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in inner.modules())


def test_patient_losses_are_the_mean_over_the_rows_that_are_there() -> None:
    inner, data = model(), batch(6)
    found = patient_losses(inner, data)
    for patient in range(6):
        real = data[2][patient] == 1
        logits = inner(data[0][patient][real]).squeeze(-1)
        expected = nn.functional.binary_cross_entropy_with_logits(logits, data[1][patient][real])
        assert torch.allclose(found[patient], expected)
