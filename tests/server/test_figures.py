from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from fedward_server.figures import CentreBars, Words, centres_figure, roc_figure, rounds_figure
from fedward_server.result import Estimate, RoundResult

WORDS = Words("A name", "What there is to see.")


def rounds(count: int, *, private: bool = True, **central: float | None) -> list[RoundResult]:
    shown = central or {"auroc": 0.8, "accuracy": 0.7}
    return [
        RoundResult(round=n, sites=("a",), seconds=0.1, epsilon=n / count if private else None, central=shown)
        for n in range(1, count + 1)
    ]


def bar(name: str, value: float | None = 0.8, alone: float | None = 0.6) -> CentreBars:
    def estimate(middle: float | None) -> Estimate:
        low, high = (None, None) if middle is None else (middle - 0.1, middle + 0.1)
        return Estimate(value=middle, low=low, high=high)

    return CentreBars(name, estimate(value), estimate(alone))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]  # noqa: S314  (our own)


ALL = {
    "roc": lambda: roc_figure([0, 0, 1], [0, 1, 1], WORDS),
    "rounds": lambda: rounds_figure(rounds(5), 8.0, WORDS),
    "centres": lambda: centres_figure([bar("north"), bar("south")], "95 %", WORDS),
}


@pytest.mark.parametrize("name", ALL)
class TestEveryFigure:
    def test_is_well_formed_and_refers_to_nothing_outside(self, name: str) -> None:
        svg = ALL[name]()
        ET.fromstring(svg)  # noqa: S314  (our own)
        assert "http" not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert "<script" not in svg
        assert re.findall(r"(?:href=\"|url\()(?!#)", svg) == []

    def test_has_a_name_and_a_description_for_screen_readers(self, name: str) -> None:
        svg = ALL[name]()
        assert 'role="img"' in svg
        assert f'aria-labelledby="{name}-title" aria-describedby="{name}-desc"' in svg
        assert f'<title id="{name}-title">A name</title>' in svg
        assert f'<desc id="{name}-desc">What there is to see.</desc>' in svg

    def test_keeps_its_ids_to_itself_and_each_reference_has_its_target(self, name: str) -> None:
        svg = ALL[name]()
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert all(identifier.startswith(f"{name}-") for identifier in ids)
        assert set(re.findall(r'(?:href="#|url\(#|labelledby=")([^")]+)', svg)) <= set(ids)

    def test_is_the_same_bytes_each_time(self, name: str) -> None:
        assert ALL[name]() == ALL[name]()

    def test_keeps_text_as_text_in_the_readers_font(self, name: str) -> None:
        svg = ALL[name]()
        assert len(texts(svg)) > 5
        assert "DejaVu" not in svg

    def test_does_not_depend_on_the_computers_matplotlibrc_and_leaves_it_alone(self, name: str) -> None:
        before = ALL[name]()
        with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red", "svg.hashsalt": None}):
            assert ALL[name]() == before
            assert mpl.rcParams["font.size"] == 30

    def test_escapes_what_it_says(self, name: str) -> None:
        hostile = Words("</title><script>alert(1)</script>", '"&<b>')
        svg = {
            "roc": lambda: roc_figure([0, 1], [0, 1], hostile),
            "rounds": lambda: rounds_figure(rounds(2), None, hostile),
            "centres": lambda: centres_figure([bar("a")], "95 %", hostile),
        }[name]()
        assert "<script>" not in svg
        assert "<b>" not in svg
        assert ET.fromstring(svg)[0].text == hostile.title  # noqa: S314  (our own)


class TestRoc:
    def test_shows_the_curve_beside_chance_told_apart_by_the_line(self) -> None:
        svg = ALL["roc"]()
        assert {"chance", "federated model"} <= set(texts(svg))
        assert svg.count("stroke-dasharray") >= 1

    def test_a_curve_of_many_thresholds_stays_small(self) -> None:
        steps = np.sort(np.random.default_rng(1).random((2, 100_000)), axis=1)
        svg = roc_figure(steps[0].tolist(), steps[1].tolist(), WORDS)
        assert len(svg) < 200_000


