"""The round loop over scripted replies: enrolment, quorum, deadline, and who is asked again."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedward_common.errors import CoordinatorError, QuorumLostError, Refusal, RefusalCode
from fedward_common.models import initial_weights
from fedward_common.study import Study
from fedward_common.wire import Enrolment, Update, write_enrolment, write_refusal, write_update
from fedward_server.aggregation import aggregator_for
from fedward_server.rounds import ClosedRound, RoundLoop
from tests.builders import small_study, update
from tests.doubles import (
    STRANGER,
    Behaviour,
    Delivery,
    Exchange,
    ScriptedGrid,
    fails,
    says,
    silent,
    with_array,
    with_header,
)

SITES = ("north", "south", "west")
FIRST, LAST = 2, 4  # nodes of the first and the last site


def a_study(**changes: Any) -> Study:
    return small_study(**{"sites": list(SITES), "aggregation": {"deadline_seconds": 10}, **changes})


def answering(study: Study, *, patients: int = 40) -> Behaviour:
    """Return a site without a home that enrols and sends a fixed update."""

    def behaviour(exchange: Exchange) -> list[Delivery]:
        return [Delivery(answer(study, exchange, patients=patients))]

    return behaviour


def answer(study: Study, exchange: Exchange, *, patients: int = 40) -> RecordDict:
    if exchange.round == 0:
        return write_enrolment(Enrolment(exchange.site, study.digest, patients, "1"))
    seed = sum(map(ord, exchange.site)) + exchange.round
    return write_update(update(study, site=exchange.site, round_=exchange.round, weight=patients, seed=seed))


def later(study: Study, seconds: float) -> Behaviour:
    return lambda exchange: [Delivery(answer(study, exchange), after=seconds)]


def refuses(code: RefusalCode, site: str = "south", **fields: Any) -> Behaviour:
    return says(write_refusal(site, Refusal(code, "a text that stays at the site", fields=fields)))


def loop_of(
    study: Study, script: dict[Any, Behaviour] | None = None, *, roster: bool = True, order: tuple[str, ...] = ()
) -> RoundLoop:
    everybody: dict[Any, Behaviour] = dict.fromkeys(study.sites, answering(study))
    grid = ScriptedGrid(dict.fromkeys(study.sites), {**everybody, **(script or {})}, order=order)
    return RoundLoop(
        study, grid, grid.roster if roster else None, aggregator_for(study), poll_seconds=0, clock=grid.clock
    )


def grid_of(loop: RoundLoop) -> ScriptedGrid:
    assert isinstance(loop.grid, ScriptedGrid)
    return loop.grid


def run(loop: RoundLoop) -> list[ClosedRound]:
    loop.enrol()
    return list(loop.rounds(initial_weights(loop.study)))


def test_the_round_s_loss_is_the_weighted_mean_of_what_came_whatever_the_order() -> None:
    study = a_study()

    def tells(loss: float, patients: int) -> Behaviour:
        def behaviour(exchange: Exchange) -> list[Delivery]:
            if exchange.round == 0:
                return [Delivery(answer(study, exchange, patients=patients))]
            made = update(study, site=exchange.site, round_=exchange.round, weight=patients)
            return [Delivery(write_update(replace(made, metrics={"loss": loss})))]

        return behaviour

    script: dict[Any, Behaviour] = {"north": tells(0.1, 10), "south": tells(0.7, 30)}
    expected = (0.1 * 10 + 0.7 * 30) / 40
    found = {run(loop_of(study, script, order=order))[0].loss for order in permutations(SITES)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(expected)
    assert run(loop_of(study))[0].loss is None


# ------------------------------------------------------------------------------------------------------------ enrolment
def test_everybody_enrols_and_answers() -> None:
    loop = loop_of(a_study())
    closed = run(loop)
    assert [c.round for c in closed] == [1, 2, 3]
    assert all(c.accepted == SITES and not c.missing for c in closed)
    assert loop.excluded == loop.missed == {}
    assert loop.asked == dict.fromkeys(SITES, 3)


def test_node_that_enrols_under_another_sites_name_is_excluded_under_its_own() -> None:
    study = a_study()
    forged = says(write_enrolment(Enrolment("north", study.digest, 40, "1")))
    loop = loop_of(study, {("south", 0): forged})
    loop.enrol()
    assert loop.excluded == {"south": "enrolment: the node enrols under another site's name"}
    assert {e.site for e in loop.enrolments.values()} == {"north", "west"}


@pytest.mark.parametrize("site", ["east", "", "x" * 300])
def test_site_that_the_study_does_not_name_is_excluded(site: str) -> None:
    study = a_study()
    stranger = says(write_enrolment(Enrolment(site, study.digest, 40, "1")))
    for roster in (True, False):
        loop = loop_of(study, {("south", 0): stranger}, roster=roster)
        loop.enrol()
        assert {e.site for e in loop.enrolments.values()} == {"north", "west"}
        assert "south" in loop.excluded


def test_site_that_answers_for_another_study_is_excluded() -> None:
    study = a_study()
    loop = loop_of(study, {("south", 0): says(write_enrolment(Enrolment("south", a_study(seed=9).digest, 40, "1")))})
    loop.enrol()
    assert loop.excluded == {"south": "enrolment: not a site of this study"}


def test_second_node_under_one_name_does_not_cost_the_first_its_place() -> None:
    study = a_study()
    loop = loop_of(study, {("west", 0): says(write_enrolment(Enrolment("north", study.digest, 9, "1")))}, roster=False)
    closed = run(loop)
    assert loop.excluded == {f"node {LAST}": "enrolment: a second node under one name", "west": "not_connected"}
    assert loop.enrolments[FIRST].patients == 40
    assert [c.accepted for c in closed] == [("north", "south")] * 3


def test_node_without_a_key_cannot_refuse_in_another_sites_name() -> None:
    loop = loop_of(a_study(), {("west", 0): refuses(RefusalCode.POLICY_LIMIT, site="north")}, roster=False)
    closed = run(loop)
    assert loop.excluded == {f"node {LAST}": "policy_limit", "west": "not_connected"}
    assert [c.accepted for c in closed] == [("north", "south")] * 3


def test_silent_site_is_reported() -> None:
    loop = loop_of(a_study(), {"south": silent})
    loop.enrol()
    assert loop.excluded == {"south": "no_reply_before_the_deadline"}
    loop = loop_of(a_study(), {"south": silent}, roster=False)
    loop.enrol()
    assert loop.excluded == {"south": "not_connected"}


@pytest.mark.parametrize("roster", [True, False])
def test_refusing_site_is_reported_with_its_code_and_limit_and_no_more(*, roster: bool) -> None:
    fields: dict[str, Any] = {"key": "privacy.epsilon", "limit": 1.0, "asked": 8.0}
    loop = loop_of(a_study(), {("south", 0): refuses(RefusalCode.POLICY_LIMIT, **fields)}, roster=roster)
    loop.enrol()
    assert loop.excluded == {"south": "policy_limit asked=8.0 key=privacy.epsilon limit=1.0"}


def test_an_excluded_site_is_never_asked_to_train() -> None:
    loop = loop_of(a_study(), {("south", 0): refuses(RefusalCode.COHORT_EMPTY)})
    run(loop)
    assert [round_ for site, round_ in grid_of(loop).asked if site == "south"] == [0]
    assert "south" not in loop.asked


def test_a_hospital_that_has_not_approved_yet_is_asked_again_and_never_to_train() -> None:
    loop = loop_of(a_study(), {("south", 0): refuses(RefusalCode.AWAITING_APPROVAL)})
    run(loop)
    asked = [round_ for site, round_ in grid_of(loop).asked if site == "south"]
    assert len(asked) > 1
    assert set(asked) == {0}
    assert "south" not in loop.asked


def test_without_a_quorum_of_enrolments_every_reason_is_in_the_error() -> None:
    loop = loop_of(a_study(), {("south", 0): refuses(RefusalCode.COHORT_EMPTY), "west": silent})
    with pytest.raises(QuorumLostError, match="1 sites enrolled, the quorum is 2") as caught:
        loop.enrol()
    assert "south: cohort_empty; west: no_reply_before_the_deadline" in caught.value.message
    assert grid_of(loop).asked == [(site, 0) for site in SITES]


def test_without_a_required_site_no_run_begins() -> None:
    study = a_study(aggregation={"required_sites": ["south"]})
    loop = loop_of(study, {("south", 0): refuses(RefusalCode.COHORT_EMPTY)})
    with pytest.raises(QuorumLostError, match=r"required sites have not enrolled: south \(south: cohort_empty"):
        loop.enrol()


def test_transport_error_at_the_roll_call_tells_its_code_and_never_its_text() -> None:
    loop = loop_of(a_study(), {("south", 0): fails("ValueError: Jane Doe, born 1950", code=2)})
    loop.enrol()
    assert loop.excluded == {"south": "transport_error code=2"}


# -------------------------------------------------------------------------------------------------------- arrival order
@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
def test_any_permutation_of_replies_gives_the_same_bits(rule: str) -> None:
    sites = ["a", "b", "c", "d"]
    study = a_study(sites=sites, aggregation={"rule": rule})
    models = {run(loop_of(study, order=order))[-1].weights.tobytes() for order in permutations(sites)}
    assert len(models) == 1


def test_replies_that_trickle_in_give_the_same_bits_as_replies_at_once() -> None:
    study = a_study()
    slow = {site: later(study, 3.0 - number) for number, site in enumerate(SITES)}
    assert run(loop_of(study, slow))[-1].weights.tobytes() == run(loop_of(study))[-1].weights.tobytes()


# ------------------------------------------------------------------------------------------------------------- deadline
def test_round_closes_at_the_deadline_with_a_quorum_and_a_late_reply_is_not_used() -> None:
    study = a_study()
    loop = loop_of(study, {("south", 2): later(study, 11.0)})
    closed = run(loop)
    assert closed[1].accepted == ("north", "west")
    assert closed[1].missing == {"south": "no_reply_before_the_deadline"}
    assert 9 <= closed[1].seconds <= 12
    assert closed[2].accepted == SITES
    lost = run(loop_of(study, {("south", 2): silent}))
    assert [c.weights.tobytes() for c in closed] == [c.weights.tobytes() for c in lost]


def test_reply_just_before_the_deadline_is_used() -> None:
    study = a_study()
    closed = run(loop_of(study, {("south", 2): later(study, 8.5)}))
    assert closed[1].accepted == SITES


def test_a_round_does_not_wait_once_everybody_has_answered() -> None:
    closed = run(loop_of(a_study(aggregation={"deadline_seconds": 600_000})))
    assert all(c.seconds <= 2 for c in closed)


def test_node_that_cannot_be_reached_is_not_waited_for() -> None:
    class Unreachable(ScriptedGrid):
        def push_messages(self, messages: Any) -> list[str]:
            return ["" if self.roster[m.metadata.dst_node_id] == "south" else self._push(m) for m in messages]

    study = a_study(aggregation={"deadline_seconds": 600_000})
    grid = Unreachable(dict.fromkeys(SITES), dict.fromkeys(SITES, answering(study)))
    loop = RoundLoop(study, grid, grid.roster, aggregator_for(study), poll_seconds=0, clock=grid.clock)
    loop.enrol()
    assert loop.excluded == {"south": "no_reply_before_the_deadline"}
    assert grid.clock.now <= 2


# --------------------------------------------------------------------------------------------------------- asking again
@pytest.mark.parametrize(
    "behaviour",
    [
        fails(RefusalCode.TASK_CRASHED),
        fails(RefusalCode.TASK_TIMED_OUT),
        fails("some text of Flower's", code=5),
        refuses(RefusalCode.INTERNAL),
        refuses(RefusalCode.TASK_CRASHED),
        refuses(RefusalCode.ROUND_REPLAYED, round=1),
        silent,
        says(RecordDict()),
    ],
    ids=[
        "crashed",
        "timed-out",
        "transport",
        "internal",
        "crashed-at-the-site",
        "killed-behind-its-debit",
        "silent",
        "nonsense",
    ],
)
def test_site_that_fails_in_one_round_is_asked_again_in_the_next(behaviour: Behaviour) -> None:
    loop = loop_of(a_study(), {("south", 1): behaviour})
    closed = run(loop)
    assert [c.accepted for c in closed] == [("north", "west"), SITES, SITES]
    assert closed[0].missing.keys() == loop.missed.keys() == {"south"}
    assert loop.excluded == {}
    assert loop.asked["south"] == 3


@pytest.mark.parametrize(
    "code", [RefusalCode.BUDGET_EXCEEDED, RefusalCode.UPDATE_NOT_FINITE, RefusalCode.COHORT_MISSING]
)
def test_site_that_refuses_for_good_is_not_asked_again(code: RefusalCode) -> None:
    loop = loop_of(a_study(), {("south", 2): refuses(code)})
    closed = run(loop)
    assert [c.accepted for c in closed] == [SITES, ("north", "west"), ("north", "west")]
    assert [c.missing for c in closed] == [{}, {"south": code.value}, {}]
    assert loop.excluded == {"south": code.value}
    assert loop.asked == {"north": 3, "south": 2, "west": 3}
    assert grid_of(loop).asked.count(("south", 3)) == 0


def test_quorum_lost_in_a_round_names_every_reason_and_commits_nothing() -> None:
    crash, bad = fails(RefusalCode.TASK_CRASHED), says(RecordDict())
    loop = loop_of(a_study(), {("south", 2): crash, ("west", 2): bad})
    loop.enrol()
    rounds = loop.rounds(initial_weights(loop.study))
    assert next(rounds).accepted == SITES
    with pytest.raises(QuorumLostError, match="1 sites answered in round 2, the quorum is 2") as caught:
        next(rounds)
    assert "south: task_crashed; west: no header of this protocol" in caught.value.message
    assert loop.missed == {"south": "task_crashed", "west": "no header of this protocol"}
    assert next(rounds, None) is None


def test_a_round_without_a_required_site_gives_no_model_however_many_answer() -> None:
    study = a_study(aggregation={"required_sites": ["south", "north"]})
    loop = loop_of(study, {("south", 2): refuses(RefusalCode.TASK_OUT_OF_MEMORY)})
    loop.enrol()
    rounds = loop.rounds(initial_weights(study))
    assert next(rounds).accepted == SITES
    lost = r"required sites have not answered in round 2: south \(south: task_out_of_memory"
    with pytest.raises(QuorumLostError, match=lost):
        next(rounds)


class _Diverging:
    """An aggregator whose next model is not finite."""

    def start(self, weights: npt.NDArray[np.float32]) -> None:
        self._size = len(weights)

    def add(self, update: Update) -> None:
        pass

    def finish(self) -> npt.NDArray[np.float32]:
        return np.array([np.inf] + [0.0] * (self._size - 1), dtype=np.float32)

    def state(self) -> dict[str, npt.NDArray[np.float64]]:
        return {}


def test_model_that_is_not_finite_is_not_committed() -> None:
    loop = loop_of(a_study())
    loop.aggregator = _Diverging()
    with pytest.raises(CoordinatorError, match="not finite"):
        run(loop)


# ------------------------------------------------------------------------------------------------------------ strangers
@pytest.mark.parametrize("source", [STRANGER, FIRST])
def test_reply_of_a_node_that_was_not_asked_counts_for_nobody_and_costs_nobody(source: int) -> None:
    """Also not when it is on the roster: south's place is not north's to fill."""
    study = a_study()

    def usurped(exchange: Exchange) -> list[Delivery]:
        forged = with_array(lambda values: values * 0)(answer(study, exchange))
        return [Delivery(forged, source=source), Delivery(answer(study, exchange), after=2.0)]

    script: dict[Any, Behaviour] = {("south", round_): usurped for round_ in (1, 2, 3)}
    closed = run(loop_of(study, script))
    assert [c.accepted for c in closed] == [SITES] * 3
    assert closed[-1].weights.tobytes() == run(loop_of(study))[-1].weights.tobytes()


def test_error_that_flower_reports_about_a_node_closes_its_place() -> None:
    """The SuperLink signs such errors with its own node, 1. The node gets a moment to come back, and no more."""
    loop = loop_of(
        a_study(aggregation={"deadline_seconds": 600_000}),
        {("south", 1): lambda _: [Delivery(Error(4, "no such node"), source=1)]},
    )
    closed = run(loop)
    assert closed[0].missing == {"south": "transport_error code=4"}
    assert closed[0].seconds <= 8


def test_header_of_a_refusal_cannot_smuggle_text_into_the_report() -> None:
    lies = says(RecordDict({"fedward": ConfigRecord({"protocol": 1, "refusal": "Jane Doe " * 99, "site": "north"})}))
    loop = loop_of(a_study(), {("south", 0): lies})
    loop.enrol()
    assert loop.excluded == {"south": "internal_error"}


def test_weight_stolen_between_enrolment_and_update_is_refused() -> None:
    study = a_study()

    def grown(exchange: Exchange) -> list[Delivery]:
        return [Delivery(with_header(weight=400)(answer(study, exchange)))]

    closed = run(loop_of(study, {("south", 1): grown}))
    assert closed[0].missing == {"south": "weight: weight 400, the site enrolled with 40"}


# --------------------------------------------------------------------------------------------------- memory and pauses
class OneByOne(ScriptedGrid):
    """A grid that hands out one reply at a time, as the coordinator's does, and looks whether the last one is gone."""

    alive: list[bool]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._held: deque[Message] = deque()
        self.forget()

    def forget(self) -> None:
        self.alive = []
        self._last: weakref.ref[RecordDict] | None = None

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._last is not None:
            self.alive.append(self._last() is not None)
        if not self._held:
            self._held.extend(super().pull_messages(message_ids))
            self._waiting = []
        replies = [self._held.popleft()] if self._held else []
        self._last = weakref.ref(replies[0].content) if replies else None
        return replies


