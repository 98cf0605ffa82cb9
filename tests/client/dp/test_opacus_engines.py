"""The engines on Opacus keep the same contract, and leave nothing behind in the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedward_client.dp.bookkeeping import BookkeepingEngine
from fedward_client.dp.opacus_engines import GhostEngine, HooksEngine
from fedward_client.dp.sums import Engine, PatientLosses, Records, clipped_sum
from fedward_common.errors import StudyError
from tests.client.dp.plain import Lora, Network, Text, apart, biggest, flattened, kept_apart, plain_sums


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


class _Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.tanh(inputs + self.place))
        return result


def _images(patients: int, records: int) -> Records:
    return torch.randn(patients, records, 3, 8, 8), torch.ones(patients, records)


def _rows(patients: int, records: int) -> Records:
    mask = torch.ones(patients, records)
    mask[0, 1:] = 0
    return torch.randn(patients, records, 6), mask


def _compare(engine: Engine, model: nn.Module, records: Records, losses: PatientLosses) -> None:
    clip = biggest(model, records, losses)
    expected = plain_sums(model, records, losses, clip)
    for micro_batch in (2, 100):
        sums = clipped_sum(engine, model, records, clip, micro_batch=micro_batch)
        assert float((kept_apart(sums.gradient.tensors) - expected).norm()) <= 2e-4 * float(expected.norm())


@pytest.mark.parametrize(
    ("model", "records", "losses"),
    [
        (_mlp(), _rows(5, 3), apart),
        (_mlp(), _rows(5, 3), flattened),
        (_Placed(), _rows(5, 3), flattened),
        (Network(), _images(5, 2), flattened),
        (Text(), (torch.randint(0, 20, (5, 2, 6)), torch.ones(5, 2)), flattened),
        (nn.Sequential(Lora(6, 4, 2), nn.Tanh(), nn.Linear(4, 1)), _rows(5, 3), flattened),
    ],
    ids=["mlp, records apart", "mlp", "parameter of the model", "network", "text with padding", "low rank"],
)
def test_hooks_give_the_plain_sums(model: nn.Module, records: Records, losses: PatientLosses) -> None:
    _compare(HooksEngine(model, losses), model, records, losses)


@pytest.mark.parametrize(
    ("model", "records", "losses"),
    [
        (_mlp(), _rows(5, 3), apart),
        (_mlp(), _rows(5, 1), flattened),
        (Network(), _images(5, 1), flattened),
        (nn.Sequential(Lora(6, 4, 2), nn.Tanh(), nn.Linear(4, 1)), _rows(5, 3), apart),
    ],
    ids=["mlp, records apart", "mlp", "network", "low rank"],
)
def test_ghost_gives_the_plain_sums(model: nn.Module, records: Records, losses: PatientLosses) -> None:
    _compare(GhostEngine(model, losses), model, records, losses)


@pytest.mark.parametrize("kind", [HooksEngine, GhostEngine, BookkeepingEngine])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_bad_patient_contributes_zero(kind: Any, bad: float) -> None:
    torch.manual_seed(0)
    model, (inputs, mask) = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1)), _rows(5, 3)
    inputs[1, 0, 2] = bad
    found = kept_apart(kind(model, apart).part((inputs, mask), 0.5).tensors)
    rest = [0, 2, 3, 4]
    expected = plain_sums(model, (inputs[rest], mask[rest]), apart, 0.5)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [HooksEngine, GhostEngine])
def test_batch_of_bad_patients_gives_zeros(kind: Any) -> None:
    model = _mlp()
    part = kind(model, apart).part((torch.full((3, 2, 6), float("nan")), torch.ones(3, 2)), 1.0)
    assert not kept_apart(part.tensors).any()


@pytest.mark.parametrize("kind", [HooksEngine, GhostEngine])
def test_model_is_unhooked_even_after_an_exception(kind: Any) -> None:
    model, records = Network(), _images(3, 1)
    model.head.bias.grad = torch.ones_like(model.head.bias)

    def state() -> list[Any]:
        return [
            [(sorted(vars(m)), m.training, len(m._forward_hooks), len(m._backward_hooks)) for m in model.modules()],
            [(sorted(vars(p)), p.requires_grad, id(p.grad)) for p in model.parameters()],
        ]

    before = state()
    kind(model, flattened).part(records, 1.0)
    assert state() == before
    fail = [True]

    def losses(of: nn.Module, batch: Records) -> torch.Tensor:
        found = flattened(of, batch)
        if fail:
            raise KeyError
        return found

    engine = kind(model, losses)
    with pytest.raises(KeyError):
        engine.part(records, 1.0)
    assert state() == before
    fail.clear()
    engine.part(records, 1.0)
    assert state() == before


def test_hooks_refuse_what_mixes_patients() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.layer(inputs)
            return hidden - hidden.mean(dim=0)

    with pytest.raises(StudyError, match=r"layer\.weight: one patient's gradient is not what autograd finds"):
        HooksEngine(Mixing(), apart).part(_rows(4, 1), 1.0)


def test_ghost_refuses_records_side_by_side_by_name() -> None:
    with pytest.raises(StudyError, match=r"stem\.weight: its layer's first dimension is not the patients"):
        GhostEngine(Network(), flattened).part(_images(3, 2), 1.0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Placed(), r"the model itself\): no norms for _Placed"),
        (nn.Sequential(nn.Embedding(4, 4, padding_idx=0)), "0: its norm would count the padding token"),
        (nn.Sequential(nn.Linear(4, 4)).to(torch.bfloat16), r"0\.weight: sums would be taken in torch\.bfloat16"),
        (nn.Sequential(nn.BatchNorm1d(4)), "0:BatchNorm1d"),
    ],
)
def test_ghost_refuses_inexact_layers_by_name(model: nn.Module, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        GhostEngine(model, flattened)


def test_tied_weights_are_refused_by_ghost_and_right_with_hooks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    with pytest.raises(StudyError, match=r"2\.weight: the same parameter as 0\.weight"):
        GhostEngine(model, apart)
    _compare(HooksEngine(model, apart), model, _rows(5, 3), apart)


@pytest.mark.parametrize("kind", [HooksEngine, GhostEngine])
def test_evaluation_mode_is_refused(kind: Any) -> None:
    engine = kind(_mlp(), apart)
    engine._model.eval()
    with pytest.raises(ValueError, match="training mode"):
        engine.part(_rows(3, 1), 1.0)
