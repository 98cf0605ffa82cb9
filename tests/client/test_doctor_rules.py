"""Where the doctor draws its lines: clock, certificates, room, permissions, versions."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward_client.diagnosis import FAST_S
from fedward_client.doctor import rules
from fedward_client.doctor.rules import MIB, Finding, Kept, Level
from fedward_common.protocol import Release

GIB = 1024 * MIB
NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)


# ------------------------------------------------------------------------------------------------------- findings


def test_nothing_is_wrong_without_a_remedy() -> None:
    for level in (Level.WARN, Level.FAIL):
        with pytest.raises(ValueError, match="remedy"):
            Finding("disk", level, "full")


def test_one_fail_fails_all_and_a_warning_does_not() -> None:
    good, odd, bad = (
        Finding("a", Level.PASS, "x"),
        Finding("b", Level.WARN, "x", "y"),
        Finding("c", Level.FAIL, "x", "y"),
    )

    assert not rules.failed([good, odd])
    assert rules.failed([good, bad, odd])
    assert rules.summary([good, odd, bad, bad]) == {"PASS": 1, "WARN": 1, "FAIL": 2}


def test_findings_for_a_machine_are_json_in_their_order() -> None:
    findings = [Finding("dns", Level.PASS, "found"), Finding("tls", Level.FAIL, "expired", "renew")]

    read = json.loads(json.dumps(rules.as_json(findings)))

    assert read["format"] == "fedward-doctor-1"
    assert read["summary"] == {"PASS": 1, "WARN": 0, "FAIL": 1}
    assert read["checks"] == [
        {"check": "dns", "level": "PASS", "what": "found", "remedy": ""},
        {"check": "tls", "level": "FAIL", "what": "expired", "remedy": "renew"},
    ]


# ---------------------------------------------------------------------------------------------------------- clock


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [
        (0, Level.PASS), (FAST_S, Level.PASS), (FAST_S + 0.9, Level.PASS), (FAST_S + 1.1, Level.FAIL), (59, Level.FAIL),
        (300, Level.FAIL), (-59.9, Level.PASS), (-60, Level.WARN), (-299.9, Level.WARN), (-300, Level.FAIL),
    ],
)  # fmt: skip
def test_a_clock_is_judged_by_what_the_coordinator_takes(ahead_s: float, level: Level) -> None:
    """Sixty and three hundred seconds, and five ahead: Flower takes no signature from further in the future."""
    assert rules.clock(ahead_s, 1.0).level is level


def test_a_clock_s_finding_names_side_size_and_error() -> None:
    assert "412 s behind" in rules.clock(-412, 0.6).what
    assert "(± 0.6 s)" in rules.clock(-412, 0.6).what
    assert "90 s ahead" in rules.clock(90, 0.6).what
    assert "timedatectl" in rules.clock(90, 0.6).remedy


# ---------------------------------------------------------------------------------------------------- certificates


@pytest.mark.parametrize(
    ("left", "level"),
    [
        (dt.timedelta(days=31), Level.PASS),
        (dt.timedelta(days=30), Level.WARN),
        (dt.timedelta(days=7), Level.WARN),
        (dt.timedelta(days=1, seconds=1), Level.WARN),
        (dt.timedelta(days=1), Level.FAIL),
        (dt.timedelta(seconds=1), Level.FAIL),
        (dt.timedelta(0), Level.FAIL),
        (-dt.timedelta(days=400), Level.FAIL),
    ],
)
def test_a_certificate_is_warned_of_at_30_and_7_days_and_fails_on_its_last(left: dt.timedelta, level: Level) -> None:
    assert rules.expiry("CA certificate", NOW + left, NOW, "renew it").level is level


def test_how_soon_is_said() -> None:
    def remedy(days: float) -> str:
        return rules.expiry("CA certificate", NOW + dt.timedelta(days=days), NOW, "renew it").remedy

    assert remedy(20) == "within 30 days: renew it"
    assert remedy(5) == "within 7 days: renew it"
    assert remedy(0.5) == "today: renew it"
    assert "12 hours" in rules.expiry("CA certificate", NOW + dt.timedelta(hours=12), NOW, "renew it").what


# ----------------------------------------------------------------------------------------------------------- room


@pytest.mark.parametrize(
    ("free", "files", "level"),
    [
        (100 * GIB, 10**6, Level.PASS),
        (100 * GIB, -1, Level.PASS),
        (5 * GIB - 1, 10**6, Level.WARN),
        (GIB - 1, 10**6, Level.FAIL),
        (0, 0, Level.FAIL),
        (100 * GIB, 9_999, Level.WARN),
    ],
)
def test_room_is_counted_in_bytes_and_in_files(free: int, files: int, level: Level) -> None:
    finding = rules.free_space("/var/lib/fedward", free, files)

    assert finding.level is level
    assert "/var/lib/fedward" in finding.what


@pytest.mark.parametrize(("size", "level"), [(2 * GIB, Level.PASS), (2 * GIB - 1, Level.WARN), (511 * MIB, Level.FAIL)])
def test_memory(size: int, level: Level) -> None:
    assert rules.free_memory(size).level is level


@pytest.mark.parametrize(("size", "level"), [(GIB, Level.PASS), (64 * MIB, Level.WARN), (MIB, Level.FAIL)])
def test_docker_s_64_mib_of_shared_memory_are_warned_of(size: int, level: Level) -> None:
    assert rules.shared_memory(size).level is level


@given(st.integers(0, 1 << 50))
def test_a_size_for_people_is_the_size(count: int) -> None:
    number, unit = rules.size(count).split(" ")

    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(float(number) * factor - count) <= 0.05 * factor + 1e-6 * count


# ---------------------------------------------------------------------------------------------------- permissions

HOME = Kept("/srv/fedward", 0o700, 990)
NAMES = {990: "fedward", 0: "root"}


def _levels(home: Kept, *inside: Kept) -> list[tuple[Level, str]]:
    return [(finding.level, finding.what.partition(":")[0]) for finding in rules.modes(home, inside, NAMES)]


def test_files_that_are_the_owner_s_alone_pass() -> None:
    inside = [Kept("node.key", 0o600, 990, secret=True), Kept("cache", 0o700, 990), Kept("audit.jsonl", 0o600, 990)]

    (finding,) = rules.modes(HOME, inside, NAMES)

    assert finding.level is Level.PASS
    assert "4 files and folders, all fedward's alone" in finding.what


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_a_key_that_others_may_use_fails_even_in_a_closed_folder(mode: int) -> None:
    assert _levels(HOME, Kept("node.key", mode, 990, secret=True)) == [(Level.FAIL, "node.key")]


def test_a_key_that_was_open_is_to_be_made_anew() -> None:
    (finding,) = rules.modes(HOME, [Kept("node.key", 0o644, 990, secret=True)], NAMES)

    assert "chmod -R go-rwx /srv/fedward" in finding.remedy
    assert "anew" in finding.remedy


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_state_that_others_may_change_fails(mode: int) -> None:
    assert _levels(HOME, Kept("approvals.json", mode, 990)) == [(Level.FAIL, "approvals.json")]


def test_readable_state_is_a_warning_behind_a_closed_door_and_a_failure_behind_an_open_one() -> None:
    state = Kept("audit.jsonl", 0o644, 990)

    assert _levels(HOME, state) == [(Level.WARN, "audit.jsonl")]
    assert _levels(Kept("/srv/fedward", 0o755, 990), state) == [(Level.FAIL, "/srv/fedward, audit.jsonl")]


def test_a_file_of_another_account_fails_and_the_owner_is_named() -> None:
    (finding,) = rules.modes(HOME, [Kept("ledger.sqlite-wal", 0o600, 0)], NAMES)

    assert finding.level is Level.FAIL
    assert finding.remedy == "chown -R fedward /srv/fedward"


def test_many_files_are_counted_not_listed() -> None:
    (finding,) = rules.modes(HOME, [Kept(f"studies/{n}.json", 0o644, 990) for n in range(9)], NAMES)

    assert finding.what.count("studies/") == 3
    assert "and 6 more" in finding.what


# -------------------------------------------------------------------------------------------------------- version


@pytest.mark.parametrize(
    ("theirs", "remedy"),
    [
        (Release("0.1.0", 2, 2), ""),
        (Release("0.2.0", 2, 3), ""),
        (Release("0.3.0", 3, 4), "upgrade this site to Fedward 0.3.0"),
        (Release("0.0.9", 1, 1), "upgrade the coordinator to Fedward 0.1.0"),
        (Release("", 3, 4), "upgrade this site to a release that speaks protocol 3"),
    ],
)
def test_releases_work_together_that_have_a_protocol_in_common(theirs: Release, remedy: str) -> None:
    finding = rules.version(Release("0.1.0", 2, 2), theirs)

    assert finding.level is (Level.FAIL if remedy else Level.PASS)
    assert finding.remedy.partition(":")[0] == remedy
