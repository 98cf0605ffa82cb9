"""What is attacked: one site's release of one round, and the global model that a small federation makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from fedward_client.cohorts import Patients
from fedward_common.fixed_point import encode_weighted
from fedward_common.models import initial_weights
from fedward_common.privacy import calibrated
from fedward_common.study import Study
from fedward_common.wire import Update
from fedward_server.aggregation import aggregator_for

__all__ = ["NO_PRIVACY", "SITES", "Floats", "Train", "attack_study", "cohort_of", "dp_sgd", "released_model"]

Floats = npt.NDArray[np.float64]
Packed = npt.NDArray[np.float32]

SITES: Final = ("north", "south")
NO_PRIVACY: Final[Mapping[str, Any]] = {"mechanism": "none"}


class Train(Protocol):
    """The release: `fedward_client.trainer.train_round`, or what stands in its place."""

    def __call__(
        self, study: Study, patients: Patients, weights: Packed, *, site: str, round_: int
    ) -> tuple[Packed, float]:
        """Return the change of the packed weights, shape (parameters,), and a loss."""


def dp_sgd(epsilon: float, delta: float, **more: Any) -> dict[str, Any]:
    """Return the privacy section of a study that promises (`epsilon`, `delta`) over all its rounds, clipping at 1.

    Args:
        epsilon: ε.
        delta: δ.
        more: other keys of the section, or another ``clip_norm``.
    """
    return {"mechanism": "dp_sgd", "epsilon": epsilon, "delta": delta, "clip_norm": 1.0} | more


def attack_study(
    shape: tuple[int, int], model: Mapping[str, Any], training: Mapping[str, Any], privacy: Mapping[str, Any]
) -> Study:
    """Return a study over two sites, its noise calibrated, whose patients are pictures of `shape`.

    A picture of rows × columns stands for any table of as many features: its schema is one line where ten thousand
    columns would be ten thousand. Cohorts are handed to the release below the schema, which is not under attack here.

    Args:
        shape: rows and columns of pixels.
        model: the study's ``model`` section.
        training: the study's ``training`` section.
        privacy: its ``privacy`` section: `NO_PRIVACY` or `dp_sgd`.
    """
    height, width = shape
    picture = {"kind": "image", "unit": "1", "height": height, "width": width, "minimum": -1, "maximum": 1}
    return calibrated(
        Study.of(
            {
                "name": "attacked",
                "sites": list(SITES),
                "cohort": {
                    "columns": {"picture": picture},
                    "label": {"column": "outcome", "vocabulary": ["no", "yes"], "positive": ["yes"]},
                },
                "model": dict(model),
                "training": dict(training),
                "privacy": dict(privacy),
                "aggregation": {"rule": "fedavg"},
            }
        )
    )


def cohort_of(rows: npt.NDArray[Any], labels: npt.NDArray[Any], *, records: int = 1) -> Patients:
    """Return a cohort in which patient i has `records` equal records, ``rows[i]`` with ``labels[i]``.

    Args:
        rows: shape (patients, features).
        labels: 0/1, shape (patients,).
        records: of each patient, at least 1.
    """
    features = np.repeat(rows.astype(np.float32)[:, None, :], records, axis=1)
    outcomes = np.repeat(labels.astype(np.float32)[:, None], records, axis=1)
    return Patients(features, outcomes, np.ones_like(outcomes))


def released_model(study: Study, cohorts: Mapping[str, Patients], train: Train) -> Packed:
    """Return the global model after all rounds: the sites' releases, in fixed point, through the study's aggregator.

    Args:
        study: what is trained; its rule weighs each site by its patients.
        cohorts: each site's patients, by its name.
        train: the sites' release.
    """
    aggregator, weights = aggregator_for(study), initial_weights(study)
    for round_ in range(1, study.training.rounds + 1):
        aggregator.start(weights)
        for site, patients in cohorts.items():
            change, _ = train(study, patients, weights, site=site, round_=round_)
            values = encode_weighted(change, len(patients), bound=study.aggregation.update_bound)
            aggregator.add(Update(site, study.digest, round_, len(patients), 0, values, {}))
        weights = aggregator.finish()
    return weights
