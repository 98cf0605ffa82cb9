"""The study: the signed, declarative contract of one federated job. It carries no code and no path."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from fedward_common.canonical import canonical_json, digest
from fedward_common.contract import Contract, plain, quantity, validated
from fedward_common.schema import CohortSchema

__all__ = [
    "SINGLE_UPDATE_RULES",
    "Aggregation",
    "CentredClipping",
    "DpSgd",
    "Evaluation",
    "FLTrust",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedBN",
    "FedNova",
    "FedProx",
    "FedYogi",
    "FlowerRule",
    "Linear",
    "Median",
    "Mlp",
    "Model",
    "MultiKrum",
    "NoPrivacy",
    "Privacy",
    "RobustRule",
    "Scaffold",
    "Study",
    "Training",
    "TrimmedMean",
]

NAME = r"^[a-z][a-z0-9_]{0,62}$"
SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"


class Linear(Contract):
    """Logistic regression."""

    name: Literal["linear"] = "linear"


class Mlp(Contract):
    """Fully connected network; no batch statistics, so each patient's gradient is that patient's alone."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = quantity(
        "width of each hidden layer", "units", min_length=1, max_length=8
    )
    activation: Literal["relu", "tanh"] = quantity("between the layers", default="relu")
    norm: Literal["none", "layer"] = quantity(
        "layer: each hidden layer is normalised over its units, patient by patient, before the activation",
        default="none",
        later=True,
    )


Model = Annotated[Linear | Mlp, Field(discriminator="name")]


class Training(Contract):
    """What a site does in a round. Budgets are in steps, never in epochs."""

    rounds: int = quantity("rounds of the whole study", "rounds", ge=1, le=10_000)
    local_steps: int = quantity("optimiser steps of a site in a round", "steps", ge=1, le=10_000)
    sampling_rate: float = quantity("probability with which a step draws a patient", "per patient and step", gt=0, le=1)
    optimizer: Literal["sgd", "adam"] = quantity("local optimiser, new in each round", default="sgd")
    learning_rate: float = quantity("step size", "per step", gt=0, le=100)
    momentum: float = quantity("of SGD", default=0.0, ge=0, lt=1)
    weight_decay: float = quantity("L2 penalty on the weights", default=0.0, ge=0, le=10)
    records_per_patient: int | None = quantity(
        "most records of a patient that a step averages, drawn anew in each step; null: all of them",
        "records",
        default=None,
        ge=1,
        le=10_000,
    )
    views: int = quantity(
        "random views of each record that a step averages (flips and shifts of its images); 1: as it is",
        "views",
        default=1,
        ge=1,
        le=64,
    )

    reference_patients: int | None = quantity(
        "the cohort that local_steps and sampling_rate are meant for: a site with twice the patients takes twice the"
        " steps and draws half the share in each, at most all of them; null: every site takes local_steps",
        "patients",
        later=True,
        default=None,
        ge=1,
        le=1 << 20,
    )

    @property
    def plain_sgd(self) -> bool:
        """Whether a step is the learning rate times the gradient and nothing else."""
        return self.optimizer == "sgd" and not self.momentum and not self.weight_decay


class NoPrivacy(Contract):
    """Written out: this study trains without differential privacy."""

    mechanism: Literal["none"]


