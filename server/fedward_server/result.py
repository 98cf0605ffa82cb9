"""``result.json``: what a run did, in a versioned schema that scripts may rely on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedward_common.metrics import Interval

__all__ = [
    "Baselines",
    "Estimate",
    "Figures",
    "ModelFile",
    "RoundResult",
    "RunResult",
    "SiteResult",
    "SiteRound",
    "StudyRef",
    "with_late",
]


def _null_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_null_if_nan)]
"""A finite number, or null where a metric has no value (for example the AUROC of one class)."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Part):
    """A metric on the hold-out with its bootstrap interval."""

    value: Number
    low: Number
    high: Number

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        """Return an interval as it is stored."""
        return cls(value=interval.value, low=interval.low, high=interval.high)


Figures = dict[str, Estimate]


class StudyRef(_Part):
    """Which study this is."""

    name: str
    digest: str
    description: str = ""


class SiteResult(_Part):
    """One hospital's part: `status` is ``completed``, ``degraded`` (missed a round) or ``excluded``.

    `steps` are the noised steps that `epsilon` counts; null without differential privacy.
    """

    patients: int | None = None
    weight: int | None = None
    rounds: int = 0
    steps: int | None = None
    epsilon: Number = None
    delta: Number = None
    status: Literal["completed", "degraded", "excluded"]
    reason: str | None = None


class SiteRound(_Part):
    """What one site did in one round.

    `status` is ``accepted`` (its update counts), ``missed`` (asked, and no update that counts came in time), ``late``
    (its reply came after the round and was not used), ``absent`` (not asked: away, and asked in each round whether it
    takes part again) or ``excluded`` (not asked any more: it refused for good). `reason` says why, but for
    ``accepted``. `retried` is what a site fell out with that was asked a second time in the round.
    """

    status: Literal["accepted", "missed", "late", "excluded", "absent"]
    reason: str | None = None
    retried: str | None = None


class RoundResult(_Part):
    """One round: who took part, who did not and why, the new model's metrics on the hold-out.

    `statuses` holds every site that the study names; it is empty in files of versions before 0.2. `missing` holds the
    sites among them that were asked.

    `loss` is the weighted mean of the training losses that the sites sent; under differential privacy each is noised,
    clipped and paid for, or withheld.
    """

    round: int
    sites: tuple[str, ...]
    missing: dict[str, str] = {}
    statuses: dict[str, SiteRound] = {}
    seconds: float
    epsilon: Number = None
    loss: Number = None
    central: dict[str, Number] = {}


class Baselines(_Part):
    """The same training without federation, in a simulation: each hospital alone, and all rows in one place."""

    local: dict[str, Figures] = {}
    pooled: Figures | None = None


class ModelFile(_Part):
    """The released weights."""

    file: str
    sha256: str
    parameters: int


class RunResult(_Part):
    """A whole run. `status` is ``completed``, ``degraded`` (a site missed something), ``interrupted`` or ``failed``."""

    schema_version: Literal[1] = 1
    study: StudyRef
    engine: str
    seed: int
    status: Literal["completed", "degraded", "interrupted", "failed"]
    reason: str | None = None
    started_at: str
    seconds: float
    versions: dict[str, str]
    privacy: dict[str, Any] | None
    sites: dict[str, SiteResult]
    rounds: tuple[RoundResult, ...]
    central: Figures
    roc: dict[str, tuple[float, ...]] = {}
    baselines: Baselines = Field(default_factory=Baselines)
    model: ModelFile | None = None


def with_late(rounds: Iterable[RoundResult], late: Iterable[tuple[int, str, str]]) -> tuple[RoundResult, ...]:
    """Return the rounds, marking replies that came after theirs had closed: by round, site and reason.

    What it is told a second time changes nothing.
    """
    told = {(round_, site): reason for round_, site, reason in late}
    changed = []
    for entry in rounds:
        statuses = {
            site: part.model_copy(update={"status": "late", "reason": told[entry.round, site]})
            if part.status == "missed" and (entry.round, site) in told
            else part
            for site, part in entry.statuses.items()
        }
        changed.append(entry if statuses == entry.statuses else entry.model_copy(update={"statuses": statuses}))
    return tuple(changed)
