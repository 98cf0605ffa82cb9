"""``report.html``: a run on one page, for people: an ethics board, a hospital's board, a colleague with a printer.

Pure: the same result and study give the same bytes. The page refers to nothing outside itself and forbids itself to
(its content security policy). Whatever comes from the result is escaped. matplotlib and jinja2 are imported with this
module, so import it where a report is really written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from statistics import median
from typing import Final

import jinja2

from fedward_common.errors import RefusalCode, StudyError
from fedward_common.study import DpSgd, Study
from fedward_server.figures import CentreBars, Words, centres_figure, roc_figure, rounds_figure
from fedward_server.gaps import gaps_of
from fedward_server.privacy_statement import statement_of
from fedward_server.result import Estimate, Figures, RunResult, SiteResult
from fedward_server.statement_page import page_of
from fedward_server.wording import bound, number, percent

__all__ = ["REASONS", "explained", "number", "outcome", "render_report"]

_MOST_BARS: Final = 20
_LONGEST_TEXT: Final = 400
_MOST_COLUMNS: Final = 60
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_METRICS: Final = ("auroc", "accuracy", "accuracy_mean_of_centres")
_OF_CENTRE: Final = "accuracy."
_SIMULATIONS: Final = ("local", "ray")

REASONS: Final[Mapping[str, str]] = {
    RefusalCode.NO_PRIVACY_SECTION: "The study says nothing about privacy, so the hospital refused it.",
    RefusalCode.PRIVACY_REQUIRED: "The hospital takes part only in studies with differential privacy.",
    RefusalCode.POLICY_LIMIT: "The study asked for more than the hospital’s own policy allows.",
    RefusalCode.BUDGET_EXCEEDED: "The study would have passed the privacy budget of the hospital’s patients.",
    RefusalCode.BUDGET_UNTRUSTED: "The hospital’s privacy ledger is damaged or older than its log; it spends nothing.",
    RefusalCode.AUDIT_UNTRUSTED: "The hospital’s audit log was changed; it decides nothing until a person has looked.",
    RefusalCode.STUDY_CHANGED: "The study is not the one that the hospital approved.",
    RefusalCode.STUDY_INVALID: "The study did not validate at the hospital.",
    RefusalCode.SITE_NOT_NAMED: "The study does not name this hospital.",
    RefusalCode.STUDY_UNSIGNED: "The hospital takes part in signed studies only, and this one was not signed.",
    RefusalCode.SIGNER_UNKNOWN: "Nobody whom the hospital trusts has signed the study.",
    RefusalCode.SIGNATURE_INVALID: "A signature on the study does not belong to it.",
    RefusalCode.STUDY_NOT_ALLOWED: "The study is not among those that the hospital allows.",
    RefusalCode.SECURE_AGGREGATION_REQUIRED: "The hospital takes part only where nobody sees its own update.",
    RefusalCode.OUTSIDE_HOURS: "The hospital was asked outside the hours in which it works.",
    RefusalCode.AWAITING_APPROVAL: "The hospital has not approved the study.",
    RefusalCode.ROUND_REPLAYED: "The hospital was asked for a round that it had already paid for, and refused.",
    RefusalCode.ROUND_OUT_OF_RANGE: "The hospital was asked for a round that the study does not have, and refused.",
    RefusalCode.MODEL_MISMATCH: "The model that was sent is not the study’s model.",
    RefusalCode.MESSAGE_INVALID: "The hospital could not read the message, and refused it.",
    RefusalCode.PROTOCOL_MISMATCH: "The hospital’s Fedward and ours speak different protocols: upgrade the older one.",
    RefusalCode.COHORT_NOT_ALLOWED: "The hospital does not give this table to the study.",
    RefusalCode.COHORT_MISSING: "The hospital’s table was not there or could not be read.",
    RefusalCode.COHORT_MISMATCH: "The hospital’s table breaks the rules that the study declares for it.",
    RefusalCode.COHORT_EMPTY: "The hospital had no patient for this study.",
    RefusalCode.COHORT_TOO_SMALL: "The hospital had fewer patients than its policy asks for.",
    RefusalCode.UPDATE_NOT_FINITE: "Training at the hospital gave numbers that are not finite; they were not sent.",
    RefusalCode.UPDATE_OUT_OF_BOUNDS: "The hospital’s update was larger than the study allows; it was not sent.",
    RefusalCode.BUNDLE_NOT_PINNED: "The run came with other software than the hospital had pinned.",
    RefusalCode.MESSAGE_TYPE_NOT_ALLOWED: "The hospital was sent a kind of message that it does not accept.",
    RefusalCode.MESSAGE_TOO_LARGE: "The hospital was sent a message larger than it accepts.",
    RefusalCode.TASK_TIMED_OUT: "Training at the hospital took longer than allowed.",
    RefusalCode.TASK_CRASHED: "Training at the hospital stopped unexpectedly.",
    RefusalCode.TASK_OUT_OF_MEMORY: "Training at the hospital took more memory than the hospital allows.",
    RefusalCode.TASK_DENIED: "Training at the hospital tried something that the hospital forbids.",
    RefusalCode.INTERNAL: "Something failed at the hospital; its own log says what.",
    "no_reply_before_the_deadline": "The hospital did not answer before the deadline.",
    "reply_after_the_deadline": "The hospital’s update came after the round had closed; it was not used.",
    "not_connected": "The hospital was not connected.",
    "transport_error": "The connection to the hospital failed.",
    "enrolment": "The hospital’s answer to the roll call was not accepted.",
    "roster": "The sender is not enrolled in this run.",
    "duplicate": "The hospital answered twice in one round; the second answer was not used.",
    "site": "The reply came under another hospital’s name.",
    "study": "The reply belongs to another study.",
    "round": "The reply belongs to another round.",
    "weight": "The reply claimed another weight than the hospital enrolled with.",
    "steps": "The reply reported an impossible number of noised steps.",
    "metrics": "The reply held metrics that this study does not pay for.",
    "bound": "The update was larger than the study allows.",
}
"""What each code in a reason means: every `RefusalCode`, the gatekeeper's checks and the round loop's own words."""
_OTHER_REASON: Final = "The hospital’s reply could not be used."
_FIELDS: Final = {
    "key": "setting {}", "asked": "asked for {}", "limit": "limit {}", "round": "round {}",
    "rule_count": "rules broken: {}", "code": "error {}",
}  # fmt: skip
_DID: Final = {
    "missed": "gave no update", "late": "answered late", "absent": "was away", "excluded": "was excluded",
}  # fmt: skip
_MOST_GAPS: Final = 200
_STATUSES: Final = {"completed": "took part", "degraded": "missed rounds", "excluded": "excluded"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as it is shown, or a dash and why there is none."""

    value: str = "—"
    interval: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Trained:
    """One line of the comparison: who trained, on how many patients, and how good the model is on the hold-out."""

    name: str
    patients: Cell
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Hospital:
    """One line of the hospitals' table."""

    name: str
    patients: Cell
    weight: Cell
    rounds: int
    epsilon: Cell
    delta: Cell
    status: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure, or the reason why there is none."""

    svg: str = ""
    absent: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Absence:
    """One line of the table of gaps."""

    rounds: str
    name: str
    did: str
    reason: str
    detail: str


def render_report(result: RunResult, study: Study) -> str:
    """Return the report of a run as one HTML document that needs nothing else.

    Raises:
        StudyError: `result` is of another study.
    """
    if result.study.digest != study.digest:
        msg = f"the result is of study {result.study.digest[:12]}, not of {study.digest[:12]}"
        raise StudyError(msg, remedy="pass the study.json that lies beside the result.json")
    confidence = percent(study.evaluation.confidence)
    return _template().render(
        result=result,
        study=study,
        confidence=confidence,
        started=_date(result.started_at),
        duration=_duration(result.seconds),
        outcome=outcome(result.reason),
        hospitals=[_hospital(name, site) for name, site in result.sites.items()],
        absences=_absences(result),
        gap_count=len(gaps_of(result.rounds)),
        counts=_counts(result),
        key=[_cell(result.central, name, result) for name in _METRICS],
        federated=_trained("Federated", _size(_patients(result), "none trained"), result.central, result),
        pooled=_pooled(result),
        alone=_alone(result),
        auroc=_value(result.central.get("auroc")),
        accuracy=_value(result.central.get("accuracy")),
        lone=_lone(result),
        figures={
            "roc": _roc(result),
            "rounds": _rounds(result, study),
            "centres": _centres(result, confidence),
        },
        private=isinstance(study.privacy, DpSgd),
        privacy=_privacy(result, study),
        statement=page_of(statement_of(study, result)),
        simulated=result.engine in _SIMULATIONS or result.baselines.pooled is not None,
        hold_out=max(0, len(result.roc.get("false_positive_rate", ())) - 1),
        inputs=_inputs(study),
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedward_server"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "whole": _whole, "percent": percent}
    return environment.get_template("report.html.j2")


def _whole(value: int) -> str:
    return f"{value:,}"


def _cell(figures: Figures | None, name: str, result: RunResult, absent: str = "not recorded") -> Cell:
    if not figures:
        return Cell(reason=absent if result.rounds else "no model")
    estimate = figures.get(name)
    if estimate is None:
        return Cell(reason="not recorded")
    if estimate.value is None:
        return Cell(reason="one outcome only" if name == "auroc" else "no records to judge on")
    return _shown(estimate.value, estimate)


def _shown(value: float, estimate: Estimate) -> Cell:
    if estimate.low is None or estimate.high is None:
        return Cell(number(value), reason="no interval: too few usable resamples")
    return Cell(number(value), f"({number(estimate.low)} to {number(estimate.high)})")


def _trained(
    name: str, patients: Cell, figures: Figures | None, result: RunResult, absent: str = "not recorded"
) -> Trained:
    return Trained(name, patients, tuple(_cell(figures, metric, result, absent) for metric in _METRICS))


def _size(patients: int | None, absent: str = "never enrolled") -> Cell:
    return Cell(reason=absent) if patients is None else Cell(_whole(patients))


def _patients(result: RunResult) -> int | None:
    """Return the patients of the hospitals that took part in a round; None if no hospital did."""
    known = [site.patients for site in result.sites.values() if site.rounds and site.patients is not None]
    return sum(known) if known else None


def _counts(result: RunResult) -> dict[str, int | None]:
    sites = result.sites.values()
    return {
        "named": len(result.sites),
        "active": sum(site.rounds > 0 for site in sites),
        "degraded": sum(site.status == "degraded" for site in sites),
        "excluded": sum(site.status == "excluded" for site in sites),
        "patients": _patients(result),
    }


def _pooled(result: RunResult) -> Trained | None:
    if result.baselines.pooled is None:
        return None
    sizes = [site.patients for site in result.sites.values()]
    patients = sum(size or 0 for size in sizes) if None not in sizes else None
    return _trained("Pooled", _size(patients, "some unknown"), result.baselines.pooled, result)


def _alone(result: RunResult) -> list[Trained]:
    """Return a line for each hospital in the result, and for each that only the baselines know; [] without any."""
    local = result.baselines.local
    if not local:
        return []
    names = [*result.sites, *(name for name in local if name not in result.sites)]
    sizes = {name: site.patients for name, site in result.sites.items()}
    return [_trained(name, _size(sizes.get(name)), local.get(name), result, "not trained alone") for name in names]


def _lone(result: RunResult) -> dict[str, str | int]:
    """Return how the AUROCs of the hospitals' own models are spread, and how many lie below the federated one."""
    ours = _value(result.central.get("auroc"))
    theirs = [_value(figures.get("auroc")) for figures in result.baselines.local.values()]
    known = [value for value in theirs if value is not None]
    if ours is None or not known:
        return {"count": 0}
    spread = {"lowest": min(known), "median": median(known), "highest": max(known)}
    return {"count": len(known), "below": sum(ours > v for v in known)} | {k: number(v) for k, v in spread.items()}


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _hospital(name: str, site: SiteResult) -> Hospital:
    reason, detail = explained(site.reason)
    unpaid = Cell(reason="none")
    endless = Cell(reason="no finite bound")
    epsilon = unpaid if site.delta is None else endless if site.epsilon is None else Cell(bound(site.epsilon))
    return Hospital(
        name=name,
        patients=_size(site.patients),
        weight=_size(site.weight),
        rounds=site.rounds,
        epsilon=epsilon,
        delta=unpaid if site.delta is None else Cell(bound(site.delta, trim=True)),
        status=_STATUSES[site.status],
        reason=reason,
        detail=detail,
    )


