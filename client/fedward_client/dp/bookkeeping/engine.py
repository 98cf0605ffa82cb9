"""The book-keeping engine: one forward pass, one backward pass, and one weighted sum for each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import torch
from torch import nn

from fedward_client.dp.bookkeeping.layers import Layer, layers, unsupported
from fedward_client.dp.bookkeeping.tape import Tape, Weights
from fedward_client.dp.sums import Part, PatientLosses, Records, clip_factors, trainable
from fedward_common.errors import StudyError

__all__ = ["BookkeepingEngine"]

_REMEDY: Final = "choose privacy.engine=hooks, or build the model from layers that are called once each"


class BookkeepingEngine:
    """See `fedward_client.dp.sums.Engine`.

    Every layer's first dimension must be patients times some number of records, a patient's records side by side. The
    first two patients that come together are checked for it: the loss of one must have no gradient in the other's rows,
    in any layer.

    Args:
        model: whose gradients these are.
        losses: each patient's loss.

    Raises:
        StudyError: a layer cannot be booked exactly; the message names all that cannot.
    """

    name = "bookkeeping"

    def __init__(self, model: nn.Module, losses: PatientLosses) -> None:
        problems = unsupported(model) if trainable(model) else ["none of its parameters is trained"]
        if problems:
            message = f"the bookkeeping engine cannot train this model: {'; '.join(problems)}"
            raise StudyError(message, remedy=_REMEDY)
        self._model = model
        self._losses = losses
        self._proved = False

    def part(self, records: Records, clip_norm: float) -> Part:
        """See `Engine.part`.

        Raises:
            StudyError: a layer is called twice, mixes patients or does not keep them first; a parameter is used outside
                its layer. Nothing is returned that could be released.
        """
        parameters, patients = trainable(self._model), len(records[0])
        if patients > 1 and not self._proved:
            with torch.random.fork_rng(_accelerators(records)):
                self._run(Tape(parameters, 2, probe=1), tuple(tensor[:2] for tensor in records))
            self._proved = True
        tape = Tape(parameters, patients)
        losses = self._run(tape, records)
        with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
            factors, counted = clip_factors(tape.squares(), clip_norm)
            weights = Weights(factors.to(torch.float32), counted, bool(counted.all()))
            return Part(tape.sums(weights), losses)

    def _run(self, tape: Tape, records: Records) -> torch.Tensor:
        """Run the model forward and backward; return the losses."""
        with _gradients_aside(self._model), _booked(layers(self._model), tape), torch.enable_grad():
            losses = self._losses(self._model, records)
            if losses.shape != (tape.patients,):
                msg = f"losses of shape {tuple(losses.shape)}, expected ({tape.patients},)"
                raise ValueError(msg)
            start = torch.ones_like(losses)
            if tape.probe is not None:
                start = torch.zeros_like(losses)
                start[tape.probe] = 1
            with torch.autocast(losses.device.type, enabled=False):
                torch.autograd.backward(losses, start)
            for name, parameter in self._model.named_parameters():
                if parameter.grad is not None:
                    message = f"the bookkeeping engine cannot train parameter {name}: it is used outside its layer"
                    raise StudyError(message, remedy=_REMEDY)
        return losses.detach()


def _accelerators(records: Records) -> list[torch.device]:
    return [records[0].device] if records[0].device.type == "cuda" else []


@contextmanager
def _gradients_aside(model: nn.Module) -> Iterator[None]:
    """Let every parameter start without ``grad``; put each one back."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def _booked(found: list[Layer], tape: Tape) -> Iterator[None]:
    """Let the layers book on `tape`; afterwards they are as before, whatever happens."""
    try:
        for layer in found:
            vars(layer.module)["forward"] = partial(layer.rule.forward, layer.module, layer.name, tape)
        yield
    finally:
        for layer in found:
            vars(layer.module).pop("forward", None)
