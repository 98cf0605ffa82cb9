"""The centre's own networks on a warm worker, so that a simulation's main process never imports torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedward_common.study import Study
from fedward_common.tables import Rows
from fedward_server.evaluation import Predictor
from fedward_server.root import RootTrainer
from fedward_simulations.pool import WorkerPool

__all__ = ["PoolPredictor", "PoolRootTrainer"]


class PoolPredictor:
    """A `fedward_server.evaluation.Predictor` whose network lives in the pool.

    Args:
        study: for the model.
        features: of the hold-out; written to `folder`, so that a call sends the weights only.
        folder: a temporary one.
        pool: the workers.
    """

    def __init__(self, study: Study, features: npt.NDArray[np.float32], folder: Path, pool: WorkerPool) -> None:
        self._study = folder / "central_study.json"
        self._study.write_bytes(study.canonical())
        self._features = folder / "central_features.npy"
        np.save(self._features, features)
        self._pool = pool

    def __call__(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the probabilities of the hold-out's rows."""
        return self._pool.submit(_predict, str(self._study), str(self._features), weights).result()


class PoolRootTrainer:
    """A `fedward_server.root.RootTrainer` whose network lives in the pool.

    Args:
        study: the contract.
        rows: of `fedward_server.root.root_rows`; written to `folder`.
        folder: a temporary one.
        pool: the workers.
    """

    def __init__(self, study: Study, rows: Rows, folder: Path, pool: WorkerPool) -> None:
        self._study = folder / "root_study.json"
        self._study.write_bytes(study.canonical())
        self._rows = folder / "root_rows.npz"
        np.savez(self._rows, features=rows.features, labels=rows.labels, patients=rows.patients)
        self._pool = pool

    def __call__(self, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the change that training on the root rows makes of the packed model."""
        return self._pool.submit(_root_update, str(self._study), str(self._rows), weights).result()


@lru_cache(maxsize=2)
def _root_trainer(study: str, rows: str) -> RootTrainer:
    import json  # noqa: PLC0415  (in the worker)

    from fedward_server.root import TorchRootTrainer  # noqa: PLC0415  (torch: in the worker only)

    with np.load(rows) as found:
        root = Rows(found["features"], found["labels"], found["patients"], None, 0)
    return TorchRootTrainer(Study.of(json.loads(Path(study).read_bytes())), root)


def _root_update(study: str, rows: str, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return _root_trainer(study, rows)(weights)


@lru_cache(maxsize=2)
def _predictor(study: str, features: str) -> Predictor:
    import json  # noqa: PLC0415  (in the worker)

    from fedward_server.evaluation import TorchPredictor  # noqa: PLC0415  (torch: in the worker only)

    return TorchPredictor(Study.of(json.loads(Path(study).read_bytes())), np.load(features))


def _predict(study: str, features: str, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return _predictor(study, features)(weights)
