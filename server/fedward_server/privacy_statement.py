"""``privacy.json``: what one run promises each patient, in the terms of NIST SP 800-226, and what it does not.

NIST SP 800-226 (Guidelines for Evaluating Differential Privacy Guarantees, March 2025) asks of a guarantee its unit,
neighbouring relation, ε and δ, mechanisms, sampling, random numbers, trust model, composition and side channels. The
statement answers each for one run. Pure: study and result determine it. A study without differential privacy gets one
that says so and holds no ε.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from fedward_common.privacy import Spend
from fedward_common.study import DpSgd, Study
from fedward_server.privacy_figures import certainty, composed, for_group, rdp_bound
from fedward_server.privacy_terms import Gap, Part, Release, gaps, is_simulation, releases, withheld
from fedward_server.result import ModelFile, Number, RunResult, SiteResult, StudyRef

__all__ = [
    "Account",
    "Bet",
    "Guarantee",
    "Mechanism",
    "Neighbours",
    "PrivacyStatement",
    "Promise",
    "Sampling",
    "SiteSpent",
    "Spent",
    "Unit",
    "dump_statement",
    "statement_of",
]

_GROUPS: Final = (2, 4)
_BETS: Final = (0.01, 0.1, 0.5)


class Guarantee(Part):
    """An (ε, δ); ε is null where no finite bound is known, which is the same as no guarantee."""

    epsilon: Number
    delta: float


class SiteSpent(Part):
    """What a hospital's patients spent in this study: `steps` noised sums, and what they come to."""

    steps: int
    epsilon: Number
    delta: float


class Bet(Part):
    """How sure somebody can become that a patient's records were used, δ aside.

    Attributes:
        before: the probability that they gave it before they saw anything of the study.
        after: the most that it can be afterwards, at the worst hospital's ε, whatever else they know.
        after_two_hospitals: the same for a patient whose records two hospitals used.
    """

    before: float
    after: Number
    after_two_hospitals: Number


class Spent(Part):
    """What the run spent. Rounds that were asked for and not answered are in it; nothing is ever given back.

    Attributes:
        worst_site: for a patient of the hospital that spent most.
        sites: each hospital's.
        two_hospitals: for a patient whose records the two hospitals that spent most used both.
        all_hospitals: for a patient whose records every hospital used.
        groups: for so many patients of one hospital together.
        two_values: for telling apart two possible values of one patient's record, each being in the data.
        bets: what the worst hospital's ε means for three degrees of suspicion.
    """

    worst_site: Guarantee
    sites: dict[str, SiteSpent]
    two_hospitals: Guarantee
    all_hospitals: Guarantee
    groups: dict[int, Guarantee]
    two_values: Guarantee
    bets: tuple[Bet, ...]


class Unit(Part):
    """Who is protected: one patient, and which records are that patient's."""

    unit: Literal["patient"] = "patient"
    identified_by: str | None
    records_per_step: int
    views: int
    meaning: str


class Neighbours(Part):
    """Which two worlds cannot be told apart by more than (ε, δ)."""

    relation: Literal["zero_out"] = "zero_out"
    public: tuple[str, ...] = ("the number of patients at each hospital", "the study, whole")
    meaning: str = "the same study with one patient’s contribution replaced by nothing, the cohort’s size unchanged"


class Sampling(Part):
    """Who takes part in a step."""

    kind: Literal["poisson"] = "poisson"
    unit: Literal["patient"] = "patient"
    rate: float
    meaning: str = (
        "each step draws every patient by a coin of its own with this public probability; an empty draw is noised and "
        "sent like any other, and sums are divided by the expected number, never by the number drawn"
    )


class Mechanism(Part):
    """One kind of noised release.

    Attributes:
        noise_multiplier: σ of a step, for all that it releases together: what is accounted for.
        sensitivity: by how much, in L2 norm, replacing a patient by nothing moves the gradient sum.
        gradient_noise_multiplier: standard deviation of the gradient sum's noise over `sensitivity`.
        loss_share: part of the step's privacy that the loss takes; null, as the next two, where no loss leaves.
        loss_bound: a patient's loss counts as at most this, in nats.
        loss_noise_multiplier: standard deviation of the loss sum's noise over `loss_bound`.
        engine: how sums are computed, as the study asks; all ways give the same sums.
    """

    name: Literal["poisson_sampled_gaussian_sum", "poisson_sampled_discrete_gaussian_sum"]
    releases: tuple[str, ...]
    noise_multiplier: float | None
    sampling_rate: float
    sensitivity: float
    gradient_noise_multiplier: float | None
    steps_per_round: int
    rounds: int
    loss_share: float | None
    loss_bound: float | None
    loss_noise_multiplier: float | None
    engine: str


