"""What becomes of a process that has ended, by its code, its life and its past."""

from __future__ import annotations

import pytest

from fedward_server.studies.restarts import AGAIN, LONGEST_S, Failures, Verdict, judge


def in_a_row(code: int, times: int, *, lived_s: float = 1.0, stopping: bool = False) -> list[Verdict]:
    verdicts, failures = list[Verdict](), Failures()
    for _ in range(times):
        verdicts.append(judge(code, lived_s, failures, stopping=stopping))
        failures = verdicts[-1].failures
    return verdicts


@pytest.mark.parametrize("code", [-9, -15, -11, AGAIN])
def test_who_is_killed_or_asks_for_it_is_started_again_for_ever(code: int) -> None:
    assert all(verdict.wait_s is not None for verdict in in_a_row(code, 200))


@pytest.mark.parametrize("code", [-9, AGAIN])
def test_each_restart_waits_longer_and_none_longer_than_a_minute(code: int) -> None:
    waits = [verdict.wait_s for verdict in in_a_row(code, 12)]

    assert waits[:5] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_S


def test_who_lived_for_half_a_minute_begins_anew() -> None:
    worn = in_a_row(-9, 8)[-1].failures

    assert judge(-9, 29.9, worn).wait_s == LONGEST_S
    assert judge(-9, 30.0, worn).wait_s == 0.5


def test_wrong_settings_are_not_tried_again() -> None:
    assert judge(2, 1.0, Failures()).wait_s is None
    assert judge(2, 1e6, Failures()).wait_s is None


@pytest.mark.parametrize("code", [0, 1, 71, 139])
def test_an_error_of_its_own_is_tried_five_times(code: int) -> None:
    verdicts = in_a_row(code, 5)

    assert [verdict.wait_s is None for verdict in verdicts] == [False] * 4 + [True]
    assert verdicts[-1].reason == f"its process ended with code {code}, 5 times in a row"


def test_a_kill_between_errors_begins_their_count_anew() -> None:
    broken = in_a_row(1, 4)[-1].failures

    killed = judge(-9, 1.0, broken)

    assert killed.failures == Failures(5, 0)
    assert judge(1, 1.0, killed.failures).wait_s is not None


@pytest.mark.parametrize("code", [-9, 1, AGAIN])
def test_who_was_told_to_stop_and_dies_three_times_is_given_up(code: int) -> None:
    assert [verdict.wait_s is None for verdict in in_a_row(code, 3, stopping=True)] == [False, False, True]


def test_the_reason_says_what_happened_and_when_it_goes_on() -> None:
    assert judge(-9, 1.0, Failures()).reason == "its process was ended by signal 9; starts again in 0.5 s"
    assert judge(AGAIN, 1.0, Failures()).reason == "its process asked to be started again; starts again in 0.5 s"
