"""One patient moves the sum by at most the clipping bound, whatever that patient's records are."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from scipy import stats
from torch import nn

from fedward_client.clipping import ClippedSum, add_noise, clipped_sum, patient_losses
from fedward_common.models import build_model
from tests.builders import small_study

STUDY = small_study(model={"name": "mlp", "hidden": [4], "activation": "tanh"})
FEATURES = 7
CLIP = 0.5

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def model(seed: int = 0, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    made = build_model(STUDY)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return made


def wrapped(inner: nn.Module) -> GradSampleModule:
    """Return a hooked copy: Opacus hooks a model once."""
    return GradSampleModule(copy.deepcopy(inner), batch_first=True, loss_reduction="sum", strict=True)


def batch(patients: int, rows: int = 3, seed: int = 0, scale: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(patients, rows, generator=generator) < 0.7).float()
    mask[:, 0] = 1
    features = torch.randn(patients, rows, FEATURES, generator=generator) * scale
    return features, (torch.rand(patients, rows, generator=generator) < 0.5).float(), mask


def flat(total: ClippedSum) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in total.tensors])


def clipped(inner: nn.Module, data: Batch, clip: float = CLIP) -> torch.Tensor:
    return flat(clipped_sum(wrapped(inner), *data, clip))


def of(data: Batch, index: torch.Tensor) -> Batch:
    features, labels, mask = data
    return features[index], labels[index], mask[index]


def plain_gradient(inner: nn.Module, data: Batch, patient: int) -> torch.Tensor:
    """Return one patient's gradient by autograd alone, rows left out that are not there."""
    features, labels, mask = data
    real = mask[patient] == 1
    logits = inner(features[patient][real]).squeeze(-1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[patient][real])
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(inner.parameters()))])


@pytest.mark.parametrize("clip", [1e-3, 0.5, 2.0, 1e3])
def test_sum_is_that_of_a_plain_loop_over_patients(clip: float) -> None:
    inner, data = model(), batch(20)
    expected = torch.zeros(sum(p.numel() for p in inner.parameters()))
    for patient in range(20):
        gradient = plain_gradient(inner, data, patient)
        expected += gradient * min(1.0, clip / float(gradient.norm()))
    assert torch.allclose(clipped(inner, data, clip), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=40)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-6, 1.0, 1e4, 1e12, 1e20, 1e30]),
    st.sampled_from([1e-3, 1.0, 1e6]),
    st.sampled_from([0.01, 1.0, 100.0]),
)
def test_one_patient_contributes_at_most_the_bound(seed: int, features: float, weights: float, clip: float) -> None:
    total = clipped(model(seed, weights), batch(1, seed=seed, scale=features), clip)
    assert torch.isfinite(total).all()
    assert float(total.double().norm()) <= clip * (1 + 1e-6)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([1.0, 1e6, 1e25]), st.integers(0, 11))
def test_adding_or_removing_a_patient_moves_the_sum_by_at_most_the_bound(seed: int, scale: float, who: int) -> None:
    data = batch(12, seed=seed)
    data[0][who] *= scale
    others = torch.arange(12) != who
    inner = model(seed)
    moved = clipped(inner, data) - clipped(inner, of(data, others))
    assert float(moved.norm()) <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, 3e38])
@pytest.mark.parametrize("where", ["features", "labels"])
def test_patient_whose_records_poison_the_gradient_contributes_nothing_or_a_bounded_part(
    value: float, where: str
) -> None:
    """A NaN in one record would otherwise make the whole sum NaN: lost rounds, and noise on nothing."""
    inner, data = model(), batch(12)
    data[0 if where == "features" else 1][5, 0] = value
    total = clipped(inner, data)
    rest = clipped(inner, of(data, torch.arange(12) != 5))
    assert torch.isfinite(total).all()
    assert float((total - rest).norm()) <= CLIP * (1 + 1e-5)
    if not np.isfinite(value):
        assert torch.equal(total, rest) or float((total - rest).abs().max()) < 1e-6


def test_nan_in_the_model_gives_zero_and_not_nan() -> None:
    inner = model()
    next(iter(inner.parameters())).data.fill_(float("nan"))
    assert not clipped(inner, batch(5)).any()


def test_records_of_a_patient_are_averaged_before_the_clip() -> None:
    """Fifty copies of one record cost and count what the one does."""
    inner, one = model(), batch(1, rows=1)
    fifty = (one[0].expand(1, 50, -1), one[1].expand(1, 50), one[2].expand(1, 50))
    for clip in (CLIP, 1e3):
        assert torch.allclose(clipped(inner, fifty, clip), clipped(inner, one, clip), rtol=1e-5, atol=1e-7)


