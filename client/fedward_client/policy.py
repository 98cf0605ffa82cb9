"""A hospital's own limits, as pure rules: no file, no clock, no socket.

A study that asks for more than the policy allows is refused, never trimmed to fit. Who asks is settled first: whoever
is not trusted learns no limit from a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedward_common.contract import Contract, quantity
from fedward_common.errors import Refusal, RefusalCode, SignatureError
from fedward_common.models import parameter_spec
from fedward_common.signing import is_public_key
from fedward_common.study import SITE_NAME, DpSgd, FlowerRule, NoPrivacy, Study
from fedward_common.study_file import Signature, StudyFile

__all__ = [
    "UNTRUSTED",
    "Policy",
    "Resources",
    "admit",
    "admit_cohort",
    "admit_steps",
    "admit_use",
    "metrics_that_leave",
    "objections",
    "open_at",
    "signers_of",
]

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
UNTRUSTED: Final = frozenset({
    RefusalCode.STUDY_UNSIGNED, RefusalCode.SIGNER_UNKNOWN, RefusalCode.SIGNATURE_INVALID, RefusalCode.SITE_NOT_NAMED,
})  # fmt: skip
"""What is refused for its sender is not kept for the staff to read: a stranger fills no list and no disk."""
_WEEK: Final[tuple[Weekday, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 24 * 60
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]"
StudyName = Annotated[str, Field(pattern=r"^([a-z][a-z0-9_]{0,62}|[0-9a-f]{64})$")]
LocalName = Annotated[str, Field(pattern=SITE_NAME)]
SignerKey = Annotated[str, Field(pattern=r"^(ed25519:[A-Za-z0-9_-]{43}|sha256:[0-9a-f]{64})$")]
Window = Annotated[str, Field(pattern=rf"^{_TIME}-({_TIME}|24:00)$")]


class Resources(Contract):
    """What one task may use of this computer; the runner holds the process that trains to it."""

    wall_s: float = quantity("longest time for one task", "s", default=3600.0, gt=0, le=604_800)
    memory_gib: float = quantity("largest memory of the process that trains", "GiB", default=8.0, ge=0.5, le=65_536)
    cpus: int = quantity("processor cores of a task", "cores", default=1, ge=1, le=4096)
    gpu_memory_share: float = quantity("part of a GPU's memory that a task may use; 0: no GPU", default=0.0, ge=0, le=1)
    threads: int = quantity("threads of the arithmetic, not more than `cpus`", "threads", default=1, ge=1, le=4096)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.threads > self.cpus:
            msg = f"threads = {self.threads} are more than cpus = {self.cpus}"
            raise ValueError(msg)
        return self


class Policy(Contract):
    """The limits in a site's ``site.yaml``; the defaults are those of a hospital that has thought of nothing yet."""

    studies: tuple[StudyName, ...] = quantity(
        "studies that may ask, each by its name or its whole digest; empty: any that is approved here", default=()
    )
    signers: dict[LocalName, SignerKey] = quantity(
        "who may sign a study: a name of yours, and the key (ed25519:…) or its fingerprint (sha256:…)",
        default_factory=dict,
    )
    require_signature: bool = quantity("refuse a study that none of `signers` has signed", default=True)
    cohort_studies: dict[LocalName, tuple[StudyName, ...]] = quantity(
        "studies that may train on a cohort, by the cohort's name; a cohort that is not listed takes any",
        default_factory=dict,
    )
    approvals_needed: int = quantity(
        "how many must approve a study; 2: under two accounts of this computer", "persons", default=1, ge=1, le=2
    )
    approval_days: int = quantity("how long an approval holds", "days", default=180, ge=1, le=3650)
    require_privacy: bool = quantity("refuse a study that writes out privacy=none", default=True)
    max_epsilon_per_study: float = quantity("largest epsilon of one study", default=8.0, gt=0)
    max_epsilon_lifetime: float = quantity(
        "largest epsilon of everything that a cohort ever takes part in", default=16.0, gt=0
    )
    max_delta: float = quantity("largest delta, of one study and of the lifetime", default=1e-3, gt=0, lt=0.01)
    min_noise_multiplier: float = quantity("least noise: standard deviation over clipping bound", default=0.3, gt=0)
    max_clip_norm: float = quantity("largest bound on one patient's gradient", default=10.0, gt=0)
    max_sampling_rate: float = quantity(
        "largest probability with which a step draws a patient", "per patient and step", default=1.0, gt=0, le=1
    )
    min_patients: int = quantity("fewest patients of a cohort that trains", "patients", default=20, ge=1)
    min_sites: int = quantity("fewest sites whose updates make a model: the study's quorum", "sites", default=2, ge=2)
    require_secure_aggregation: bool = quantity(
        "refuse a study whose coordinator could see this site's own update", default=False
    )
    allow_single_updates: bool = quantity(
        "admit rules that compare single updates (robust rules, Flower's strategies); the next model of Flower's Krum "
        "is one hospital's",
        default=False,
    )
    allowed_metrics: tuple[LocalName, ...] = quantity(
        "named numbers that may leave beside an update; under differential privacy with noise that is paid for",
        default=("loss",),
    )
    allowed_tensors: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = quantity(
        "patterns of the names of parameters whose change may leave (* and ? as in file names)", default=("*",)
    )
    max_parameters: int = quantity("largest model", "parameters", default=50_000_000, ge=1)
    max_rounds: int = quantity("longest study", "rounds", default=1000, ge=1)
    max_local_steps: int = quantity("longest round", "steps", default=1000, ge=1)
    time_zone: str = quantity("in which `hours` are meant, for example Europe/Berlin", default="UTC", max_length=64)
    hours: dict[Weekday, tuple[Window, ...]] = quantity(
        "when this site works, for example {fri: [18:00-06:00], sat: [00:00-24:00]}; a window that ends before it "
        "starts ends on the next day; empty: always",
        default_factory=dict,
    )
    resources: Resources = quantity("what one task may use of this computer", default_factory=Resources)

    @field_validator("signers")
    @classmethod
    def _keys(cls, signers: dict[str, str]) -> dict[str, str]:
        for name, key in signers.items():
            if key.startswith("ed25519:") and not is_public_key(key):
                msg = f"{name}: no Ed25519 public key; copy the line of its .pub file"
                raise ValueError(msg)
        return signers

    @field_validator("hours")
    @classmethod
    def _windows(cls, hours: dict[Weekday, tuple[str, ...]]) -> dict[Weekday, tuple[str, ...]]:
        for day, windows in hours.items():
            for window in windows:
                start, end = _minutes(window)
                if start == end:
                    msg = f"{day}: {window} has no length; a whole day is 00:00-24:00"
                    raise ValueError(msg)
        return hours


