"""The benchmark of a private step compares steps that train, and counts memory right."""

from __future__ import annotations

import pytest
import torch

from fedward_simulations.bench import dp_step
from fedward_simulations.bench.dp_step import Transformer


def _records(model: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    return model.batch(), torch.ones(len(model.batch()), 1)


def _model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(width=8, length=4, words=5, layers=1)


def test_peak_is_the_most_that_was_held_at_once() -> None:
    def step() -> None:
        first = torch.zeros(1000, dtype=torch.float64)
        second = first.clone()
        del first
        second.add_(1)

    assert dp_step._peak_bytes(step, "cpu") == 16_000


@pytest.mark.parametrize("engine", ["plain", "bookkeeping", "ghost", "hooks"])
def test_every_side_trains_every_parameter(engine: str) -> None:
    model = _model()
    records = _records(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if engine == "plain":
        dp_step._plain_step(model, records)
    else:
        dp_step._private_step(model, engine, records)()
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same <= {"blocks.0.key.bias"}  # adds the same to all of a query's scores: its gradient is zero


def test_sides_have_equal_weights_of_their_own() -> None:
    model = _model()
    sides = dp_step._sides(model, _records(model))
    assert list(sides) == ["plain", "bookkeeping", "ghost", "hooks"]
    assert len({side.held for side in sides.values()}) == 1
