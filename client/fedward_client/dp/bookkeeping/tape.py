"""What one backward pass books: squared norms for each patient, and how to make the sums once the factors are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch

from fedward_common.errors import StudyError

__all__ = ["Finish", "Tape", "Weights", "squares_of", "wide"]

_ALL: Final = slice(None)


@dataclass(frozen=True, slots=True)
class Weights:
    """What each patient's gradient is multiplied by.

    Attributes:
        factors: in [0, 1], float32, shape (patients,).
        counted: whoever is not counted contributes exactly zero, whatever was booked, shape (patients,).
        all_counted: spares the masking, which reads every booked value once more. It makes the time of a step depend
            on whether a gradient was not finite, as it depends on the size of the sampled batch.
    """

    factors: torch.Tensor
    counted: torch.Tensor
    all_counted: bool

    def masked(self, values: torch.Tensor, patients: slice = _ALL) -> torch.Tensor:
        """Return `values`, shape (patients, …), with exact zeros for whoever is not counted."""
        counted = self.counted[patients]
        if self.all_counted or bool(counted.all()):
            return values
        return torch.where(counted.view(-1, *[1] * (values.dim() - 1)), values, torch.zeros_like(values))

    def scaled(self, values: torch.Tensor, patients: slice = _ALL) -> torch.Tensor:
        """Return `values`, shape (patients, …), each patient's times its factor, in at least float32."""
        factors = self.factors[patients].view(-1, *[1] * (values.dim() - 1))
        return self.masked(wide(values), patients) * factors


Finish = Callable[[Weights], torch.Tensor]
"""Makes a parameter's sum of weighted per-patient gradients."""


def wide(values: torch.Tensor) -> torch.Tensor:
    """Return `values` in float32, or as they are if they are wider."""
    return values if values.dtype == torch.float64 else values.to(torch.float32)


class Tape:
    """Books one backward pass.

    Args:
        parameters: the trainable ones.
        patients: patients in the micro-batch.
        probe: if set, nothing is booked: the loss of this patient alone is differentiated, and a layer that sees a
            gradient in anyone else's rows is refused, since its rows are not patients, or patients are mixed.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], patients: int, probe: int | None = None) -> None:
        self.patients = patients
        self.probe = probe
        self._parameters = list(parameters)
        self._places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._booked: list[list[tuple[slice, Finish]]] = [[] for _ in self._parameters]
        self._squares = [torch.zeros(patients, dtype=torch.float64, device=p.device) for p in self._parameters[:1]]

    def check(self, layer: str, gradient: torch.Tensor) -> bool:
        """Return whether to book; refuse a layer whose first dimension is not made of the patients.

        Args:
            layer: its name in the model.
            gradient: of the layer's output.

        Raises:
            StudyError: see the class; the message names the layer.
        """
        if gradient.dim() == 0 or len(gradient) % self.patients:
            raise _refused(layer, f"its output's shape {tuple(gradient.shape)} does not begin with the patients")
        if self.probe is None:
            return True
        rows = gradient.reshape(self.patients, -1)
        foreign = ((rows != 0) & torch.isfinite(rows)).any(dim=1)
        foreign[self.probe] = False
        if bool(foreign.any()):
            raise _refused(layer, "one patient's loss depends on what it makes of other patients")
        return False

    def book(
        self, layer: str, parameter: torch.Tensor, squares: torch.Tensor, finish: Finish, rows: slice = _ALL
    ) -> None:
        """Book a part of a parameter's gradient.

        Args:
            layer: its name, for a refusal.
            parameter: one of the trainable ones.
            squares: each patient's squared norm of that part, never below the true one by more than 1e-5 of it,
                shape (patients,).
            finish: makes the part's sum.
            rows: the part, in the parameter's first dimension.

        Raises:
            StudyError: the part is already booked: the layer was called twice.
        """
        place = self._places[id(parameter)]
        if any(rows == other or _ALL in (rows, other) for other, _ in self._booked[place]):
            raise _refused(layer, "used twice in one forward pass")
        self._booked[place].append((rows, finish))
        self._squares[0] += squares.to(self._squares[0])

    def keep(self, layer: str, parameter: torch.Tensor, gradients: torch.Tensor, rows: slice = _ALL) -> None:
        """Book per-patient gradients as they are, at least float32, shape (patients, *part of the parameter).

        The norm is of the very numbers that are summed, so that no rounding comes between bound and contribution.
        """

        def finish(weights: Weights) -> torch.Tensor:
            flat = weights.masked(gradients).flatten(1)
            return (weights.factors.to(flat.dtype) @ flat).view(gradients.shape[1:])

        self.book(layer, parameter, squares_of(gradients), finish, rows)

    def squares(self) -> torch.Tensor:
        """Return each patient's squared gradient norm over all parameters, float64, shape (patients,)."""
        return self._squares[0]

    def sums(self, weights: Weights) -> tuple[torch.Tensor, ...]:
        """Return the weighted sums, float32, one for each trainable parameter; what was booked is forgotten."""
        return tuple(self._sum(place, weights) for place in range(len(self._parameters)))

    def _sum(self, place: int, weights: Weights) -> torch.Tensor:
        parts, self._booked[place] = self._booked[place], []
        parameter = self._parameters[place]
        if len(parts) == 1 and parts[0][0] == _ALL:
            return parts[0][1](weights).to(torch.float32)
        total = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        for rows, finish in parts:
            total[rows] = finish(weights).to(torch.float32)
        return total


def squares_of(gradients: torch.Tensor) -> torch.Tensor:
    """Return the squared norms of the rows of `gradients`, shape (patients, …), float64, shape (patients,).

    Long rows are summed in pieces of one slice each, so that the error is that of a piece, not of the whole.
    """
    if gradients.dim() < 3:  # noqa: PLR2004  (a vector for each patient)
        norms: torch.Tensor = torch.linalg.vector_norm(gradients.flatten(1), dim=1, dtype=torch.float64)
        return norms.square()
    pieces: torch.Tensor = torch.linalg.vector_norm(gradients.flatten(2), dim=2)
    return pieces.to(torch.float64).square().sum(dim=1)


def _refused(layer: str, reason: str) -> StudyError:
    message = f"the bookkeeping engine cannot train layer {layer}: {reason}"
    return StudyError(message, remedy="choose privacy.engine=hooks, or change the model")
