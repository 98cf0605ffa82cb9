"""A site that falls out is asked once more, one that was away is asked to come back, and what comes late is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error

from fedward_client.ledger import Ledger
from fedward_common.audit import AuditLog
from fedward_common.errors import QuorumLostError, RefusalCode
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_common.wire import Enrolment, write_enrolment
from fedward_server.journal import Joined, Late, Record, Retried
from fedward_server.result import SiteRound
from fedward_server.rounds import ClosedRound, RoundLoop
from tests.builders import private_study
from tests.doubles import Behaviour, Delivery, Exchange, Rehearsal, fails, faithful, silent
from tests.server.killings import paying
from tests.server.test_rounds import SITES, a_study, answer, answering, grid_of, later, loop_of, refuses, run

BOTH = ("north", "west")


class Notes:
    """A log that can be read."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record, values: Any = None) -> None:  # noqa: ARG002  (the log's signature)
        self.records.append(record)

    def store(self, *_: object) -> None:
        """Keep no update: it is written whole then."""

    def of(self, kind: type[Any]) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


def noted(loop: RoundLoop) -> Notes:
    notes = Notes()
    loop.log = loop._post.log = notes
    return notes


def first(times: int, behaviour: Behaviour, then: Behaviour) -> Behaviour:
    """Do one thing in the first questions of each round, and another in the rest."""
    asked: dict[int, int] = {}

    def either(exchange: Exchange) -> Iterable[Delivery]:
        asked[exchange.round] = asked.get(exchange.round, 0) + 1
        return (behaviour if asked[exchange.round] <= times else then)(exchange)

    return either


def statuses(closed: Iterable[ClosedRound], site: str = "south") -> list[str]:
    return [entry.statuses[site].status for entry in closed]


# ---------------------------------------------------------------------------------------------------------- once more
@pytest.mark.parametrize(
    "behaviour",
    [
        fails(RefusalCode.TASK_CRASHED),
        refuses(RefusalCode.TASK_TIMED_OUT),
        refuses(RefusalCode.INTERNAL),
        lambda _: [Delivery(Error(5, "the node is away"), source=1)],
    ],
    ids=["crashed", "timed-out", "internal", "transport"],
)
def test_a_site_that_falls_out_once_loses_no_round(behaviour: Behaviour) -> None:
    study = a_study()
    loop = loop_of(study, {("south", 2): first(1, behaviour, answering(study))})
    notes = noted(loop)
    closed = run(loop)
    assert [entry.accepted for entry in closed] == [SITES] * 3
    assert closed[-1].weights.tobytes() == run(loop_of(study))[-1].weights.tobytes()
    assert [(record.round, record.site) for record in notes.of(Retried)] == [(2, "south")]
    assert closed[1].statuses["south"].status == "accepted"
    assert closed[1].statuses["south"].retried == notes.of(Retried)[0].reason
    assert loop.missed == {}


def test_a_site_is_asked_once_more_and_not_twice() -> None:
    loop = loop_of(a_study(), {("south", 2): fails()})
    closed = run(loop)
    assert grid_of(loop).asked.count(("south", 2)) == 2
    assert closed[1].statuses["south"] == SiteRound(status="missed", reason="task_crashed", retried="task_crashed")
    assert statuses(closed) == ["accepted", "missed", "accepted"]


@pytest.mark.parametrize("times", [2, 3])
def test_a_centre_that_is_cut_off_loses_no_run(times: int) -> None:
    """All sites are out of reach in one round, by its network or by its clock: it asks until there is a quorum."""
    study = a_study(aggregation={"deadline_seconds": 120, "quorum": 2})
    loop = loop_of(study, {(site, 2): first(times, fails("away", code=5), answering(study)) for site in SITES})
    notes = noted(loop)
    closed = run(loop)
    assert len(closed) == 3
    assert len(closed[1].accepted) >= 2
    assert closed[1].seconds < 60
    assert len({(record.round, record.site) for record in notes.of(Retried)}) == len(notes.of(Retried))


