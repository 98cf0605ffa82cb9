"""The round loop: ask the enrolled sites, add replies as they arrive, close at the last one or the deadline.

Speaks to sites through Flower's `Grid` alone, so every engine runs this code. What a killed process must not forget
goes to a `RoundLog` first: whom it asks, by which messages, and each reply before it counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol, runtime_checkable

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
from fedward_server.journal import (
    Accepted,
    Asked,
    Asking,
    Enrolled,
    Missed,
    OpenRound,
    Record,
    Recovered,
    RoundLog,
    Seat,
    Values,
)

__all__ = ["ClosedRound", "NamingGrid", "Roster", "RoundLoop"]

Weights = npt.NDArray[np.float32]
Roster = Mapping[int, str]
"""Site names by node."""

_NO_REPLY = "no_reply_before_the_deadline"
_TRANSPORT = "transport_error"
_UNAVAILABLE = 3  # Flower's ErrorCode.MESSAGE_UNAVAILABLE: never arrived there, or answered and forgotten
_TRANSIENT = {
    RefusalCode.TASK_CRASHED, RefusalCode.TASK_TIMED_OUT, RefusalCode.TASK_OUT_OF_MEMORY, RefusalCode.INTERNAL,
    RefusalCode.OUTSIDE_HOURS, RefusalCode.ROUND_REPLAYED, _TRANSPORT,
}  # fmt: skip
"""What costs a site one round and no more. A site killed behind its debit answers ``round_replayed``: it has paid, and
has no update to show; the next round is another."""


@runtime_checkable
class NamingGrid(Protocol):
    """A grid that outlives this process and tells what its messages are called before they leave."""

    @property
    def lineage(self) -> str:
        """Where another process finds the messages again."""

    def push_named(self, messages: Iterable[Message], note: Callable[[list[str]], None]) -> list[str]:
        """Push messages; `note` is told the next identifiers, in order, before they leave."""


class _Unlogged:
    def write(self, record: Record, values: Values | None = None) -> None:
        """Keep nothing."""


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
class _Tally:
    """What has come of a round so far."""

    missing: dict[str, str]
    accepted: list[str] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    losses: list[tuple[float, int]] = field(default_factory=list)

    def take(self, update: Update) -> None:
        """Note an accepted update."""
        self.accepted.append(update.site)
        self.steps[update.site] = update.steps
        self.losses += [(update.metrics["loss"], update.weight)] if "loss" in update.metrics else []
        self.missing.pop(update.site, None)


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
        log: told of every step before it is taken.
    """

    study: Study
    grid: Grid
    roster: Roster | None
    aggregator: Aggregator
    poll_seconds: float = 0.05
    clock: Callable[[], float] = time.monotonic
    signatures: tuple[Signature, ...] = ()
    log: RoundLog = field(default_factory=_Unlogged)
    enrolments: dict[int, Enrolment] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def enrol(self) -> None:
        """Call the roll; afterwards `enrolments` holds who said yes and `excluded` why the others did not.

        A node without a place in the roster can only speak for itself: what it says in the name of a site that
        enrolled from another node counts as said by ``node N``. Who is in `excluded` already is not asked.

        Raises:
            QuorumLostError: fewer sites said yes than the study's quorum.
        """
        nodes = list(self.roster) if self.roster is not None else [int(n) for n in self.grid.get_node_ids()]
        nodes = [node for node in nodes if self.roster is None or self.roster[node] not in self.excluded]
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
        seats = tuple(Seat.of(node, enrolment) for node, enrolment in self.enrolments.items())
        self.log.write(Enrolled(seats=seats, excluded=self.excluded))

    def seat(self, seats: Iterable[Seat]) -> None:
        """Take the enrolments of an earlier process, or call the roll where their nodes cannot be told any more.

        Raises:
            QuorumLostError: see `enrol`.
        """
        if self.roster is not None:
            nodes = {site: node for node, site in self.roster.items()}
        else:
            known = {int(node) for node in self.grid.get_node_ids()}
            nodes = {seat.site: seat.node for seat in seats if seat.node in known}
        self.enrolments = {nodes[s.site]: s.enrolment(self.study.digest) for s in seats if s.site in nodes}
        if not all(seat.site in nodes for seat in seats):
            if self.roster is None:
                self.enrolments = {}
                self.enrol()
            for seat in seats:
                if seat.site not in {e.site for e in self.enrolments.values()}:
                    self.excluded.setdefault(seat.site, "not_connected")

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
        if enrolment.site in map(attrgetter("site"), self.enrolments.values()):
            raise RejectedReply(check, f"{check}: a second node under one name")
        self.enrolments[node] = enrolment

    def rounds(self, weights: Weights, *, first: int = 1, recovered: Recovered | None = None) -> Iterator[ClosedRound]:
        """Yield every round of the study from `first` on, committed; the caller may stop between two of them.

        Args:
            weights: what the first one starts from.
            first: its number.
            recovered: how far an earlier process came in it.

        Raises:
            QuorumLostError: too few updates were accepted; the round is not committed.
        """
        gatekeeper = Gatekeeper(self.study, self.enrolments)
        active = {node: e for node, e in self.enrolments.items() if e.site not in self.excluded}
        for number in range(first, self.study.training.rounds + 1):
            gatekeeper.open_round(number)
            closed = self._one_round(number, weights, gatekeeper, active, recovered)
            weights, recovered = closed.weights, None
            yield closed

    def _one_round(
        self,
        number: int,
        weights: Weights,
        gatekeeper: Gatekeeper,
        active: dict[int, Enrolment],
        recovered: Recovered | None,
    ) -> ClosedRound:
        began = self.clock()
        self.aggregator.start(weights)
        tally = _Tally({e.site: _NO_REPLY for e in active.values()})
        self.asked |= dict.fromkeys(tally.missing, number)
        told = self._replay(recovered, tally) if recovered else OpenRound(number)
        settled = told.accepted.keys() | told.missed.keys()
        task = write_task(self.study, number, weights, self.signatures)
        nodes = [node for node, e in active.items() if e.site not in settled]
        for node, reply in self._ask(nodes, task, "train", str(number), self._found(told, active)):
            try:
                update = self._judge(node, reply, gatekeeper)
            except RejectedReply as error:
                self._miss(number, active[node].site, error, tally)
                continue
            finally:
                del reply  # before the next one is fetched: a model may be large
            self.log.write(Accepted.of(update), update.values)
            self.aggregator.add(update)
            tally.take(update)
            del update
        return self._close(number, tally, active, began)

    def _close(self, number: int, tally: _Tally, active: dict[int, Enrolment], began: float) -> ClosedRound:
        self.missed |= tally.missing
        for node in [n for n, e in active.items() if e.site in self.excluded]:
            del active[node]
        self._require_quorum(len(tally.accepted), f"answered in round {number}", tally.missing)
        new = self.aggregator.finish()
        if not np.isfinite(new).all():
            msg = f"round {number} gave a model that is not finite"
            raise QuorumLostError(msg, remedy="a smaller learning rate, locally or at the server")
        return ClosedRound(
            round=number,
            weights=new,
            accepted=tuple(sorted(tally.accepted)),
            missing=tally.missing,
            steps=tally.steps,
            seconds=self.clock() - began,
            loss=_mean(tally.losses),
        )

    def _replay(self, recovered: Recovered, tally: _Tally) -> OpenRound:
        """Count what an earlier process had accepted, and what it had not, without asking anybody."""
        for update in recovered.updates:
            self.aggregator.add(update)
            tally.take(update)
        for site, missed in recovered.open.missed.items():
            tally.missing[site] = missed.reason
            if missed.for_good:
                self.excluded[site] = missed.reason
        return recovered.open

    def _found(self, told: OpenRound, active: Mapping[int, Enrolment]) -> dict[str, int]:
        """Return the messages of an earlier process that this grid still knows, with their nodes."""
        if not told.lineage or told.lineage != self._lineage():
            return {}
        nodes = {e.site: node for node, e in active.items()}
        return {key: nodes[site] for key, site in told.waiting.items() if site in nodes}

    def _lineage(self) -> str:
        return self.grid.lineage if isinstance(self.grid, NamingGrid) else ""

    def _miss(self, number: int, site: str, error: RejectedReply, tally: _Tally) -> None:
        reason = str(error)
        for_good = error.check == "refused" and _code(reason) not in _TRANSIENT
        self.log.write(Missed(round=number, site=site, reason=reason, for_good=for_good))
        tally.missing[site] = reason
        if for_good:
            self.excluded[site] = reason

    def _judge(self, node: int, reply: Message, gatekeeper: Gatekeeper) -> Update:
        refusal = _reason(reply)
        if refusal:
            check = "refused"
            raise RejectedReply(check, refusal)
        return gatekeeper.check(node, reply.content)

    def _ask(
        self, nodes: list[int], content: RecordDict, kind: str, group: str, found: Mapping[str, int] | None = None
    ) -> Iterator[tuple[int, Message]]:
        """Send one content to every node and yield its reply, as each arrives, until the deadline.

        A reply to a message that another node was asked is nobody's: it neither counts nor costs that node its own.

        Args:
            nodes: whom to ask.
            content: what.
            kind: Flower's type of the message.
            group: the round.
            found: messages of an earlier process; their nodes are not asked again, but where the grid says that it
                has no such message.
        """
        deadline = self.clock() + self.study.aggregation.deadline_seconds
        found = dict(found or {})
        asked = set(found.values())
        waiting = found | self._push([node for node in nodes if node not in asked], content, kind, group)
        while waiting and self.clock() < deadline:
            looked = time.monotonic()
            replies = list(self.grid.pull_messages(list(waiting)))
            idle = not replies
            while replies:
                reply = replies.pop(0)
                key = reply.metadata.reply_to_message_id
                node = waiting.get(key)
                if node is not None and (reply.has_error() or reply.metadata.src_node_id == node):
                    del waiting[key]
                    if key in found and reply.has_error() and reply.error.code == _UNAVAILABLE:
                        waiting |= self._push([node], content, kind, group)
                    else:
                        yield node, reply
                del reply
            if idle and waiting:
                time.sleep(max(0.0, self.poll_seconds - (time.monotonic() - looked)))

    def _push(self, nodes: list[int], content: RecordDict, kind: str, group: str) -> dict[str, int]:
        """Send one content to every node; return the messages that the grid took, with their nodes.

        Of a task, it is logged whom it goes to before it leaves, and what the messages are called: before as well where
        the grid can tell, else behind.
        """
        if not nodes:
            return {}
        ttl, train = self.study.aggregation.deadline_seconds, kind == "train"
        messages = [Message(content, node, kind, ttl=ttl, group_id=group) for node in nodes]
        sites = [self.enrolments[node].site for node in nodes] if train else []
        rest = iter(sites)

        def note(identifiers: list[str]) -> None:
            if train:
                named = dict(zip(identifiers, rest, strict=False))
                self.log.write(Asked(round=int(group), lineage=self._lineage(), messages=named))

        if train:
            self.log.write(Asking(round=int(group), sites=tuple(sites)))
        if isinstance(self.grid, NamingGrid):
            identifiers = self.grid.push_named(messages, note)
        else:
            identifiers = list(self.grid.push_messages(messages))
            note(identifiers)
        return {key: node for key, node in zip(identifiers, nodes, strict=True) if key}

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
