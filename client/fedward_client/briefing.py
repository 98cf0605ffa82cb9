"""What a person must know of a study before saying yes, as pure facts: no file, no clock, no socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from flwr.app import RecordDict

from fedward_client.decisions import Standing
from fedward_client.diff import Change, changes
from fedward_client.policy import Policy, metrics_that_leave, objections, signers_of
from fedward_common import __version__
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.models import parameter_spec
from fedward_common.schema import CategoricalColumn, CohortSchema, Column, ImageColumn, Label, NumericColumn
from fedward_common.study import DpSgd, Study
from fedward_common.study_file import Signature
from fedward_common.wire import Enrolment, Update, write_enrolment, write_refusal, write_update

__all__ = [
    "Briefing",
    "ColumnLine",
    "Cost",
    "MessageLine",
    "Objection",
    "brief",
    "columns_of",
    "messages_of",
    "objection",
    "size_of",
]

_SHOWN = 12
"""Categories that are written out; of more, the number is."""


@dataclass(frozen=True, slots=True)
class ColumnLine:
    """One column that the study reads: `says` is what it declares of the values, in words."""

    name: str
    role: Literal["feature", "label", "patient"]
    says: str


@dataclass(frozen=True, slots=True)
class MessageLine:
    """One kind of message that the study lets out.

    Attributes:
        message: ``enrolment``, ``update`` or ``refusal``.
        when: how often.
        holds: what is in it, in words.
        size: its content, in bytes; names of usual length.
    """

    message: str
    when: str
    holds: str
    size: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What the study would cost one cohort.

    Attributes:
        cohort: its name in the register.
        epsilon: of the whole study at `delta`; None for a study without privacy, which keeps no account.
        delta: of the study.
        lifetime: ε of all that was ever granted on the cohort and of this study, at the policy's δ.
        limit: ε that the policy allows for life.
        problem: why it cannot be said; empty otherwise.
    """

    cohort: str
    epsilon: float | None = None
    delta: float | None = None
    lifetime: float | None = None
    limit: float | None = None
    problem: str = ""

    @property
    def fits(self) -> bool:
        """Whether the cohort's budget holds it; a study without privacy has no budget."""
        return self.lifetime is None or self.limit is None or self.lifetime <= self.limit