def test_a_centre_that_stays_cut_off_fails_at_the_deadline_and_not_before() -> None:
    study = a_study(aggregation={"deadline_seconds": 120, "quorum": 2})
    loop = loop_of(study, {(site, 2): fails("away", code=5) for site in SITES})
    began = loop.clock()
    with pytest.raises(QuorumLostError, match="transport_error code=5"):
        run(loop)
    assert 110 <= loop.clock() - began <= 130
    assert len(grid_of(loop).asked) < 60


@pytest.mark.parametrize(
    "code", [RefusalCode.ROUND_REPLAYED, RefusalCode.OUTSIDE_HOURS, RefusalCode.TASK_OUT_OF_MEMORY]
)
def test_what_would_be_answered_alike_is_not_asked_again(code: RefusalCode) -> None:
    loop = loop_of(a_study(), {("south", 2): refuses(code)})
    closed = run(loop)
    assert grid_of(loop).asked.count(("south", 2)) == 1
    assert statuses(closed) == ["accepted", "missed", "accepted"]


def test_nobody_is_asked_once_more_when_the_deadline_has_come() -> None:
    slow = [Delivery(Error(8, RefusalCode.TASK_CRASHED), after=9.0)]
    loop = loop_of(a_study(), {("south", 2): lambda _: slow})
    closed = run(loop)
    assert grid_of(loop).asked.count(("south", 2)) == 1
    assert closed[1].seconds <= 11


def test_a_site_that_has_paid_is_asked_once_more_and_never_pays_twice() -> None:
    """Its child was killed behind its debit: it answers that it has paid, which is final for the round."""
    study = private_study(sites=list(SITES), aggregation={"deadline_seconds": 60, "quorum": 2})
    pays, debits = paying(study), []

    def struck(exchange: Exchange) -> Iterable[Delivery]:
        made = list(pays(exchange))
        refused = "refusal" in made[0].content.config_records["fedward"]  # type: ignore[union-attr]
        if not refused:
            debits.append(exchange.round)
        return made if refused or exchange.round != 2 else fails()(exchange)

    loop = loop_of(study, {**dict.fromkeys(SITES, pays), "south": struck})
    closed = run(loop)
    assert debits == [0, *range(1, study.training.rounds + 1)]
    assert grid_of(loop).asked.count(("south", 2)) == 2
    told = SiteRound(status="missed", reason="round_replayed round=2", retried="task_crashed")
    assert closed[1].statuses["south"] == told
    assert loop.excluded == {}


def test_replies_that_the_centre_lost_after_every_site_had_paid_cost_no_round(tmp_path: Path) -> None:
    """The centre's clock jumps an hour forth: its SuperLink takes what sites have sent for expired, and forgets it."""
    study = private_study(sites=list(SITES), aggregation={"deadline_seconds": 60, "quorum": 3})
    rehearsal = Rehearsal(study, tmp_path)
    forgets = fails("expired", code=3, trained=True)
    outcome = rehearsal.run({(site, 2): first(2, forgets, faithful) for site in SITES})
    assert outcome.result.status == "completed"
    assert [entry.sites for entry in outcome.result.rounds] == [SITES] * study.training.rounds
    for site, home in rehearsal.homes.items():
        changes = Ledger(home / "ledger.sqlite").changes()
        assert [c.round for c in changes if c.event == "reserved"] == list(range(1, study.training.rounds + 1)), site
        again = [e for e in AuditLog(home).entries() if e.event == "released again"]
        assert {e.fields["round"] for e in again} == {2}


# ---------------------------------------------------------------------------------------------------------- come back
def test_a_site_that_was_away_at_the_roll_call_takes_part_once_it_is_there() -> None:
    study = a_study(training={"rounds": 4})
    loop = loop_of(study, {("south", 0): first(1, silent, later(study, 1.5))})
    notes = noted(loop)
    closed = run(loop)
    assert [entry.accepted for entry in closed] == [BOTH, SITES, SITES, SITES]
    assert closed[0].statuses["south"] == SiteRound(status="absent", reason="no_reply_before_the_deadline")
    assert [(record.round, record.seat.site) for record in notes.of(Joined)] == [(2, "south")]
    assert (loop.excluded, loop.away) == ({}, set())
    assert loop.missed == {"south": "no_reply_before_the_deadline"}


