"""Small valid objects for tests: a study over four columns, tables that keep its schema, a site's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedward_client.cohorts import Patients, TableEntry
from fedward_client.config import SiteConfig, write_site
from fedward_client.policy import Policy
from fedward_client.site import approve
from fedward_common.fixed_point import encode_weighted
from fedward_common.models import parameter_spec
from fedward_common.privacy import calibrated
from fedward_common.study import Study
from fedward_common.tables import encode
from fedward_common.wire import Update
from fedward_server.evaluation import HoldOut

SITES = ("north", "south")
COHORT = "cohort"

_CONTRACT: Mapping[str, Any] = {
    "name": "small",
    "sites": list(SITES),
    "cohort": {
        "columns": {
            "age": {"kind": "numeric", "unit": "years", "minimum": 18, "maximum": 100},
            "pressure": {
                "kind": "numeric", "unit": "mmHg", "minimum": 60, "maximum": 240,
                "missing": True, "missing_marks": [0], "impute": 120,
            },
            "sex": {"kind": "categorical", "categories": ["f", "m"]},
            "stage": {"kind": "categorical", "categories": [1, 2, 3]},
        },
        "label": {"column": "outcome", "vocabulary": ["no", "yes"], "positive": ["yes"]},
    },
    "model": {"name": "linear"},
    "training": {"rounds": 3, "local_steps": 2, "sampling_rate": 1.0, "learning_rate": 0.5},
    "privacy": {"mechanism": "none"},
    "aggregation": {"rule": "fedavg"},
    "evaluation": {"bootstrap": 100},
}  # fmt: skip
_TAGS = {"model": "name", "privacy": "mechanism", "aggregation": "rule"}
_DP = {"mechanism": "dp_sgd", "epsilon": 8.0, "delta": 1e-4, "clip_norm": 1.0}


def contract(**changes: object) -> dict[str, Any]:
    """Return the plain values of the small study; a mapping changes the named keys of a part, all else replaces it.

    A part with another model, mechanism or rule replaces the old one whole.
    """
    values = dict(_CONTRACT)
    for key, change in changes.items():
        old, tag = values.get(key), _TAGS.get(key, "")
        if isinstance(change, Mapping) and isinstance(old, Mapping) and change.get(tag, old.get(tag)) == old.get(tag):
            values[key] = {**old, **change}
        else:
            values[key] = change
    return values


def small_study(**changes: object) -> Study:
    """Return a study of two sites with seven features, three rounds and no privacy, changed as `contract` says."""
    return Study.of(contract(**changes))


def private_study(*, privacy: Mapping[str, Any] | None = None, **changes: object) -> Study:
    """Return the small study with differential privacy, its noise calibrated."""
    return calibrated(small_study(privacy=_DP | dict(privacy or {}), **changes))


def table(rows: int = 40, seed: int = 0, *, patients: int | None = None) -> pd.DataFrame:
    """Return `rows` text rows that keep the small study's schema; the outcome follows age and stage.

    With `patients` there is a column ``patient``, and the rows are dealt to so many identifiers.
    """
    draw = np.random.default_rng(seed)
    age, stage = draw.integers(18, 101, rows), draw.integers(1, 4, rows)
    pressure = np.where(draw.random(rows) < 0.2, 0, draw.integers(60, 241, rows))
    risk = (age - 59) / 20 + stage - 2 + draw.normal(0, 0.5, rows)
    frame = pd.DataFrame({
        "age": age.astype(str),
        "pressure": pressure.astype(str),
        "sex": draw.choice(["f", "m"], rows),
        "stage": stage.astype(str),
        "outcome": np.where(risk > 0, "yes", "no"),
    })  # fmt: skip
    if patients is not None:
        frame["patient"] = [f"p{code:04d}" for code in draw.integers(0, patients, rows)]
    return frame.astype(str)


def open_policy(**changes: object) -> Policy:
    """Return a policy that lets every small study pass."""
    limits: dict[str, Any] = {
        "require_signature": False,
        "require_privacy": False,
        "max_epsilon_per_study": 100,
        "max_epsilon_lifetime": 100,
        "max_delta": 0.009,
        "min_noise_multiplier": 0.2,
        "max_clip_norm": 1000,
        "min_patients": 1,
        "allow_single_updates": True,
    }
    return Policy(**(limits | changes))


def site_home(
    folder: Path,
    study: Study | None = None,
    *,
    name: str = "north",
    frame: pd.DataFrame | None = None,
    policy: Policy | None = None,
) -> Path:
    """Return a site's home, `folder`/`name`: policy, table (`table()` if None), and the approval of `study` if any."""
    home = folder / name
    entry = TableEntry(table=f"{COHORT}.csv")
    write_site(home, SiteConfig(site=name, policy=policy or open_policy(), cohorts={COHORT: entry}))
    (table() if frame is None else frame).to_csv(home / entry.table, index=False)
    if study is not None:
        approve(home, study, COHORT)
    return home


def hold_out(study: Study, rows: int = 60, seed: int = 99) -> HoldOut:
    """Return central rows, dealt to the study's sites in turn."""
    encoded = encode(table(rows, seed), study.cohort)
    return HoldOut(encoded, (np.arange(rows) % len(study.sites)).astype(np.int64), study.sites)


def patients_of(study: Study, rows: int = 40, seed: int = 0) -> Patients:
    """Return a cohort of `rows` patients with one row each, as the trainer takes it."""
    encoded = encode(table(rows, seed), study.cohort)
    return Patients(
        features=encoded.features[:, None, :],
        labels=encoded.labels[:, None].astype(np.float32),
        mask=np.ones((rows, 1), dtype=np.float32),
    )


def update(study: Study, *, site: str = "north", round_: int = 1, weight: int = 40, seed: int = 0) -> Update:
    """Return a valid update of small random changes; with `study`'s privacy it reports that round's steps."""
    change = np.random.default_rng(seed).normal(0, 0.1, parameter_spec(study).size).astype(np.float32)
    return Update(
        site=site,
        digest=study.digest,
        round=round_,
        weight=weight,
        steps=round_ * study.training.local_steps if study.privacy and study.privacy.mechanism == "dp_sgd" else 0,
        values=encode_weighted(change, weight, bound=study.aggregation.update_bound),
        metrics={},
    )
