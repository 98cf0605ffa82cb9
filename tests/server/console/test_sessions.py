"""A session ends when nobody uses it, in any case after a day's work, and its forms are its own."""

from __future__ import annotations

from fedward_server.console.sessions import IDLE_S, LONGEST_S, Sessions


def test_a_session_is_found_by_its_number_alone() -> None:
    sessions = Sessions()
    number = sessions.begin("token", 0.0)

    found = sessions.find(number, 1.0, by_hand=True)

    assert found is not None
    assert found.token == "token"
    assert "token" not in number
    assert sessions.find("", 1.0, by_hand=True) is None
    assert sessions.find(number[:-1], 1.0, by_hand=True) is None


def test_two_sessions_of_one_token_share_nothing() -> None:
    sessions = Sessions()
    first, second = (sessions.find(sessions.begin("t", 0.0), 0.0, by_hand=True) for _ in range(2))

    assert first is not None
    assert second is not None
    assert not first.sent(second.form)
    assert not first.sent("")
    assert first.sent(first.form)


def test_a_page_that_refreshes_itself_keeps_nobody_logged_in() -> None:
    sessions = Sessions()
    number = sessions.begin("t", 0.0)
    assert sessions.find(number, IDLE_S - 1, by_hand=False) is not None

    assert sessions.find(number, IDLE_S, by_hand=False) is None
    assert sessions.find(number, 0.0, by_hand=True) is None  # forgotten, not asleep


def test_use_by_hand_prolongs_a_session_but_never_beyond_its_longest() -> None:
    sessions = Sessions()
    number = sessions.begin("t", 0.0)
    now = 0.0
    while now + IDLE_S / 2 < LONGEST_S:
        now += IDLE_S / 2
        assert sessions.find(number, now, by_hand=True) is not None

    assert sessions.find(number, LONGEST_S, by_hand=True) is None


def test_a_page_is_fresh_for_the_session_that_opened_it() -> None:
    sessions = Sessions()
    first, second = sessions.begin("t", 0.0), sessions.begin("t", 0.0)
    sessions.open(first, "run")

    assert sessions.opened(first, "run")
    assert not sessions.opened(second, "run")
    assert not sessions.opened(first, "other")

    sessions.end(first)
    assert not sessions.opened(first, "run")


def test_the_oldest_gives_way_when_there_are_too_many() -> None:
    sessions = Sessions()
    first = sessions.begin("t", 0.0)
    last = [sessions.begin("t", 0.0) for _ in range(1024)][-1]

    assert sessions.find(first, 0.0, by_hand=True) is None
    assert sessions.find(last, 0.0, by_hand=True) is not None