def _absences(result: RunResult) -> list[Absence]:
    gaps = gaps_of(result.rounds)[:_MOST_GAPS]
    return [Absence(gap.rounds, gap.site, _DID[gap.status], *explained(gap.reason)) for gap in gaps]


def explained(reason: str | None) -> tuple[str, str]:
    """Return a reason as a sentence, its public details appended, and as it was recorded."""
    if not reason:
        return "", ""
    found = re.match(r"([a-z_]+)(?=$|:| [a-z_]+=)", reason)
    sentence = REASONS.get(found[1], _OTHER_REASON) if found else _OTHER_REASON
    fields = [_FIELDS[key].format(value) for key, value in re.findall(r"(\w+)=(\S+)", reason) if key in _FIELDS]
    if fields and sentence is not _OTHER_REASON:
        sentence = f"{sentence[:-1]} ({', '.join(fields)})."
    return sentence, _cut(reason)


def outcome(reason: str | None) -> str:
    """Return why a run ended early, as a sentence; the hospitals' own reasons stand in their table."""
    if not reason:
        return ""
    lost = re.match(r"(\d+) sites (enrolled|answered in round \d+), the quorum is (\d+)", reason)
    if lost:
        who = {"0": "No hospital", "1": "Only 1 hospital"}.get(lost[1], f"Only {lost[1]} hospitals")
        return f"{who} {lost[2]}; the study asks for at least {lost[3]}."
    lost = re.match(r"required sites have not (enrolled|answered in round \d+): ([^(]+) \(", reason)
    if lost:
        return f"Not {lost[1]}: {lost[2]}; the study gives no model without."
    text = _cut(reason)
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "…")) else ".")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _roc(result: RunResult) -> Drawing:
    false, true = (result.roc.get(f"{kind}_positive_rate", ()) for kind in ("false", "true"))
    auroc = _cell(result.central, "auroc", result)
    if len(false) < 2 or len(false) != len(true) or auroc.value == "—":  # noqa: PLR2004  (a line has two ends)
        absent = "the hold-out has one outcome only" if result.central else "no model was released"
        return Drawing(absent=f"There is no ROC curve: {absent}.")
    words = Words(
        "ROC curve of the federated model on the hold-out",
        f"Sensitivity against false alarms at every threshold. Area under the curve {auroc.value} {auroc.interval}.",
    )
    return Drawing(roc_figure(false, true, words))


