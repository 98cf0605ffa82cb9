"""The centre's own rows for FLTrust: a part of the hold-out that it trains on, and on which nothing is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.errors import StudyError
from fedward_common.study import FLTrust, Study
from fedward_common.tables import Rows
from fedward_server.evaluation import HoldOut, Predictor

__all__ = ["LEAST_PATIENTS", "RootTrainer", "TorchRootTrainer", "judged_part", "root_rows"]

Weights = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
RootTrainer = Callable[[Weights], Weights]
"""Takes the packed global model, returns the change that training on the root rows makes of it, float32."""

LEAST_PATIENTS: Final = 20
"""Fewest patients in the root and among those who are left for judging, each with both outcomes."""

_STREAM: Final = 3  # of the seed: 1 deals a bundled table, 2 draws the hold-out


def root_rows(study: Study, hold_out: HoldOut) -> Rows:
    """Return the rows that the centre trains on: `root_share` of its patients, whole, drawn by the study's seed.

    They are drawn from each outcome alike. The same study and hold-out give the same rows in every process.

    Raises:
        StudyError: the rule has no root; root or rest has fewer than `LEAST_PATIENTS`, or one outcome only.
    """
    return _select(hold_out.rows, _in_root(study, hold_out))


def judged_part(study: Study, hold_out: HoldOut, predictor: Predictor) -> tuple[HoldOut, Predictor]:
    """Return the hold-out without the root's patients and a predictor for the others; without a root, both as given.

    Args:
        study: the contract.
        hold_out: all central rows.
        predictor: for all of them.

    Raises:
        StudyError: see `root_rows`.
    """
    if not isinstance(study.aggregation, FLTrust):
        return hold_out, predictor
    kept = ~_in_root(study, hold_out)
    rest = HoldOut(_select(hold_out.rows, kept), hold_out.centres[kept], hold_out.names)
    return rest, lambda weights: predictor(weights)[kept]


class TorchRootTrainer:
    """A `RootTrainer` in this process.

    It takes the study's local steps, each over all of the root's patients, the records of a patient averaged: no
    sampling, no privacy, and for the same model the same change.

    Args:
        study: the contract.
        rows: of `root_rows`.
    """

    def __init__(self, study: Study, rows: Rows) -> None:
        import torch  # noqa: PLC0415  (a simulation's coordinator leaves torch to its workers)

        torch.set_num_threads(1)
        records = np.bincount(rows.patients)
        shares = 1 / (records[rows.patients] * len(records))
        self._study = study
        self._features = torch.from_numpy(rows.features)
        self._labels = torch.from_numpy(rows.labels.astype(np.float32))
        self._shares = torch.from_numpy(shares.astype(np.float32))

    def __call__(self, weights: Weights) -> Weights:
        """Return the change of the packed weights, shape (parameters,)."""
        import torch  # noqa: PLC0415  (see __init__)
        from torch.nn.functional import binary_cross_entropy_with_logits  # noqa: PLC0415  (see __init__)

        from fedward_common.models import build_model, load_weights, weights_of  # noqa: PLC0415  (see __init__)
        from fedward_common.optimizers import Optimizer  # noqa: PLC0415  (see __init__)

        model = build_model(self._study)
        load_weights(model, weights)
        parameters = list(model.parameters())
        optimizer = Optimizer(self._study, parameters)
        for _ in range(self._study.training.local_steps):
            logits = model(self._features).squeeze(-1)
            loss = binary_cross_entropy_with_logits(logits, self._labels, weight=self._shares, reduction="sum")
            optimizer.step(list(torch.autograd.grad(loss, parameters)))
        return weights_of(model) - weights


def _in_root(study: Study, hold_out: HoldOut) -> Mask:
    rule, rows = study.aggregation, hold_out.rows
    if not isinstance(rule, FLTrust):
        msg = f"aggregation.rule={rule.rule} has no root rows"
        raise StudyError(msg)
    outcome = np.zeros(rows.patient_count, dtype=bool)
    np.logical_or.at(outcome, rows.patients, rows.labels == 1)
    generator = np.random.Generator(np.random.PCG64([study.seed, _STREAM]))
    chosen = np.zeros(rows.patient_count, dtype=bool)
    for value in (False, True):
        members = np.nonzero(outcome == value)[0]
        chosen[generator.permutation(members)[: round(rule.root_share * len(members))]] = True
    for name, part in (("root", outcome[chosen]), ("rest", outcome[~chosen])):
        if len(part) < LEAST_PATIENTS or part.all() or not part.any():
            share = f"aggregation.root_share = {rule.root_share:g} of {rows.patient_count} central patients"
            needed = f"it needs {LEAST_PATIENTS} patients and both outcomes"
            msg = f"{share}: the {name} has {len(part)}, {int(part.sum())} of them positive; {needed}"
            raise StudyError(msg, remedy="a larger hold-out, another root_share, or another rule of aggregation")
    mask: Mask = chosen[rows.patients]
    return mask


def _select(rows: Rows, mask: Mask) -> Rows:
    codes, patients = np.unique(rows.patients[mask], return_inverse=True)
    names = rows.identifiers
    return Rows(
        features=rows.features[mask],
        labels=rows.labels[mask],
        patients=patients.astype(np.int64).reshape(-1),
        identifiers=None if names is None else tuple(names[code] for code in codes),
        dropped=0,
    )
