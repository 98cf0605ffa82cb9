"""The local page: what a hospital's staff sees of its own site. Pure: the same facts give the same bytes.

The page holds no script, no form and no cookie, and refers to nothing outside itself; `content_policy` lets a browser
hold it to that. Whatever came over the network (a study's name) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Context
from functools import lru_cache
from itertools import groupby
from typing import Final

import jinja2
from markupsafe import Markup

from fedward_client.enrolment import Expiry
from fedward_client.health import Condition, Facts
from fedward_client.overview import CohortBudget, Overview, StudyLine
from fedward_common import __version__
from fedward_common.audit import Entry
from fedward_common.enrolment import days_left, warning_due

__all__ = ["Notice", "content_policy", "epsilon", "notices", "render"]

_UPWARD: Final = Context(prec=3, rounding=ROUND_CEILING)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NEARLY: Final = 0.8
_OPEN: Final = ("waiting", "incomplete", "changed", "expired")
_SOON: Final = timedelta(days=14)
_DETAILS: Final = ("cohort", "round", "code", "bytes", "name", "person", "detail")
_STEP: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something for the staff to do; `urgent` when training is, or soon will be, impossible."""

    what: str
    remedy: str
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One or several equal decisions in a row."""

    at: str
    event: str
    digest: str
    details: str
    times: int


def notices(overview: Overview, unmet: Sequence[Condition], today: datetime) -> list[Notice]:
    """Return what needs somebody's attention, the urgent first."""
    found = [Notice(f"Not {condition.name}: {condition.why}", condition.remedy, urgent=True) for condition in unmet]
    found += [Notice(_sentence(problem.what), problem.remedy, urgent=True) for problem in overview.problems]
    due = [expiry for expiry in overview.expiries if warning_due(expiry.not_after, today) is not None]
    found += [_expiry(expiry, today) for expiry in due]
    found += [notice for line in overview.studies for notice in _study(line, today)]
    found += [_nearly(budget) for budget in overview.budgets if budget.spent >= _NEARLY * budget.limit]
    return sorted(found, key=lambda notice: not notice.urgent)


def _study(line: StudyLine, today: datetime) -> Iterator[Notice]:
    look, found = f"fedward client show {line.digest[:12]}", line.standing
    if found.state == "waiting":
        yield Notice(f"{line.name} waits for your decision", look)
    elif found.state == "incomplete":
        yield Notice(f"{line.name} is {found.words}: another person has to approve it", look)
    elif found.state == "expired":
        yield Notice(f"The approval of {line.name} has ended: {found.reason}", look)
    elif line.stuck:
        what = f"{line.name} is approved, and is refused all the same: its cohort has changed since"
        yield Notice(what, "fedward client studies says what changed; approve it again if that was meant")
    elif found.expires and (ends := datetime.fromisoformat(found.expires)) - today < _SOON:
        yield Notice(f"The approval of {line.name} ends {_in_days(days_left(ends, today))}", look)


def _expiry(expiry: Expiry, today: datetime) -> Notice:
    days = days_left(expiry.not_after, today)
    what = f"The {expiry.what} has expired" if days < 0 else f"The {expiry.what} expires {_in_days(days)}"
    remedy = "fedward client renew" if expiry.what == "node key" else "tell the centre; fedward client doctor"
    return Notice(what, remedy, urgent=days < 1)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _in_days(days: int) -> str:
    return "today" if days < 1 else "tomorrow" if days == 1 else f"in {days} days"


def _nearly(budget: CohortBudget) -> Notice:
    share = min(1.0, budget.spent / budget.limit)
    what = f"Cohort {budget.cohort}: {share:.0%} of the privacy budget is spent"
    return Notice(what, "studies that would pass it are refused; nothing spent comes back")


def render(
    overview: Overview,
    facts: Facts,
    conditions: Sequence[Condition],
    *,
    now: float,
    today: datetime,
    address: str,
) -> str:
    """Return the page.

    Args:
        overview: what the site's folder says.
        facts: what the daemon knows.
        conditions: those of being alive and ready.
        now: seconds of the facts' clock.
        today: aware.
        address: where the page is served.
    """
    unmet = [condition for condition in conditions if not condition.met]
    return _template().render(
        overview=overview,
        studies=sorted(overview.studies, key=lambda line: line.standing.state not in _OPEN),
        facts=facts,
        conditions=conditions,
        ready=not unmet,
        notices=notices(overview, unmet, today),
        decisions=_collapsed(overview.decisions),
        names={line.digest: line.name for line in overview.studies},
        uptime=_duration(now - facts.started),
        today=_instant(today),
        address=address,
        version=__version__,
        style=_style(),
    )


def content_policy() -> str:
    """Return the page's Content-Security-Policy: its one style sheet, by hash, and nothing else (CSP Level 3)."""
    digest = base64.b64encode(hashlib.sha256(_style().encode("utf-8")).digest()).decode("ascii")
    nothing = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"{nothing}; style-src 'sha256-{digest}'"


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedward_client"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"epsilon": epsilon, "when": _when, "size": _size, "share": _share, "ago": _ago}
    return environment


def _template() -> jinja2.Template:
    return _environment().get_template("status.html.j2")


@lru_cache(maxsize=1)
def _style() -> Markup:
    return Markup(_environment().get_template("status.css").render().strip())  # noqa: S704  (our own file, without a value in it)


def epsilon(value: float) -> str:
    """Return ε with three digits, rounded up: it never says less than was spent."""
    return format(_UPWARD.create_decimal(repr(value)).normalize(), "f") if value != float("inf") else "∞"


def _collapsed(entries: Sequence[Entry]) -> list[Line]:
    """Return decisions as lines; equal ones in a row become one, with the time of the last."""
    lines = []
    for (event, digest, details), run in groupby(entries, key=_told):
        group = list(run)
        lines.append(Line(group[0].at, event, digest, details, len(group)))
    return lines


def _told(entry: Entry) -> tuple[str, str, str]:
    fields = entry.fields
    details = [_detail(key, fields[key]) for key in _DETAILS if key in fields]
    return (entry.event, str(fields.get("study", "")), ", ".join(details))


def _detail(key: str, value: str | float) -> str:
    match key:
        case "bytes":
            return _size(float(value))
        case "code":
            return str(value)
        case "name" | "person":
            return f"by {value}"
        case "detail":
            return str(value)
        case _:
            return f"{key} {value}"


def _share(value: float, limit: float) -> str:
    """Return a share of a hundred units, for a drawing; never beyond its end."""
    return f"{100 * min(1.0, max(0.0, value / limit)):.2f}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < _STEP:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _ago(seconds: float) -> str:
    return f"{_duration(seconds)} ago" if seconds >= 60 else "just now"  # noqa: PLR2004  (a minute)


def _when(text: str) -> str:
    """Return an ISO 8601 time stamp for a person, in UTC, and any other text as it is."""
    try:
        return _instant(datetime.fromisoformat(text))
    except ValueError:
        return text


def _instant(moment: datetime) -> str:
    utc = moment.astimezone(UTC) if moment.tzinfo else moment
    return f"{utc.day} {_MONTHS[utc.month - 1]} {utc.year}, {utc:%H:%M}"
