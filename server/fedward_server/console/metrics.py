"""The centre for Prometheus: text exposition format. The families are pure; `scrape` brings them what folders say.

Nothing in it comes from a patient's values. A registry of its own: what other libraries count is not told.
"""

from __future__ import annotations

import math
import re
import shutil
import socket
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fedward_common import __version__
from fedward_common.certificates import certificate_expiry
from fedward_common.study import DpSgd
from fedward_server.admission import counts
from fedward_server.centre import load_centre, roster_of
from fedward_server.console.facts import RunFacts, read_facts
from fedward_server.console.live import open_round, spent
from fedward_server.console.seams import StudyBook
from fedward_server.console.words import STATES, parsed
from fedward_server.report import REASONS
from fedward_server.roster import Entry

__all__ = ["BUCKETS_S", "Around", "Expiry", "exposition", "scrape"]

BUCKETS_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_DAY = timedelta(days=1)
_CONNECT_S: Final = 1.0
_CODE: Final = re.compile(r"[a-z_]+")
_RUN: Final = ("run", "study")


@dataclass(frozen=True, slots=True)
class Expiry:
    """When something of the centre, or the key of a site, stops to count."""

    what: str
    site: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Around:
    """What is no study's: whether the SuperLink takes connections, bytes free where the centre lies, what expires."""

    superlink_up: bool
    disk_free: int
    expiries: Sequence[Expiry] = ()


def scrape(home: Path, book: StudyBook, now: datetime) -> tuple[bytes, str]:
    """Return the metrics of the centre in `home`, and their media type.

    Raises:
        InstallationError: the folder is no centre's.
    """
    config = load_centre(home)
    found = [read_facts(line, book.folder(line.id)) for line in book.entries()]
    kept = {"server certificate": config.certificate, "authority": config.ca}
    expiries = [
        Expiry(what, "", certificate_expiry(path.read_bytes())) for what, path in kept.items() if path and path.exists()
    ]
    expiries += _keys(roster_of(config).entries(), now)
    around = Around(
        _takes_connections(config.private_host, config.private_port), shutil.disk_usage(home).free, expiries
    )
    return exposition(found, around, now), CONTENT_TYPE_LATEST