class DpSgd(Contract):
    """DP-SGD (Abadi et al. 2016) with the patient as the unit, at every site on its own.

    The guarantee: (epsilon, delta) for each patient under zero-out adjacency (Ponomareva et al. 2023,
    section 2.1: the patient's contribution is replaced by nothing, the cohort's size is public), over all
    rounds of the study, against everybody who sees every message.
    """

    mechanism: Literal["dp_sgd"]
    unit: Literal["patient"] = "patient"
    adjacency: Literal["zero_out"] = "zero_out"
    epsilon: float = quantity("budget of the whole study", "(natural log of the odds)", gt=0, le=100)
    delta: float = quantity("probability that epsilon does not hold", "", gt=0, lt=0.01)
    clip_norm: float = quantity("L2 bound on one patient's gradient", "", gt=0, le=1000)
    noise_multiplier: float | None = quantity(
        "standard deviation of the noise over clip_norm; null: calibrated from the rest", default=None, gt=0, le=100_000
    )
    noise: Literal["gaussian", "discrete_gaussian"] = quantity(
        "discrete_gaussian: drawn on a grid from AES-256 in counter mode, safe against attacks on floating point",
        default="gaussian",
    )
    loss: Literal["withheld", "noised"] = quantity(
        "whether the mean training loss of a round leaves, with noise and paid for, or stays", default="withheld"
    )
    loss_share: float = quantity("part of the noised steps' privacy that the loss takes", default=0.05, gt=0, lt=1)
    loss_bound: float = quantity("a patient's loss counts as at most this", "nats", default=2.0, gt=0, le=100)
    engine: Literal["auto", "bookkeeping", "ghost", "hooks"] = quantity(
        "how clipped sums are computed; all give the same, auto takes the fastest that is exact", default="auto"
    )


Privacy = Annotated[NoPrivacy | DpSgd, Field(discriminator="mechanism")]


class _Aggregation(Contract):
    weighting: Literal["patients", "uniform"] = quantity("what a site's update counts for", default="patients")
    max_weight: int = quantity("cap on one site's weight", "patients", default=1_000_000, ge=1, le=1 << 20)
    update_bound: float = quantity("largest change of one weight in a round", default=64.0, gt=0, le=64)
    quorum: int = quantity("sites that must answer in a round", "sites", default=2, ge=2, le=4096)
    required_sites: tuple[Annotated[str, Field(pattern=SITE_NAME)], ...] = quantity(
        "sites that must be among those that answer; a round without one of them gives no model",
        default=(),
        max_length=4096,
        later=True,
    )
    deadline_seconds: float = quantity("longest wait for a round", "s", default=3600.0, gt=0, le=604_800)
    average_last: float = quantity(
        "the result is the mean of the models of this last part of the rounds; 0: the last model",
        "of the rounds",
        default=0.0,
        ge=0,
        le=1,
    )

    def stands(self, sites: Collection[str]) -> bool:
        """Return whether so many and such sites make a model: a quorum, and each required one among them."""
        return len(sites) >= self.quorum and set(self.required_sites) <= set(sites)


class FedAvg(_Aggregation):
    """Weighted mean of the updates (McMahan et al. 2017)."""

    rule: Literal["fedavg"] = "fedavg"
    server_learning_rate: float = quantity("factor on the mean update", default=1.0, gt=0, le=100)


class FedProx(_Aggregation):
    """FedAvg with a local penalty mu/2 * |w - w_global|^2 (Li et al. 2020)."""

    rule: Literal["fedprox"] = "fedprox"
    server_learning_rate: float = quantity("factor on the mean update", default=1.0, gt=0, le=100)
    mu: float = quantity("weight of the penalty", gt=0, le=1000)


class FedBN(_Aggregation):
    """FedAvg of all but the normalisation's parameters, which each site keeps for itself (after Li et al. 2021)."""

    rule: Literal["fedbn"] = "fedbn"
    server_learning_rate: float = quantity("factor on the mean update", default=1.0, gt=0, le=100)


class FedNova(_Aggregation):
    """Mean of the sites' updates per local step, where sites take different numbers of them (Wang et al. 2020)."""

    rule: Literal["fednova"] = "fednova"
    weighting: Literal["patients"] = quantity("the centre counts a site's steps by its patients", default="patients")
    server_learning_rate: float = quantity("factor on the mean update", default=1.0, gt=0, le=100)