def admit(
    study: Study,
    site: str,
    policy: Policy,
    *,
    signatures: Sequence[Signature] = (),
    now: datetime | None = None,
) -> None:
    """Return if the policy lets `site` take part in `study` at this time, before any data is opened.

    Args:
        study: the contract.
        site: this site's name.
        policy: its limits.
        signatures: what came with the study; they are verified here.
        now: in the site's time zone; None is outside every window.

    Raises:
        Refusal: with the first of `objections`, or ``outside_hours``.
    """
    for objection in _all_objections(study, site, policy, signatures):
        raise objection
    if policy.hours and (now is None or not open_at(policy, now)):
        raise Refusal(
            RefusalCode.OUTSIDE_HOURS, "this site does not work at this time", remedy="policy.hours in site.yaml"
        )


def objections(study: Study, site: str, policy: Policy, *, signatures: Sequence[Signature] = ()) -> list[Refusal]:
    """Return everything that the policy has against `study` at whatever time, in the order in which `admit` looks."""
    return list(_all_objections(study, site, policy, signatures))


def _all_objections(study: Study, site: str, policy: Policy, signatures: Sequence[Signature]) -> Iterator[Refusal]:
    yield from _against_sender(study, site, policy, signatures)
    yield from _against_size(study, policy)
    yield from _against_aggregation(study, policy)
    yield from _against_privacy(study, policy)


