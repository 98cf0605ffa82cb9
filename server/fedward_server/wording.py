"""How the pages write numbers: three significant digits, and bounds rounded towards the reader's safety."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Context
from typing import Final

__all__ = ["bound", "number", "percent", "percent_bound"]

_UPWARD: Final = Context(prec=3, rounding=ROUND_CEILING)
_PRACTICALLY_ONE: Final = 0.999


def number(value: float, *, trim: bool = False) -> str:
    """Return a number with three significant digits: 0.948, 12.3, 2,980, 1.00 × 10⁻⁵; `trim` drops trailing zeros."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    power = math.floor(math.log10(abs(rounded)))
    if -4 <= power < 6:  # noqa: PLR2004  (between these a plain number is easier to read)
        plain = f"{rounded:,.{max(0, 2 - power)}f}"
        return plain.rstrip("0").rstrip(".") if trim and "." in plain else plain
    factor = number(rounded / 10**power, trim=trim)
    return f"{factor} × 10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def bound(value: float, *, trim: bool = False) -> str:
    """Return a number as `number` does, but rounded up: no ε is shown smaller than it is."""
    return number(float(_UPWARD.create_decimal(repr(value))), trim=trim)


def percent(value: float) -> str:
    """Return a share as a percentage, three significant digits at most."""
    return f"{number(100 * value, trim=True)} %"


def percent_bound(value: float) -> str:
    """Return a probability as a percentage, rounded up; above 99.9 % in words, since no bound says 100 %."""
    return "over 99.9 %" if value > _PRACTICALLY_ONE else f"{bound(100 * value, trim=True)} %"
