"""``site.yaml``: every limit is written out with its meaning, and one that is missing or wrong is named."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_client.config import (
    SiteConfig,
    commented_site,
    create_site,
    load_site,
    local_time,
    trust_signers,
    write_site,
)
from fedward_client.policy import Policy, Resources
from fedward_common.errors import FedwardError, LocalDataError
from fedward_common.signing import key_fingerprint, public_text
from tests.builders import open_policy

LIMITS = [
    *(name for name in Policy.model_fields if name != "resources"),
    *(f"resources.{n}" for n in Resources.model_fields),
]
KEY = public_text(Ed25519PrivateKey.generate().public_key())
OTHER = public_text(Ed25519PrivateKey.generate().public_key())


def content(home: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((home / "site.yaml").read_text(encoding="utf-8")))


def rewrite(home: Path, values: dict[str, Any]) -> None:
    (home / "site.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def refused(home: Path) -> FedwardError:
    with pytest.raises(FedwardError) as caught:
        load_site(home)
    assert str(home / "site.yaml") in caught.value.message
    return caught.value


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the folder of a new site."""
    create_site(tmp_path / "site", "north")
    return tmp_path / "site"


def test_new_file_holds_every_limit_at_its_default_after_its_meaning(home: Path) -> None:
    lines = (home / "site.yaml").read_text(encoding="utf-8").splitlines()

    assert load_site(home).policy == Policy()
    for limit in LIMITS:
        name = limit.removeprefix("resources.")
        place = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
        fields = (Resources if limit != name else Policy).model_fields
        assert lines[place - 1].strip().startswith(f"# {fields[name].description}")


def test_new_file_is_readable_by_its_owner_only(home: Path) -> None:
    assert stat.S_IMODE((home / "site.yaml").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_file_that_a_program_writes_is_complete_too(tmp_path: Path) -> None:
    policy = open_policy(hours={"mon": ("18:00-06:00",)}, signers={"centre": KEY}, cohort_studies={"chart": ("a",)})

    write_site(tmp_path, SiteConfig(site="north", policy=policy))

    assert load_site(tmp_path).policy == policy


@pytest.mark.parametrize("limit", LIMITS)
def test_limit_that_is_missing_is_named_with_its_default(home: Path, limit: str) -> None:
    values = content(home)
    here = values["policy"]
    *way, last = limit.split(".")
    for name in way:
        here = here[name]
    del here[last]
    rewrite(home, values)

    error = refused(home)

    assert f"policy.{limit}" in error.message
    assert f"{limit}: " in error.remedy


@pytest.mark.parametrize("text", ["site: north\n", "site: north\npolicy: {}\n", "site: north\npolicy:\n"])
def test_site_without_a_policy_is_refused(home: Path, text: str) -> None:
    (home / "site.yaml").write_text(text, encoding="utf-8")

    assert "policy" in refused(home).message


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_epsilom_lifetime", "policy.max_epsilon_lifetime"),
        ("Max_Rounds", "policy.max_rounds"),
        ("singers", "policy.signers"),
        ("hour", "policy.hours"),
        ("resource", "policy.resources"),
    ],
)
def test_misspelt_limit_is_named_with_the_nearest_right_one(home: Path, wrong: str, right: str) -> None:
    values = content(home)
    values["policy"][wrong] = values["policy"].pop(right.removeprefix("policy."))
    rewrite(home, values)

    error = refused(home)

    assert f"unknown key 'policy.{wrong}'" in error.message
    assert f"did you mean {right!r}" in error.message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("min_patients", 0, "policy.min_patients = 0 patients must be at least 1 patients"),
        ("max_delta", 0.5, "policy.max_delta"),
        ("require_signature", "perhaps", "policy.require_signature"),
        ("hours", {"mon": ["9-17"]}, "policy.hours.mon.0 = '9-17'"),
        ("hours", {"mon": ["09:00-09:00"]}, "09:00-09:00 has no length"),
        ("signers", {"centre": "ssh-ed25519 AAAA"}, "policy.signers.centre"),
        ("signers", {"centre": "ed25519:" + "_" * 43}, "centre: no Ed25519 public key"),
        ("resources", {"wall_s": 0}, "policy.resources.wall_s = 0 s must be more than 0"),
        ("resources", {"threads": 2}, "policy.resources: threads = 2 are more than cpus = 1"),
        ("studies", ["Not A Name"], "policy.studies.0"),
        ("max_epsilon_lifetime", None, "policy.max_epsilon_lifetime"),
        ("max_rounds", float("inf"), "policy.max_rounds"),
    ],
)
def test_wrong_value_is_refused_with_its_key(home: Path, key: str, value: object, words: str) -> None:
    values = content(home)
    values["policy"][key] = (
        values["policy"]["resources"] | value if isinstance(value, dict) and key == "resources" else value
    )
    rewrite(home, values)

    assert words in refused(home).message


