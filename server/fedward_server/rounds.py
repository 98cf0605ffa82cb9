"""The round loop: ask the enrolled sites, add replies as they arrive, close at the last one or the deadline.

Speaks to sites through Flower's `Grid` alone, so every engine runs this code. What a killed process must not forget
goes to a `RoundLog` first: whom it asks, by which messages, and each reply before it counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.serverapp import Grid

from fedward_common.errors import QuorumLostError, RejectedReply
from fedward_common.paged import blocks, let_go
from fedward_common.study import Study
from fedward_common.study_file import Signature
from fedward_common.wire import Enrolment, Update, write_roll_call, write_task
from fedward_server.aggregation import Aggregator, Streaming
from fedward_server.chances import Chances
from fedward_server.gatekeeper import Gatekeeper
from fedward_server.journal import (
    Accepted,
    Enrolled,
    Extended,
    Joined,
    Late,
    Missed,
    OpenRound,
    Record,
    Recovered,
    Retried,
    RoundLog,
    Seat,
    StoredUpdate,
    Values,
    time_left,
)
from fedward_server.post import NamingGrid, Post, Question
from fedward_server.replies import (
    LATE,
    NO_REPLY,
    is_unavailable,
    may_return,
    reason_of,
    refused_for_good,
    unreachable,
)
from fedward_server.result import SiteRound
from fedward_server.roll import NOT_CONNECTED, RollCall, Roster, may_come, read_answer
from fedward_server.tally import ClosedRound, Tally
from fedward_server.variates import sent_control

__all__ = ["ClosedRound", "NamingGrid", "Roster", "RoundLoop"]

Weights = npt.NDArray[np.float32]

_CALL_S: Final = 60.0
_LONGEST_CALL_S: Final = 300.0


class _Unlogged:
    def write(self, record: Record, values: Values | None = None) -> None:
        """Keep nothing."""

    def store(self, update: Update, size: int, parts: Iterable[Values]) -> StoredUpdate | None:  # noqa: ARG002
        """Keep nothing."""
        return None


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
        wall: Unix seconds; only a resumed round looks at them.
        signatures: what every message carries beside the study.
        log: told of every step before it is taken.
        enrolments: by node, who said yes; of a site that came back, what it said last.
        excluded: why sites are out; those of them in `away` until they come.
        away: sites that are asked at the start of each round whether they take part again.
        missed: the last reason for which a site missed a round.
        asked: the last round that a site was asked for.
        late: replies that came after their round.
        patient: whether a round whose deadline comes without a quorum stays open while there may be one.
    """

    study: Study
    grid: Grid
    roster: Roster | None
    aggregator: Aggregator
    poll_seconds: float = 0.05
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    signatures: tuple[Signature, ...] = ()
    log: RoundLog = field(default_factory=_Unlogged)
    enrolments: dict[int, Enrolment] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    late: list[Late] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    patient: bool = False

    def __post_init__(self) -> None:
        self._post = Post(self.grid, self.log, self.clock)
        self._called: dict[int, tuple[float, float]] = {}

    def enrol(self) -> None:
        """Call the roll; afterwards `enrolments` holds who said yes, `excluded` why the others did not.

        Who is in `excluded` already is not asked.

        Raises:
            QuorumLostError: fewer sites said yes than the study's quorum, or not each required one.
        """
        nodes = list(self.roster) if self.roster is not None else [int(n) for n in self.grid.get_node_ids()]
        nodes = [node for node in nodes if self.roster is None or self.roster[node] not in self.excluded]
        roll = RollCall(self.study, self.roster, nodes)
        seconds = self.study.aggregation.deadline_seconds
        ends = self.clock() + seconds
        names = {node: self.roster[node] if self.roster is not None else f"node {node}" for node in nodes}
        self._post.send(names, write_roll_call(self.study, self.signatures), 0, seconds)
        for question, reply in self._post.replies(ends, self.poll_seconds, lambda: bool(self._post.out)):
            roll.take(question.node, reply)
        self._post.out.clear()
        self.enrolments |= roll.enrolments
        out, away = roll.outcome()
        self.away |= away - self.excluded.keys()
        self.excluded = out | self.excluded
        self._require_quorum([enrolment.site for enrolment in self.enrolments.values()], "enrolled")
        seats = tuple(Seat.of(node, enrolment) for node, enrolment in self.enrolments.items())
        self.log.write(Enrolled(seats=seats, excluded=self.excluded, away=tuple(sorted(self.away))))

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
                    self.excluded.setdefault(seat.site, NOT_CONNECTED)

    def rounds(self, weights: Weights, *, first: int = 1, recovered: Recovered | None = None) -> Iterator[ClosedRound]:
        """Yield every round of the study from `first` on, committed; the caller may stop between two of them.

        Args:
            weights: what the first one starts from.
            first: its number.
            recovered: how far an earlier process came in it.

        Raises:
            QuorumLostError: too few updates were accepted, or not each required site's; the round is not committed.
        """
        gatekeeper = Gatekeeper(self.study, self.enrolments)
        for number in range(first, self.study.training.rounds + 1):
            gatekeeper.open_round(number)
            closed = self._one_round(number, weights, gatekeeper, recovered)
            weights, recovered = closed.weights, None
            yield closed

    def _one_round(
        self, number: int, weights: Weights, gatekeeper: Gatekeeper, recovered: Recovered | None
    ) -> ClosedRound:
        self.aggregator.start(weights)
        out = self.excluded.keys() | self.away
        active = {node: e.site for node, e in self.enrolments.items() if e.site not in out}
        tally = self._open(number, weights, active.values(), recovered)
        self.asked |= dict.fromkeys(tally.missing, number)
        told = self._replay(recovered, tally) if recovered else OpenRound(number)
        found = self._found(told, active)
        self._post.adopt(found, active, number, self.study.aggregation.deadline_seconds)
        asked = set(found.values())
        self._send(tally, {n: site for n, site in active.items() if n not in asked and site not in told.settled})
        self._call_absent(anew=True)
        while True:
            for question, reply in self._post.replies(tally.ends, self.poll_seconds, lambda: self._awaits(tally)):
                self._hear(question, reply, tally, gatekeeper)
                del reply  # before the next one is fetched: a model may be large
            if not self._extend(tally):
                return self._close(tally)

    def _extend(self, tally: Tally) -> bool:
        """Return whether the round goes on for another deadline: there is no quorum, and there may be one.

        What was accepted stays. Sites that may be back are asked who they are, as all that were away, and then to
        train.
        """
        rule = self.study.aggregation
        if not self.patient or rule.stands(tally.accepted) or not tally.may_stand(rule, self.away):
            return False
        until, working = self.wall() + rule.deadline_seconds, self._working(tally)
        back = sorted(s for s, why in tally.missing.items() if may_return(why) and s not in working)
        self.log.write(Extended(round=tally.number, until=until, sites=tuple(back)))
        self.away |= set(back)
        tally.chances, tally.ends_at = tally.chances.extended(self.clock() + rule.deadline_seconds), until
        return True

    def _working(self, tally: Tally) -> set[str]:
        """Return the sites that have been asked, or will be once more, and may yet answer."""
        asked = {question.site for question in self._post.out.values() if question.round == tally.number}
        return asked | {self.enrolments[node].site for node in tally.chances.pending}

    def _open(self, number: int, weights: Weights, sites: Iterable[str], recovered: Recovered | None) -> Tally:
        whole, now, at = self.study.aggregation.deadline_seconds, self.clock(), self.wall()
        left = time_left(recovered.open.until, at, whole) if recovered else whole
        control = sent_control(self.aggregator.state())
        task = write_task(self.study, number, weights, self.signatures, control=control, counted=self.counted)
        return Tally(number, task, now, at + left, dict.fromkeys(sites, NO_REPLY), Chances(now + left))

    def _awaits(self, tally: Tally) -> bool:
        """Ask once more those whose time has come; return whether the round waits for anything.

        It waits for sites that are away or out of reach only as long as there is no quorum without them.
        """
        due = tally.chances.due(self.clock())
        self._send(tally, {node: self.enrolments[node].site for node in due})
        self._call_absent()
        if tally.chances.pending or any(question.round == tally.number for question in self._post.out.values()):
            return True
        short = not self.study.aggregation.stands(tally.accepted)
        if short and tally.chances.revive(self.clock()):
            return True
        if short and self.patient and tally.may_stand(self.study.aggregation, self.away):
            return True
        return short and any(not question.round for question in self._post.out.values())

    def _send(self, tally: Tally, sites: Mapping[int, str]) -> None:
        self._post.send(sites, tally.task, tally.number, tally.ends - self.clock(), ends=tally.ends_at)

    def _call_absent(self, *, anew: bool = False) -> None:
        """Ask every site that is away whether it is back: as a round starts, after 1, 2 and 4 minutes, and every 5.

        Not while such a question is out. Each leaves an entry in the log of a hospital that is there and says no.
        """
        now = self.clock()
        self._post.forget_expired()
        nodes = {e.site: node for node, e in self.enrolments.items()}
        if self.roster is not None:
            nodes |= {site: node for node, site in self.roster.items()}
        resting = {question.node for question in self._post.out.values() if not question.round}
        if not anew:
            resting |= {node for node, (at, pause) in self._called.items() if now < at + pause}
        absent = {nodes[site]: site for site in sorted(self.away) if site in nodes and nodes[site] not in resting}
        if absent:
            for node in absent:
                pause = 2 * self._called[node][1] if node in self._called and not anew else _CALL_S
                self._called[node] = now, min(pause, _LONGEST_CALL_S)
            seconds = min(_CALL_S, self.study.aggregation.deadline_seconds)
            self._post.send(absent, write_roll_call(self.study, self.signatures), 0, seconds)

    def _hear(self, question: Question, reply: Message, tally: Tally, gatekeeper: Gatekeeper) -> None:
        if not question.round:
            self._welcome(question, reply, tally, gatekeeper)
        elif question.round != tally.number:
            self._note_late(question, reply, tally.number)
        elif question.adopted and is_unavailable(reply):
            self._send(tally, {question.node: question.site})
        else:
            self._settle(question, reply, tally, gatekeeper)

    def _settle(self, question: Question, reply: Message, tally: Tally, gatekeeper: Gatekeeper) -> None:
        try:
            self._accept(question.node, reply, gatekeeper, tally)
        except RejectedReply as error:
            site, reason = question.site, str(error)
            if tally.chances.once_more(question, error, self.clock()):
                self.log.write(Retried(round=tally.number, site=site, reason=reason))
                tally.missing[site] = reason
            elif tally.chances.lose(question, error):
                tally.missing[site] = reason
            else:
                self._miss(site, error, tally)

    def _accept(self, node: int, reply: Message, gatekeeper: Gatekeeper, tally: Tally) -> None:
        """Check a reply, log it, and count it; nothing of it counts before all of it has been checked.

        For a streaming rule, its values go from the grid to the log part by part, and are in memory at no time.

        Raises:
            RejectedReply: it is no update of this round.
        """
        refusal = reason_of(reply)
        if refusal:
            check = "refused"
            raise RejectedReply(check, refusal)
        if isinstance(self.aggregator, Streaming):
            head, parts = gatekeeper.open(node, reply.content)
            stored = self.log.store(head, gatekeeper.size, parts)
            if stored is not None:
                self.aggregator.take(stored)
                tally.take(head)
                return
        update = gatekeeper.check(node, reply.content)
        self.log.write(Accepted.of(update), update.values)
        self.aggregator.add(update)
        tally.take(update)

    def _miss(self, site: str, error: RejectedReply, tally: Tally) -> None:
        reason, for_good = str(error), refused_for_good(error)
        self.log.write(Missed(round=tally.number, site=site, reason=reason, for_good=for_good))
        tally.missing[site] = reason
        if for_good:
            self.excluded[site] = reason

    def _note_late(self, question: Question, reply: Message, number: int) -> None:
        """Record a reply that nobody waits for any more; the grid's word that there is none is no reply."""
        reason = reason_of(reply) or LATE
        if not unreachable(reason):
            late = Late(round=number, of=question.round, site=question.site, reason=reason)
            self.log.write(late)
            self.late.append(late)

    def _welcome(self, question: Question, reply: Message, tally: Tally, gatekeeper: Gatekeeper) -> None:
        """Seat a site that was away, and ask it at once if half of the time is left, or no quorum without it."""
        node, site = question.node, question.site
        others = [enrolment for other, enrolment in self.enrolments.items() if other != node]
        try:
            enrolment = read_answer(self.study, self.roster, node, reply, others)
        except RejectedReply as error:
            if not may_come(error):
                self.away.discard(site)
                self.excluded[site] = str(error)
            return
        seat = Seat.of(node, enrolment)
        self.log.write(Joined(round=tally.number, seat=seat, excluded=self.excluded.get(site, "")))
        self.enrolments[node] = enrolment
        self._called.pop(node, None)
        gatekeeper.admit(node, enrolment)
        self._take_back(site)
        short = not self.study.aggregation.stands({*tally.accepted, *self._working(tally)})
        if short or tally.ends - self.clock() >= (tally.ends - tally.began) / 2:
            self.asked[site] = tally.number
            tally.missing[site] = NO_REPLY
            self._send(tally, {node: site})

    def _take_back(self, site: str) -> None:
        self.away.discard(site)
        if site in self.excluded:
            self.missed.setdefault(site, self.excluded.pop(site))

    def _close(self, tally: Tally) -> ClosedRound:
        for node, error in tally.chances.lost.items():
            self._miss(self.enrolments[node].site, error, tally)
        self.missed |= tally.missing
        statuses = self._statuses(tally)
        self.away |= {site for site, reason in tally.missing.items() if unreachable(reason)}
        self._require_quorum(tally.accepted, f"answered in round {tally.number}", tally.missing)
        new = self.aggregator.finish()
        if not _finite(new):
            msg = f"round {tally.number} gave a model that is not finite"
            raise QuorumLostError(msg, remedy="a smaller learning rate, locally or at the server")
        self.counted |= dict.fromkeys(tally.accepted, tally.number)
        return ClosedRound(
            round=tally.number,
            weights=new,
            accepted=tuple(sorted(tally.accepted)),
            missing=tally.missing,
            steps=tally.steps,
            seconds=self.clock() - tally.began,
            loss=tally.loss,
            statuses=statuses,
        )

    def _statuses(self, tally: Tally) -> dict[str, SiteRound]:
        """Return what every planned site did in a round, asked or not."""
        found: dict[str, SiteRound] = {}
        for site in self.study.sites:
            retried = tally.chances.retried.get(site)
            why = tally.missing.get(site)
            if site in tally.accepted:
                found[site] = SiteRound(status="accepted", retried=retried)
            elif site in self.excluded and site not in self.away:
                found[site] = SiteRound(status="excluded", reason=self.excluded[site], retried=retried)
            elif why is not None:
                found[site] = SiteRound(status="missed", reason=why, retried=retried)
            else:
                why = self.excluded.get(site) or self.missed.get(site) or NOT_CONNECTED
                found[site] = SiteRound(status="absent", reason=why)
        return found

    def _replay(self, recovered: Recovered, tally: Tally) -> OpenRound:
        """Count what an earlier process had accepted, and what it had not, without asking anybody."""
        for update in recovered.updates:
            if isinstance(self.aggregator, Streaming):
                self.aggregator.take(update)
            else:
                self.aggregator.add(update.whole())
            tally.take(update.head)
        for site, missed in recovered.open.missed.items():
            tally.missing[site] = missed.reason
            if missed.for_good:
                self.excluded[site] = missed.reason
        tally.chances.retried |= recovered.open.retried
        for site in recovered.open.asked - recovered.open.settled:  # left the roster in between
            tally.missing.setdefault(site, self.excluded.get(site, NOT_CONNECTED))
        self.late += recovered.open.late
        return recovered.open

    def _found(self, told: OpenRound, active: Mapping[int, str]) -> dict[str, int]:
        """Return the messages of an earlier process that this grid still knows, with their nodes."""
        if not told.lineage or told.lineage != self._post.lineage:
            return {}
        nodes = {site: node for node, site in active.items()}
        return {key: nodes[site] for key, site in told.waiting.items() if site in nodes}

    def _require_quorum(self, sites: Sequence[str], what: str, missing: Mapping[str, str] | None = None) -> None:
        rule = self.study.aggregation
        if rule.stands(sites):
            return
        reasons = "; ".join(f"{site}: {why}" for site, why in sorted((missing or self.excluded).items()))
        lost = f"{len(sites)} sites {what}, the quorum is {rule.quorum}"
        if len(sites) >= rule.quorum:
            lost = f"required sites have not {what}: {', '.join(sorted(set(rule.required_sites) - set(sites)))}"
        msg = f"{lost} ({reasons})"
        raise QuorumLostError(msg, remedy="see each site's reason in result.json")


def _finite(weights: Weights) -> bool:
    for part in blocks(len(weights)):
        if not np.isfinite(weights[part]).all():
            return False
        let_go(weights)
    return True