def test_a_site_that_fell_silent_is_asked_who_it_is_and_not_to_train_until_it_says_so() -> None:
    study = a_study(training={"rounds": 5})
    called: list[int] = []

    def back(exchange: Exchange) -> Iterable[Delivery]:
        called.append(exchange.round)
        return answering(study)(exchange) if len(called) in {1, 5} else []

    loop = loop_of(study, {("south", 0): back, ("south", 2): silent})
    grid = grid_of(loop)
    closed = run(loop)
    assert statuses(closed)[:3] == ["accepted", "missed", "absent"]
    assert ("south", 3) not in grid.asked
    assert closed[2].seconds <= 3  # a site that is away costs nobody a deadline
    assert closed[2].statuses["south"].reason == "no_reply_before_the_deadline"


def test_one_that_comes_back_with_other_patients_counts_for_those_that_it_has_now() -> None:
    study = a_study()

    def grown(exchange: Exchange) -> Iterable[Delivery]:
        return [Delivery(answer(study, exchange, patients=60))]

    south: dict[Any, Behaviour] = {("south", 0): first(1, answering(study), grown), ("south", 1): silent}
    loop = loop_of(study, {**south, ("south", 2): grown, ("south", 3): grown})
    closed = run(loop)
    assert statuses(closed) == ["missed", "accepted", "accepted"]
    assert next(e.patients for e in loop.enrolments.values() if e.site == "south") == 60


def test_one_that_refuses_for_good_when_it_comes_back_stays_out() -> None:
    study = a_study(training={"rounds": 4})
    gone = first(1, answering(study), refuses(RefusalCode.BUDGET_EXCEEDED))
    loop = loop_of(study, {("south", 0): gone, ("south", 1): silent})
    closed = run(loop)
    assert statuses(closed) == ["missed", "excluded", "excluded", "excluded"]
    assert loop.excluded == {"south": "budget_exceeded"}
    assert [round_ for site, round_ in grid_of(loop).asked if site == "south"] == [0, 1, 0]


def test_one_that_refused_for_good_at_the_roll_call_is_never_asked_again() -> None:
    loop = loop_of(a_study(), {("south", 0): refuses(RefusalCode.POLICY_LIMIT)})
    closed = run(loop)
    assert statuses(closed) == ["excluded"] * 3
    assert [round_ for site, round_ in grid_of(loop).asked if site == "south"] == [0]


def test_another_sites_name_opens_no_door() -> None:
    study = a_study()
    forged = [Delivery(write_enrolment(Enrolment("north", study.digest, 40, "1")))]
    loop = loop_of(study, {("south", 0): first(1, silent, lambda _: forged)})
    closed = run(loop)
    assert [entry.accepted for entry in closed] == [BOTH] * 3
    assert loop.excluded == {"south": "enrolment: the node enrols under another site's name"}


def test_a_question_that_is_still_out_is_not_asked_a_second_time() -> None:
    study = a_study(training={"rounds": 6}, aggregation={"deadline_seconds": 1000})
    loop = loop_of(study, {("south", 0): first(1, fails("away", code=5), silent)})
    run(loop)
    assert [round_ for site, round_ in grid_of(loop).asked if site == "south"] == [0, 0]


def test_a_node_that_is_away_is_not_asked_at_every_look() -> None:
    """Where the grid says at once that nobody is there."""
    study = a_study(training={"rounds": 2}, aggregation={"deadline_seconds": 150})
    slow = {("north", round_): later(study, 140.0) for round_ in (1, 2)}
    gone = first(1, answering(study), fails("away", code=5))
    loop = loop_of(study, {**slow, ("south", 0): gone, ("south", 1): fails("away", code=5)})
    run(loop)
    assert [round_ for site, round_ in grid_of(loop).asked if site == "south"] == [0, 1, 1, 0, 0]