def _rounds(result: RunResult, study: Study) -> Drawing:
    if not result.rounds:
        return Drawing(absent="There is no curve: no round was completed.")
    last = result.rounds[-1]
    parts = [
        f"{name} {number(value)}"
        for name, value in (("AUROC", last.central.get("auroc")), ("accuracy", last.central.get("accuracy")))
        if value is not None
    ]
    if last.epsilon is not None:
        parts.append(f"ε {bound(last.epsilon)}")
    words = Words(
        "The model after each round", f"After round {last.round}: {', '.join(parts) or 'no metric has a value'}."
    )
    budget = study.privacy.epsilon if isinstance(study.privacy, DpSgd) else None
    return Drawing(rounds_figure(result.rounds, budget, words))


def _centres(result: RunResult, confidence: str) -> Drawing:
    names = [key.removeprefix(_OF_CENTRE) for key in result.central if key.startswith(_OF_CENTRE)]
    if not names:
        absent = "the hold-out is not told apart by hospital" if result.central else "no model was released"
        return Drawing(absent=f"There are no bars for single hospitals: {absent}.")
    sizes = {name: (site.patients or 0) for name, site in result.sites.items()}
    shown = names if len(names) <= _MOST_BARS else sorted(names, key=lambda name: -sizes.get(name, 0))[:_MOST_BARS]
    bars = [
        CentreBars(name, result.central[_OF_CENTRE + name], result.baselines.local.get(name, {}).get(_OF_CENTRE + name))
        for name in shown
    ]
    note = f"The {len(shown)} largest of {len(names)} hospitals are shown." if len(shown) < len(names) else ""
    values = "; ".join(f"{b.name}: federated {_point(b.federated)}, alone {_point(b.alone)}" for b in bars)
    words = Words("Accuracy at each hospital, federated and alone", f"{values}. {note}".strip())
    return Drawing(centres_figure(bars, confidence, words), note=note)