def test_fifty_different_records_of_one_patient_stay_within_one_bound() -> None:
    data = batch(1, rows=50, scale=100.0)
    assert float(clipped(model(), data).norm()) <= CLIP * (1 + 1e-6)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    inner, (features, labels, mask) = model(), batch(10)
    filled = torch.where(mask[:, :, None] == 1, features, torch.full_like(features, 7.0))
    flipped = torch.where(mask == 1, labels, 1 - labels)
    before = clipped(inner, (features, labels, mask))
    assert torch.allclose(clipped(inner, (filled, flipped, mask)), before, rtol=1e-5, atol=1e-7)


def test_order_and_grouping_of_the_batch_change_nothing() -> None:
    inner, data = model(), batch(30)
    whole = clipped(inner, data)
    mixed = clipped(inner, of(data, torch.randperm(30, generator=torch.Generator().manual_seed(1))))
    parts = clipped(inner, of(data, torch.arange(0, 11))) + clipped(inner, of(data, torch.arange(11, 30)))
    assert torch.allclose(mixed, whole, rtol=1e-5, atol=1e-6)
    assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_empty_batch_gives_zeros_of_the_right_shapes_and_the_bound() -> None:
    inner = model()
    total = clipped_sum(wrapped(inner), *of(batch(3), torch.zeros(3, dtype=torch.bool)), CLIP)
    assert [t.shape for t in total.tensors] == [p.shape for p in inner.parameters()]
    assert not flat(total).any()
    assert total.l2_bound == CLIP


def test_clipping_leaves_no_gradient_behind() -> None:
    module = wrapped(model())
    first = flat(clipped_sum(module, *batch(8), CLIP))
    second = flat(clipped_sum(module, *batch(8), CLIP))
    assert torch.equal(first, second)
    assert all(p.grad is None for p in module.parameters())


def test_patient_losses_are_the_mean_over_the_rows_that_are_there() -> None:
    inner, data = model(), batch(6)
    found = patient_losses(inner, *data)
    for patient in range(6):
        real = data[2][patient] == 1
        logits = inner(data[0][patient][real]).squeeze(-1)
        expected = nn.functional.binary_cross_entropy_with_logits(logits, data[1][patient][real])
        assert torch.allclose(found[patient], expected)


# ------------------------------------------------------------------------------------------------------------- noise

MILLION = ClippedSum((torch.zeros(999_000), torch.zeros(10, 100)), 0.5)


def noise(seed: int | None = None) -> np.ndarray:
    generator = None if seed is None else np.random.Generator(np.random.PCG64(seed))
    return np.concatenate([t.numpy().ravel() for t in add_noise(MILLION, 3.0, generator)]).astype(np.float64)


def test_noise_has_the_promised_spread_over_a_million_coordinates() -> None:
    """99.99 % of samples of this size lie within ±.28 %."""
    found = noise(1)
    assert found.std() == pytest.approx(1.5, rel=0.0035)
    assert abs(found.mean()) < 4.5 * 1.5 / 1000
    assert abs(stats.kurtosis(found)) < 4.5 * np.sqrt(24 / 1e6)
    assert abs(stats.skew(found)) < 4.5 * np.sqrt(6 / 1e6)
    assert stats.kstest(found / 1.5, "norm").pvalue > 1e-4


def test_noise_of_the_operating_system_has_the_same_spread() -> None:
    assert noise().std() == pytest.approx(1.5, rel=0.005)


def test_noise_of_two_releases_is_not_correlated_and_user_seeds_do_not_matter() -> None:
    """A noise that repeats is subtracted away; one of a seed that the centre knows as well."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (the seed that must not matter)
    first = noise()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (as above)
    second = noise()
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 1000
    assert (first != second).mean() > 0.999


def test_noise_does_not_come_from_a_generator_of_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's CPU generator ignores all but 32 bits of a seed: two releases in 65,000 would share theirs.

    With seeds that differ above the 32nd bit only, the noise has to differ.
    """
    draws = iter([b"\x01" + bytes(7) + bytes(24), b"\x01" + bytes(4) + b"\x01" + bytes(26)])
    monkeypatch.setattr("fedward_client.clipping.os.urandom", lambda size: next(draws)[:size])
    assert (noise() != noise()).mean() > 0.999


def test_noise_is_independent_between_tensors() -> None:
    twins = ClippedSum((torch.zeros(100_000), torch.zeros(100_000)), 1.0)
    one, other = add_noise(twins, 1.0)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / np.sqrt(100_000)


def test_noise_scales_with_bound_and_multiplier() -> None:
    zero = torch.zeros(100_000)
    for bound, sigma in [(0.5, 1.0), (2.0, 1.0), (1.0, 4.0)]:
        (found,) = add_noise(ClippedSum((zero,), bound), sigma)
        assert float(found.std()) == pytest.approx(bound * sigma, rel=0.015)


def test_noise_is_added_to_the_sum_in_its_own_type() -> None:
    (found,) = add_noise(ClippedSum((torch.full((3, 2), 5.0),), 1e-9), 1.0)
    assert torch.allclose(found, torch.full((3, 2), 5.0))
    assert found.dtype == torch.float32
