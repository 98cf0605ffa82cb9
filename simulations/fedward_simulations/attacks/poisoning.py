"""What poisoned hospitals cost, by rule of aggregation: accuracy of the global model on central rows.

    python -m fedward_simulations.attacks.poisoning [breast_cancer|heart_disease] [--json] [--seeds N] [--rehearse]

Ten hospitals, three of them poisoned. breast_cancer: the rows are dealt to ten equal hospitals. heart_disease: each
centre but the smallest is cut into three, so that hospitals differ as the real ones do. Training, fixed point and
aggregation are the production code; nothing is trained with differential privacy. The poisoners know the model and,
where they collude, every honest update of the round. A seed is of the split, the initial model, the sampling, and
the choice of the poisoned three; every rule and attack gets the same. FLTrust trains on a part of the central rows; it
and the mean beside it are judged on the others.

With --rehearse the central rows are not touched: a third of the training rows, drawn by the seed and by outcome, stands
for them. That is where a rule's settings are chosen.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedward_client.cohorts import Patients
from fedward_client.trainer import train_round
from fedward_common.errors import QuorumLostError
from fedward_common.fixed_point import encode_weighted
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_common.tables import Rows
from fedward_common.wire import Update
from fedward_server.aggregation import Aggregator, aggregator_for
from fedward_server.coordinator import TailMean
from fedward_server.evaluation import HoldOut, TorchPredictor, point_metrics
from fedward_server.root import TorchRootTrainer, judged_part, root_rows
from fedward_simulations.attacks.target import cohort_of
from fedward_simulations.bench.harness import report
from fedward_simulations.run import compose_plan

__all__ = ["ATTACKS", "RULES", "Attack", "Hospitals", "accuracy", "deal", "little_is_enough", "main"]

Packed = npt.NDArray[np.float32]
_Table = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

POISONED: Final = 3
SITES: Final = 10
_TRAINING: Final[Mapping[str, str]] = {"breast_cancer": "minibatch", "heart_disease": "full_batch"}
_RADIUS: Final[Mapping[str, float]] = {"breast_cancer": 1.0, "heart_disease": 0.15}
"""About the length of one hospital's update after the first rounds."""
_SHARE: Final = POISONED / SITES
ROOT_SHARE: Final = 0.2
"""Chosen with --rehearse: more rows for the root left fewer to judge on, and gained nothing."""
RULES: Final[Mapping[str, Mapping[str, Any]]] = {
    "mean": {"rule": "fedavg"},
    "median": {"rule": "median"},
    "trimmed mean": {"rule": "trimmed_mean", "poisoned": _SHARE},
    "multi-Krum": {"rule": "multi_krum", "poisoned": _SHARE},
    "centred clipping": {"rule": "centred_clipping"},
    "… momentum .5": {"rule": "centred_clipping", "momentum": 0.5},
    "… buckets of 2": {"rule": "centred_clipping", "bucket_size": 2},
    "mean, on FLTrust's rows": {"rule": "fedavg"},
    "FLTrust": {"rule": "fltrust", "root_share": ROOT_SHARE},
}
_ON_THE_REST: Final = {"mean, on FLTrust's rows", "FLTrust"}
_REHEARSED: Final = 0.34


@dataclass(frozen=True, slots=True)
class Attack:
    """What a poisoned hospital does.

    Attributes:
        flips: it trains on the opposite labels.
        sends: what it sends, of its own update and the honest ones, shape (sites, parameters).
    """

    flips: bool = False
    sends: Callable[[Packed, Packed], Packed] = lambda own, _: own


def little_is_enough(own: Packed, honest: Packed) -> Packed:
    """Return the honest mean, moved by as many standard deviations as still pass for honest (Baruch et al. 2019).

    Algorithm 3: z is the largest for which a majority of all sites, with the colluding ones, lies farther out.
    """
    del own
    count, bad = len(honest) + POISONED, POISONED
    needed = math.floor(count / 2 + 1) - bad
    z = statistics.NormalDist().inv_cdf((count - bad - needed) / (count - bad))
    moved: Packed = honest.mean(axis=0) - np.float32(z) * honest.std(axis=0)
    return moved


