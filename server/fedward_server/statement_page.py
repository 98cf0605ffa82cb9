"""The privacy statement as the report shows it: the same facts as ``privacy.json``, in words, rounded up. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fedward_server.privacy_statement import Guarantee, Mechanism, PrivacyStatement, Promise
from fedward_server.privacy_terms import Gap, Release
from fedward_server.wording import bound, number, percent, percent_bound

__all__ = ["Line", "StatementPage", "page_of"]

_ABSENT: Final = "—"
_PROTECTIONS: Final[Mapping[str, str]] = {
    "noised": "noised; ε pays for it",
    "post_processing": "made of noised values alone",
    "exact": "as it is",
    "independent": "as it is; depends on no patient",
    "none": "none",
}


_NUMBERS: Final[Mapping[int, str]] = {2: "Two", 4: "Four"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table of suspicion: probabilities as percentages, those afterwards rounded up."""

    before: str
    after: str
    after_two: str


@dataclass(frozen=True, slots=True)
class StatementPage:
    """What the template shows; `bets` is empty where no finite ε above zero can be stated."""

    private: bool
    simulation: bool
    bets: tuple[Line, ...]
    epsilon: str
    epsilon_two: str
    delta: str
    twice_delta: str
    facts: Mapping[str, tuple[tuple[str, str], ...]]
    released: tuple[tuple[Release, str], ...]
    withheld: str
    gaps: tuple[Gap, ...]


def page_of(statement: PrivacyStatement) -> StatementPage:
    """Return the statement in the words of the report; no bound is shown smaller than it is."""
    promise = statement.guarantee
    spent = promise.spent if promise else None
    return StatementPage(
        private=promise is not None,
        simulation=statement.simulation,
        bets=_bets(promise) if promise else (),
        epsilon=_epsilon(spent.worst_site) if spent else _ABSENT,
        epsilon_two=_epsilon(spent.two_hospitals) if spent else _ABSENT,
        delta=bound(spent.worst_site.delta, trim=True) if spent else _ABSENT,
        twice_delta=bound(2 * spent.worst_site.delta, trim=True) if spent else _ABSENT,
        facts=_facts(promise) if promise else {},
        released=tuple((entry, _PROTECTIONS[entry.protection]) for entry in statement.released),
        withheld=", ".join(statement.withheld),
        gaps=statement.not_covered,
    )


def _bets(promise: Promise) -> tuple[Line, ...]:
    if not promise.spent.worst_site.epsilon:
        return ()
    return tuple(
        Line(percent(bet.before), _sure(bet.after), _sure(bet.after_two_hospitals)) for bet in promise.spent.bets
    )


def _sure(value: float | None) -> str:
    return "no limit known" if value is None else percent_bound(value)


def _epsilon(guarantee: Guarantee) -> str:
    return _ABSENT if guarantee.epsilon is None else bound(guarantee.epsilon)


def _given(guarantee: Guarantee) -> str:
    if guarantee.epsilon is None:
        return "no bound is known"
    return f"ε = {bound(guarantee.epsilon)}, δ = {bound(guarantee.delta, trim=True)}"


def _facts(promise: Promise) -> dict[str, tuple[tuple[str, str], ...]]:
    return {
        "The terms of the promise": tuple(_terms(promise)),
        "How it is kept": tuple(_means(promise)),
        "Whom it trusts": tuple((_capital(who), f"{_capital(role)}.") for who, role in promise.trust_model.items()),
    }


def _terms(promise: Promise) -> Iterator[tuple[str, str]]:
    spent = promise.spent
    yield "Unit of privacy", f"One patient of one hospital: {promise.unit.meaning}."
    yield "Compared with", f"{_capital(promise.neighbours.meaning)} (zero-out adjacency)."
    yield "Public", f"{_capital(', '.join(promise.neighbours.public))}."
    yield "Allowed by the study", _given(promise.promised)
    yield "Spent at the hospital that spent most", _given(spent.worst_site)
    if len(spent.sites) > 1:
        yield "Patient of two hospitals", _given(spent.two_hospitals)
        yield "Patient of all hospitals", _given(spent.all_hospitals)
    for size, guarantee in spent.groups.items():
        yield f"{_NUMBERS[size]} patients of one hospital, at most", _given(guarantee)
    yield "Telling apart two values of a record, at most", _given(spent.two_values)


def _means(promise: Promise) -> Iterator[tuple[str, str]]:
    for mechanism in promise.mechanisms:
        yield "Mechanism", _mechanism(mechanism)
    yield "Sampling", f"By patient: {promise.sampling.meaning}. Probability {number(promise.sampling.rate, trim=True)}."
    yield "Random numbers", f"Noise: {promise.randomness['noise']}. Sampling: {promise.randomness['sampling']}."
    yield "Before training", f"Records are prepared {promise.preprocessing}."
    account = promise.account
    yield "Accounting", f"Privacy loss distributions (fedward{_version(account.version)}), {account.composition}."
    yield "Rounding", f"{_capital(account.rounding)}."
    check = "no finite bound" if account.cross_check is None else f"ε = {bound(account.cross_check)}"
    library = f"dp-accounting{_version(account.cross_check_version)}"
    yield (
        "Cross-check",
        f"{check} at the hospital that spent most, by Rényi divergences, mostly a looser bound ({library}).",
    )


def _version(version: str | None) -> str:
    return f" {version}" if version else ""


def _mechanism(mechanism: Mechanism) -> str:
    kind = "discrete Gaussian" if "discrete" in mechanism.name else "Gaussian"
    sigma = "not calibrated" if mechanism.noise_multiplier is None else f"{mechanism.noise_multiplier:g}"
    text = (
        f"{_count(mechanism.rounds, 'round')} of {_count(mechanism.steps_per_round, 'step')}. A step releases "
        f"{' and '.join(mechanism.releases)} with {kind} noise: σ = {sigma}, in units of the bound "
        f"{number(mechanism.sensitivity, trim=True)} to which each patient’s gradient is clipped."
    )
    if mechanism.loss_share is None or mechanism.loss_bound is None:
        return text
    return (
        f"{text} A patient’s loss counts as at most {number(mechanism.loss_bound, trim=True)} nats; the loss takes "
        f"{percent(mechanism.loss_share)} of the step’s privacy."
    )


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