def _point(estimate: Estimate | None) -> str:
    value = _value(estimate)
    return "—" if value is None else number(value)


def _privacy(result: RunResult, study: Study) -> dict[str, str]:
    """Return what the privacy section says in numbers; no factor where nothing was spent, or nothing bounds it."""
    if not isinstance(study.privacy, DpSgd):
        return {"factor": "", "unspent": ""}
    spent = [site.epsilon for site in result.sites.values() if site.delta is not None]
    known = [epsilon for epsilon in spent if epsilon is not None]
    bounded = len(known) == len(spent)
    highest = max(known, default=0.0)
    return {
        "epsilon": bound(highest) if bounded else "—",
        "budget": number(study.privacy.epsilon, trim=True),
        "delta": bound(study.privacy.delta, trim=True),
        "factor": _factor(highest) if bounded and highest else "",
        "unspent": "yes" if bounded and not highest else "",
        "strength": _strength(highest) if bounded else "",
    }


def _factor(epsilon: float) -> str:
    return bound(math.exp(min(epsilon, 700.0)))


def _strength(epsilon: float) -> str:
    """Return how the field reads this ε (Ponomareva et al. 2023, section 5.2.1: up to 1, up to 10, above)."""
    tiers = {1.0: "strong", 10.0: "reasonable"}
    return next((word for limit, word in tiers.items() if epsilon <= limit), "weak")


def _inputs(study: Study) -> str:
    names = list(study.cohort.columns)
    more = len(names) - _MOST_COLUMNS
    return ", ".join(names[:_MOST_COLUMNS]) + (f" and {more} more" if more > 0 else "")


def _date(text: str) -> str:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = when.tzname() or "local time"
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}, {when:%H:%M} {zone}"


def _duration(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004  (seconds below two minutes, minutes below two hours)
        return f"{number(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"  # noqa: PLR2004  (see above)
