"""The words of a privacy statement: what was released, what stayed, and what no ε covers. Pure; for an ethics board.

Each sentence is true of the study and the run that it is made from; what does not apply is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from fedward_common.study import DpSgd, NoPrivacy, Study
from fedward_server.result import RunResult

__all__ = ["Gap", "Part", "Protection", "Release", "gaps", "is_simulation", "releases", "withheld"]

Protection = Literal["noised", "post_processing", "exact", "independent", "none"]
"""``noised``: paid for with ε. ``post_processing``: computed from noised values alone. ``exact``: says something of the
cohort, without noise. ``independent``: does not depend on patients' records. ``none``: of a study without privacy."""

_SIMULATIONS: Final = ("local", "ray")
_LOSS_SEEN: Final = "the coordinator; their mean of each round, every reader of the result"


class Part(BaseModel):
    """A part of a statement: immutable, closed to other keys, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Release(Part):
    """One kind of thing that left a hospital or the centre, who could see it, and what protects the patients in it."""

    what: str
    holds: str
    seen_by: str
    protection: Protection


class Gap(Part):
    """One thing that the guarantee does not cover."""

    topic: str
    text: str


def is_simulation(result: RunResult) -> bool:
    """Return whether the result itself tells that its hospitals were simulated; a rehearsal by daemons does not."""
    return result.engine in _SIMULATIONS or result.baselines.pooled is not None


def releases(study: Study, result: RunResult) -> tuple[Release, ...]:
    """Return every kind of thing that this run let out of a hospital or out of the centre."""
    return tuple(_releases(study, result))


def _releases(study: Study, result: RunResult) -> Iterator[Release]:
    private = study.privacy if isinstance(study.privacy, DpSgd) else None
    noised: Protection = "noised" if private else "none"
    after: Protection = "post_processing" if private else "none"
    trained = any(site.rounds for site in result.sites.values()) or any(site.steps for site in result.sites.values())
    if trained:
        what = "the change of the model’s weights" + (", clipped and noised at the hospital" if private else "")
        yield Release(
            what="updates",
            holds=f"{what}, once a hospital and round",
            seen_by="the coordinator: each hospital’s own, since no secure aggregation hides it",
            protection=noised,
        )
    if trained and private is None:
        yield Release(
            what="losses", holds="the mean loss in training, once a hospital and round", seen_by=_LOSS_SEEN,
            protection="none",
        )  # fmt: skip
    if trained and private is not None and private.loss == "noised":
        yield Release(
            what="losses", holds="the mean loss in training of a round, noised; a part of each step’s privacy pays",
            seen_by=_LOSS_SEEN, protection="noised",
        )  # fmt: skip
    if result.rounds:
        yield Release(
            what="models of the rounds", holds="the common model after each round, and the coordinator’s checkpoint",
            seen_by="the coordinator and every hospital of the study", protection=after,
        )  # fmt: skip
    if result.model is not None:
        yield Release(
            what="released model", holds=f"{result.model.parameters} weights in {result.model.file}",
            seen_by="whoever is given the model", protection=after,
        )  # fmt: skip
    yield from _plain(study, result, private)


def _plain(study: Study, result: RunResult, private: DpSgd | None) -> Iterator[Release]:
    """What leaves as it is, with and without differential privacy."""
    exact: Protection = "exact" if private else "none"
    if any(site.patients is not None for site in result.sites.values()):
        weights = ", and its weight, which follows from it" if study.aggregation.weighting == "patients" else ""
        yield Release(
            what="cohort sizes", holds=f"the number of patients at each hospital{weights}",
            seen_by="the coordinator and every reader of the report", protection=exact,
        )  # fmt: skip
    if private is not None:
        yield Release(
            what="step counts", holds="how many noised steps each hospital’s ledger holds for the study",
            seen_by="the coordinator", protection="independent",
        )  # fmt: skip
    yield Release(
        what="refusals", holds="why a hospital did not take part: a code from a closed list, and public limits",
        seen_by="the coordinator and every reader of the report", protection=exact,
    )  # fmt: skip
    yield Release(
        what="timings", holds="when a hospital answered, and how long each round took",
        seen_by="the coordinator; of each round, every reader of the result", protection=exact,
    )  # fmt: skip
    if result.central:
        yield Release(
            what="hold-out figures", holds="metrics, intervals and ROC curve on the central hold-out’s patients",
            seen_by="every reader of the report", protection=exact,
        )  # fmt: skip


def withheld(study: Study) -> tuple[str, ...]:
    """Return what never left a hospital in this study."""
    always = (
        "patients’ records and identifiers",
        "the texts of errors",
        "optimiser state, buffers and single patients’ gradients",
    )
    if not isinstance(study.privacy, DpSgd):
        return always
    kept = (
        "which patients a step drew, and how many",
        "norms of gradients and how many were clipped",
        "metrics other than the loss",
    )
    return (*always, *kept, *(() if study.privacy.loss == "noised" else ("losses in training",)))


def gaps(study: Study, result: RunResult) -> tuple[Gap, ...]:
    """Return what the statement’s guarantee does not cover; without one, what that means."""
    if not isinstance(study.privacy, DpSgd):
        return _gaps_without(study)
    return (*_gaps_of_the_promise(study), *_gaps_of_the_run(result), *_gaps_of_machines(study.privacy))


def _gaps_without(study: Study) -> tuple[Gap, ...]:
    said = (
        "was written without differential privacy"
        if isinstance(study.privacy, NoPrivacy)
        else "says nothing about privacy"
    )
    return (
        Gap(
            topic="Every patient",
            text=f"The study {said}. Nothing limits what can be concluded from the updates or the model about a single "
            "patient, including whether their records were used.",
        ),
        Gap(topic="A hospital’s computer", text="Whoever breaks into it, or works at it, may see the records there."),
    )


def _gaps_of_the_promise(study: Study) -> Iterator[Gap]:
    yield Gap(
        topic="How many patients",
        text="The number of patients at each hospital is published without noise. Where everybody knows who would have "
        "been included, counting may tell who was.",
    )
    if study.cohort.patient is None:
        yield Gap(
            topic="Patients with several rows",
            text="The study names no column that identifies patients, so each row counted as one patient; a patient "
            "with several rows is protected less.",
        )
    else:
        yield Gap(
            topic="Patients with several identifiers",
            text=f"Rows belong to one patient when they agree in {study.cohort.patient}. Who has two identifiers "
            "counts as two, and is protected as a group of two.",
        )
    yield Gap(
        topic="A patient treated at several of the hospitals",
        text="Each hospital’s ε is for its own records. The worst case over hospitals is stated with the terms; "
        "hospitals do not tell each other who their patients are, so whom it concerns is not known.",
    )
    yield Gap(
        topic="Groups and relatives",
        text="What is promised for one patient weakens for several together, such as a family. Records of one patient "
        "that tell of another (a child’s that name the mother’s illness) are the first patient’s alone.",
    )
    yield Gap(
        topic="What is true of patients in general",
        text="A model that finds that a measurement goes with a disease says so about everybody who has it, whether "
        "they took part or not. Nor is a hospital protected: how its patients differ from those of another may show.",
    )


def _gaps_of_the_run(result: RunResult) -> Iterator[Gap]:
    if result.central:
        yield Gap(
            topic="Patients of the central hold-out",
            text="ε speaks of those whose records were used for training. The hold-out’s metrics, intervals and ROC "
            "curve are exact; its patients are in the care of whoever runs the coordinator.",
        )
    if result.baselines.local or result.baselines.pooled is not None:
        yield Gap(
            topic="The models for comparison",
            text="Each hospital alone and all records pooled were trained beside the study, because this was a "
            "simulation. They are in no account: their figures are not private.",
        )
    yield Gap(
        topic="Other studies on the same records",
        text="This ε is what this study spent. The whole a patient has spent, over all studies, is in each hospital’s "
        "ledger, which no centre sees; its limit for life is the hospital’s.",
    )
    yield Gap(
        topic="Refusals",
        text="A hospital that says no gives a reason without noise. That a table breaks the schema, in how many rules, "
        "or is too small, depends on its records.",
    )


def _gaps_of_machines(privacy: DpSgd) -> Iterator[Gap]:
    yield Gap(
        topic="Timing",
        text="How long a hospital took for a round may depend on how many patients its steps drew, and is seen by the "
        "coordinator.",
    )
    noise = (
        "Noise is drawn in floating point, which the calculation takes for exact, by a generator that is no cipher. "
        "Attacks on the lowest bits of such noise are published; privacy.noise=discrete_gaussian withstands them."
    )
    if privacy.noise == "discrete_gaussian":
        noise = "Noise is drawn exactly, on a grid; who takes part in a step, by a generator that is no cipher."
    rounding = (
        f"{noise} The sums that noise is added to are computed in single precision, and what their rounding does to a "
        "patient’s bound is left out of the calculation."
    )
    yield Gap(topic="The rounding of numbers in computers", text=rounding)
    yield Gap(
        topic="Inside a hospital",
        text="Records lie there as they are. Who may read them, and whether a computer has been broken into, is "
        "outside the calculation.",
    )
