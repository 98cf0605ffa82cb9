"""Gradient inversion: a patient's record out of one site's update of one step over few patients.

- `divided`: a first layer's weight gradient over its bias gradient is the record, exactly, for one patient (Phong et
  al. 2018, section 3.2), and in a wide ReLU layer for each patient who alone moves some unit.
- `imprinted`: a hostile coordinator sends weights whose units sort patients by brightness, so that differences of
  neighbours are single records, out of cohorts of any size (Fowl et al. 2022, "Robbing the Fed"; no code, no changed
  architecture: only the round's weights).
- `matched`: records whose gradient points where the update does, found by descent (Geiping et al. 2020).

Success is judged by `identify`: whether the attack tells whose record it was from decoys who were not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from fedward_common.models import build_model, initial_weights, load_weights, parameter_spec
from fedward_common.study import Study
from fedward_simulations.attacks.data import Pool
from fedward_simulations.attacks.target import SITES, Floats, Packed, Train, cohort_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "CANDIDATES",
    "Attack",
    "Identification",
    "Invert",
    "divided",
    "identify",
    "imprint_weights",
    "imprinted",
    "matched",
]

CANDIDATES: Final = 20
"""Records among which the true one is to be found: chance is 1 in 20."""
_ITERATIONS: Final = 200
_STEP: Final = 0.1

Invert = Callable[[Study, Packed, Packed, npt.NDArray[np.int64]], Floats]
"""From study, global weights, update and the cohort's labels to guessed records, shape (guesses, features)."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack and its setting.

    Attributes:
        invert: what is done with an update.
        patients: in the cohort, at least 1.
        weights: the global model that the round begins with; None: the study's first one.
    """

    invert: Invert
    patients: int
    weights: Packed | None = None


@dataclass(frozen=True, slots=True)
class Identification:
    """How often the attack found whose record it was.

    Attributes:
        hits: trials in which the nearest of all candidates to any guess was the true one.
        trials: in all.
        errors: of the guess nearest to the true record, ‖guess - record‖ / ‖record‖, shape (trials,).
        deviations: of the same guess, the root of the mean squared error of a feature, shape (trials,).
        baseline: the same of the mean of all records, which anybody can guess, shape (trials,).
    """

    hits: int
    trials: int
    errors: Floats
    deviations: Floats
    baseline: Floats

    @property
    def psnr(self) -> float:
        """Median peak signal-to-noise ratio in dB of the guesses, for records whose range is 2."""
        return float(np.median(20 * np.log10(2 / np.maximum(self.deviations, 1e-12))))


def identify(study: Study, train: Train, attack: Attack, pool: Pool, *, trials: int, seed: int = 0) -> Identification:
    """Return how `attack` does against the first update of cohorts drawn from `pool`.

    In each trial one patient, of 20 who are drawn and have the same label, joins a cohort of others: which one is
    uniform, whatever the others are and even for whoever knows the cohort's labels. So an update that says nothing of
    the patient is identified once in 20, and one that is μ-GDP for the patient at most as often as
    `statistics.identification_bound` says, by any attack whatsoever.

    Args:
        study: one step over all patients, plain SGD.
        train: the site's release.
        attack: what is done with the update.
        pool: from whom cohorts and decoys are drawn.
        trials: cohorts.
        seed: of who is drawn.
    """
    generator = np.random.default_rng(seed)
    rows, labels = pool.rows, pool.labels
    start = initial_weights(study) if attack.weights is None else attack.weights
    hits, errors, deviations, baseline = 0, [], [], []
    for _ in range(trials):
        order = generator.permutation(len(rows))
        alike = order[labels[order] == labels[order[0]]][:CANDIDATES]
        cohort = np.concatenate([alike[:1], order[~np.isin(order, alike)][: attack.patients - 1]])
        change, _loss = train(study, cohort_of(rows[cohort], labels[cohort]), start, site=SITES[0], round_=1)
        distances = _nearest(rows[alike], attack.invert(study, start, change, labels[cohort]))
        hits += int((distances[0] < distances[1:]).all())
        size = float(np.linalg.norm(rows[alike[0]]))
        errors.append(distances[0] / size)
        deviations.append(distances[0] / np.sqrt(rows.shape[1]))
        baseline.append(float(np.linalg.norm(rows[alike[0]] - rows.mean(axis=0))) / size)
    return Identification(hits, trials, np.array(errors), np.array(deviations), np.array(baseline))


def _nearest(records: npt.NDArray[np.float32], guesses: Floats) -> Floats:
    """Return the distance of each record to its nearest guess, shape (records,)."""
    return np.asarray(np.linalg.norm(records[:, None] - guesses[None], axis=2).min(axis=1), dtype=np.float64)


def _first_layer(study: Study, change: Packed) -> tuple[Floats, Floats]:
    """Return the first layer's weight and bias gradients times a constant, shapes (units, features) and (units,)."""
    spec = parameter_spec(study)
    parts = spec.split(-change.astype(np.float64))
    return parts[spec.names[0]], parts[spec.names[1]]