def test_a_reply_is_gone_before_the_next_one_is_fetched() -> None:
    """Of a large model there is one reply in memory at a time, however many sites answer."""
    study = a_study()
    fresh = {site: lambda exchange: [Delivery(answer(study, exchange))] for site in SITES}
    grid = OneByOne(dict.fromkeys(SITES), fresh)
    loop = RoundLoop(study, grid, grid.roster, aggregator_for(study), poll_seconds=0, clock=grid.clock)

    loop.enrol()
    grid.forget()  # an enrolment is small
    closed = list(loop.rounds(initial_weights(study)))

    assert [entry.accepted for entry in closed] == [SITES] * study.training.rounds
    assert len(grid.alive) >= 2 * study.training.rounds
    assert not any(grid.alive)


def test_a_grid_that_waits_itself_is_asked_again_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("fedward_server.rounds.time.sleep", pauses.append)
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr("fedward_server.rounds.time.monotonic", lambda: float(next(clock)))
    study = a_study()
    loop = loop_of(study, {"south": later(study, 3.5)})
    loop.poll_seconds = 2.0

    loop.enrol()

    assert pauses
    assert set(pauses) == {0.0}


def test_a_grid_that_answers_at_once_is_asked_again_after_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("fedward_server.rounds.time.sleep", pauses.append)
    monkeypatch.setattr("fedward_server.rounds.time.monotonic", lambda: 7.0)
    study = a_study()
    loop = loop_of(study, {"south": later(study, 3.5)})
    loop.poll_seconds = 2.0

    loop.enrol()

    assert pauses
    assert set(pauses) == {2.0}