class Account(Part):
    """How ε was computed.

    Attributes:
        version: of Fedward, whose accountant it is.
        cross_check: ε of the worst hospital by Rényi divergences, another library's upper bound; null if it has none.
        cross_check_version: of that library.
    """

    method: Literal["privacy_loss_distributions"] = "privacy_loss_distributions"
    library: Literal["fedward"] = "fedward"
    version: str | None
    rounding: str = "upwards: privacy losses are put on a grid pessimistically, and no figure is rounded down"
    composition: str = (
        "adaptive, over all steps of all rounds, answered or not; no amplification by shuffling, by drawing hospitals "
        "or by hiding the models between is assumed"
    )
    cross_check: Number
    cross_check_library: Literal["dp-accounting"] = "dp-accounting"
    cross_check_method: Literal["renyi_divergences"] = "renyi_divergences"
    cross_check_version: str | None


class Promise(Part):
    """A differential privacy guarantee, whole: what was promised, what was spent, and by which means."""

    promised: Guarantee
    spent: Spent
    unit: Unit
    neighbours: Neighbours = Neighbours()
    sampling: Sampling
    mechanisms: tuple[Mechanism, ...]
    trust_model: dict[str, str]
    randomness: dict[str, str]
    preprocessing: str
    account: Account


class PrivacyStatement(Part):
    """The statement. `guarantee` is null without differential privacy, and then no ε stands anywhere in it."""

    schema_version: Literal[1] = 1
    study: StudyRef
    status: Literal["completed", "degraded", "interrupted", "failed"]
    engine: str
    simulation: bool
    differential_privacy: bool
    summary: str
    guarantee: Promise | None
    secure_aggregation: Literal["none"] = "none"
    released: tuple[Release, ...]
    withheld: tuple[str, ...]
    not_covered: tuple[Gap, ...]
    versions: dict[str, str]
    model: ModelFile | None


def statement_of(study: Study, result: RunResult) -> PrivacyStatement:
    """Return the statement of a run of `study`; of a failed one, what it spent all the same.

    Args:
        study: the contract, its noise calibrated; without that no ε over several hospitals is known.
        result: of that study.
    """
    private = study.privacy if isinstance(study.privacy, DpSgd) else None
    guarantee = _promise(study, private, result) if private else None
    return PrivacyStatement(
        study=result.study,
        status=result.status,
        engine=result.engine,
        simulation=is_simulation(result),
        differential_privacy=private is not None,
        summary=_summary(guarantee, result),
        guarantee=guarantee,
        released=releases(study, result),
        withheld=withheld(study),
        not_covered=gaps(study, result),
        versions=result.versions,
        model=result.model,
    )


def dump_statement(statement: PrivacyStatement) -> bytes:
    """Return ``privacy.json`` as bytes, ending in a new line; equal statements give equal bytes."""
    return (statement.model_dump_json(indent=2) + "\n").encode("utf-8")


def _summary(guarantee: Promise | None, result: RunResult) -> str:
    model = "A model was released." if result.model else "No model was released."
    if guarantee is None:
        return (
            "No differential privacy: no noise was added, and nothing limits what the updates and the model may reveal "
            f"about a single patient. {model}"
        )
    worst, promised = guarantee.spent.worst_site, guarantee.promised
    if worst.epsilon is None:
        return f"No finite epsilon is known for every hospital; where none is, patients are promised nothing. {model}"
    if worst.epsilon == 0:
        return f"Nothing was spent: no hospital was asked for a round. {model}"
    return (
        f"Each patient of one hospital has ({worst.epsilon!r}, {worst.delta!r})-differential privacy over the whole "
        f"study, which allowed ({promised.epsilon!r}, {promised.delta!r}), against everybody who sees every "
        f"message. {model}"
    )


def _promise(study: Study, privacy: DpSgd, result: RunResult) -> Promise:
    spend = None
    steps = {name: _steps(study, site) for name, site in result.sites.items()}
    if privacy.noise_multiplier is not None:
        spend = Spend(privacy.noise_multiplier, study.training.sampling_rate, max(steps.values(), default=0))
    return Promise(
        promised=Guarantee(epsilon=privacy.epsilon, delta=privacy.delta),
        spent=_spent(result, steps, spend, privacy.delta),
        unit=_unit(study),
        sampling=Sampling(rate=study.training.sampling_rate),
        mechanisms=(_mechanism(study, privacy),),
        trust_model=_TRUST,
        randomness=_randomness(privacy),
        preprocessing=_PREPROCESSING,
        account=Account(
            version=result.versions.get("fedward"),
            cross_check=rdp_bound(spend, privacy.delta) if spend else None,
            cross_check_version=result.versions.get("dp-accounting"),
        ),
    )


