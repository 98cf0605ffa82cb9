"""The report's figures as SVG to be set inside HTML: no file, no clock, the same input gives the same bytes.

Each one is legible without colour (line styles, markers, hatches) and at 330 pt width, a phone's screen. Text stays
text, in the reader's own font. Nothing in them refers to anything outside: namespaces and metadata are left out,
which HTML allows, and every id is prefixed with the figure's own name.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedward_server.result import Estimate, RoundResult

__all__ = ["CentreBars", "Words", "centres_figure", "roc_figure", "rounds_figure"]

_WIDTH: Final = 330 / 72
_INK, _MUTED, _RULE = "#1b1b1b", "#555555", "#c9c9c9"
_FEDERATED, _SECOND = "#1f4e79", "#9a3412"
_FILLED, _HATCHED = "#7d9dbd", "#ffffff"
_FONT: Final = "DejaVu Sans"
_READERS_FONT: Final = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LONGEST_NAME: Final = 22
_MOST_POINTS: Final = 2000
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedward",
    "text.parse_math": False,
    "font.family": _FONT,
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "hatch.linewidth": 0.7,
    "hatch.color": _INK,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True, slots=True)
class Words:
    """What a figure says to those who do not see it: a name and one or two sentences."""

    title: str
    description: str


@dataclass(frozen=True, slots=True)
class CentreBars:
    """One centre's hold-out accuracy: of the federated model and of the model that the centre trained alone."""

    name: str
    federated: Estimate
    alone: Estimate | None