class TestRounds:
    def test_spending_has_a_panel_of_its_own_with_the_budget(self) -> None:
        svg = rounds_figure(rounds(5), 8.0, WORDS)
        assert {"AUROC", "accuracy", "ε spent", "budget 8", "Round"} <= set(texts(svg))
        assert svg.count('id="rounds-axes_') == 2

    def test_without_privacy_there_is_one_panel(self) -> None:
        svg = rounds_figure(rounds(5, private=False), None, WORDS)
        assert svg.count('id="rounds-axes_') == 1
        assert "ε spent" not in texts(svg)

    def test_a_metric_without_a_value_is_left_out(self) -> None:
        svg = rounds_figure(rounds(3, auroc=None, accuracy=0.5), None, WORDS)
        assert "AUROC" not in texts(svg)
        assert "accuracy" in texts(svg)

    def test_no_metric_at_all_still_draws_the_spending(self) -> None:
        assert "ε spent" in texts(rounds_figure(rounds(3, auroc=None), 8.0, WORDS))

    @pytest.mark.parametrize("count", [1, 2, 10_000])
    def test_any_number_of_rounds_fits(self, count: int) -> None:
        svg = rounds_figure(rounds(count), 8.0, WORDS)
        assert len(svg) < 150_000
        assert "ε spent" in texts(svg)

    def test_ticks_of_rounds_are_whole_numbers(self) -> None:
        labels = texts(rounds_figure(rounds(2, private=False), None, WORDS))
        before = labels[: labels.index("Round")]
        assert before
        assert all(label.isdigit() for label in before)

    def test_nothing_spent_is_drawn_as_zero(self) -> None:
        entries = [r.model_copy(update={"epsilon": 0.0}) for r in rounds(2)]
        assert "ε spent" in texts(rounds_figure(entries, None, WORDS))


class TestCentres:
    def test_shows_both_values_told_apart_by_a_hatch(self) -> None:
        svg = ALL["centres"]()
        assert {"north", "south", "federated", "alone", "0.800", "0.600"} <= set(texts(svg))
        assert "<pattern" in svg

    def test_a_missing_value_is_a_dash_not_a_zero(self) -> None:
        svg = centres_figure([CentreBars("a", bar("a").federated, None), bar("b", None)], "95 %", WORDS)
        assert texts(svg).count("—") == 2
        assert "0.000" not in texts(svg)
        assert "nan" not in svg

    def test_without_lone_models_there_is_one_bar_for_each_centre(self) -> None:
        svg = centres_figure([CentreBars("a", bar("a").federated, None)], "95 %", WORDS)
        assert "alone" not in texts(svg)
        assert "—" not in texts(svg)
        assert "<pattern" not in svg

    def test_a_value_without_an_interval_has_no_whisker(self) -> None:
        lone = Estimate(value=0.5, low=None, high=None)
        assert "nan" not in centres_figure([CentreBars("a", lone, lone)], "95 %", WORDS)

    def test_odd_names_are_shown_as_they_are_and_never_become_markup(self) -> None:
        names = ["<script>", "a&b", "$\\frac{1}{2}$", "北京", "x\n\x00y", "url(#a)", 'id="z"']
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shown = texts(centres_figure([bar(name) for name in names], "95 %", WORDS))
        assert {"<script>", "a&b", "$\\frac{1}{2}$", "北京", "x  y", "url(#a)", 'id="z"'} <= set(shown)

    def test_a_long_name_is_cut_and_says_so(self) -> None:
        shown = texts(centres_figure([bar("x" * 63)], "95 %", WORDS))
        assert "x" * 21 + "…" in shown

    def test_grows_with_the_number_of_centres(self) -> None:
        def height(count: int) -> float:
            svg = centres_figure([bar(f"h{n}") for n in range(count)], "95 %", WORDS)
            return float(svg.split('viewBox="')[1].split('"')[0].split()[3])

        assert height(20) > 2 * height(4) > 2 * height(1)