def _against_sender(study: Study, site: str, policy: Policy, signatures: Sequence[Signature]) -> Iterator[Refusal]:
    try:
        signers = signers_of(study, signatures, policy.signers)
    except Refusal as refusal:
        yield refusal
        signers = ()
    else:
        if policy.require_signature and not signers:
            code = RefusalCode.SIGNER_UNKNOWN if signatures else RefusalCode.STUDY_UNSIGNED
            trusted = ", ".join(policy.signers) or "nobody yet"
            yield Refusal(
                code,
                f"no trusted signature is on this study; trusted are: {trusted}",
                remedy="the author signs it (fedward study sign), and the key stands under policy.signers in site.yaml",
            )
    if site not in study.sites:
        yield Refusal(RefusalCode.SITE_NOT_NAMED, f"the study does not name {site}")
    if policy.studies and not _listed(study, policy.studies):
        yield Refusal(
            RefusalCode.STUDY_NOT_ALLOWED,
            f"{study.name} is not in policy.studies",
            remedy="add its name or digest to policy.studies in site.yaml",
        )


def signers_of(study: Study, signatures: Sequence[Signature], trusted: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of those in `trusted` whose key signed exactly this study, in the mapping's order.

    Args:
        study: the contract.
        signatures: what came with it.
        trusted: names and their keys or fingerprints.

    Raises:
        Refusal: ``signature_invalid``: a signature that bears a trusted key is not that key's over these bytes.
    """
    try:
        found = StudyFile(study, tuple(signatures)).signed_by(tuple(trusted.values()))
    except SignatureError as error:
        raise Refusal(RefusalCode.SIGNATURE_INVALID, error.message, remedy=error.remedy) from error
    return tuple(name for name, key in trusted.items() if key in found)


def _against_size(study: Study, policy: Policy) -> Iterator[Refusal]:
    yield from _at_most("training.rounds", study.training.rounds, policy, "max_rounds")
    yield from _at_most("training.local_steps", study.training.local_steps, policy, "max_local_steps")
    spec = parameter_spec(study)
    yield from _at_most("model.parameters", spec.size, policy, "max_parameters")
    for name in spec.names:
        if not any(fnmatchcase(name, pattern) for pattern in policy.allowed_tensors):
            yield _limit("model", f"parameter {name} is in none of policy.allowed_tensors", asked=name)
            break


def _against_aggregation(study: Study, policy: Policy) -> Iterator[Refusal]:
    yield from _at_least("aggregation.quorum", study.aggregation.quorum, policy, "min_sites")
    if policy.require_secure_aggregation:  # no study can ask for it yet: the coordinator sees every site's own update
        yield Refusal(
            RefusalCode.SECURE_AGGREGATION_REQUIRED,
            "the coordinator of this study sees this site's own update",
            remedy="policy.require_secure_aggregation in site.yaml",
        )
    if study.sees_single_updates and not policy.allow_single_updates:
        rule = study.aggregation
        asked = rule.target if isinstance(rule, FlowerRule) else rule.rule
        message = "this rule compares single updates; policy.allow_single_updates is false"
        yield _limit("aggregation.rule", message, asked=asked)


def _against_privacy(study: Study, policy: Policy) -> Iterator[Refusal]:
    match study.privacy:
        case None:
            yield Refusal(
                RefusalCode.NO_PRIVACY_SECTION,
                "the study has no privacy section",
                remedy="the study's author writes privacy=none out, or sets a budget",
            )
        case NoPrivacy():
            if policy.require_privacy:
                yield Refusal(RefusalCode.PRIVACY_REQUIRED, "privacy=none, but policy.require_privacy is true")
        case DpSgd() as asked:
            yield from _at_most("privacy.epsilon", asked.epsilon, policy, "max_epsilon_per_study")
            yield from _at_most("privacy.delta", asked.delta, policy, "max_delta")
            yield from _at_most("privacy.clip_norm", asked.clip_norm, policy, "max_clip_norm")
            yield from _at_most("training.sampling_rate", study.training.sampling_rate, policy, "max_sampling_rate")
            yield from _at_least(
                "privacy.noise_multiplier", asked.noise_multiplier or 0.0, policy, "min_noise_multiplier"
            )
            if asked.loss == "noised" and "loss" not in policy.allowed_metrics:
                yield _limit("privacy.loss", "loss is not in policy.allowed_metrics", asked=asked.loss)


def admit_use(study: Study, cohort: str, policy: Policy) -> None:
    """Return if `study` may train on the cohort of this name.

    Raises:
        Refusal: ``cohort_not_allowed``.
    """
    if cohort in policy.cohort_studies and not _listed(study, policy.cohort_studies[cohort]):
        raise Refusal(
            RefusalCode.COHORT_NOT_ALLOWED,
            f"policy.cohort_studies does not give {cohort} to {study.name}",
            remedy=f"add its name or digest to policy.cohort_studies.{cohort} in site.yaml, or choose another cohort",
        )


def admit_steps(study: Study, patients: int, policy: Policy) -> None:
    """Return if the steps of a site with so many patients may be taken; see `Study.steps_of`.

    Raises:
        Refusal: ``policy_limit``.
    """
    for refusal in _at_most("training.local_steps", study.steps_of(patients), policy, "max_local_steps"):
        raise refusal


def admit_cohort(patients: int, policy: Policy) -> None:
    """Return if a cohort of this many patients may train.

    Raises:
        Refusal: ``cohort_empty`` or ``cohort_too_small``.
    """
    if patients == 0:
        raise Refusal(RefusalCode.COHORT_EMPTY)
    if patients < policy.min_patients:
        raise Refusal(RefusalCode.COHORT_TOO_SMALL, fields={"limit": policy.min_patients})


def metrics_that_leave(study: Study, policy: Policy, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return those of a round's `metrics` that may leave: the allowed ones, under differential privacy the paid ones.

    A study that pays for its loss was refused where the policy does not allow it, so leaving one out trims no request.
    """
    if isinstance(study.privacy, DpSgd) and study.privacy.loss == "withheld":
        return {}
    return {name: value for name, value in metrics.items() if name in policy.allowed_metrics}


def open_at(policy: Policy, now: datetime) -> bool:
    """Return whether `now`, in the site's time zone, lies in one of the policy's windows; always without any.

    A window holds its first minute and not its last. One that ends before it starts ends on the next day.
    """
    if not policy.hours:
        return True
    minute = now.hour * 60 + now.minute
    today, yesterday = _WEEK[now.weekday()], _WEEK[now.weekday() - 1]
    for start, end in map(_minutes, policy.hours.get(today, ())):
        if start <= minute < (end if end > start else _DAY_MINUTES):
            return True
    return any(minute < end < start for start, end in map(_minutes, policy.hours.get(yesterday, ())))


def _minutes(window: str) -> tuple[int, int]:
    start, end = (int(time[:2]) * 60 + int(time[3:]) for time in window.split("-"))
    return start, end


def _listed(study: Study, names: Sequence[str]) -> bool:
    return study.name in names or study.digest in names


def _at_most(key: str, asked: float, policy: Policy, limit: str) -> Iterator[Refusal]:
    yield from _beyond(key, asked, policy, limit, beyond=lambda value, bound: value > bound, word="above")


def _at_least(key: str, asked: float, policy: Policy, limit: str) -> Iterator[Refusal]:
    yield from _beyond(key, asked, policy, limit, beyond=lambda value, bound: value < bound, word="below")


def _beyond(
    key: str, asked: float, policy: Policy, limit: str, *, beyond: Callable[[float, float], bool], word: str
) -> Iterator[Refusal]:
    bound = getattr(policy, limit)
    if beyond(asked, bound):
        yield _limit(key, f"{key} = {asked:g} is {word} policy.{limit} = {bound:g}", asked=asked, limit=bound)


def _limit(key: str, message: str, **fields: str | float) -> Refusal:
    return Refusal(
        RefusalCode.POLICY_LIMIT,
        message,
        remedy="the study's author asks for less, or the named key of site.yaml allows more",
        fields={"key": key, **fields},
    )
