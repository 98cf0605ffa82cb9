"""What Prometheus reads of a daemon, parsed by Prometheus' own client library."""

from __future__ import annotations

import datetime as dt

from prometheus_client.parser import text_string_to_metric_families

from fedward_client.decisions import Standing
from fedward_client.enrolment import Expiry
from fedward_client.health import Condition, Health, alive, conditions
from fedward_client.metrics import exposition
from fedward_client.overview import CohortBudget, Overview, Problem, StudyLine

TODAY = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples(health: Health, overview: Overview, now: float = 5.0) -> dict[Sample, float]:
    """Return every sample by its name and labels."""
    facts = health.facts()
    met: list[Condition] = [alive(facts, now), *conditions(facts, now, stale_s=90.0)]
    text = exposition(facts, overview, met, now=now, today=TODAY).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[Sample, float], metric: str, /, **labels: str) -> float:
    return found[f"fedward_{metric}", tuple(sorted(labels.items()))]


def busy() -> Health:
    health = Health(1.0)
    health.policy_read()
    health.probed()
    health.admitted(2.0)
    health.received("query")
    health.answered("query", 0.02)
    health.received("train")
    health.answered("train", 2.0)
    health.received("train")
    health.answered("train", 400.0, "task_timed_out")
    health.transferred(received=1000, sent=300)
    return health


def test_messages_refusals_rounds_and_bytes_are_counted() -> None:
    found = samples(busy(), Overview("north"))

    assert value(found, "messages_total", kind="round") == 2
    assert value(found, "messages_total", kind="roll_call") == 1
    assert value(found, "messages_total", kind="other") == 0
    assert value(found, "refusals_total", code="task_timed_out") == 1
    assert value(found, "rounds_total") == 1
    assert value(found, "transfer_bytes_total", direction="in") == 1000
    assert value(found, "transfer_bytes_total", direction="out") == 300


def test_task_seconds_are_a_histogram_that_adds_up() -> None:
    found = samples(busy(), Overview("north"))

    assert value(found, "task_seconds_bucket", le="0.1") == 1
    assert value(found, "task_seconds_bucket", le="3.0") == 2
    assert value(found, "task_seconds_bucket", le="300.0") == 2
    assert value(found, "task_seconds_bucket", le="1000.0") == 3
    assert value(found, "task_seconds_bucket", le="+Inf") == value(found, "task_seconds_count") == 3
    assert value(found, "task_seconds_sum") == 402.02


def test_each_condition_of_being_ready_is_a_gauge_of_its_own() -> None:
    health = busy()
    good = samples(health, Overview("north"))
    health.shut_out("HTTP 401", "enroll")
    bad = samples(health, Overview("north"))

    assert value(good, "ready") == 1
    assert value(good, "accepted_age_seconds") == 3
    assert value(bad, "ready") == 0
    assert value(bad, "condition", name="authenticated") == 0
    assert value(bad, "condition", name="serving") == value(bad, "condition", name="policy") == 1
    assert ("fedward_accepted_age_seconds", ()) not in bad


def test_a_budget_is_three_gauges_for_each_cohort() -> None:
    budgets = (CohortBudget("icu", 3.5, 4.25, 16.0, 1e-3, ()), CohortBudget("er", 0.0, 0.0, 16.0, 1e-3, ()))

    found = samples(busy(), Overview("north", budgets=budgets))

    assert value(found, "epsilon_spent", cohort="icu") == 3.5
    assert value(found, "epsilon_promised", cohort="icu") == 4.25
    assert value(found, "epsilon_limit", cohort="icu") == 16
    assert value(found, "epsilon_spent", cohort="er") == 0


def test_what_expires_is_counted_in_days_and_below_zero_once_it_has() -> None:
    overview = Overview(
        "north",
        expiries=(
            Expiry("node key", TODAY + dt.timedelta(days=12.5)),
            Expiry("CA certificate", TODAY - dt.timedelta(days=2)),
        ),
    )

    found = samples(busy(), overview)

    assert value(found, "expiry_days", what="node key") == 12.5
    assert value(found, "expiry_days", what="CA certificate") == -2


def test_studies_are_counted_by_where_they_stand() -> None:
    lines = [
        StudyLine(f"s{n}", f"{n}" * 64, Standing(state), None, None, 0, 1)  # type: ignore[arg-type]
        for n, state in enumerate(("waiting", "waiting", "approved", "expired"))
    ]

    found = samples(busy(), Overview("north", studies=tuple(lines)))

    assert value(found, "studies", state="waiting") == 2
    assert value(found, "studies", state="approved") == 1
    assert value(found, "studies", state="denied") == 0
    assert value(found, "studies", state="expired") == 1


def test_problems_and_entries_are_counted() -> None:
    overview = Overview("north", entries=72, problems=(Problem("the log is not whole", "look"),))

    found = samples(busy(), overview)

    assert value(found, "problems") == 1
    assert value(found, "audit_entries") == 72


def test_no_label_comes_from_the_network() -> None:
    """A hostile centre can send any type of message and any error; neither becomes a new time series."""
    health = busy()
    before = set(samples(health, Overview("north")))

    for number in range(100):
        health.received(f"kind-{number}")
        health.answered(f"kind-{number}", 0.1, f"code-{number} key=x")
    after = set(samples(health, Overview("north")))

    assert after - before == {("fedward_refusals_total", (("code", "internal_error"),))}


def test_no_name_of_a_study_and_no_digest_is_in_the_metrics() -> None:
    line = StudyLine("secret_trial", "5e" * 32, Standing("approved", by=("ann",), cohort="icu"), 4.0, 1e-4, 1, 2)
    health = busy()

    text = exposition(health.facts(), Overview("north", studies=(line,)), (), now=5.0, today=TODAY).decode()

    assert "secret_trial" not in text
    assert "5e5e" not in text
    assert "ann" not in text
