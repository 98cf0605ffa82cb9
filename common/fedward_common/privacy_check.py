"""An ε held against other people's accountants, for the privacy statement and the command line.

Three codes that share nothing with ours but the description of the mechanism: Google's dp-accounting (privacy loss
distributions, Doroshenko et al. 2022, and Rényi divergences, Mironov, Talwar and Zhang 2019) and Opacus' PRV accountant
(Gopi, Lee and Wutschitz 2021). Opacus is part of a hospital's installation and of a simulation's; where it is not
installed, or cannot answer, the reason stands in the place of the number.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedward_common.privacy import Mechanism, Spend, epsilon_of, merged

__all__ = ["CrossCheck", "cross_check", "epsilon_by"]

_AGREEMENT: Final = 0.02
_MOST_KINDS: Final = 16
_MOST_STEPS: Final = 1_000_000
_MOST_EPSILON: Final = 50.0
_LEAST_DELTA: Final = 1e-12
_GRID: Final = 1e-3
_OPACUS: Final = "opacus"


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """One ε by four codes; what has no number has a reason in `absent`, under its name.

    Attributes:
        delta: at which all are taken.
        pld: ours (`epsilon_of`), the one that is charged.
        google: dp-accounting's privacy loss distributions on a grid of 0.001, an upper bound.
        prv: Opacus' PRV accountant, its upper bound; its own error is at most 0.01.
        rdp: dp-accounting's Rényi bound, mostly 7 to 25 % above the others.
        absent: why a number is missing, by name.
    """

    delta: float
    pld: float
    google: float | None = None
    prv: float | None = None
    rdp: float | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether every number that there is confirms ours: PRV within 0.02, the two upper bounds from above.

        Google's may be below by 0.02, the error of both grids; it lies above by more where steps lose little each.
        """
        near = self.prv is None or abs(self.prv - self.pld) <= _AGREEMENT
        below = self.google is None or self.pld <= self.google + _AGREEMENT
        return near and below and (self.rdp is None or self.pld <= self.rdp)


def cross_check(spends: Iterable[Spend], delta: float) -> CrossCheck:
    """Return ε of everything in `spends` together, by every accountant that can answer in about a minute.

    The other accountants are asked for up to 16 kinds of steps, a million steps, ε up to 50 and δ from 1e-12: beyond,
    they take minutes, gigabytes or fail, and the reason says so. `pld` is there always.

    Raises:
        StudyError: as `epsilon_of`.
    """
    kinds = merged(spends)
    pld = epsilon_of([Spend(sigma, rate, steps) for (sigma, rate), steps in kinds.items()], delta)
    beyond = _beyond(kinds, delta, pld)
    if beyond:
        return CrossCheck(delta, pld, absent=dict.fromkeys(("google", "prv", "rdp"), beyond))
    if not kinds:
        return CrossCheck(delta, pld, 0.0, 0.0, 0.0)
    google, rdp = _google(kinds, delta)
    prv, why = _opacus(kinds, delta)
    return CrossCheck(delta, pld, google, prv, rdp, {"prv": why} if why else {})


def _beyond(kinds: Mapping[Mechanism, int], delta: float, pld: float) -> str:
    if len(kinds) > _MOST_KINDS:
        return f"{len(kinds)} kinds of steps, and the other accountants are asked for up to {_MOST_KINDS}"
    if sum(kinds.values()) > _MOST_STEPS:
        return f"{sum(kinds.values())} steps, and the other accountants are asked for up to {_MOST_STEPS}"
    if not pld <= _MOST_EPSILON:
        return f"an epsilon above {_MOST_EPSILON:g}, for which the other accountants take gigabytes"
    if not _LEAST_DELTA <= delta < 1:
        return f"a delta outside {_LEAST_DELTA:g} to 1, for which the other accountants are not made"
    return ""


def _google(kinds: Mapping[Mechanism, int], delta: float) -> tuple[float, float]:
    """Return ε by privacy losses and by Rényi divergences."""
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant  # noqa: PLC0415  (two seconds)
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  (see above)

    losses = PLDAccountant(value_discretization_interval=_GRID)
    return epsilon_by(losses, kinds, delta), epsilon_by(RdpAccountant(), kinds, delta)


def epsilon_by(accountant: Any, kinds: Mapping[Mechanism, int], delta: float) -> float:
    """Return what a new accountant of dp-accounting's makes of so many steps of each kind: ε, at least 0, maybe inf."""
    from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent  # noqa: PLC0415  (two seconds)

    for (sigma, rate), steps in kinds.items():
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps)
    noisy = logging.getLogger("absl")  # "optimal order is the largest alpha": a bound all the same
    before = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        return max(0.0, float(accountant.get_epsilon(delta)))
    finally:
        noisy.setLevel(before)


def _opacus(kinds: Mapping[Mechanism, int], delta: float) -> tuple[float | None, str]:
    """Return the PRV accountant's upper bound, or why there is none."""
    if importlib.util.find_spec(_OPACUS) is None:
        return None, "Opacus is not installed here; it comes with the extras client and simulation"
    # By name: the common room must not need Opacus, and a hospital's child process has it loaded.
    accountant: Any = importlib.import_module(f"{_OPACUS}.accountants").PRVAccountant()
    accountant.history = [(sigma, rate, steps) for (sigma, rate), steps in kinds.items()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = float(accountant.get_epsilon(delta=delta))
    except (ValueError, RuntimeError, ArithmeticError) as error:
        return None, f"Opacus' accountant ended with {type(error).__name__}"
    return (max(0.0, found), "") if math.isfinite(found) else (None, "Opacus' accountant gave no finite number")