class _TwoMoments(_Aggregation):
    server_learning_rate: float = quantity("step size at the server", default=0.01, gt=0, le=100)
    beta_1: float = quantity("decay of the first moment", default=0.9, ge=0, lt=1)
    beta_2: float = quantity("decay of the second moment", default=0.99, ge=0, lt=1)
    tau: float = quantity("adaptivity, added to the root of the second moment", default=1e-3, gt=0, le=1)


class FedAdam(_TwoMoments):
    """Adam at the server on the mean update (Reddi et al. 2021, algorithm 2)."""

    rule: Literal["fedadam"] = "fedadam"


class FedYogi(_TwoMoments):
    """Yogi at the server on the mean update (Reddi et al. 2021, algorithm 2): the second moment shrinks slowly."""

    rule: Literal["fedyogi"] = "fedyogi"


class FedAdagrad(_Aggregation):
    """Adagrad at the server on the mean update (Reddi et al. 2021, algorithm 2): the steps only ever shrink."""

    rule: Literal["fedadagrad"] = "fedadagrad"
    server_learning_rate: float = quantity("step size at the server", default=0.01, gt=0, le=100)
    beta_1: float = quantity("decay of the first moment; 0: none is kept", default=0.0, ge=0, lt=1)
    tau: float = quantity("adaptivity, added to the root of the sum of squares", default=1e-3, gt=0, le=1)


class Scaffold(_Aggregation):
    """FedAvg whose local steps are corrected by control variates (Karimireddy et al. 2020, option II)."""

    rule: Literal["scaffold"] = "scaffold"
    weighting: Literal["uniform"] = quantity("each site counts as one, as in the paper", default="uniform")
    server_learning_rate: float = quantity("factor on the mean update", default=1.0, gt=0, le=100)


class _SingleUpdates(_Aggregation):
    weighting: Literal["uniform"] = quantity(
        "each site counts as one: its number of patients is its own claim", default="uniform"
    )
    server_learning_rate: float = quantity("factor on the combined update", default=1.0, gt=0, le=100)
    bucket_size: int = quantity(
        "updates whose mean counts as one, dealt anew in each round; 1: each on its own",
        "updates",
        default=1,
        ge=1,
        le=64,
    )

    def least_updates(self, sites: int) -> int:
        """Return how few updates of a study of `sites` sites the rule can combine, the quorum at least."""
        del sites
        return max(self.quorum, self.bucket_size + 1)

    def shortfall(self, sites: int) -> str:
        """Return why the rule is of no use to a study of `sites` sites; nothing where it is."""
        least = self.least_updates(sites)
        return f"aggregation needs {least} updates in a round, but the study names {sites} sites" * (least > sites)


class _Tolerating(_SingleUpdates):
    poisoned: float = quantity(
        "share of the study's sites that may be poisoned, rounded down to whole sites", "of the sites", gt=0, lt=0.5
    )

    def poisoned_sites(self, sites: int) -> int:
        """Return how many of `sites` sites may be poisoned."""
        return math.floor(round(self.poisoned * sites, 9))

    def shortfall(self, sites: int) -> str:
        """See `_SingleUpdates.shortfall`; nor may the share come to no site at all."""
        if self.poisoned_sites(sites) < 1:
            return f"aggregation.poisoned = {self.poisoned:g} of {sites} sites is less than one site"
        return super().shortfall(sites)


class Median(_SingleUpdates):
    """Of each weight the middle of the sites' changes, as a mean of two (after Yin et al. 2018, algorithm 1)."""

    rule: Literal["median"] = "median"


class TrimmedMean(_Tolerating):
    """Of each weight the mean of the sites' changes without the extremes (Yin et al. 2018, algorithm 1)."""

    rule: Literal["trimmed_mean"] = "trimmed_mean"

    def least_updates(self, sites: int) -> int:
        """See `_SingleUpdates.least_updates`: two values of each weight must be left."""
        return max(super().least_updates(sites), self.bucket_size * (2 * self.poisoned_sites(sites) + 1) + 1)