def _steps(study: Study, site: SiteResult) -> int:
    """Return a hospital's noised steps; where an older result has none, all of the study's, unless it spent nothing."""
    if site.steps is not None:
        return site.steps
    return 0 if site.epsilon == 0 else study.total_steps


def _spent(result: RunResult, steps: dict[str, int], spend: Spend | None, delta: float) -> Spent:
    sites = {
        name: SiteSpent(steps=steps[name], epsilon=site.epsilon, delta=delta) for name, site in result.sites.items()
    }
    known = [site.epsilon for site in sites.values()]
    worst = _largest(0.0, *known)
    ranked = sorted(steps.values(), reverse=True)
    two = _largest(worst, composed(spend, ranked[:2], delta)) if spend else None
    whole = _largest(two, composed(spend, ranked, delta)) if spend else None
    groups = {size: _largest(worst, for_group(spend, size, delta)) if spend else None for size in _GROUPS}
    return Spent(
        worst_site=Guarantee(epsilon=worst, delta=delta),
        sites=sites,
        two_hospitals=Guarantee(epsilon=two, delta=delta),
        all_hospitals=Guarantee(epsilon=whole, delta=delta),
        groups={size: Guarantee(epsilon=epsilon, delta=delta) for size, epsilon in groups.items()},
        two_values=Guarantee(epsilon=groups[2], delta=delta),
        bets=tuple(Bet(before=p, after=_after(p, worst), after_two_hospitals=_after(p, two)) for p in _BETS),
    )


def _largest(*values: float | None) -> float | None:
    """Return the largest; None, which stands for no finite bound, is larger than any."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _after(before: float, epsilon: float | None) -> float | None:
    return None if epsilon is None else certainty(before, epsilon)


def _unit(study: Study) -> Unit:
    most, column = study.cohort.max_rows_per_patient, study.cohort.patient
    records = 1 if column is None else min(most, study.training.records_per_patient or most)
    views = study.training.views
    whose = "each row counts as one patient" if column is None else f"all rows of a hospital that agree in {column}"
    seen = f", each seen in {views} random views," if views > 1 else ""
    rest = "a step clips its gradient"
    if records * views > 1:
        rest = f"of these a step takes at most {records:,}{seen} and averages them before the one clip"
    return Unit(identified_by=column, records_per_step=records, views=views, meaning=f"{whose}; {rest}")


def _mechanism(study: Study, privacy: DpSgd) -> Mechanism:
    """Gradient and loss of a step are one Gaussian mechanism: 1/σ² = 1/σ_g² + 1/σ_l², split as `loss_share` says."""
    sigma, noised = privacy.noise_multiplier, privacy.loss == "noised"
    share = privacy.loss_share if noised else 0.0
    return Mechanism(
        name=f"poisson_sampled_{privacy.noise}_sum",
        releases=("the sum of the drawn patients’ clipped gradients", *(["the sum of their losses"] if noised else [])),
        noise_multiplier=sigma,
        sampling_rate=study.training.sampling_rate,
        sensitivity=privacy.clip_norm,
        gradient_noise_multiplier=None if sigma is None else sigma / math.sqrt(1 - share),
        steps_per_round=study.training.local_steps,
        rounds=study.training.rounds,
        loss_share=share if noised else None,
        loss_bound=privacy.loss_bound if noised else None,
        loss_noise_multiplier=sigma / math.sqrt(share) if noised and sigma is not None else None,
        engine=privacy.engine,
    )


_TRUST: Final = {
    "the patient’s hospital": "trusted with its own records: it draws, clips and adds the noise before anything leaves",
    "the coordinator": "not trusted: sees every hospital’s noised updates, one by one; ε holds against it",
    "other hospitals": "not trusted: see the common model of each round; ε holds against them, also together",
    "readers of the released model": "not trusted: ε holds against them, whatever else they know",
    "the hospital’s policy": "limits ε, noise, clipping and δ; a study that asks for more is refused, not adjusted",
}
_PREPROCESSING: Final = (
    "by the study’s public schema alone: declared ranges, categories and replacements for missing values; nothing that "
    "touches training was estimated from patients’ records"
)


def _randomness(privacy: DpSgd) -> dict[str, str]:
    sources = {
        "gaussian": "a pseudo-random generator, seeded anew from the operating system (os.urandom) for each release; "
        "fast, and no cipher",
        "discrete_gaussian": "AES-256 in counter mode, with a new key from the operating system (os.urandom) for each "
        "release",
    }
    return {
        "tier": privacy.noise,
        "noise": sources[privacy.noise],
        "sampling": "a pseudo-random generator, seeded anew from the operating system (os.urandom) for each round",
        "study seed": "chooses the first model; it reaches neither noise nor sampling",
    }