ATTACKS: Final[Mapping[str, Attack | None]] = {
    "none": None,
    "labels flipped": Attack(flips=True),
    "sign flipped": Attack(sends=lambda own, _: -own),
    "flipped × 20": Attack(flips=True, sends=lambda own, _: np.float32(20) * own),
    "colluding": Attack(sends=little_is_enough),
}


@dataclass(frozen=True, slots=True)
class Hospitals:
    """Ten hospitals of a study, its central rows, and which three are poisoned where there is an attack."""

    study: Study
    cohorts: Mapping[str, Patients]
    hold_out: HoldOut
    poisoned: Collection[str]


def deal(name: str, seed: int, *, rehearse: bool = False) -> Hospitals:
    """Return the packaged study `name` over ten hospitals.

    Args:
        name: breast_cancer or heart_disease.
        seed: of all that is drawn.
        rehearse: let a third of the training rows stand for the central ones.
    """
    overrides = [f"study={name}", "privacy=none", f"training={_TRAINING[name]}", f"seed={seed}"]
    _, federation, study = compose_plan(overrides)
    draw = np.random.default_rng([seed, 5])
    hold_out = federation.hold_out
    rows = {site: (r.features, r.labels) for site, r in sorted(federation.encoded.items())}
    if rehearse:
        rows, hold_out = _rehearsed(rows, np.random.default_rng([seed, 6]))
    if name == "breast_cancer":
        rows = {"all": tuple(np.concatenate(part) for part in zip(*rows.values(), strict=True))}  # type: ignore[dict-item]
    smallest = min(rows, key=lambda site: len(rows[site][1]))
    cohorts: dict[str, Patients] = {}
    for site, (features, labels) in rows.items():
        parts = SITES if len(rows) == 1 else 1 if site == smallest else 3
        for number, part in enumerate(np.array_split(draw.permutation(len(labels)), parts)):
            cohorts[f"{site}_{number}"] = cohort_of(features[part], labels[part])
    poisoned = sorted(draw.choice(sorted(cohorts), POISONED, replace=False).tolist())
    return Hospitals(study, cohorts, hold_out, poisoned)


def _rehearsed(rows: Mapping[str, _Table], draw: np.random.Generator) -> tuple[dict[str, _Table], HoldOut]:
    """Return what is left of each centre's training rows, and a third of them, outcome by outcome, as a hold-out."""
    left: dict[str, _Table] = {}
    kept: list[_Table] = []
    for site, (features, labels) in rows.items():
        held = np.zeros(len(labels), dtype=bool)
        for value in (0, 1):
            members = np.nonzero(labels == value)[0]
            held[draw.permutation(members)[: round(_REHEARSED * len(members))]] = True
        left[site] = (features[~held], labels[~held])
        kept.append((features[held], labels[held]))
    features, labels = (np.concatenate(part) for part in zip(*kept, strict=True))
    centres = np.repeat(np.arange(len(kept)), [len(part) for _, part in kept])
    return left, HoldOut(Rows(features, labels, np.arange(len(labels)), None, 0), centres, tuple(left))


def accuracy(
    hospitals: Hospitals, rule: Mapping[str, Any], attack: Attack | None, *, on_the_rest: bool = False
) -> float:
    """Return the accuracy on the central rows of the model that `rule` makes under `attack`.

    A hospital whose own update is beyond the study's bound does not answer, as in production; a run that loses its
    quorum, or whose model is no longer finite, is judged by its last model.

    Args:
        hospitals: whose rows, and who is poisoned.
        rule: the study's ``aggregation`` section; what it leaves out is the packaged study's.
        attack: of the poisoned ones; None: all are honest.
        on_the_rest: judge on the central rows that FLTrust does not train on.
    """
    tail_part = {"average_last": hospitals.study.aggregation.average_last}
    contract = hospitals.study.contract() | {"sites": sorted(hospitals.cohorts), "aggregation": tail_part | dict(rule)}
    study = Study.of(contract)
    rooted = study if study.aggregation.rule == "fltrust" else Study.of(contract | {"aggregation": RULES["FLTrust"]})
    root = TorchRootTrainer(study, root_rows(study, hospitals.hold_out)) if rooted is study else None
    aggregator, tail = aggregator_for(study, root=root), TailMean.of(study)
    weights = released = initial_weights(study)
    for round_ in range(1, study.training.rounds + 1):
        changes = _changes(study, hospitals, weights, round_, attack)
        try:
            new = _next(
                study, aggregator, weights, round_, {s: (len(hospitals.cohorts[s]), c) for s, c in changes.items()}
            )
        except QuorumLostError:
            break
        if not np.isfinite(new).all():
            break
        weights = new
        released = tail.take(round_, weights)
    predictor = TorchPredictor(study, hospitals.hold_out.rows.features)
    judged = judged_part(rooted if on_the_rest else study, hospitals.hold_out, predictor)
    return point_metrics(study, judged[0], judged[1](released))["accuracy"]


