"""What federation is worth: the same training at each hospital alone, and on all rows in one place.

Both exist in a simulation only: nobody may pool the rows, and no model of one hospital is ever published.
Same study, same steps, same privacy; what a baseline spends is in no ledger because nothing of it is released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward_client.cohorts import Patients, open_cohort
from fedward_client.site import Site
from fedward_common.errors import FedwardError
from fedward_common.fixed_point import encode_weighted
from fedward_common.models import initial_weights
from fedward_common.study import FedAvg, FedBN, FedNova, Study
from fedward_common.wire import Update
from fedward_server.aggregation import aggregator_for
from fedward_server.coordinator import TailMean
from fedward_server.evaluation import HoldOut, final_metrics
from fedward_server.result import Baselines, Estimate, Figures
from fedward_simulations.pool import WorkerPool

__all__ = ["measure_baselines"]

_POOLED = ""


def measure_baselines(study: Study, homes: Mapping[str, Path], hold_out: HoldOut, pool: WorkerPool) -> Baselines:
    """Return each hospital alone and all together, judged on the same hold-out.

    A hospital whose rows break the schema, or whose training diverges alone, is left out.
    """
    features = hold_out.rows.features
    tasks = {
        name: pool.submit(_trained_scores, study.contract(), [str(h) for h in folders], features)
        for name, folders in {**{s: [h] for s, h in homes.items()}, _POOLED: list(homes.values())}.items()
    }
    figures: dict[str, Figures] = {}
    for name, task in tasks.items():
        scores = task.result()
        if scores is not None:
            figures[name] = {k: Estimate.of(v) for k, v in final_metrics(study, hold_out, scores).items()}
    return Baselines(local={k: v for k, v in figures.items() if k != _POOLED}, pooled=figures.get(_POOLED))


def _trained_scores(
    contract: dict[str, Any], homes: Sequence[str], features: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64] | None:
    """Train on the rows of all `homes` together and return the hold-out's probabilities; in a worker."""
    from fedward_client.trainer import train_round  # noqa: PLC0415  (torch: in the worker only)
    from fedward_server.evaluation import TorchPredictor  # noqa: PLC0415  (see above)

    study = Study.of(contract)
    if study.sees_single_updates or isinstance(study.aggregation, FedNova | FedBN):  # nothing is of several sites
        study = study.model_copy(update={"aggregation": FedAvg(average_last=study.aggregation.average_last)})
    patients = _together([p for p in (_patients(Path(home), study) for home in homes) if p is not None])
    if patients is None:
        return None
    name = Path(homes[0]).name if len(homes) == 1 else "pooled"
    aggregator, tail = aggregator_for(study), TailMean.of(study)
    weights = released = initial_weights(study)
    for round_ in range(1, study.training.rounds + 1):
        change, _ = train_round(study, patients, weights, site=name, round_=round_)
        aggregator.start(weights)
        try:
            values = encode_weighted(change, 1, bound=study.aggregation.update_bound)
        except ValueError:  # it diverges on its own; the comparison leaves it out
            return None
        aggregator.add(Update(name, study.digest, round_, weight=1, steps=0, values=values, metrics={}))
        weights = aggregator.finish()
        released = tail.take(round_, weights)
    return TorchPredictor(study, features)(released)


def _patients(home: Path, study: Study) -> Patients | None:
    site = Site(home)
    try:
        entry = next(iter(site.config.cohorts.values()))
        patients = open_cohort(entry, study.cohort, home).patients(study.cohort.max_rows_per_patient)
    except FedwardError:
        return None
    return patients if len(patients) else None


def _together(parts: Sequence[Patients]) -> Patients | None:
    if not parts:
        return None
    width = max(p.mask.shape[1] for p in parts)

    def padded(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        missing = [(0, 0), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
        return np.pad(array, missing)

    return Patients(
        features=np.concatenate([padded(p.features) for p in parts]),
        labels=np.concatenate([padded(p.labels) for p in parts]),
        mask=np.concatenate([padded(p.mask) for p in parts]),
    )