def roc_figure(false_rate: Sequence[float], true_rate: Sequence[float], words: Words) -> str:
    """Return the ROC curve beside the line of chance."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.15, 0.14, 0.82, 0.83))
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=(0, (2, 2)), label="chance")
        axes.plot(*_thinned(false_rate, true_rate), color=_FEDERATED, linewidth=2, label="federated model")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel("False alarms (1 − specificity)")
        axes.set_ylabel("Cases found (sensitivity)")
        axes.legend(loc="lower right", reverse=True)

    return _svg("roc", (_WIDTH, _WIDTH), words, draw)


def rounds_figure(rounds: Sequence[RoundResult], budget: float | None, words: Words) -> str:
    """Return AUROC and accuracy after each round and, where ε was spent, a second panel of it below.

    Args:
        rounds: at least one.
        budget: the study's ε, drawn as a line; None without privacy.
        words: for those who do not see it.
    """
    numbers = np.array([r.round for r in rounds], dtype=float)
    spent = _values([r.epsilon for r in rounds])
    private = bool(np.isfinite(spent).any())

    def draw(figure: Figure) -> None:
        upper = figure.add_axes((0.15, 0.45, 0.82, 0.53) if private else (0.15, 0.14, 0.82, 0.83))
        _curve(upper, numbers, _values([r.central.get("auroc") for r in rounds]), "AUROC", "-", "o")
        _curve(upper, numbers, _values([r.central.get("accuracy") for r in rounds]), "accuracy", "--", "s")
        upper.set_ylabel("On the hold-out")
        if upper.lines:
            low, high = upper.get_ylim()
            upper.set_ylim(max(-0.02, min(low, 0.5)), min(1.02, max(high + 0.02, 0.9)))
            upper.legend(loc="lower right")
        lowest = upper
        if private:
            lowest = figure.add_axes((0.15, 0.12, 0.82, 0.25), sharex=upper)
            upper.tick_params(labelbottom=False)
            _spending(lowest, numbers, spent, budget)
        lowest.set_xlabel("Round")
        lowest.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        lowest.set_xlim(numbers[0] - 0.5, max(numbers[-1], numbers[0] + 1) + 0.5)

    return _svg("rounds", (_WIDTH, _WIDTH), words, draw)


def centres_figure(bars: Sequence[CentreBars], confidence: str, words: Words) -> str:
    """Return, for each centre, the federated model's accuracy beside that of its own model, with intervals.

    Args:
        bars: at least one, in the order from top to bottom.
        confidence: the level of the intervals, for example ``95 %``.
        words: for those who do not see it.
    """
    height = 0.95 + 0.52 * len(bars)
    names = [_short(bar.name) for bar in bars]
    left = 0.04 + 0.019 * max(4, *map(len, names))
    both = any(bar.alone for bar in bars)

    def draw(figure: Figure) -> None:
        bottom, top = 0.5 / height, 1 - 0.42 / height
        axes = figure.add_axes((left, bottom, 0.86 - left, top - bottom))
        places = np.arange(len(bars))[::-1].astype(float)
        handles = [_bars(axes, places + 0.19 * both, [bar.federated for bar in bars], _FILLED, None)]
        if both:
            handles.append(_bars(axes, places - 0.19, [bar.alone for bar in bars], _HATCHED, "///"))
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(xlim=(0, 1), ylim=(-0.6, len(bars) - 0.4))
        axes.set_xlabel(f"Accuracy, with {confidence} interval")
        labels = ["federated", "alone"][: len(handles)]
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(left - 0.02, 1), ncols=2)

    return _svg("centres", (_WIDTH, height), words, draw)


def _curve(
    axes: Axes, rounds: npt.NDArray[np.float64], values: npt.NDArray[np.float64], name: str, line: str, marker: str
) -> None:
    if not np.isfinite(values).any():
        return
    colour = _FEDERATED if line == "-" else _SECOND
    every = max(1, len(rounds) // 8)
    axes.plot(
        *_thinned(rounds, values), color=colour, linestyle=line, marker=marker, markersize=4.5, markevery=every,
        markerfacecolor="white", label=name,
    )  # fmt: skip


def _spending(
    axes: Axes, rounds: npt.NDArray[np.float64], spent: npt.NDArray[np.float64], budget: float | None
) -> None:
    axes.plot(*_thinned(rounds, spent), color=_INK, marker="." if len(rounds) == 1 else "")
    highest = float(np.nanmax(spent))
    if budget is not None:
        highest = max(highest, budget)
        axes.axhline(budget, color=_MUTED, linewidth=1, linestyle=(0, (4, 2)))
        axes.annotate(
            f"budget {budget:g}", (0.01, budget), xycoords=("axes fraction", "data"), va="top",
            xytext=(2, -3), textcoords="offset points", fontsize=9, color=_INK,
        )  # fmt: skip
    axes.set_ylim(0, highest * 1.12 or 1)
    axes.set_ylabel("ε spent")


def _bars(
    axes: Axes, places: npt.NDArray[np.float64], estimates: Sequence[Estimate | None], fill: str, hatch: str | None
) -> Any:
    values = _values([e.value if e else None for e in estimates])
    low = np.fmin(_values([e.low if e else None for e in estimates]), values)
    high = np.fmax(_values([e.high if e else None for e in estimates]), values)
    drawn = axes.barh(
        places, np.nan_to_num(values), height=0.36, color=fill, edgecolor=_INK, linewidth=0.8, hatch=hatch
    )
    axes.errorbar(
        values, places, xerr=np.nan_to_num(np.array([values - low, high - values])), fmt="none",
        ecolor=_INK, elinewidth=1.1, capsize=2.5,
    )  # fmt: skip
    for place, value in zip(places, values, strict=True):
        text = f"{value:.3f}" if np.isfinite(value) else "—"
        axes.text(1.03, place, text, va="center", fontsize=9, transform=axes.get_yaxis_transform())
    return drawn


def _values(numbers: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if n is None else n for n in numbers], dtype=float)


def _thinned(x: Any, y: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return both series with at most `_MOST_POINTS` points, the first and the last among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(int))
    return np.asarray(x, dtype=float)[kept], np.asarray(y, dtype=float)[kept]


def _short(name: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


@contextmanager
def _settings() -> Iterator[None]:
    """Draw by our style alone, whatever ``matplotlibrc`` there is; a name in a script without a font is no warning."""
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _svg(name: str, size: tuple[float, float], words: Words, draw: Callable[[Figure], None]) -> str:
    with _settings():
        figure = Figure(figsize=size)
        figure.patch.set_visible(False)
        draw(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _inline(buffer.getvalue(), name, words)


def _inline(document: str, name: str, words: Words) -> str:
    """Return a matplotlib document as an element for HTML: see the module's docstring."""
    body = document[document.index("<svg") :].strip()
    opening, rest = body.split(">", 1)
    view = re.search(r'viewBox="([^"]+)"', opening)
    rest = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*", "", rest, flags=re.DOTALL)
    rest = re.sub(r"<[^>]*>", lambda tag: _own(tag[0], name), rest)  # tags alone: the text may hold names
    labels = (
        f'<title id="{name}-title">{html.escape(words.title)}</title>'
        f'<desc id="{name}-desc">{html.escape(words.description)}</desc>'
    )
    return (
        f'<svg viewBox="{view[1] if view else "0 0 330 330"}" role="img" '
        f'aria-labelledby="{name}-title" aria-describedby="{name}-desc">{labels}{rest}'
    )


def _own(tag: str, name: str) -> str:
    """Return a tag whose ids, and references to them, belong to this figure alone, in the reader's own font."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag).replace('xlink:href="#', f'href="#{name}-')
    return tag.replace("url(#", f"url(#{name}-").replace(f"'{_FONT}'", _READERS_FONT)
