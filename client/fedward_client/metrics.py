"""A daemon's facts for Prometheus (text exposition format 0.0.4). Pure: the same facts give the same text.

Nothing here comes from a patient's values. ε and the seconds of tasks are the site's own business, which is why
this is served on loopback alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fedward_client.decisions import State
from fedward_client.health import BUCKETS_S, Condition, Facts
from fedward_client.overview import Overview
from fedward_common import __version__

__all__ = ["exposition"]

_STATES: Final = get_args(State)
_DAY_S: Final = 86400.0


def exposition(facts: Facts, overview: Overview, met: Sequence[Condition], *, now: float, today: datetime) -> bytes:
    """Return the metrics as text.

    Args:
        facts: what the daemon knows.
        overview: what its folder says.
        met: the conditions of being alive and ready.
        now: seconds of the facts' clock.
        today: aware, for what expires.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families([*_state(facts, met, now), *_work(facts), *_folder(overview, today)]))
    return generate_latest(registry)


class _Families(Collector):
    """A collector of families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        return iter(self._families)


def _state(facts: Facts, met: Sequence[Condition], now: float) -> Iterator[Metric]:
    yield _gauge("build_info", "Version of Fedward.", {"version": __version__}, 1.0)
    yield _gauge("uptime_seconds", "Seconds since the daemon began.", {}, now - facts.started)
    ready = GaugeMetricFamily("fedward_condition", "1 where a condition of being ready is met.", labels=["name"])
    for condition in met:
        ready.add_metric([condition.name], float(condition.met))
    yield ready
    yield _gauge("ready", "1 when a round could be trained now.", {}, float(all(condition.met for condition in met)))
    if facts.accepted is not None:
        age = now - facts.accepted
        yield _gauge("accepted_age_seconds", "Seconds since the coordinator last accepted a signed request.", {}, age)


def _gauge(name: str, help_text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"fedward_{name}", help_text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _by_cohort(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fedward_epsilon_{name}", help_text, labels=["cohort"])


def _counter(name: str, help_text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"fedward_{name}", help_text, labels=[label])
    for key in sorted(values):
        family.add_metric([key], values[key])
    return family


def _work(facts: Facts) -> Iterator[Metric]:
    yield _counter("messages", "Messages that came.", "kind", dict(facts.messages))
    yield _counter("refusals", "Answers that were a refusal.", "code", dict(facts.refusals))
    yield CounterMetricFamily("fedward_rounds", "Rounds whose update was sent.", value=facts.rounds)
    traffic = {"in": facts.received, "out": facts.sent}
    yield _counter("transfer_bytes", "Bodies of requests and answers.", "direction", traffic)
    buckets, total = [], 0
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], facts.task_counts, strict=True):
        total += count
        buckets.append((bound, total))
    yield HistogramMetricFamily(
        "fedward_task_seconds", "Work on one message.", buckets=buckets, sum_value=facts.task_seconds
    )


def _folder(overview: Overview, today: datetime) -> Iterator[Metric]:
    studies = GaugeMetricFamily("fedward_studies", "Proposed studies, by what was decided.", labels=["state"])
    states = [line.standing.state for line in overview.studies]
    for state in _STATES:
        studies.add_metric([state], states.count(state))
    yield studies
    spent = _by_cohort("spent", "Privacy spent on a cohort, by its ledger.")
    promised = _by_cohort("promised", "The same once every granted round is asked for.")
    limit = _by_cohort("limit", "What the policy allows for life.")
    for budget in overview.budgets:
        spent.add_metric([budget.cohort], budget.spent)
        promised.add_metric([budget.cohort], budget.promised)
        limit.add_metric([budget.cohort], budget.limit)
    yield from (spent, promised, limit)
    days = GaugeMetricFamily("fedward_expiry_days", "Days until a key or certificate expires.", labels=["what"])
    for expiry in overview.expiries:
        days.add_metric([expiry.what], (expiry.not_after - today).total_seconds() / _DAY_S)
    yield days
    yield _gauge("audit_entries", "Entries in the log of decisions.", {}, float(overview.entries))
    yield _gauge("problems", "Things in the site's folder that are wrong.", {}, float(len(overview.problems)))
