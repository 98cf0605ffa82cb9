"""Releases that have a protocol in common work together; of all others it is said which one to upgrade, and to what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_common import __version__
from fedward_common.protocol import OURS, Release, compatible, outdated

VERSIONS = st.sampled_from(["", "0.1.0", "1.2.3", "2.0.0rc1"])
PROTOCOLS = st.integers(1, 40)


@st.composite
def releases(draw: st.DrawFn) -> Release:
    newest = draw(PROTOCOLS)
    return Release(draw(VERSIONS), draw(st.integers(max(1, newest - 1), newest)), newest)


def numbered(newest: int) -> Release:
    """Return the release of a line in which each one raises the protocol and speaks the one before as well."""
    return Release(f"{newest}.0.0", max(1, newest - 1), newest)


@pytest.mark.parametrize("newest", [2, 3, 9])
def test_a_release_works_with_its_neighbours_and_with_nobody_else(newest: int) -> None:
    works = [other for other in range(1, 12) if compatible(numbered(newest), numbered(other)) is None]

    assert works == [newest - 1, newest, newest + 1]


@given(releases(), releases())
def test_both_sides_come_to_the_same_verdict(one: Release, other: Release) -> None:
    here = compatible(one, other, us="the site", them="the centre")
    there = compatible(other, one, us="the centre", them="the site")

    assert here == there
    assert (here is None) == any(protocol in one and protocol in other for protocol in range(1, 41))


@given(releases(), releases())
def test_the_side_to_upgrade_is_the_older_one_and_the_target_works(one: Release, other: Release) -> None:
    why = compatible(one, other, us="the site", them="the centre")
    if why is None:
        return
    newer = max(one, other, key=lambda release: release.newest)

    assert why.startswith(f"upgrade {'the centre' if newer is one else 'the site'} to ")
    assert (newer.version or f"protocol {newer.oldest}") in why


def test_the_reason_names_both_ranges() -> None:
    assert compatible(Release("0.1.0", 2, 2), Release("0.3.0", 3, 4)) == (
        "upgrade this site to Fedward 0.3.0: it speaks protocol 2, the centre speaks 3 to 4"
    )


def test_this_release_speaks_its_own_protocol_and_at_most_the_one_before() -> None:
    assert OURS.version == __version__
    assert OURS.newest in OURS
    assert 0 <= OURS.newest - OURS.oldest <= 1
    assert True not in Release("", 1, 1)


@given(releases())
def test_what_the_headers_say_is_what_was_meant(release: Release) -> None:
    assert Release.of(release.headers()) == release


def test_who_sends_no_header_is_from_before_there_were_any() -> None:
    assert Release.of({}) == Release("", 2, 2)
    assert Release.of({"fedward-version": "0.1.0"}) == Release("0.1.0", 2, 2)


@pytest.mark.parametrize("version", ["x" * 40, "1.0\n", "<b>1</b>", "1 0", "\uff561"])
def test_a_version_that_is_none_is_dropped(version: str) -> None:
    assert Release.of({"fedward-version": version, "fedward-protocol": "2-3"}) == Release("", 2, 3)


@pytest.mark.parametrize(
    "span", ["", "2", "3-2", "0-1", "-1-2", "2-3-4", "2 - 3", "99999-99999", "\uff12-\uff13", "2-3\n"]
)
def test_protocols_that_are_no_range_are_refused(span: str) -> None:
    with pytest.raises(ValueError, match="OLDEST-NEWEST"):
        Release.of({"fedward-protocol": span})


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("protocol_mismatch asked=1 limit=2", ": upgrade Fedward at the centre"),
        ("protocol_mismatch asked=3 limit=2", ": upgrade Fedward at the site"),
        ("protocol_mismatch", ""),
        ("protocol_mismatch asked=x limit=2", ""),
        ("round_out_of_range asked=4 limit=3", ""),
    ],
)
def test_a_refusal_of_another_protocol_says_what_to_upgrade_and_no_other_does(reason: str, advice: str) -> None:
    assert outdated(reason) == reason + advice
