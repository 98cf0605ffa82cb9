"""Which state follows which wish or event, row by row."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from fedward_common.errors import CoordinatorError
from fedward_server.studies.lifecycle import ENDED, LIVE, State, Wish, after_death, after_wish, given_up, run_wish

STATES: tuple[State, ...] = get_args(State)
WISHES: tuple[Wish, ...] = get_args(Wish)
FOLLOWS: dict[tuple[State, Wish], State] = {
    ("queued", "pause"): "paused",
    ("queued", "stop"): "stopping",
    ("running", "pause"): "paused",
    ("running", "stop"): "stopping",
    ("paused", "pause"): "paused",
    ("paused", "resume"): "queued",
    ("paused", "stop"): "stopping",
    ("stopping", "stop"): "stopping",
}


@pytest.mark.parametrize(("state", "wish"), list(product(STATES, WISHES)))
def test_a_wish_leads_where_the_table_says_and_nowhere_else(state: State, wish: Wish) -> None:
    if (state, wish) in FOLLOWS:
        assert after_wish(state, wish, started=True) == FOLLOWS[state, wish]
    else:
        with pytest.raises(CoordinatorError, match=f"{state} cannot be told to {wish}"):
            after_wish(state, wish, started=True)


@pytest.mark.parametrize("state", ["queued", "paused"])
def test_a_study_that_never_started_is_stopped_at_once(state: State) -> None:
    assert after_wish(state, "stop", started=False) == "interrupted"


@pytest.mark.parametrize("state", sorted(ENDED))
def test_who_has_ended_is_told_to_submit_again(state: State) -> None:
    with pytest.raises(CoordinatorError) as caught:
        after_wish(state, "stop", started=True)
    assert "submit it again" in caught.value.remedy


@pytest.mark.parametrize("state", sorted(LIVE))
def test_every_live_state_can_be_stopped(state: State) -> None:
    assert after_wish(state, "stop", started=True) == "stopping"


def test_nothing_runs_whose_process_is_gone() -> None:
    assert {after_death(state) for state in LIVE} == {"queued", "paused", "stopping"}


def test_a_stop_is_not_called_a_failure() -> None:
    assert {state: given_up(state) for state in LIVE} == {
        "queued": "failed", "running": "failed", "paused": "failed", "stopping": "interrupted",
    }  # fmt: skip


def test_only_a_running_study_is_told_to_run() -> None:
    assert {state: run_wish(state) for state in LIVE} == {
        "queued": "pause", "running": "run", "paused": "pause", "stopping": "stop",
    }  # fmt: skip