def _quotients(weight: Floats, bias: Floats) -> Floats:
    """Return weight over bias for each unit that moved, shape (units, features), clipped to records' range."""
    moved = np.abs(bias) > 1e-6 * np.abs(bias).max(initial=0.0)
    if not moved.any():
        return np.zeros((1, weight.shape[1]))
    return np.asarray(np.clip(weight[moved] / bias[moved, None], -1, 1), dtype=np.float64)


def divided(study: Study, _weights: Packed, change: Packed, _labels: npt.NDArray[np.int64]) -> Floats:
    """Return the quotients of the first layer's gradients: see `Invert`."""
    return _quotients(*_first_layer(study, change))


def imprint_weights(study: Study, public: npt.NDArray[np.float32]) -> Packed:
    """Return weights for a network of one hidden ReLU layer whose unit k fires for records brighter than quantile k.

    Args:
        study: its model is an MLP with one hidden layer.
        public: records of the same kind, from which the quantiles are learnt, shape (n, features).
    """
    spec = parameter_spec(study)
    units, features = spec.shapes[0]
    parts = {name: np.zeros(shape) for name, shape in zip(spec.names, spec.shapes, strict=True)}
    parts[spec.names[0]][:] = 1 / features
    parts[spec.names[1]][:] = -np.quantile(public.mean(axis=1), np.arange(units) / units)
    parts[spec.names[2]][:] = 1 / units
    return np.concatenate([parts[name].ravel() for name in spec.names]).astype(np.float32)


def imprinted(study: Study, _weights: Packed, change: Packed, _labels: npt.NDArray[np.int64]) -> Floats:
    """Return the quotients of differences between neighbouring units: see `Invert` and `imprint_weights`."""
    weight, bias = _first_layer(study, change)
    steps = np.diff(np.concatenate([weight, np.zeros_like(weight[:1])]), axis=0)
    return _quotients(steps, np.diff(np.append(bias, 0.0)))


def matched(study: Study, weights: Packed, change: Packed, labels: npt.NDArray[np.int64]) -> Floats:
    """Return one record for each patient, found by Adam on the cosine distance of gradients: see `Invert`.

    Geiping et al. 2020, equation 4, without the prior on pictures; labels are known, as there.
    """
    import torch  # noqa: PLC0415  (the package is imported without it)

    model = build_model(study)
    load_weights(model, weights)
    target = torch.from_numpy(-change)
    target = target / target.norm().clamp(min=1e-30)
    outcomes = torch.from_numpy(labels.astype(np.float32))
    guess = torch.zeros(len(labels), parameter_spec(study).shapes[0][1])
    guess += 0.1 * torch.randn(guess.shape, generator=torch.Generator().manual_seed(0))
    guess.requires_grad_()
    moments = torch.zeros_like(guess), torch.zeros_like(guess)
    for iteration in range(1, _ITERATIONS + 1):
        loss = 1 - _gradient_of(model, guess, outcomes) @ target
        slope = torch.autograd.grad(loss, guess)[0]
        _adam_step(guess, slope, moments, iteration)
    return guess.detach().numpy().astype(np.float64)


def _gradient_of(model: torch.nn.Module, rows: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
    """Return the direction of the cohort's gradient, differentiable in the rows, shape (parameters,)."""
    import torch  # noqa: PLC0415  (see matched)

    losses = torch.nn.functional.binary_cross_entropy_with_logits(model(rows).squeeze(-1), outcomes, reduction="sum")
    parts = torch.autograd.grad(losses, list(model.parameters()), create_graph=True)
    whole = torch.cat([part.flatten() for part in parts])
    direction: torch.Tensor = whole / whole.norm().clamp(min=1e-30)
    return direction


def _adam_step(
    guess: torch.Tensor, slope: torch.Tensor, moments: tuple[torch.Tensor, torch.Tensor], iteration: int
) -> None:
    """Move `guess` in place by one step of Adam whose rate falls to zero, and keep it within [-1, 1]."""
    first, second = moments
    first.mul_(0.9).add_(slope, alpha=0.1)
    second.mul_(0.99).addcmul_(slope, slope, value=0.01)
    rate = _STEP * (1 - iteration / (_ITERATIONS + 1))
    scaled = (first / (1 - 0.9**iteration)) / ((second / (1 - 0.99**iteration)).sqrt() + 1e-12)
    guess.data.sub_(rate * scaled).clamp_(-1, 1)
