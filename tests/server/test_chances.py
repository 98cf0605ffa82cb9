"""The rules of further chances, drawn at random: nobody is asked too often, too late, or for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedward_common.errors import RefusalCode, RejectedReply
from fedward_server.chances import Chances
from fedward_server.post import Question
from fedward_server.replies import TRANSPORT

FELL_OUT = (TRANSPORT, RefusalCode.TASK_CRASHED, RefusalCode.TASK_TIMED_OUT, RefusalCode.INTERNAL)
FINAL = (RefusalCode.ROUND_REPLAYED, RefusalCode.TASK_OUT_OF_MEMORY, RefusalCode.OUTSIDE_HOURS, "awaiting_approval")


def question(node: int) -> Question:
    return Question(node, f"site {node}", 1, 100.0)


def refused(reason: str) -> RejectedReply:
    check = "refused"
    return RejectedReply(check, reason)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*FELL_OUT, *FINAL]), st.floats(0, 120)), max_size=40),
    st.floats(1, 100),
)
def test_nobody_gets_more_than_one_second_chance_and_none_behind_the_end(
    falls: list[tuple[int, str, float]], ends: float
) -> None:
    chances, given_to = Chances(ends), []
    for node, reason, now in sorted(falls, key=lambda fall: fall[2]):
        if chances.once_more(question(node), refused(reason), now):
            given_to.append(node)
            assert reason in FELL_OUT
            assert now < ends
            assert chances.retried[f"site {node}"] == reason
    assert len(set(given_to)) == len(given_to)
    assert sorted(chances.due(ends)) == sorted(given_to)
    assert not chances.pending
    assert chances.due(ends) == []


def test_a_site_that_was_reached_is_asked_at_once_and_one_that_was_not_gets_time() -> None:
    chances = Chances(60.0)
    assert chances.once_more(question(1), refused("task_crashed"), 10.0)
    assert chances.once_more(question(2), refused(f"{TRANSPORT} code=5"), 10.0)
    assert chances.due(10.0) == [1]
    assert chances.due(14.9) == []
    assert chances.due(15.0) == [2]
    assert chances.once_more(question(3), refused(TRANSPORT), 58.0)
    assert chances.due(59.0) == [3]


def test_a_reply_that_failed_a_check_is_not_asked_for_again() -> None:
    check = "weight"
    assert not Chances(60.0).once_more(question(1), RejectedReply(check, TRANSPORT), 1.0)
    assert not Chances(60.0).lose(question(1), RejectedReply(check, TRANSPORT))


def test_only_who_was_out_of_reach_is_lost_until_the_end() -> None:
    chances = Chances(60.0)
    assert not chances.lose(question(1), refused("task_crashed"))
    assert chances.lose(question(2), refused(TRANSPORT))
    assert list(chances.lost) == [2]


def test_a_round_that_lasts_longer_has_new_chances_and_keeps_those_that_were_not_used() -> None:
    chances = Chances(60.0)
    assert chances.once_more(question(1), refused(TRANSPORT), 50.0)
    assert chances.once_more(question(2), refused("task_crashed"), 50.0)
    assert chances.due(50.0) == [2]
    longer = chances.extended(120.0)
    assert longer.due(119.0) == [1]
    assert longer.once_more(question(2), refused("task_crashed"), 100.0)
    assert longer.lost == {}


@given(st.floats(1, 4000))
def test_the_lost_are_revived_after_ever_longer_pauses_and_never_behind_the_end(length: float) -> None:
    chances, now, gaps = Chances(length), 0.0, []
    assert not chances.revive(now)
    for _ in range(1000):
        chances.lose(question(7), refused(TRANSPORT))
        if not chances.revive(now):
            break
        assert chances.pending
        assert chances.lost == {}
        before, left = now, length - now
        while not chances.due(now):
            now += 0.25
        gaps.append(now - before)
        assert now < length
        assert abs(gaps[-1] - min(5.0 * 2 ** len(gaps), 60.0, left / 2)) <= 0.25
    assert chances.lost.keys() == {7}
    assert len(gaps) < 100
