"""A hospital's own limits, as pure rules: no file, no clock, no socket.

A study that asks for more than the policy allows is refused, never trimmed to fit.
"""

from __future__ import annotations

from fedward_common.contract import Contract, quantity
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.study import DpSgd, FlowerRule, NoPrivacy, Study

__all__ = ["Policy", "admit", "admit_cohort"]


class Policy(Contract):
    """The limits in a site's ``site.yaml``; the defaults are those of a hospital that has thought of nothing yet."""

    require_privacy: bool = quantity("refuse a study that writes out privacy=none", default=True)
    max_epsilon_per_study: float = quantity("for one study", default=8.0, gt=0)
    max_epsilon_lifetime: float = quantity("for everything that a cohort ever takes part in", default=16.0, gt=0)
    max_delta: float = quantity("for one study and for the lifetime", default=1e-3, gt=0, lt=0.01)
    min_noise_multiplier: float = quantity("noise over clipping bound", default=0.3, gt=0)
    max_clip_norm: float = quantity("bound on one patient's gradient", default=10.0, gt=0)
    max_sampling_rate: float = quantity("of patients, for each step", "per patient and step", default=1.0, gt=0, le=1)
    min_patients: int = quantity("in a cohort that trains", "patients", default=20, ge=1)
    min_sites: int = quantity("in the study's quorum", "sites", default=2, ge=2)
    allow_single_updates: bool = quantity(
        "admit rules that compare single updates (Flower's strategies); Krum's next model is one hospital's",
        default=False,
    )
    max_rounds: int = quantity("of one study", "rounds", default=1000, ge=1)
    max_local_steps: int = quantity("of one round", "steps", default=1000, ge=1)


def admit(study: Study, site: str, policy: Policy) -> None:
    """Return if the policy lets `site` take part in `study`, before any data is opened.

    Raises:
        Refusal: with the limit that is passed, as key, limit and what was asked.
    """
    if site not in study.sites:
        raise Refusal(RefusalCode.SITE_NOT_NAMED)
    _at_most("training.rounds", study.training.rounds, policy.max_rounds)
    _at_most("training.local_steps", study.training.local_steps, policy.max_local_steps)
    _at_least("aggregation.quorum", study.aggregation.quorum, policy.min_sites)
    if isinstance(study.aggregation, FlowerRule) and not policy.allow_single_updates:
        raise Refusal(RefusalCode.POLICY_LIMIT, fields={"key": "aggregation.rule", "asked": study.aggregation.target})
    match study.privacy:
        case None:
            raise Refusal(
                RefusalCode.NO_PRIVACY_SECTION, remedy="the study's author writes privacy=none out, or sets a budget"
            )
        case NoPrivacy():
            if policy.require_privacy:
                raise Refusal(RefusalCode.PRIVACY_REQUIRED)
        case DpSgd() as asked:
            _at_most("privacy.epsilon", asked.epsilon, policy.max_epsilon_per_study)
            _at_most("privacy.delta", asked.delta, policy.max_delta)
            _at_most("privacy.clip_norm", asked.clip_norm, policy.max_clip_norm)
            _at_most("training.sampling_rate", study.training.sampling_rate, policy.max_sampling_rate)
            _at_least("privacy.noise_multiplier", asked.noise_multiplier or 0.0, policy.min_noise_multiplier)


def admit_cohort(patients: int, policy: Policy) -> None:
    """Return if a cohort of this many patients may train.

    Raises:
        Refusal: ``cohort_empty`` or ``cohort_too_small``.
    """
    if patients == 0:
        raise Refusal(RefusalCode.COHORT_EMPTY)
    if patients < policy.min_patients:
        raise Refusal(RefusalCode.COHORT_TOO_SMALL, fields={"limit": policy.min_patients})


def _at_most(key: str, asked: float, limit: float) -> None:
    if asked > limit:
        raise Refusal(
            RefusalCode.POLICY_LIMIT,
            f"{key} = {asked:g} is above {limit:g}",
            fields={"key": key, "asked": asked, "limit": limit},
        )


def _at_least(key: str, asked: float, limit: float) -> None:
    if asked < limit:
        raise Refusal(
            RefusalCode.POLICY_LIMIT,
            f"{key} = {asked:g} is below {limit:g}",
            fields={"key": key, "asked": asked, "limit": limit},
        )