def test_every_wrong_key_is_told_at_once(home: Path) -> None:
    values = content(home)
    values["policy"] |= {"min_patients": 0, "max_round": 3, "min_sites": 1}
    rewrite(home, values)

    message = refused(home).message

    assert all(word in message for word in ("policy.min_patients", "policy.max_round'", "policy.min_sites"))


def test_time_zone_that_nobody_knows_is_refused_with_the_nearest_one(home: Path) -> None:
    values = content(home)
    values["policy"]["time_zone"] = "Europe/Berlim"
    rewrite(home, values)

    with pytest.raises(LocalDataError, match="Berlim") as caught:
        load_site(home)

    assert "Europe/Berlin" in caught.value.remedy


@pytest.mark.parametrize("zone", ["../../etc/passwd", "/etc/passwd", "", "Europe"])
def test_time_zone_that_is_a_path_is_refused(zone: str) -> None:
    with pytest.raises(LocalDataError, match="time_zone"):
        local_time(open_policy(time_zone=zone), datetime.now(UTC))


@pytest.mark.parametrize(
    ("zone", "month", "clock"),
    [
        ("UTC", 1, "12:00"),
        ("Europe/Berlin", 1, "13:00"),
        ("Europe/Berlin", 7, "14:00"),
        ("America/New_York", 1, "07:00"),
    ],
)
def test_hours_are_meant_in_the_site_s_time_zone(zone: str, month: int, clock: str) -> None:
    noon = datetime(2026, month, 5, 12, tzinfo=UTC)

    assert f"{local_time(open_policy(time_zone=zone), noon):%H:%M}" == clock


def test_trusted_key_is_added_and_every_comment_and_value_stays(home: Path) -> None:
    before = (home / "site.yaml").read_text(encoding="utf-8")

    trust_signers(home, {"centre": KEY})
    trust_signers(home, {"board": key_fingerprint(OTHER), "centre": KEY})

    after = (home / "site.yaml").read_text(encoding="utf-8")
    assert load_site(home).policy.signers == {"centre": KEY, "board": key_fingerprint(OTHER)}
    old, new = before.splitlines(), after.splitlines()
    assert [line for line in old if not line.startswith("  signers:")] == [
        line for line in new if not line.startswith("  signers:")
    ]
    assert load_site(home).policy == Policy(signers=load_site(home).policy.signers)


def test_trusted_key_is_added_to_a_list_that_was_written_by_hand(home: Path) -> None:
    path = home / "site.yaml"
    by_hand = f"  signers:\n    # our centre\n    centre: {KEY}\n\n"
    path.write_text(path.read_text(encoding="utf-8").replace("  signers: {}\n", by_hand), encoding="utf-8")

    trust_signers(home, {"board": OTHER})

    assert load_site(home).policy.signers == {"centre": KEY, "board": OTHER}
    assert "require_signature: true" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("signers", "words"),
    [({"centre": OTHER}, "is another key"), ({"new": "nonsense"}, "cannot be written"), ({"a b": OTHER}, "cannot be")],
)
def test_key_that_cannot_be_trusted_changes_nothing(home: Path, signers: dict[str, str], words: str) -> None:
    trust_signers(home, {"centre": KEY})
    before = (home / "site.yaml").read_bytes()

    with pytest.raises(LocalDataError, match=words):
        trust_signers(home, signers)

    assert (home / "site.yaml").read_bytes() == before


def test_key_is_not_written_where_the_file_has_no_line_for_it(home: Path) -> None:
    rewrite(home, {"policy": {**content(home)["policy"]}, "site": "north"})
    path = home / "site.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("  signers: {}", "  'signers': {}"), encoding="utf-8")
    before = path.read_bytes()

    with pytest.raises(LocalDataError, match="no line `signers:`"):
        trust_signers(home, {"centre": KEY})

    assert path.read_bytes() == before


def test_text_of_a_new_site_has_no_line_that_a_person_must_not_read() -> None:
    text = commented_site("north")

    assert all(len(line) <= 160 for line in text.splitlines())
    assert yaml.safe_load(text)["site"] == "north"