class MultiKrum(_Tolerating):
    """Mean of the updates that lie closest to the others (Blanchard et al. 2017), of a quorum of sites at least."""

    rule: Literal["multi_krum"] = "multi_krum"

    def least_updates(self, sites: int) -> int:
        """See `_SingleUpdates.least_updates`: n >= 2f + 3, and a quorum is left without the f that are cut."""
        bad, size = self.poisoned_sites(sites), self.bucket_size
        return max(size * (2 * bad + 2) + 1, self.quorum + bad * size)


class CentredClipping(_SingleUpdates):
    """Updates clipped around the server's momentum, then averaged (Karimireddy, He and Jaggi 2021)."""

    rule: Literal["centred_clipping"] = "centred_clipping"
    radius: float = quantity("an update's L2 distance from the momentum counts as at most this", gt=0, le=1_000_000)
    momentum: float = quantity("part of the last rounds' direction that is kept", default=0.0, ge=0, lt=1)
    iterations: int = quantity(
        "how often the centre moves to the clipped mean in a round", "times", default=1, ge=1, le=100
    )


class FLTrust(_SingleUpdates):
    """Updates weighed by how they agree with the centre's own update on a part of its rows (Cao et al. 2021)."""

    rule: Literal["fltrust"] = "fltrust"
    bucket_size: Literal[1] = quantity("each update is judged on its own", default=1)
    root_share: float = quantity(
        "part of the central patients that the centre trains on; results are measured on the others alone",
        "of the central patients",
        default=0.2,
        gt=0,
        le=0.9,
    )


class FlowerRule(_Aggregation):
    """Any strategy of Flower behind our gatekeeper; it sees single updates, so it forgoes secure aggregation."""

    rule: Literal["flower"]
    target: str = quantity(
        "a strategy of Flower, flwr.serverapp.strategy.X",
        alias="_target_",
        pattern=r"^flwr\.serverapp\.strategy\.[A-Z][A-Za-z]{0,60}$",
    )
    options: dict[str, bool | int | float | str] = quantity("its keyword arguments", default_factory=dict)


RobustRule = Median | TrimmedMean | MultiKrum | CentredClipping
Aggregation = Annotated[
    FedAvg | FedProx | FedBN | FedNova | FedAdam | FedYogi | FedAdagrad | Scaffold | RobustRule | FLTrust | FlowerRule,
    Field(discriminator="rule"),
]
SINGLE_UPDATE_RULES: Final = frozenset({
    "median", "trimmed_mean", "multi_krum", "centred_clipping", "fltrust", "flower",
})  # fmt: skip
"""Rules that compare single updates: each hospital must consent, and secure aggregation is out of the question."""


class Evaluation(Contract):
    """How the coordinator judges the global model on central data."""

    threshold: float = quantity("probability from which a case is called positive", default=0.5, gt=0, lt=1)
    confidence: float = quantity("level of the intervals", default=0.95, gt=0.5, lt=1)
    bootstrap: int = quantity("resamples of the hold-out, by patient", "resamples", default=1000, ge=100, le=100_000)