def _takes_connections(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except OSError:
        return False


def _keys(entries: Iterable[Entry], now: datetime) -> list[Expiry]:
    """Return for each site when the last of its keys that count stops to."""
    last: dict[str, datetime] = {}
    for entry in entries:
        until = parsed(entry.row.not_after)
        if counts(entry.row, now) and until is not None:
            last[entry.row.site] = max(until, last.get(entry.row.site, until))
    return [Expiry("node key", site, until) for site, until in sorted(last.items())]


class _Families(Collector):
    """A collector of families that are there already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        return iter(self._families)


def exposition(found: Sequence[RunFacts], around: Around, now: datetime) -> bytes:
    """Return the metrics as text.

    Args:
        found: every study of the book.
        around: what is no study's.
        now: aware, for ages and for what expires.
    """
    registry = CollectorRegistry(auto_describe=False)
    live = [facts for facts in found if facts.line.ended_at is None]
    families = [*_centre(found, around, now), *_rounds(found), *_live(live, now), *_sites(found)]
    registry.register(_Families(families))
    return generate_latest(registry)


def _centre(found: Sequence[RunFacts], around: Around, now: datetime) -> Iterator[Metric]:
    yield _gauges("build_info", "Version of Fedward.", ("version",), {(__version__,): 1.0})
    states = Counter(facts.line.state for facts in found)
    yield _gauges("runs", "Studies of the book, by state.", ("state",), {(s,): float(states[s]) for s in STATES})
    unreadable = sum(bool(facts.unreadable) for facts in found)
    yield _gauges("unreadable_runs", "Studies with a file that cannot be read.", (), {(): float(unreadable)})
    yield _gauges("superlink_up", "1 where the SuperLink takes connections.", (), {(): float(around.superlink_up)})
    yield _gauges("disk_free_bytes", "Bytes free where the centre lies.", (), {(): float(around.disk_free)})
    days: dict[tuple[str, ...], float] = {(e.what, e.site): (e.not_after - now) / _DAY for e in around.expiries}
    yield _gauges("expiry_days", "Days until a certificate or a site's key expires.", ("what", "site"), days)


def _rounds(found: Sequence[RunFacts]) -> Iterator[Metric]:
    seconds = [entry.seconds for facts in found for entry in facts.closed]
    filled = Counter(bisect_left(BUCKETS_S, value) for value in seconds)
    totals = accumulate(filled[place] for place in range(len(BUCKETS_S) + 1))
    buckets = list(zip([*map(str, BUCKETS_S), "+Inf"], totals, strict=True))
    yield HistogramMetricFamily(
        "fedward_centre_round_seconds", "Seconds of closed rounds.", buckets=buckets, sum_value=math.fsum(seconds)
    )
    closed = CounterMetricFamily("fedward_centre_rounds_closed", "Closed rounds of a study.", labels=_RUN)
    for facts in found:
        closed.add_metric(_names(facts), len(facts.closed))
    yield closed


def _live(live: Sequence[RunFacts], now: datetime) -> Iterator[Metric]:
    """Yield what is said of studies that are not over."""
    yield _by_run("rounds_planned", "Rounds that a study has.", live, lambda facts: float(facts.planned))
    yield _by_run("open_round", "The open round; 0 where none is.", live, lambda facts: float(open_round(facts) or 0))
    yield _by_run("quorum", "Sites that a round needs.", live, _quorum)
    yield _by_run("answered", "Sites whose update was accepted in the open round.", live, _answered)
    yield _by_run("last_round_seconds", "Seconds of the last closed round.", live, _last)
    yield _by_run(
        "open_round_age_seconds", "Seconds since the open round began.", live, lambda f: _age(f, now, opened=True)
    )
    yield _by_run("status_age_seconds", "Seconds since a run last said where it stands.", live, lambda f: _age(f, now))


def _sites(found: Sequence[RunFacts]) -> Iterator[Metric]:
    accepted = CounterMetricFamily("fedward_centre_accepted", "Accepted updates.", labels=[*_RUN, "site"])
    missed = CounterMetricFamily("fedward_centre_missed", "Rounds without an update.", labels=[*_RUN, "site", "reason"])
    epsilon = GaugeMetricFamily("fedward_centre_epsilon", "Privacy spent at a site.", labels=[*_RUN, "site"])
    claim = GaugeMetricFamily("fedward_centre_epsilon_claim", "What the study claims at most.", labels=_RUN)
    for facts in found:
        names = _names(facts)
        for site in facts.sites:
            accepted.add_metric([*names, site], sum(site in entry.sites for entry in facts.closed))
        whys = Counter((site, _code(why)) for entry in facts.closed for site, why in entry.missing.items())
        for (site, code), times in sorted(whys.items()):
            missed.add_metric([*names, site, code], times)
        privacy = facts.file.study.privacy if facts.file is not None else None
        if isinstance(privacy, DpSgd):
            claim.add_metric(names, privacy.epsilon)
            for site in facts.sites:
                value = spent(facts, site)
                epsilon.add_metric([*names, site], math.inf if value is None else value)
    yield from (accepted, missed, epsilon, claim)


def _code(reason: str) -> str:
    """Return the code of a reason, of a closed list: a reply's text makes no new series."""
    match = _CODE.match(reason)
    return match[0] if match and match[0] in REASONS else "other"


def _quorum(facts: RunFacts) -> float | None:
    return None if facts.file is None else float(facts.file.study.aggregation.quorum)


def _answered(facts: RunFacts) -> float | None:
    if facts.status is None or open_round(facts) is None:
        return None
    return float(sum(site.state == "accepted" for site in facts.status.sites.values()))


def _last(facts: RunFacts) -> float | None:
    return facts.closed[-1].seconds if facts.closed else None


def _age(facts: RunFacts, now: datetime, *, opened: bool = False) -> float | None:
    if facts.status is None or (opened and open_round(facts) is None):
        return None
    since = parsed(facts.status.opened_at if opened else facts.status.updated_at)
    return None if since is None else (now - since).total_seconds()


def _names(facts: RunFacts) -> list[str]:
    return [facts.line.id, facts.line.name]


def _by_run(name: str, text: str, found: Iterable[RunFacts], value: Callable[[RunFacts], float | None]) -> Metric:
    values: dict[tuple[str, ...], float | None] = {tuple(_names(facts)): value(facts) for facts in found}
    return _gauges(name, text, _RUN, {key: v for key, v in values.items() if v is not None})


def _gauges(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(f"fedward_centre_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
