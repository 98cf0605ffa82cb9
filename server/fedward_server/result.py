"""``result.json``: what a run did, in a versioned schema that scripts may rely on."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedward_common.metrics import Interval

__all__ = ["Baselines", "Estimate", "Figures", "ModelFile", "RoundResult", "RunResult", "SiteResult", "StudyRef"]


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


class RoundResult(_Part):
    """One round: who took part, who did not and why, the new model's metrics on the hold-out.

    `loss` is the weighted mean of the training losses that the sites sent; under differential privacy each is noised,
    clipped and paid for, or withheld.
    """

    round: int
    sites: tuple[str, ...]
    missing: dict[str, str] = {}
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
