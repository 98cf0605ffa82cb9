"""What a reply must be before it is added: pure checks, each one the loss of a round for one site and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from flwr.app import RecordDict

from fedward_common.errors import RejectedReply
from fedward_common.fixed_point import SCALE
from fedward_common.models import parameter_spec
from fedward_common.study import DpSgd, Study
from fedward_common.wire import Enrolment, Update, read_update

__all__ = ["Gatekeeper"]


class Gatekeeper:
    """The judge of one run's replies.

    Args:
        study: the contract.
        enrolments: by node, what each site said at the roll call; nobody else is listened to.
    """

    def __init__(self, study: Study, enrolments: Mapping[int, Enrolment]) -> None:
        self._study = study
        self._digest = study.digest
        self._enrolments = dict(enrolments)
        self._size = parameter_spec(study).size
        self._round = 0
        self._seen: set[int] = set()

    def admit(self, node: int, enrolment: Enrolment) -> None:
        """Listen to a node from now on, or by what it said last."""
        self._enrolments[node] = enrolment

    def open_round(self, round_: int) -> None:
        """Forget the last round's replies and accept those of `round_` (1-based)."""
        self._round = round_
        self._seen.clear()

    def check(self, node: int, content: RecordDict) -> Update:
        """Return the reply of `node` as an update that may be added.

        Order of the checks: (1) the sender is enrolled, (2) has not answered yet, (3) names, dtype, shape and
        length, (4) site, study and round, (5) weight, (6) steps, (7) metrics allowed, (8) bound of each entry.
        NaN and infinity have no fixed-point form, so (3) excludes them.

        Raises:
            RejectedReply: naming the check.
        """
        enrolment = self._enrolments.get(node)
        if enrolment is None:
            self._fail("roster", "the sender is not enrolled in this run")
        if node in self._seen:
            self._fail("duplicate", f"a second reply in round {self._round}")
        update = read_update(content, size=self._size)
        self._check_origin(update, enrolment)
        self._check_numbers(update, enrolment)
        self._seen.add(node)
        return update

    def expected_weight(self, enrolment: Enrolment) -> int:
        """Return what a site's update counts for at most: its enrolled patients, capped, or 1."""
        rule = self._study.aggregation
        return min(enrolment.patients, rule.max_weight) if rule.weighting == "patients" else 1

    def _check_origin(self, update: Update, enrolment: Enrolment) -> None:
        if update.site != enrolment.site:
            self._fail("site", f"enrolled as {enrolment.site!r}, answers under another name")
        if update.digest != self._digest:
            self._fail("study", "the reply belongs to another study")
        if update.round != self._round:
            self._fail("round", f"the reply is for round {update.round}, this is round {self._round}")

    def _check_numbers(self, update: Update, enrolment: Enrolment) -> None:
        most = self.expected_weight(enrolment)
        if not 1 <= update.weight <= most:  # less: patients opted out since the roll call
            self._fail("weight", f"weight {update.weight}, the site enrolled with {most}")
        privacy = self._study.privacy
        private = isinstance(privacy, DpSgd)
        least = self._study.training.local_steps if private else 0
        limit = self._round * least
        if not least <= update.steps <= limit:
            self._fail("steps", f"{update.steps} noised steps reported, {least} to {limit} are possible")
        if isinstance(privacy, DpSgd) and update.metrics:
            if privacy.loss == "withheld":
                self._fail("metrics", "metrics in a study with privacy, where none is paid for")
            if not 0.0 <= update.metrics["loss"] <= privacy.loss_bound:
                self._fail("metrics", "a noised loss outside its bounds")
        bound = round(self._study.aggregation.update_bound * SCALE) * update.weight  # as encode_weighted rounds
        if update.values.size and (int(update.values.max()) > bound or int(update.values.min()) < -bound):
            self._fail("bound", f"an entry exceeds the bound {self._study.aggregation.update_bound:g}")

    @staticmethod
    def _fail(check: str, message: str) -> NoReturn:
        raise RejectedReply(check, f"{check}: {message}")
