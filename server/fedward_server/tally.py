"""What has come of a round: while it is open, and once it has closed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from fedward_common.study import Aggregation
from fedward_common.wire import Update
from fedward_server.chances import Chances
from fedward_server.replies import may_return
from fedward_server.result import SiteRound

__all__ = ["ClosedRound", "Tally"]

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """What one round came to: `missing` holds a reason for every asked site that is not in `accepted`.

    `loss` is the mean of the losses that sites sent, weighted as their updates are; None where none did. `statuses`
    says of every site of the study what it did, asked or not.
    """

    round: int
    weights: Weights
    accepted: tuple[str, ...]
    missing: dict[str, str]
    steps: dict[str, int]
    seconds: float
    loss: float | None = None
    statuses: dict[str, SiteRound] = field(default_factory=dict)


@dataclass
class Tally:
    """A round that is open: its task, its end by the wall's clock, and what has come of it so far."""

    number: int
    task: RecordDict
    began: float
    ends_at: float
    missing: dict[str, str]
    chances: Chances
    accepted: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    losses: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ends(self) -> float:
        """When the round ends, by our clock."""
        return self.chances.ends

    def take(self, update: Update) -> None:
        """Note an accepted update."""
        self.accepted.append(update.site)
        self.steps[update.site] = update.steps
        self.losses += [(update.metrics["loss"], update.weight)] if "loss" in update.metrics else []
        self.missing.pop(update.site, None)

    @property
    def loss(self) -> float | None:
        """The mean of the losses that sites sent, the same whatever the order of arrival; None where none did."""
        weight = sum(count for _, count in self.losses)
        return math.fsum(value * count for value, count in self.losses) / weight if weight else None

    def may_stand(self, rule: Aggregation, away: Iterable[str]) -> bool:
        """Return whether the round could have a quorum if everybody came back who may."""
        back = (site for site, why in self.missing.items() if may_return(why))
        return rule.stands({*self.accepted, *back, *away})
