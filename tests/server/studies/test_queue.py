"""Which of the studies that wait may start: places, hospitals, turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedward_server.studies.queue import Place, startable, why_waiting


def place(id_: str, sites: str = "") -> Place:
    return Place(id_, tuple(sites) or (id_,))


def test_first_come_first_served() -> None:
    assert startable([place("a"), place("b"), place("c")], [], at_once=2) == ["a", "b"]


def test_no_more_than_the_places() -> None:
    assert startable([place("a")], [place("x"), place("y")], at_once=2) == []
    assert startable([place("a")], [place("x"), place("y"), place("z")], at_once=2) == []


def test_two_that_share_a_hospital_run_one_after_another() -> None:
    assert startable([place("a", "NS"), place("b", "SE")], [], at_once=2) == ["a"]
    assert startable([place("b", "SE")], [place("a", "NS")], at_once=2) == []


def test_unless_that_is_allowed() -> None:
    assert startable([place("b", "SE")], [place("a", "NS")], at_once=2, share_sites=True) == ["b"]


def test_one_that_asks_others_goes_ahead_and_takes_nobody_s_turn() -> None:
    waiting = [place("b", "SE"), place("c", "E"), place("d", "W")]

    assert startable(waiting, [place("a", "NS")], at_once=3) == ["d"]


def test_who_waits_is_told_for_what() -> None:
    assert why_waiting(place("b", "SE"), [], [place("a", "NS")], at_once=2) == "waits for S, which a asks first"
    assert why_waiting(place("c", "E"), [place("b", "SE")], [], at_once=2) == "waits for E, which b asks first"
    assert why_waiting(place("c"), [], [place("x"), place("y")], at_once=2) == "waits for one of 2 places (2 taken)"
    told = why_waiting(place("b", "S"), [], [place("a", "S")], at_once=1, share_sites=True)
    assert told == "waits for one of 1 places (1 taken)"


PLACES = st.lists(st.frozensets(st.sampled_from("NSEWX"), min_size=1), max_size=6)


def numbered(drawn: list[frozenset[str]], prefix: str) -> list[Place]:
    return [Place(f"{prefix}{number}", tuple(sorted(sites))) for number, sites in enumerate(drawn)]


@given(PLACES, PLACES, st.integers(1, 4))
def test_nobody_is_asked_by_two_and_the_first_is_never_passed_over(
    waiting: list[frozenset[str]], busy: list[frozenset[str]], at_once: int
) -> None:
    queue, working = numbered(waiting, "w"), numbered(busy, "b")[: at_once - 1]
    chosen = startable(queue, working, at_once=at_once)
    by_id = {entry.id: entry for entry in queue}

    asked = [site for entry in working for site in set(entry.sites)]
    for id_ in chosen:
        assert not set(by_id[id_].sites) & set(asked)
        asked += by_id[id_].sites
    assert len(chosen) + len(working) <= at_once
    if queue and not working:
        assert chosen[0] == "w0"
    for id_ in chosen:
        ahead = queue[: queue.index(by_id[id_])]
        assert all(other.id in chosen or not set(other.sites) & set(by_id[id_].sites) for other in ahead)
