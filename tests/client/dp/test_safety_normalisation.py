"""What replaces batch statistics has none: properties of the replacement, and what is carried over."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedward_client.dp.normalisation import FixedAffine, frozen_batch_norm_folded, made_private
from fedward_client.dp.safety import objections
from fedward_common.errors import UnsafeModelError

LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@given(
    places=st.integers(min_value=0, max_value=2),
    channels=st.integers(min_value=2, max_value=40),
    patients=st.integers(min_value=2, max_value=5),
    affine=st.booleans(),
    seed=st.integers(min_value=0, max_value=2**32 - 1),
)
@settings(max_examples=25)
def test_no_patient_moves_another_in_what_is_replaced(
    *, places: int, channels: int, patients: int, affine: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = made_private(nn.Sequential(LAYERS[places](channels, affine=affine)))
    batch = torch.randn(patients, channels, *(3,) * places, generator=generator)
    other = torch.cat([1e4 * torch.randn(batch[:1].shape, generator=generator), batch[1:]])

    assert objections(model) == []
    assert torch.equal(model(batch)[1:], model(other)[1:])
    assert torch.equal(model(batch[1:]), model(batch)[1:])
    assert not torch.equal(model(batch)[:1], model(other)[:1])


@pytest.mark.parametrize("channels", [2, 6, 8, 24, 32, 48, 64, 100])
def test_groups_are_those_of_practice_and_one_for_vectors(channels: int) -> None:
    model = made_private(nn.Sequential(nn.BatchNorm2d(channels), nn.BatchNorm3d(channels), nn.BatchNorm1d(channels)))
    groups = [layer.num_groups for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert groups == [math.gcd(32, channels)] * 2 + [1]


@pytest.mark.parametrize("channels", [8, 32, 64])
def test_vectors_keep_their_directions(channels: int) -> None:
    """In gcd(32, channels) groups a vector would turn into signs or zeros."""
    batch = torch.randn(5, channels, generator=torch.Generator().manual_seed(0))
    found = made_private(nn.Sequential(nn.BatchNorm1d(channels)))(batch)
    expected = torch.nn.functional.layer_norm(batch, (channels,))
    assert torch.allclose(found, expected, atol=1e-5)


def test_affine_weights_flags_mode_type_and_epsilon_are_carried_over() -> None:
    old = nn.BatchNorm2d(8, eps=1e-3).to(torch.float64)
    nn.init.normal_(old.weight)
    nn.init.normal_(old.bias)
    old.weight.requires_grad = False
    model = nn.Sequential(old, nn.Sequential(nn.BatchNorm2d(8, affine=False))).eval()

    new = made_private(model)

    first, second = new[0], new[1][0]  # type: ignore[index]
    assert isinstance(first, nn.GroupNorm)
    assert isinstance(second, nn.GroupNorm)
    assert torch.equal(first.weight, old.weight)
    assert torch.equal(first.bias, old.bias)
    assert [parameter.requires_grad for parameter in first.parameters()] == [False, True]
    assert (first.eps, first.weight.dtype, first.training) == (1e-3, torch.float64, False)
    assert not list(second.parameters())
    assert not list(new.buffers())


def test_the_model_itself_stays_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    for parameter in made_private(model).parameters():
        nn.init.constant_(parameter, 7)
    assert isinstance(model[0], nn.BatchNorm1d)
    assert torch.equal(model[0].weight, torch.ones(4))


def test_a_model_that_is_a_batch_norm_and_one_used_twice_are_replaced() -> None:
    assert isinstance(made_private(nn.BatchNorm1d(4)), nn.GroupNorm)
    shared = nn.BatchNorm1d(4)
    new = made_private(nn.Sequential(shared, nn.Linear(4, 4), shared))
    assert new[0] is new[2]  # type: ignore[index]
    assert isinstance(new[0], nn.GroupNorm)  # type: ignore[index]


def test_sync_and_lazy_batch_norms_are_replaced_once_they_know_their_channels() -> None:
    lazy = nn.Sequential(nn.Conv2d(3, 12, 1), nn.LazyBatchNorm2d(), nn.SyncBatchNorm(12))
    with pytest.raises(UnsafeModelError, match="1: LazyBatchNorm2d has no channels"):
        made_private(lazy)
    lazy[:2](torch.randn(2, 3, 4, 4))
    new = made_private(lazy)
    assert [type(layer) for layer in new] == [nn.Conv2d, nn.GroupNorm, nn.GroupNorm]  # type: ignore[attr-defined]
    assert objections(new) == []


# -------------------------------------------------------------------------------------------------------------- folding
@pytest.mark.parametrize("places", [0, 1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_statistics_compute_the_same_in_either_mode(places: int, *, affine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    old = LAYERS[max(places - 1, 0)](5, affine=affine)
    batch = torch.randn(4, 5, *(3,) * places, generator=generator) * 3 + 1
    old(batch)
    for parameter in old.parameters():
        parameter.data = torch.randn(5, generator=generator)
        parameter.requires_grad = False
    old.eval()

    new = frozen_batch_norm_folded(nn.Sequential(old))

    assert isinstance(new[0], FixedAffine)  # type: ignore[index]
    assert torch.allclose(new(batch), old(batch), rtol=1e-5, atol=1e-6)
    assert torch.equal(new.train()(batch), new.eval()(batch))
    assert objections(new) == []


@pytest.mark.parametrize("why", ["trained", "training mode", "no statistics"])
def test_what_is_not_fixed_is_not_folded(why: str) -> None:
    layer = nn.BatchNorm1d(3, track_running_stats=why != "no statistics").requires_grad_(requires_grad=why == "trained")
    layer.train(why == "training mode")
    folded = frozen_batch_norm_folded(nn.Sequential(layer))
    assert isinstance(folded[0], nn.BatchNorm1d)  # type: ignore[index]
    assert objections(folded) != []
