"""Colours can be told apart: contrast by WCAG 2.2, in light and dark, computed from the style sheet itself."""

from __future__ import annotations

import re

import pytest

from fedward_server.console.page import asset

TEXT, LARGE = 4.5, 3.0
"""WCAG 1.4.3 for text; 1.4.11 for borders and marks that carry a meaning."""
READ = [
    *(("ink", ground) for ground in ("paper", "card", "wash", "bad-wash")),
    *(("quiet", ground) for ground in ("paper", "card", "wash")),
    *(("link", ground) for ground in ("paper", "card", "bad-wash")),
    *((tone, f"{tone}-wash") for tone in ("good", "bad", "wait")),
    ("bad", "card"), ("on-link", "link"), ("on-danger", "danger"), ("danger", "card"),
]  # fmt: skip
SEEN = [
    ("edge", "card"), ("edge", "paper"), ("link", "paper"), ("link", "card"), ("link", "wash"), ("first", "card"),
    ("second", "card"), ("first", "track"), ("wait", "card"), ("bad", "track"),
]  # fmt: skip


def sheet() -> str:
    found = asset("console.css")
    assert found is not None
    return found[0].decode()


def colours(scheme: str) -> dict[str, str]:
    """Return the sheet's colours by name; dark ones replace the light ones."""
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", sheet(), re.DOTALL)[:2]
    named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    return named | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark)) if scheme == "dark" else named


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("over", "under"), READ)
def test_text_can_be_read(scheme: str, over: str, under: str) -> None:
    named = colours(scheme)

    assert contrast(named[over], named[under]) >= TEXT


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("over", "under"), SEEN)
def test_edges_marks_and_the_focus_can_be_seen(scheme: str, over: str, under: str) -> None:
    named = colours(scheme)

    assert contrast(named[over], named[under]) >= LARGE


def test_both_schemes_name_every_colour() -> None:
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", sheet(), re.DOTALL)[:2]
    names = [set(re.findall(r"--([\w-]+): #", part)) for part in (light, dark)]

    assert names[0] == names[1]


def test_no_colour_is_used_that_has_no_name() -> None:
    used = re.sub(r":root \{.*?\n\s*\}|@media print \{.*?\n\}", "", sheet(), flags=re.DOTALL)

    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", re.sub(r"#[a-z][\w-]*", "", used))
    assert set(re.findall(r"var\(--([\w-]+)\)", used)) <= {*colours("light"), "sans", "mono"}


def test_the_focus_is_visible_and_never_taken_away() -> None:
    assert ":focus-visible { outline: 3px solid var(--link)" in sheet()
    assert re.findall(r"([^{}]+)\{[^}]*outline: none", sheet()) == ["\nmain:focus "]


def test_buttons_are_as_high_as_a_thumb() -> None:
    assert re.search(r"button, \.button \{[^}]*min-height: 2\.75rem", sheet())
    assert re.search(r"input, select \{[^}]*min-height: 2\.75rem", sheet())
