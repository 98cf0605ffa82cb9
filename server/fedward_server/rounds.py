"""The round loop: ask the enrolled sites, add replies as they arrive, close at the last one or the deadline.

Speaks to sites through Flower's `Grid` alone, so every engine runs this code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedward_common.errors import QuorumLostError, RefusalCode, RejectedReply
from fedward_common.study import Study
from fedward_common.study_file import Signature
from fedward_common.wire import (
    Enrolment,
    Update,
    read_enrolment,
    read_refusal,
    refusing_site,
    write_roll_call,
    write_task,
)
from fedward_server.aggregation import Aggregator
from fedward_server.gatekeeper import Gatekeeper

__all__ = ["ClosedRound", "Roster", "RoundLoop"]

Weights = npt.NDArray[np.float32]
Roster = Mapping[int, str]
"""Site names by node."""

_NO_REPLY = "no_reply_before_the_deadline"
_TRANSPORT = "transport_error"
_TRANSIENT = {
    RefusalCode.TASK_CRASHED, RefusalCode.TASK_TIMED_OUT, RefusalCode.TASK_OUT_OF_MEMORY, RefusalCode.INTERNAL,
    RefusalCode.OUTSIDE_HOURS, RefusalCode.ROUND_REPLAYED, _TRANSPORT,
}  # fmt: skip
"""What costs a site one round and no more. A site killed behind its debit answers ``round_replayed``: it has paid, and
has no update to show; the next round is another."""


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """What one round came to: `missing` holds a reason for every asked site that is not in `accepted`.

    `loss` is the mean of the losses that sites sent, weighted as their updates are; None where none did.
    """

    round: int
    weights: Weights
    accepted: tuple[str, ...]
    missing: dict[str, str]
    steps: dict[str, int]
    seconds: float
    loss: float | None = None


@dataclass
class RoundLoop:
    """One run's rounds.

    Args:
        study: the contract.
        grid: how messages travel.
        roster: nodes that may take part and the sites they are; None: every node of the grid, under the name
            that it enrols with (simulations whose nodes have no keys).
        aggregator: what makes the next model.
        poll_seconds: shortest time from one look for replies to the next; a grid that waits itself takes its own.
        clock: monotonic seconds.
        signatures: what every message carries beside the study.
    """

    study: Study
    grid: Grid
    roster: Roster | None
    aggregator: Aggregator
    poll_seconds: float = 0.05
    clock: Callable[[], float] = time.monotonic
    signatures: tuple[Signature, ...] = ()
    enrolments: dict[int, Enrolment] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def enrol(self) -> None:
        """Call the roll; afterwards `enrolments` holds who said yes and `excluded` why the others did not.

        A node without a place in the roster can only speak for itself: what it says in the name of a site that
        enrolled from another node counts as said by ``node N``.

        Raises:
            QuorumLostError: fewer sites said yes than the study's quorum.
        """
        nodes = list(self.roster) if self.roster is not None else [int(n) for n in self.grid.get_node_ids()]
        rejected: list[tuple[int, str, str]] = []
        for node, reply in self._ask(nodes, write_roll_call(self.study, self.signatures), "query", "0"):
            try:
                self._take_enrolment(node, reply)
            except RejectedReply as error:
                rejected.append((node, self._name(node, reply), str(error)))
        silent = set(nodes) - set(self.enrolments) - {node for node, _, _ in rejected}
        if self.roster is not None:
            for node in silent:
                self.excluded.setdefault(self.roster[node], _NO_REPLY)
        enrolled = {e.site for e in self.enrolments.values()}
        for node, name, why in rejected:
            self.excluded[f"node {node}" if name in enrolled else name] = why
        for site in set(self.study.sites) - enrolled:
            self.excluded.setdefault(site, "not_connected")
        self._require_quorum(len(self.enrolments), "enrolled")

    def _name(self, node: int, reply: Message) -> str:
        """Return the site behind a node, for a report: the roster's word, else its own if the study knows it."""
        if self.roster is not None:
            return self.roster[node]
        claimed = "" if reply.has_error() else refusing_site(reply.content)
        return claimed if claimed in self.study.sites else f"node {node}"

    def _take_enrolment(self, node: int, reply: Message) -> None:
        refusal = _reason(reply)
        if refusal:
            check = "refused"
            raise RejectedReply(check, refusal)
        enrolment = read_enrolment(reply.content)
        check = "enrolment"
        if self.roster is not None and self.roster[node] != enrolment.site:
            raise RejectedReply(check, f"{check}: the node enrols under another site's name")
        if enrolment.site not in self.study.sites or enrolment.digest != self.study.digest:
            raise RejectedReply(check, f"{check}: not a site of this study")
        if any(other.site == enrolment.site for other in self.enrolments.values()):
            raise RejectedReply(check, f"{check}: a second node under one name")
        self.enrolments[node] = enrolment

    def rounds(self, weights: Weights) -> Iterator[ClosedRound]:
        """Yield every round of the study, committed; the caller may stop between two of them.

        Raises:
            QuorumLostError: too few updates were accepted; the round is not committed.
        """
        gatekeeper = Gatekeeper(self.study, self.enrolments)
        active = dict(self.enrolments)
        for number in range(1, self.study.training.rounds + 1):
            gatekeeper.open_round(number)
            closed = self._one_round(number, weights, gatekeeper, active)
            weights = closed.weights
            yield closed

    def _one_round(
        self, number: int, weights: Weights, gatekeeper: Gatekeeper, active: dict[int, Enrolment]
    ) -> ClosedRound:
        began = self.clock()
        self.aggregator.start(weights)
        missing = {e.site: _NO_REPLY for e in active.values()}
        accepted: list[str] = []
        steps: dict[str, int] = {}
        losses: list[tuple[float, int]] = []
        self.asked |= dict.fromkeys(missing, number)
        task = write_task(self.study, number, weights, self.signatures)
        for node, reply in self._ask(list(active), task, "train", str(number)):
            site = active[node].site
            try:
                update = self._judge(node, reply, gatekeeper)
            except RejectedReply as error:
                missing[site] = str(error)
                if error.check == "refused" and _code(str(error)) not in _TRANSIENT:
                    self.excluded[site] = str(error)
                continue
            finally:
                del reply  # before the next one is fetched: a model may be large
            self.aggregator.add(update)
            accepted.append(site)
            steps[site] = update.steps
            losses += [(update.metrics["loss"], update.weight)] if "loss" in update.metrics else []
            del missing[site], update
        self.missed |= missing
        for node in [n for n, e in active.items() if e.site in self.excluded]:
            del active[node]
        self._require_quorum(len(accepted), f"answered in round {number}", missing)
        new = self.aggregator.finish()
        if not np.isfinite(new).all():
            msg = f"round {number} gave a model that is not finite"
            raise QuorumLostError(msg, remedy="a smaller learning rate, locally or at the server")
        seconds = self.clock() - began
        return ClosedRound(number, new, tuple(sorted(accepted)), missing, steps, seconds, _mean(losses))

    def _judge(self, node: int, reply: Message, gatekeeper: Gatekeeper) -> Update:
        refusal = _reason(reply)
        if refusal:
            check = "refused"
            raise RejectedReply(check, refusal)
        return gatekeeper.check(node, reply.content)

    def _ask(self, nodes: list[int], content: RecordDict, kind: str, group: str) -> Iterator[tuple[int, Message]]:
        """Send one content to every node and yield its reply, as each arrives, until the deadline.

        A reply to a message that another node was asked is nobody's: it neither counts nor costs that node its own.
        """
        deadline = self.clock() + self.study.aggregation.deadline_seconds
        messages = [
            Message(content, node, kind, ttl=self.study.aggregation.deadline_seconds, group_id=group) for node in nodes
        ]
        waiting = {
            identifier: node
            for identifier, node in zip(self.grid.push_messages(messages), nodes, strict=True)
            if identifier
        }
        while waiting and self.clock() < deadline:
            looked = time.monotonic()
            replies = list(self.grid.pull_messages(list(waiting)))
            idle = not replies
            while replies:
                reply = replies.pop(0)
                node = waiting.get(reply.metadata.reply_to_message_id)
                if node is not None and (reply.has_error() or reply.metadata.src_node_id == node):
                    del waiting[reply.metadata.reply_to_message_id]
                    yield node, reply
                del reply
            if idle and waiting:
                time.sleep(max(0.0, self.poll_seconds - (time.monotonic() - looked)))

    def _require_quorum(self, count: int, what: str, missing: Mapping[str, str] | None = None) -> None:
        quorum = self.study.aggregation.quorum
        if count < quorum:
            reasons = "; ".join(f"{site}: {why}" for site, why in sorted((missing or self.excluded).items()))
            msg = f"{count} sites {what}, the quorum is {quorum} ({reasons})"
            raise QuorumLostError(msg, remedy="see each site's reason in result.json")


def _mean(weighted: list[tuple[float, int]]) -> float | None:
    """Return the weighted mean, the same whatever the order of arrival; None of nothing."""
    weight = sum(count for _, count in weighted)
    return math.fsum(value * count for value, count in weighted) / weight if weight else None


def _reason(reply: Message) -> str | None:
    """Return why a reply is none: a refusal's code and fields, or the transport's error as a code."""
    if not reply.has_error():
        return read_refusal(reply.content)
    reason = str(reply.error.reason or "")
    return reason[:256] if _code(reason) in set(RefusalCode) else f"{_TRANSPORT} code={reply.error.code}"


def _code(reason: str) -> str:
    return reason.split(" ", 1)[0]