class Study(Contract):
    """One federated job, whole."""

    schema_version: Literal[1] = 1
    name: str = quantity("lower-case letters, digits and _", pattern=NAME)
    description: str = quantity("one paragraph for an ethics board", default="", max_length=2000)
    task: Literal["binary_classification"] = "binary_classification"
    seed: int = quantity("of the initial model and of sampling without privacy", default=1, ge=0, lt=1 << 31)
    sites: tuple[Annotated[str, Field(pattern=SITE_NAME)], ...] = quantity(
        "the hospitals, by name", min_length=1, max_length=4096
    )
    cohort: CohortSchema
    model: Model
    training: Training
    privacy: Privacy | None = None
    aggregation: Aggregation
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            msg = "sites: a hospital is listed twice"
            raise ValueError(msg)
        if self.training.momentum and self.training.optimizer != "sgd":
            msg = "training.momentum belongs to training.optimizer=sgd"
            raise ValueError(msg)
        if self.aggregation.quorum > max(len(self.sites), 2):
            msg = f"aggregation.quorum = {self.aggregation.quorum} sites, but the study names {len(self.sites)}"
            raise ValueError(msg)
        if strangers := sorted(set(self.aggregation.required_sites) - set(self.sites)):
            msg = f"aggregation.required_sites: the study does not name {', '.join(strangers)}"
            raise ValueError(msg)
        if isinstance(self.aggregation, _SingleUpdates) and len(self.sites) > 2:  # noqa: PLR2004  (a draft names two)
            msg = self.aggregation.shortfall(len(self.sites))
            if msg:
                raise ValueError(msg)
        if self.training.views > 1 and not self.cohort.images:
            msg = f"training.views = {self.training.views}, but the cohort has no images to see differently"
            raise ValueError(msg)
        try:
            self.canonical()
        except ValueError:  # half of a surrogate pair
            msg = "a text has no UTF-8 form"
            raise ValueError(msg) from None
        return self

    @model_validator(mode="after")
    def _training_fits_the_rule(self) -> Self:
        training, rule = self.training, self.aggregation
        unequal = training.reference_patients is not None
        msg = ""
        if isinstance(rule, Scaffold) and not training.plain_sgd:
            msg = "aggregation.rule=scaffold needs training.optimizer=sgd, without momentum and weight_decay"
        elif isinstance(rule, Scaffold) and unequal:
            msg = "training.reference_patients does not go with aggregation.rule=scaffold: c needs one number of steps"
        elif isinstance(rule, FedNova) and not unequal:
            msg = "aggregation.rule=fednova is fedavg where all sites take the same steps: set reference_patients"
        elif isinstance(rule, FedNova) and (training.optimizer != "sgd" or training.weight_decay):
            msg = "aggregation.rule=fednova needs training.optimizer=sgd without weight_decay"
        elif unequal and isinstance(self.privacy, DpSgd):
            msg = "training.reference_patients does not go with dp_sgd: its noise is for the same steps at all sites"
        elif isinstance(rule, FedBN) and getattr(self.model, "norm", "none") == "none":
            msg = "aggregation.rule=fedbn needs a model with a normalisation: model.norm=layer"
        if msg:
            raise ValueError(msg)
        return self

    def steps_of(self, patients: int) -> int:
        """Return the local steps in a round of a site with so many patients, of whom at most max_weight count."""
        training, counted = self.training, min(patients, self.aggregation.max_weight)
        if training.reference_patients is None:
            return training.local_steps
        reference = training.reference_patients
        return max(1, (2 * training.local_steps * counted + reference) // (2 * reference))

    def sampling_rate_of(self, patients: int) -> float:
        """Return the probability with which a step of a site with so many patients draws one of them."""
        training = self.training
        if training.reference_patients is None:
            return training.sampling_rate
        return min(1.0, training.sampling_rate * training.reference_patients / patients)

    @property
    def total_steps(self) -> int:
        """Noised steps of one site over the whole study."""
        return self.training.rounds * self.training.local_steps

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal penalty; 0 without one."""
        return self.aggregation.mu if isinstance(self.aggregation, FedProx) else 0.0

    @property
    def sees_single_updates(self) -> bool:
        """Whether the coordinator compares single updates."""
        return self.aggregation.rule in SINGLE_UPDATE_RULES

    def contract(self) -> dict[str, Any]:
        """Return the study as plain JSON values, every default written out; see `plain`."""
        return plain(self)

    def canonical(self) -> bytes:
        """Return the bytes that are signed and whose SHA-256 is the digest."""
        return canonical_json(self.contract())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, 64 hexadecimal digits: the study's identity."""
        return digest(self.contract())

    @classmethod
    def of(cls, data: Mapping[str, Any], *, where: str = "") -> Study:
        """Return plain values as a study.

        Raises:
            StudyError: with every wrong key, its unit and its limit in one message.
        """
        return validated(cls, data, where=where)
