"""The curve of a run's metrics as SVG inside a page: no style attribute, no script, coloured by the page's sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from fedward_server.result import RoundResult
from fedward_server.wording import number

__all__ = ["Curve", "curve"]

_WIDTH, _HEIGHT = 360.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 38.0, 14.0, 12.0, 34.0
_MOST_POINTS: Final = 400
_MOST_MARKS: Final = 40
_MOST_TICKS: Final = 6
_SERIES: Final = (("auroc", "AUROC", "first"), ("accuracy", "Accuracy", "second"))
_STEPS: Final = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class Curve:
    """A drawing and its legend: each series' name, its class, and its last value; `table` holds every point."""

    svg: Markup
    legend: tuple[tuple[str, str, str], ...]
    table: tuple[tuple[int, str, str, str], ...]


def curve(rounds: Sequence[RoundResult], planned: int) -> Curve | None:
    """Return AUROC and accuracy on the hold-out after each round; None where no round has a value.

    Args:
        rounds: the closed ones, in order.
        planned: rounds of the study: the axis is as long from the first round on.
    """
    points = {
        key: _thinned([(r.round, v) for r in rounds if (v := r.central.get(key)) is not None]) for key, *_ in _SERIES
    }
    values = [value for series in points.values() for _, value in series]
    if not values:
        return None
    last = max(planned, rounds[-1].round, 2)
    floor, step = _scale(min(values), max(values))
    plot = _Plot(last, floor, max(_ceiling(max(values), step), floor + step))
    parts = [*_frame(plot, step)]
    for key, _, name in _SERIES:
        parts += _line(plot, points[key], name)
    described = "; ".join(
        f"{label} {number(points[key][0][1])} after round {points[key][0][0]}, {number(points[key][-1][1])} after "
        f"round {points[key][-1][0]}"
        for key, label, _ in _SERIES
        if points[key]
    )
    opening = (
        f'<svg class="curve" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-labelledby="curve-title curve-desc">'
        f'<title id="curve-title">The model on the hold-out after each round</title>'
        f'<desc id="curve-desc">{html.escape(described)}.</desc>'
    )
    legend = tuple((label, name, number(points[key][-1][1])) for key, label, name in _SERIES if points[key])
    return Curve(Markup(opening + "".join(parts) + "</svg>"), legend, _table(rounds))  # noqa: S704  (numbers, and escaped)


def _table(rounds: Sequence[RoundResult]) -> tuple[tuple[int, str, str, str], ...]:
    def shown(value: float | None) -> str:
        return "—" if value is None else number(value)

    return tuple(
        (r.round, shown(r.central.get("auroc")), shown(r.central.get("accuracy")), shown(r.loss)) for r in rounds
    )


@dataclass(frozen=True, slots=True)
class _Plot:
    last: int
    floor: float
    top: float

    def x(self, round_: float) -> float:
        return _LEFT + (round_ - 1) / (self.last - 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.floor) / (self.top - self.floor)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _scale(lowest: float, highest: float) -> tuple[float, float]:
    """Return where the axis of values begins and how far its lines are apart."""
    wanted = max(highest - lowest, 0.02) / 3
    step = next((s for s in _STEPS if s >= wanted), _STEPS[-1])
    return max(0.0, math.floor(lowest / step + 1e-9) * step - (step if highest - lowest < step else 0)), step


def _ceiling(highest: float, step: float) -> float:
    return math.ceil(highest / step - 1e-9) * step


def _frame(plot: _Plot, step: float) -> list[str]:
    parts = []
    for n in range(round((plot.top - plot.floor) / step) + 1):
        value = plot.floor + n * step
        y = plot.y(value)
        parts.append(f'<path class="rule" d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 5:g}" y="{y + 3.5:.1f}">{value:.2f}</text>')
    below = f"{_HEIGHT - _BOTTOM + 14:g}"
    parts += [f'<text class="tick middle" x="{plot.x(n):.1f}" y="{below}">{n}</text>' for n in _ticks(plot.last)]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick middle" x="{middle:g}" y="{_HEIGHT - 4:g}">round</text>')
    return parts


def _ticks(last: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, last) if last / s <= _MOST_TICKS or s >= last)
    return [1, *(n for n in range(step, last + 1, step) if n > 1)]


def _line(plot: _Plot, points: Sequence[tuple[int, float]], name: str) -> list[str]:
    if not points:
        return []
    places = [(plot.x(round_), plot.y(value)) for round_, value in points]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line {name}" points="{drawn}"/>']
    for x, y in places if len(places) <= _MOST_MARKS else places[-1:]:
        if name == "first":
            parts.append(f'<circle class="mark {name}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        else:
            parts.append(f'<rect class="mark {name}" x="{x - 2.6:.1f}" y="{y - 2.6:.1f}" width="5.2" height="5.2"/>')
    return parts


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `_MOST_POINTS` points, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    return [points[round(n * (len(points) - 1) / (_MOST_POINTS - 1))] for n in range(_MOST_POINTS)]