def test_a_round_waits_for_a_site_that_is_away_only_where_there_is_no_quorum_without_it() -> None:
    study = a_study(sites=["north", "south"])
    loop = loop_of(study, {("south", 0): first(1, answering(study), later(study, 6.0)), ("south", 1): silent})
    loop.enrol()
    rounds = loop.rounds(initial_weights(study))
    with pytest.raises(QuorumLostError, match="1 sites answered in round 1"):
        next(rounds)
    assert loop.away == {"south"}
    again = next(loop.rounds(initial_weights(study), first=2))
    assert again.accepted == ("north", "south")
    assert again.seconds >= 6


def test_a_round_waits_for_a_required_site_that_is_away_though_a_quorum_is_there() -> None:
    study = a_study(aggregation={"required_sites": ["south"], "deadline_seconds": 120})
    cut_off = first(2, fails("away", code=5), answering(study))
    loop = loop_of(study, {("south", 2): cut_off})
    closed = run(loop)
    assert [entry.accepted for entry in closed] == [SITES] * 3
    without = a_study(aggregation={"deadline_seconds": 120})
    free = run(loop_of(without, {("south", 2): first(2, fails("away", code=5), answering(without))}))
    assert free[1].accepted == BOTH
    assert free[1].seconds < closed[1].seconds


def test_one_that_comes_back_late_in_a_round_takes_part_from_the_next() -> None:
    study = a_study()
    slow = {("north", 2): later(study, 9.0)}
    back = first(1, answering(study), later(study, 7.0))
    loop = loop_of(study, {**slow, ("south", 0): back, ("south", 1): silent})
    assert statuses(run(loop)) == ["missed", "absent", "accepted"]
    assert ("south", 2) not in grid_of(loop).asked


def test_a_question_that_went_astray_is_asked_again_within_the_round() -> None:
    study = a_study(sites=["north", "south"], aggregation={"deadline_seconds": 300})
    loop = loop_of(study, {("south", 0): first(2, fails("away", code=5), silent)})
    with pytest.raises(QuorumLostError, match="1 sites enrolled"):
        loop.enrol()
    calls = first(1, silent, answering(study))
    loop = loop_of(study, {("south", 0): first(1, answering(study), calls), ("south", 1): silent})
    loop.enrol()
    with pytest.raises(QuorumLostError):
        next(loop.rounds(initial_weights(study)))
    again = next(loop.rounds(initial_weights(study), first=2))
    assert again.accepted == ("north", "south")
    assert 60 <= again.seconds <= 70


def test_nodes_without_keys_come_back_by_their_node() -> None:
    study = a_study()
    loop = loop_of(study, {("south", 1): silent}, roster=False)
    assert statuses(run(loop)) == ["missed", "accepted", "accepted"]


# --------------------------------------------------------------------------------------------------------------- late
def late_run(behaviour: Callable[[Study], Behaviour]) -> tuple[RoundLoop, list[ClosedRound], Notes]:
    study = a_study()
    loop = loop_of(study, {("south", 1): behaviour(study)})
    notes = noted(loop)
    return loop, run(loop), notes


def test_a_late_update_is_told_and_not_used() -> None:
    loop, closed, notes = late_run(lambda study: later(study, 11.0))
    lost = run(loop_of(a_study(), {("south", 1): silent}))
    told = Late(round=2, of=1, site="south", reason="reply_after_the_deadline")
    assert loop.late == notes.of(Late) == [told]
    assert [entry.accepted for entry in closed] == [BOTH, SITES, SITES]
    assert [entry.weights.tobytes() for entry in closed] == [entry.weights.tobytes() for entry in lost]


def test_a_late_refusal_is_told_with_its_code() -> None:
    crash = [Delivery(Error(8, RefusalCode.TASK_TIMED_OUT), after=12.0)]
    loop, closed, _ = late_run(lambda _: lambda _: crash)
    assert [late.reason for late in loop.late] == ["task_timed_out"]
    assert closed[1].accepted == SITES


def test_that_the_grid_gave_a_message_up_is_no_late_reply() -> None:
    gone = [Delivery(Error(3, "expired"), after=12.0, source=1)]
    loop, _, _ = late_run(lambda _: lambda _: gone)
    assert loop.late == []
