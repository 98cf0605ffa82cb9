"""Results of runs as the tests of report and statement want them."""

from __future__ import annotations

from typing import Any

from fedward_common.study import DpSgd, Study
from fedward_server.result import Baselines, Estimate, ModelFile, RoundResult, RunResult, SiteResult, StudyRef


def estimate(value: float, half: float = 0.04) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def figures(value: float, sites: tuple[str, ...] = ()) -> dict[str, Estimate]:
    shared = dict.fromkeys(("auroc", "accuracy", "accuracy_mean_of_centres"), estimate(value))
    return shared | {f"accuracy.{site}": estimate(value) for site in sites}


def took_part(patients: int = 40, epsilon: float | None = 3.0) -> SiteResult:
    delta = None if epsilon is None else 1e-4
    return SiteResult(patients=patients, weight=patients, rounds=3, epsilon=epsilon, delta=delta, status="completed")


def result_of(study: Study, /, **changes: Any) -> RunResult:
    """Return the result of a completed local run of `study` in which everything is there."""
    private = isinstance(study.privacy, DpSgd)
    values = {
        "study": StudyRef(name=study.name, digest=study.digest, description="What the study is about."),
        "engine": "local",
        "seed": 1,
        "status": "completed",
        "started_at": "2026-11-23T12:54:32+00:00",
        "seconds": 4.568,
        "versions": {"fedward": "0.1.0", "torch": "2.13.0"},
        "privacy": study.privacy.model_dump(mode="json") if study.privacy else None,
        "sites": dict.fromkeys(study.sites, took_part(epsilon=3.0 if private else None)),
        "rounds": tuple(
            RoundResult(
                round=n, sites=study.sites, seconds=0.2, epsilon=float(n) if private else None,
                central={"auroc": 0.9, "accuracy": 0.8},
            )
            for n in (1, 2, 3)
        ),
        "central": figures(0.943, study.sites),
        "roc": {"false_positive_rate": (0.0, 0.0, 0.5, 1.0), "true_positive_rate": (0.0, 0.5, 1.0, 1.0)},
        "baselines": Baselines(
            local={name: figures(0.8, study.sites) for name in study.sites}, pooled=figures(0.95, study.sites)
        ),
        "model": ModelFile(file="model.safetensors", sha256="ab" * 32, parameters=1234),
    }  # fmt: skip
    return RunResult(**(values | changes))


def nothing(study: Study, /, **changes: Any) -> RunResult:
    """Return the result of a run that failed at the roll call."""
    spent = {"epsilon": 0.0, "delta": 1e-4} if isinstance(study.privacy, DpSgd) else {}
    missing = SiteResult(status="excluded", reason="not_connected", **spent)
    return result_of(
        study,
        **{
            "status": "failed", "reason": "0 sites enrolled, the quorum is 2 (a: not_connected)",
            "sites": dict.fromkeys(study.sites, missing), "rounds": (), "central": {}, "roc": {},
            "baselines": Baselines(), "model": None,
        } | changes,
    )  # fmt: skip
