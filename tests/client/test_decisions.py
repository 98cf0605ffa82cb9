"""What a hospital's decisions come to: the last no wins, a yes ends, and one person twice is not two."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.decisions import (
    Decision,
    Rule,
    Standing,
    changed_cohort,
    changed_study,
    counts,
    standing,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE, TWO = Rule(1, 180), Rule(2, 180)
Answer = Literal["approved", "denied", "withdrawn"]


def said(
    answer: Answer, person: str = "ann", *, days: float = 0, cohort: str = "chart", fingerprint: str = "f" * 64
) -> Decision:
    """Return what `person` said `days` after `NOON`."""
    about = {"cohort": cohort, "fingerprint": fingerprint} if answer == "approved" else {}
    return Decision(answer, person, (NOON + timedelta(days=days)).isoformat(), account=person, **about)


def after(days: float) -> datetime:
    return NOON + timedelta(days=days)


def test_study_waits_until_somebody_decides() -> None:
    assert standing([], ONE, NOON) == Standing("waiting")


def test_one_yes_is_enough_where_the_policy_asks_for_one() -> None:
    found = standing([said("approved")], ONE, after(1))

    assert found.state == "approved"
    assert (found.by, found.cohort, found.fingerprint) == (("ann",), "chart", "f" * 64)
    assert found.expires == after(180).isoformat(timespec="seconds")


@pytest.mark.parametrize("answer", ["denied", "withdrawn"])
def test_a_no_ends_every_yes_before_it(answer: Answer) -> None:
    made = [said("approved"), said("approved", "bob"), said(answer, "cyd", days=1)]

    found = standing(made, ONE, after(2))

    assert found.state == answer
    assert found.by == ("cyd",)


def test_withdrawn_is_final_until_it_is_approved_again() -> None:
    made = [said("approved"), said("withdrawn", days=1)]

    assert standing(made, ONE, after(100)).state == "withdrawn"
    assert standing([*made, said("approved", days=101)], ONE, after(102)).state == "approved"


def test_two_approvals_are_needed_anew_after_a_withdrawal() -> None:
    made = [said("approved"), said("approved", "bob"), said("withdrawn", days=1), said("approved", days=2)]

    found = standing(made, TWO, after(3))

    assert found.state == "incomplete"
    assert found.words == "approved 1 of 2"


def test_two_persons_complete_an_approval() -> None:
    made = [said("approved"), said("approved", "bob", days=1)]

    assert standing(made[:1], TWO, after(1)).words == "approved 1 of 2"
    found = standing(made, TWO, after(2))
    assert found.state == "approved"
    assert found.by == ("ann", "bob")
    assert found.expires == after(180).isoformat(timespec="seconds")


@pytest.mark.parametrize("times", [2, 5])
def test_same_person_many_times_is_one_person(times: int) -> None:
    made = [said("approved", days=day) for day in range(times)]

    assert standing(made, TWO, after(10)).state == "incomplete"


def test_same_account_under_two_names_is_one_person() -> None:
    first = Decision("approved", "Dr. Ann", NOON.isoformat(), "chart", "f" * 64, account="ann")
    second = Decision("approved", "Dr. Bob", NOON.isoformat(), "chart", "f" * 64, account="ann")

    assert standing([first, second], TWO, after(1)).state == "incomplete"


@pytest.mark.parametrize(
    "other", [{"cohort": "biobank"}, {"fingerprint": "e" * 64}], ids=["another cohort", "another state of the cohort"]
)
def test_two_persons_who_looked_at_different_bytes_are_not_two(other: dict[str, str]) -> None:
    made = [said("approved"), said("approved", "bob", days=1, **other)]

    found = standing(made, TWO, after(2))

    assert found.state == "incomplete"
    assert found.by == ("bob",)
    assert standing([*made, said("approved", days=3, **other)], TWO, after(4)).state == "approved"


@pytest.mark.parametrize(("days", "state"), [(0, "approved"), (179.99, "approved"), (180, "expired"), (999, "expired")])
def test_approval_ends_after_the_policy_s_days(days: float, state: str) -> None:
    found = standing([said("approved")], ONE, after(days))

    assert found.state == state
    if state == "expired":
        assert "180 days" in found.reason
        assert found.since == after(180).isoformat(timespec="seconds")


def test_second_approval_does_not_prolong_the_first() -> None:
    made = [said("approved"), said("approved", "bob", days=100)]

    assert standing(made, TWO, after(179)).state == "approved"
    found = standing(made, TWO, after(181))
    assert found.state == "incomplete"
    assert "1 of them has ended" in found.reason


def test_approval_that_is_renewed_holds_anew() -> None:
    made = [said("approved"), said("approved", days=170)]

    assert standing(made, ONE, after(300)).state == "approved"


def test_approval_from_the_future_does_not_count() -> None:
    """A clock that was set back by a year must not keep an approval alive for longer."""
    found = standing([said("approved", days=365)], ONE, NOON)

    assert found.state == "expired"
    assert "clock" in found.reason


def test_clocks_that_differ_a_little_do_no_harm() -> None:
    assert standing([said("approved", days=0.5)], ONE, NOON).state == "approved"


@pytest.mark.parametrize(
    ("fingerprint", "state", "words"),
    [
        ("f" * 64, "approved", ""),
        ("e" * 64, "changed", "the cohort chart changed"),
        (None, "changed", "cannot be read"),
    ],
)
def test_one_changed_byte_of_the_cohort_returns_to_pending(fingerprint: str | None, state: str, words: str) -> None:
    found = changed_cohort(standing([said("approved")], ONE, NOON), fingerprint)

    assert found.state == state
    assert words in found.reason


@pytest.mark.parametrize("answer", ["denied", "withdrawn"])
def test_a_no_stays_a_no_whatever_the_cohort_is_now(answer: Answer) -> None:
    found = standing([said(answer)], ONE, NOON)

    assert changed_cohort(found, None) == found
    assert changed_study(found, "d" * 64) == found


def test_new_version_of_an_approved_study_is_shown_as_changed() -> None:
    found = changed_study(standing([], ONE, NOON), "d" * 64)

    assert found.state == "changed"
    assert "dddddddddddd" in found.reason
    assert changed_study(standing([], ONE, NOON), None).state == "waiting"


def test_a_second_yes_of_the_same_person_is_told_apart_from_one_that_counts() -> None:
    made = [said("approved")]

    assert counts([], said("approved"), TWO, NOON)
    assert not counts(made, said("approved", days=1), TWO, after(1))
    assert counts(made, said("approved", "bob", days=1), TWO, after(1))
    assert counts(made, said("approved", days=1, fingerprint="e" * 64), TWO, after(1))
    assert counts(made, said("approved", days=1), ONE, after(1))


@given(
    made=st.lists(
        st.tuples(
            st.sampled_from(["approved", "approved", "denied", "withdrawn"]),
            st.sampled_from(["ann", "bob"]),
            st.integers(0, 400),
            st.sampled_from(["e" * 64, "f" * 64]),
        ),
        max_size=8,
    ),
    now=st.integers(0, 500),
    needed=st.sampled_from([1, 2]),
)
def test_approved_means_enough_persons_said_yes_to_the_same_bytes_since_the_last_no_and_lately(
    made: list[tuple[Answer, str, int, str]], now: int, needed: int
) -> None:
    decisions = [
        said(answer, person, days=day, fingerprint=fingerprint)
        for answer, person, day, fingerprint in sorted(made, key=lambda m: m[2])
    ]

    found = standing(decisions, Rule(needed, 180), after(now))

    since_no = decisions[max((i + 1 for i, d in enumerate(decisions) if d.answer != "approved"), default=0) :]
    last_yes = {d.person: d for d in since_no if d.fingerprint == decisions[-1].fingerprint}
    lately = {
        person
        for person, d in last_yes.items()
        if -1 <= (after(now) - datetime.fromisoformat(d.at)).total_seconds() / 86400 < 180
    }
    assert (found.state == "approved") == (len(lately) >= needed)
