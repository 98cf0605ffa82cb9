"""A daemon that says it is well: alive, registered, authenticated, with a policy, able to train; or what is not."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.health import BUCKETS_S, OTHER, Facts, Health, alive, conditions, ready
from fedward_common.errors import RefusalCode

STALE_S = 90.0
GOOD_NAMES = ["policy", "training", "registered", "authenticated"]


def healthy(now: float = 100.0) -> Health:
    """Return the health of a daemon that has everything since `now`."""
    health = Health(now)
    health.turn(now, within_s=60.0)
    health.policy_read()
    health.probed()
    health.admitted(now)
    return health


def unmet(facts: Facts, now: float) -> dict[str, str]:
    """Return why, by the name of each condition that is not met."""
    found = conditions(facts, now, stale_s=STALE_S)
    assert [condition.name for condition in found] == GOOD_NAMES
    assert all(condition.remedy for condition in found if not condition.met)
    assert all(not condition.why + condition.remedy for condition in found if condition.met)
    return {condition.name: condition.why for condition in found if not condition.met}


# -------------------------------------------------------------------------------------------------------- alive


def test_a_loop_that_turns_as_it_promised_is_alive() -> None:
    health = Health(100.0)

    health.turn(110.0, within_s=30.0)

    assert alive(health.facts(), 140.0).met


def test_a_loop_that_hangs_is_not_alive_and_the_reason_says_for_how_long() -> None:
    health = Health(100.0)

    health.turn(110.0, within_s=30.0)
    found = alive(health.facts(), 152.4)

    assert not found.met
    assert "12 s ago" in found.why
    assert found.remedy


def test_a_long_task_that_was_announced_is_no_hanging_loop() -> None:
    health = healthy()

    health.turn(100.0, within_s=3600.0)

    assert alive(health.facts(), 3000.0).met


def test_a_daemon_that_starts_has_time_for_it() -> None:
    assert alive(Health(0.0, within_s=120.0).facts(), 119.0).met
    assert not alive(Health(0.0, within_s=120.0).facts(), 121.0).met


# -------------------------------------------------------------------------------------------------------- ready


def test_a_daemon_with_everything_is_ready() -> None:
    facts = healthy().facts()

    assert unmet(facts, 101.0) == {}
    assert ready(facts, 101.0, stale_s=STALE_S)


def test_nothing_is_ready_before_it_was_seen_to_be() -> None:
    facts = Health(0.0).facts()

    assert set(unmet(facts, 1.0)) == set(GOOD_NAMES)
    assert not ready(facts, 1.0, stale_s=STALE_S)


def test_a_loop_that_hangs_is_not_ready_either() -> None:
    facts = healthy().facts()

    assert not unmet(facts, 161.0)
    assert not ready(facts, 161.0, stale_s=STALE_S)


def test_a_site_that_was_shut_out_is_not_ready_at_once() -> None:
    """Three weeks "(healthy)" with a key that nobody takes: the story that this condition ends."""
    health = healthy()

    health.shut_out("HTTP 401", "was it revoked?")

    assert unmet(health.facts(), 100.5) == {"authenticated": "HTTP 401"}


def test_a_site_that_the_coordinator_does_not_know_is_not_registered() -> None:
    health = healthy()

    health.shut_out("HTTP 412", "register its key", unknown=True)
    found = unmet(health.facts(), 100.5)

    assert set(found) == {"registered", "authenticated"}
    assert "HTTP 412" in found["registered"]


def test_a_short_outage_does_not_matter_and_a_long_one_does() -> None:
    health = healthy()
    health.unreachable("nobody answers", "look at the firewall")

    assert unmet(health.facts(), 100.0 + STALE_S) == {}
    assert unmet(health.facts(), 101.0 + STALE_S) == {
        "authenticated": "the last accepted signature is 91 s old: nobody answers"
    }


def test_the_next_accepted_request_ends_an_outage() -> None:
    health = healthy()
    health.unreachable("nobody answers", "look at the firewall")

    health.heard(250.0)

    assert unmet(health.facts(), 251.0) == {}
    assert health.facts().trouble == ("", "")


def test_a_site_that_was_shut_out_and_let_in_again_is_ready() -> None:
    health = healthy()
    health.shut_out("HTTP 412", "register its key", unknown=True)

    health.admitted(120.0)

    assert unmet(health.facts(), 121.0) == {}


def test_a_policy_that_became_unreadable_is_named_with_its_remedy() -> None:
    health = healthy()

    health.policy_read("site.yaml: unknown key 'polcy'", "correct it")

    assert unmet(health.facts(), 101.0) == {"policy": "site.yaml: unknown key 'polcy'"}


def test_a_failed_probe_is_not_ready_until_one_works() -> None:
    health = healthy()

    health.probed("the task process: exit -9")
    broken = unmet(health.facts(), 101.0)
    health.probed()

    assert broken == {"training": "the task process: exit -9"}
    assert unmet(health.facts(), 101.0) == {}


# ------------------------------------------------------------------------------------------------------ counts


def test_messages_are_counted_by_kind_and_a_stranger_s_kind_makes_no_new_one() -> None:
    health = Health(0.0)

    for kind in ("train", "query", "query.hello", "train.other", "system", "x" * 1000, "Train"):
        health.received(kind)

    assert health.facts().messages == {"roll_call": 2, "round": 2, OTHER: 3}


def test_only_a_round_that_was_answered_with_an_update_counts_as_one() -> None:
    health = Health(0.0)

    health.answered("train", 1.0)
    health.answered("train", 1.0, "policy_limit key=privacy.epsilon")
    health.answered("query", 1.0)

    assert health.facts().rounds == 1


def test_refusals_are_counted_by_code_and_no_other_word_becomes_one() -> None:
    health = Health(0.0)

    health.answered("train", 0.1, "policy_limit key=a limit=3")
    health.answered("train", 0.1, "policy_limit key=b limit=4")
    health.answered("train", 0.1, "Müller, Anna 1961-04-02")

    assert health.facts().refusals == {"policy_limit": 2, RefusalCode.INTERNAL: 1}


@given(st.lists(st.floats(0, 1e5), max_size=40))
def test_every_task_falls_into_one_bucket(seconds: list[float]) -> None:
    health = Health(0.0)

    for duration in seconds:
        health.answered("train", duration)
    facts = health.facts()

    assert sum(facts.task_counts) == len(seconds)
    assert facts.task_seconds == pytest.approx(sum(seconds))
    for index, bound in enumerate(BUCKETS_S):
        assert sum(facts.task_counts[: index + 1]) == sum(duration <= bound for duration in seconds)


def test_facts_that_were_read_do_not_change_any_more() -> None:
    health = healthy()
    before = health.facts()

    health.received("train")
    health.answered("train", 1.0, "internal_error")
    health.transferred(received=10, sent=20)
    health.shut_out("HTTP 401", "")

    assert before == healthy().facts()
    assert (health.facts().received, health.facts().sent) == (10, 20)


def test_no_count_is_lost_between_threads() -> None:
    health = Health(0.0)

    def work() -> None:
        for _ in range(500):
            health.received("train")
            health.answered("train", 0.2)
            health.transferred(received=1, sent=2)
            health.heard(1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    facts = health.facts()

    assert facts.messages["round"] == facts.rounds == sum(facts.task_counts) == 2000
    assert (facts.received, facts.sent) == (2000, 4000)