def _changes(
    study: Study, hospitals: Hospitals, weights: Packed, round_: int, attack: Attack | None
) -> dict[str, Packed]:
    """Return what each hospital sends in a round, the poisoned ones within the study's bound."""
    found: dict[str, Packed] = {}
    for site, patients in hospitals.cohorts.items():
        if attack is not None and attack.flips and site in hospitals.poisoned:
            patients = Patients(patients.features, 1 - patients.labels, patients.mask)  # noqa: PLW2901  (the poison)
        found[site], _ = train_round(study, patients, weights, site=site, round_=round_)
    if attack is None:
        return found
    honest = np.stack([change for site, change in found.items() if site not in hospitals.poisoned])
    bound = study.aggregation.update_bound
    sent = {site: np.clip(attack.sends(found[site], honest), -bound, bound) for site in hospitals.poisoned}
    return found | sent


def _next(
    study: Study, aggregator: Aggregator, weights: Packed, round_: int, sent: Mapping[str, tuple[int, Packed]]
) -> Packed:
    aggregator.start(weights)
    accepted = 0
    for site, (patients, change) in sent.items():
        weight = patients if study.aggregation.weighting == "patients" else 1
        try:
            values = encode_weighted(change, weight, bound=study.aggregation.update_bound)
        except ValueError:  # beyond the bound: refused at the site
            continue
        aggregator.add(Update(site, study.digest, round_, weight, 0, values, {}))
        accepted += 1
    if accepted < study.aggregation.quorum:
        msg = f"{accepted} sites answered"
        raise QuorumLostError(msg)
    return aggregator.finish()


def main() -> None:
    """Run every rule under every attack and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default="breast_cancer", choices=tuple(_TRAINING))
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N, at least 2")
    parser.add_argument("--rehearse", action="store_true", help="judge on a part of the training rows")
    parser.add_argument("--rule", action="append", choices=tuple(RULES), help="this one alone; may be repeated")
    options = parser.parse_args()
    seeds = range(1, max(2, options.seeds) + 1)
    dealt = [deal(options.study, seed, rehearse=options.rehearse) for seed in seeds]
    figures: dict[str, float] = {}
    lines = [
        f"{options.study}, {SITES} hospitals, {POISONED} poisoned, {len(seeds)} seeds: mean accuracy (worst seed)",
        f"{'':28s}" + "".join(f"{attack:>16s}" for attack in ATTACKS),
    ]
    for name in options.rule or RULES:
        rule = RULES[name]
        radius = {"radius": _RADIUS[options.study]} if rule["rule"] == "centred_clipping" else {}
        cells = []
        for attack, what in ATTACKS.items():
            rest = name in _ON_THE_REST
            found = [accuracy(hospitals, {**rule, **radius}, what, on_the_rest=rest) for hospitals in dealt]
            figures |= {f"{name} / {attack}": statistics.mean(found), f"{name} / {attack}, worst": min(found)}
            cells.append(f"{statistics.mean(found):.3f} ({min(found):.3f})")
        lines.append(f"{name:28s}" + "".join(f"{cell:>16s}" for cell in cells))
    report(figures, lines, as_json=options.json)


if __name__ == "__main__":
    main()