@dataclass(frozen=True, slots=True)
class Objection:
    """One thing that the site's policy has against the study: the code that would leave, and what stays here."""

    code: str
    message: str
    remedy: str
    fields: dict[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Briefing:
    """All of it.

    Attributes:
        standing: see `Standing`.
        signed_by: names in ``policy.signers`` whose key signed it.
        other_signatures: signatures by keys that the policy does not name.
        reads: columns.
        rows: which rows of a patient are used, in words.
        sends: messages.
        parameters: of the model.
        metrics: named numbers that leave beside each update.
        protection: what is done to an update before it leaves, in words.
        works: rounds and steps, in words.
        costs: by cohort.
        earlier: digest of the version that was approved last; empty without one.
        changes: since then.
        objections: of the policy; with one, the study is refused.
    """

    name: str
    digest: str
    description: str
    standing: Standing
    signed_by: tuple[str, ...]
    other_signatures: int
    reads: tuple[ColumnLine, ...]
    rows: str
    sends: tuple[MessageLine, ...]
    parameters: int
    metrics: tuple[str, ...]
    protection: str
    works: str
    costs: tuple[Cost, ...] = ()
    earlier: str = ""
    changes: tuple[Change, ...] = ()
    objections: tuple[Objection, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self) | {"costs": [asdict(cost) | {"fits": cost.fits} for cost in self.costs]}


def brief(
    study: Study,
    site: str,
    policy: Policy,
    *,
    standing: Standing,
    signatures: Sequence[Signature] = (),
    costs: Sequence[Cost] = (),
    earlier: Study | None = None,
) -> Briefing:
    """Return what a person must know of `study` before saying yes.

    Args:
        study: the contract.
        site: this site's name.
        policy: its limits.
        standing: where the study stands.
        signatures: what came with it.
        costs: by cohort.
        earlier: the version of the same name that was approved last.
    """
    against = objections(study, site, policy, signatures=signatures)
    try:
        signers = signers_of(study, signatures, policy.signers)
        known = sum(bool(signers_of(study, [signature], policy.signers)) for signature in signatures)
    except Refusal:
        signers, known = (), 0
    return Briefing(
        name=study.name,
        digest=study.digest,
        description=study.description,
        standing=standing,
        signed_by=signers,
        other_signatures=len(signatures) - known,
        reads=columns_of(study.cohort),
        rows=_rows(study.cohort),
        sends=messages_of(study, site, policy),
        parameters=parameter_spec(study).size,
        metrics=tuple(metrics_that_leave(study, policy, {"loss": 0.0})),
        protection=_protection(study),
        works=_works(study),
        costs=tuple(costs),
        earlier=earlier.digest if earlier else "",
        changes=tuple(changes(earlier, study)) if earlier else (),
        objections=tuple(objection(refusal) for refusal in against),
    )


def objection(refusal: Refusal) -> Objection:
    """Return a refusal as a line for the site's own staff."""
    return Objection(refusal.reason.value, refusal.message, refusal.remedy, dict(refusal.fields))


def columns_of(schema: CohortSchema) -> tuple[ColumnLine, ...]:
    """Return the columns that a study reads: features by name, the label, the patient's identifier."""
    lines = [ColumnLine(name, "feature", _says(column)) for name, column in schema.columns.items()]
    lines.append(ColumnLine(schema.label.column, "label", _label(schema.label)))
    if schema.patient:
        lines.append(ColumnLine(schema.patient, "patient", "tells patients apart; it stays here"))
    return tuple(lines)


def _says(column: Column) -> str:
    match column:
        case NumericColumn():
            whole = "whole number, " if column.integer else ""
            range_ = f"{whole}{column.minimum:g} to {column.maximum:g} {column.unit}"
            return f"{range_}, may be missing: then {column.impute:g}" if column.missing else range_
        case CategoricalColumn():
            listed = _listed(column.categories) + (" or another value" if column.other else "")
            return f"{listed}, may be missing" if column.missing else listed
        case ImageColumn():
            colour = "colour picture" if column.channels > 1 else "picture"
            shape = f"{column.height} × {column.width} pixels"
            return f"{colour} of {shape}, {column.minimum:g} to {column.maximum:g} {column.unit}"


def _label(label: Label) -> str:
    return f"{_listed(label.vocabulary)}; the outcome is {_listed(label.positive)}"


def _listed(values: Sequence[object]) -> str:
    return f"one of {len(values)} values" if len(values) > _SHOWN else " | ".join(map(str, values))


def _rows(schema: CohortSchema) -> str:
    if schema.patient is None:
        return "each row is one patient"
    return f"at most {schema.max_rows_per_patient} rows of a patient"


def messages_of(study: Study, site: str, policy: Policy) -> tuple[MessageLine, ...]:
    """Return every kind of message that `site` sends for `study`, with what is in it and its size in bytes."""
    parameters = parameter_spec(study).size
    named = metrics_that_leave(study, policy, {"loss": 0.0})
    one = _update(study, site, named)
    size = size_of(write_update(one)) + (parameters - 1) * one.values.itemsize
    weight = "the number of patients as its weight" if study.aggregation.weighting == "patients" else "the weight 1"
    spent = ", the number of noised steps so far" if isinstance(study.privacy, DpSgd) else ""
    metrics = f", {', '.join(named)}" if named else ""
    enrolment = write_enrolment(Enrolment(site, study.digest, 1_000_000, __version__))
    fields: dict[str, str | int | float] = {"key": "training.rounds", "asked": 10_000, "limit": 1000}
    refusal = write_refusal(site, Refusal(RefusalCode.POLICY_LIMIT, fields=fields))
    return (
        MessageLine("enrolment", "once", "site, digest, version, the number of patients", size_of(enrolment)),
        MessageLine(
            "update",
            f"each of {study.training.rounds} rounds",
            f"site, digest, round, the change of {parameters} weights, {weight}{spent}{metrics}",
            size,
        ),
        MessageLine("refusal", "instead of either", "site, a code, names and limits of the policy", size_of(refusal)),
    )


def _update(study: Study, site: str, metrics: dict[str, float]) -> Update:
    values = np.zeros(1, dtype=np.int64)
    return Update(site, study.digest, 1, weight=1, steps=0, values=values, metrics=metrics)


def size_of(content: RecordDict) -> int:
    """Return the bytes of a message's content, as Flower counts its records, their names included."""
    return sum(len(name.encode("utf-8")) + record.count_bytes() for name, record in content.items())


def _protection(study: Study) -> str:
    if not isinstance(study.privacy, DpSgd):
        return "NONE: the change of the weights leaves WITHOUT noise; whoever sees it may infer patients' values"
    privacy = study.privacy
    noise = f"{privacy.noise_multiplier:g}" if privacy.noise_multiplier else "(not calibrated)"
    return (
        f"in each step a patient's gradient is clipped to {privacy.clip_norm:g}, and noise of {noise} times that is "
        f"added to the sum: ε {privacy.epsilon:g} at δ {privacy.delta:g} for each patient over the whole study"
    )


def _works(study: Study) -> str:
    training = study.training
    reference, required = training.reference_patients, study.aggregation.required_sites
    among = f", among them {', '.join(required)}" if required else ""
    meant = f" (for {reference} patients; more take more steps)" if reference else ""
    return (
        f"{training.rounds} rounds of {training.local_steps} steps; a step draws each patient with probability "
        f"{training.sampling_rate:g}{meant}; {len(study.sites)} sites are named, "
        f"{study.aggregation.quorum} must answer{among}; "
        f"rule {study.aggregation.rule}"
    )
