"""Each kind of layer gives the sums of a plain loop over the patients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedward_client.dp.bookkeeping import BookkeepingEngine
from fedward_client.dp.bookkeeping.linear import ghost_squares
from fedward_client.dp.sums import PatientLosses, Records
from tests.client.dp.plain import Lora, Network, Text, apart, clipped, flattened, kept_apart, per_patient


def _equal(model: nn.Module, inputs: torch.Tensor, losses: PatientLosses = flattened, tolerance: float = 2e-4) -> None:
    """Compare with half of the patients clipped, some records missing."""
    mask = torch.ones(inputs.shape[:2])
    mask[0, 1:] = 0
    records: Records = (inputs, mask)
    gradients = per_patient(model, records, losses)
    middle = float(torch.stack([gradient.norm() for gradient in gradients]).median())
    for bound in (middle, 1e6):
        expected = clipped(gradients, bound)
        found = kept_apart(BookkeepingEngine(model, losses).part(records, bound).tensors)
        assert float((found - expected).norm()) <= tolerance * float(expected.norm())
        assert float(expected.norm()) > 0


def _run(layer: nn.Module, *shape: int, patients: int = 3, records: int = 2) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    _equal(layer, torch.randn(patients, records, *shape))


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (40, 5), (2, 2, 2, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:  # noqa: FBT001
    _run(nn.Linear(5, 7, bias=bias), *shape)


def test_linear_with_ghost_norms() -> None:
    _run(nn.Linear(64, 48), 3, 64)


def test_linear_with_one_position() -> None:
    _run(nn.Linear(64, 48), 64, records=1)


@given(
    kernel=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]), dimensions=st.integers(1, 3), bias=st.booleans(), records=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=30)
def test_convolutions(  # noqa: PLR0917
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    dimensions: int,
    bias: bool,  # noqa: FBT001
    records: int,
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    layer = kind(4, 8, kernel, stride, padding, dilation, groups, bias)
    _run(layer, 4, *([6] * dimensions), records=records)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 8, 3, padding="same"), nn.Conv2d(4, 8, (3, 1), padding="valid")])
def test_convolution_with_named_padding(layer: nn.Module) -> None:
    _run(layer, 4, 6, 5)


@pytest.mark.parametrize(("channels", "size"), [(64, 2), (24, 5)], ids=["ghost norms", "computed twice"])
def test_convolution_too_large_to_keep(channels: int, size: int) -> None:
    _run(nn.Conv2d(channels, channels, 3, padding=1), channels, size, size)


def test_three_dimensional_convolution_too_large_to_keep() -> None:
    _run(nn.Conv3d(8, 16, 3, padding=1), 8, 2, 2, 2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (6,)),
        (nn.LayerNorm((4, 6)), (3, 4, 6)),
        (nn.LayerNorm(6, bias=False), (5, 6)),
        (nn.RMSNorm(6), (5, 6)),
        (nn.RMSNorm((4, 6), eps=1e-3), (3, 4, 6)),
        (nn.GroupNorm(2, 6), (6, 5)),
        (nn.GroupNorm(3, 6), (6, 3, 4)),
        (nn.InstanceNorm2d(6, affine=True), (6, 3, 4)),
    ],
)
def test_normalisations(layer: nn.Module, shape: tuple[int, ...]) -> None:
    _run(nn.Sequential(nn.Linear(shape[-1], shape[-1]), layer), *shape)


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_embedding_with_repeated_tokens(padding: int | None) -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(6, 4, padding_idx=padding)
    _equal(layer, torch.randint(0, 6, (4, 3, 9)))


class _Attended(nn.Module):
    def __init__(self, *, batch_first: bool, shared: bool, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.batch_first, self.shared, self.need_weights = batch_first, shared, need_weights

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        length = inputs.shape[1]
        hidden = inputs if self.batch_first else inputs.transpose(0, 1)
        other = hidden if self.shared else hidden.flip(2)
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        padding = inputs[:, :, 0] > 5
        mixed, _ = self.attention(
            hidden, other, other, attn_mask=causal, key_padding_mask=padding, need_weights=self.need_weights
        )
        result: torch.Tensor = mixed if self.batch_first else mixed.transpose(0, 1)
        return result


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(batch_first: bool, shared: bool, need_weights: bool) -> None:  # noqa: FBT001
    model = _Attended(batch_first=batch_first, shared=shared, need_weights=need_weights)
    torch.manual_seed(0)
    _equal(model, torch.randn(3, 2, 5, 8))


def test_torch_transformer_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    _equal(layer, torch.randn(3, 2, 5, 8))
    _equal(layer.eval(), torch.randn(3, 2, 5, 8))


def test_transformer() -> None:
    torch.manual_seed(0)
    _equal(Text(), torch.randint(0, 20, (4, 2, 7)))
    _equal(Text(width=32, heads=4), torch.randint(0, 20, (4, 1, 3)))


def test_network_with_two_branches_on_one_gradient() -> None:
    torch.manual_seed(0)
    _equal(Network(), torch.randn(4, 2, 3, 8, 8))


@pytest.mark.parametrize("length", [2, 40])
def test_low_rank_correction_of_a_frozen_layer(length: int) -> None:
    torch.manual_seed(0)
    _equal(nn.Sequential(Lora(16, 12, 2), nn.Tanh(), Lora(12, 16, 4)), torch.randn(4, 2, length, 16))


def test_frozen_weights_with_trained_biases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 3))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith("bias")
    _equal(model, torch.randn(4, 2, 3, 4, 4))


def test_layer_that_is_not_used_gets_zeros() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})

    def losses(of: nn.Module, records: Records) -> torch.Tensor:
        assert isinstance(of, nn.ModuleDict)
        return flattened(of["used"], records)

    part = BookkeepingEngine(model, losses).part((torch.randn(3, 2, 3), torch.ones(3, 2)), 1.0)
    assert [bool(tensor.any()) for tensor in part.tensors] == [True, True, False, False]


def test_model_that_keeps_patients_and_records_apart() -> None:
    torch.manual_seed(0)
    _equal(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(5, 3, 6), apart)


@given(length=st.integers(1, 6), width=st.integers(1, 70), size=st.integers(-3, 3), seed=st.integers(0, 1000))
def test_ghost_norm_is_never_below_the_true_one(length: int, width: int, size: int, seed: int) -> None:
    """Pairs of tokens whose gradients cancel but for one part in ten million."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1, length, width, generator=generator) * 10.0**size
    outputs = torch.randn(1, length, 5, generator=generator)
    crumbs = 1 + 1e-7 * torch.randn(inputs.shape, generator=generator)
    a, b = torch.cat([inputs, inputs * crumbs], 1), torch.cat([outputs, -outputs], 1)
    true = torch.einsum("pto,pti->poi", b.double(), a.double()).square().sum()
    assert float(ghost_squares(a, b)) >= float(true)


def test_ghost_norm_is_close_where_nothing_cancels() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 64, 128), torch.randn(4, 64, 256)
    true = torch.einsum("pto,pti->poi", b.double(), a.double()).square().sum(dim=(1, 2))
    assert torch.allclose(ghost_squares(a, b), true, rtol=3e-3)
    assert functional.relu(true - ghost_squares(a, b)).max() == 0
