"""The curve holds every point inside its frame, says them in words, and brings no style of its own."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from fedward_server.console.curve import curve
from fedward_server.result import RoundResult


def closed(*pairs: tuple[float | None, float | None]) -> list[RoundResult]:
    return [
        RoundResult(round=n, sites=("a",), seconds=1, central={"auroc": auroc, "accuracy": accuracy})
        for n, (auroc, accuracy) in enumerate(pairs, start=1)
    ]


def points(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r'points="([^"]*)"', svg)
    return [(float(x), float(y)) for line in found for x, y in (place.split(",") for place in line.split())]


@pytest.mark.parametrize(
    "values",
    [
        [(0.5, 0.5)],
        [(0.0, 1.0), (1.0, 0.0)],
        [(0.9, 0.9)] * 3,
        [(0.99, 0.98), (0.999, 0.98)],
        [(0.71, None), (None, 0.3)],
    ],
)
def test_every_point_lies_inside_the_frame(values: list[tuple[float | None, float | None]]) -> None:
    found = curve(closed(*values), 5)

    assert found is not None
    assert points(found.svg)
    assert all(38 <= x <= 346 and 12 - 0.1 <= y <= 176.1 for x, y in points(found.svg))


def test_a_better_model_lies_higher_and_a_later_round_further_right() -> None:
    found = curve(closed((0.6, None), (0.9, None)), 10)

    assert found is not None
    (x1, y1), (x2, y2) = points(found.svg)
    assert x2 > x1
    assert y2 < y1


def test_the_axis_is_as_long_as_the_study_from_the_first_round_on() -> None:
    short, long_ = curve(closed((0.6, 0.7)), 2), curve(closed((0.6, 0.7)), 100)

    assert short is not None
    assert long_ is not None
    assert ">100</text>" in long_.svg
    assert ">100</text>" not in short.svg


@pytest.mark.parametrize("planned", [0, 1, 2, 7, 60, 100, 999, 5000])
def test_ticks_are_few_and_distinct(planned: int) -> None:
    found = curve(closed((0.6, 0.7)), planned)

    assert found is not None
    ticks = re.findall(r'middle" x="[\d.]+" y="190">(\d+)<', found.svg)
    assert 2 <= len(ticks) <= 8
    assert len(set(ticks)) == len(ticks)


def test_without_a_value_there_is_no_curve() -> None:
    assert curve([], 5) is None
    assert curve(closed((None, None)), 5) is None


def test_the_drawing_is_sound_and_says_what_it_shows_in_words() -> None:
    found = curve(closed((0.6, 0.5), (0.812, 0.7)), 5)

    assert found is not None
    root = ET.fromstring(found.svg)  # noqa: S314  (our own)
    assert root.get("role") == "img"
    assert root.findtext("desc") == (
        "AUROC 0.600 after round 1, 0.812 after round 2; Accuracy 0.500 after round 1, 0.700 after round 2."
    )
    assert found.legend == (("AUROC", "first", "0.812"), ("Accuracy", "second", "0.700"))
    assert found.table == ((1, "0.600", "0.500", "—"), (2, "0.812", "0.700", "—"))


def test_the_lines_differ_by_their_marks_too() -> None:
    found = curve(closed((0.6, 0.5), (0.8, 0.7)), 5)

    assert found is not None
    assert found.svg.count("<circle") == 2
    assert found.svg.count("<rect") == 2


def test_no_attribute_needs_what_the_policy_forbids() -> None:
    found = curve(closed((0.6, 0.5)), 5)

    assert found is not None
    names = {name for element in ET.fromstring(found.svg).iter() for name in element.attrib}  # noqa: S314  (our own)
    assert not names & {"style", "href", "onload", "src"}


def test_thousands_of_rounds_stay_a_small_drawing() -> None:
    found = curve(closed(*[(0.6, 0.7)] * 5000), 5000)

    assert found is not None
    assert len(found.svg) < 30_000
