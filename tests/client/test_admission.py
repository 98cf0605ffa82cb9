"""Who may ask a site, and when: signatures, hours, and a policy that makes no sense."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedward_client.policy import Policy, admit, objections, open_at, signers_of
from fedward_common.errors import Refusal, RefusalCode
from fedward_common.signing import key_fingerprint, public_text
from fedward_common.study import Study
from fedward_common.study_file import Signature, StudyFile
from tests.builders import open_policy, private_study, small_study

# --------------------------------------------------------------------------------------------------------- signatures

CENTRE, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
CENTRE_KEY = public_text(CENTRE.public_key())
SIGNED_ONLY = open_policy(require_signature=True, signers={"centre": CENTRE_KEY})


def signatures(study: Study, *keys: Ed25519PrivateKey) -> tuple[Signature, ...]:
    file = StudyFile(study)
    for key in keys:
        file = file.signed(key)
    return file.signatures


def unsigned_refusal(study: Study, policy: Policy, *sent: Signature) -> RefusalCode:
    with pytest.raises(Refusal) as caught:
        admit(study, "north", policy, signatures=sent)
    return caught.value.reason


def test_study_signed_by_a_trusted_key_is_admitted() -> None:
    study = small_study()
    fingerprint = open_policy(require_signature=True, signers={"centre": key_fingerprint(CENTRE_KEY)})

    for policy in (SIGNED_ONLY, fingerprint):
        assert objections(study, "north", policy, signatures=signatures(study, STRANGER, CENTRE)) == []


def test_unsigned_study_is_refused() -> None:
    assert unsigned_refusal(small_study(), SIGNED_ONLY) is RefusalCode.STUDY_UNSIGNED


def test_study_signed_by_a_stranger_is_refused() -> None:
    study = small_study()

    assert unsigned_refusal(study, SIGNED_ONLY, *signatures(study, STRANGER)) is RefusalCode.SIGNER_UNKNOWN


def test_signature_of_another_study_is_refused() -> None:
    other = signatures(small_study(seed=2), CENTRE)

    assert unsigned_refusal(small_study(), SIGNED_ONLY, *other) is RefusalCode.SIGNATURE_INVALID


def test_stranger_s_signature_under_a_trusted_key_is_refused() -> None:
    study = small_study()
    forged = Signature(CENTRE_KEY, signatures(study, STRANGER)[0].signature)

    assert unsigned_refusal(study, SIGNED_ONLY, forged) is RefusalCode.SIGNATURE_INVALID


def test_forged_signature_is_refused_even_where_none_is_required() -> None:
    study = small_study()
    forged = Signature(CENTRE_KEY, "A" * 86 + "==")
    optional = open_policy(require_signature=False, signers={"centre": CENTRE_KEY})

    assert unsigned_refusal(study, optional, forged) is RefusalCode.SIGNATURE_INVALID
    admit(study, "north", optional)


@pytest.mark.parametrize("junk", [Signature("", ""), Signature("ed25519:x", "y"), Signature("é" * 51, "A" * 88)])
def test_junk_beside_a_good_signature_does_no_harm_and_alone_no_good(junk: Signature) -> None:
    study = small_study()

    admit(study, "north", SIGNED_ONLY, signatures=(junk, *signatures(study, CENTRE)))
    assert unsigned_refusal(study, SIGNED_ONLY, junk) is RefusalCode.SIGNER_UNKNOWN


def test_signature_is_required_unless_the_policy_says_otherwise() -> None:
    assert Policy().require_signature
    assert unsigned_refusal(private_study(), Policy()) is RefusalCode.STUDY_UNSIGNED
    assert unsigned_refusal(private_study(), Policy(), *signatures(private_study(), STRANGER)) is (
        RefusalCode.SIGNER_UNKNOWN
    )


def test_stranger_learns_no_limit_from_a_refusal() -> None:
    greedy = small_study(training={"rounds": 10_000}, aggregation={"quorum": 2})
    strict = SIGNED_ONLY.model_copy(update={"max_rounds": 1, "min_sites": 9})

    with pytest.raises(Refusal) as caught:
        admit(greedy, "north", strict, signatures=signatures(greedy, STRANGER))

    assert caught.value.crossing() == "signer_unknown"


def test_key_taken_out_of_the_policy_stops_its_studies() -> None:
    study = small_study()
    signed = signatures(study, CENTRE)
    admit(study, "north", SIGNED_ONLY, signatures=signed)

    revoked = SIGNED_ONLY.model_copy(update={"signers": {}})

    assert unsigned_refusal(study, revoked, *signed) is RefusalCode.SIGNER_UNKNOWN


def test_names_of_those_who_signed_are_told_in_the_policy_s_order() -> None:
    study = small_study()
    trusted = {"board": public_text(STRANGER.public_key()), "centre": CENTRE_KEY, "other": "sha256:" + "0" * 64}

    assert signers_of(study, signatures(study, CENTRE, STRANGER), trusted) == ("board", "centre")


# -------------------------------------------------------------------------------------------------------------- hours


def at(text: str) -> datetime:
    """Return a moment of the week of Monday, 5 January 2026, for example ``tue 07:30``."""
    day, clock = text.split(" ")
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    return datetime.fromisoformat(f"2026-01-{5 + days.index(day):02d}T{clock}:00+01:00")


NIGHTS = {"mon": ("18:00-06:00",), "tue": ("12:00-13:00", "22:30-24:00"), "sun": ("00:00-24:00",)}


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("mon 17:59", False), ("mon 18:00", True), ("mon 23:59", True),
        ("tue 00:00", True), ("tue 05:59", True), ("tue 06:00", False),
        ("tue 12:00", True), ("tue 12:59", True), ("tue 13:00", False), ("tue 22:30", True), ("tue 23:59", True),
        ("wed 00:00", False), ("wed 18:00", False), ("sat 23:59", False),
        ("sun 00:00", True), ("sun 12:00", True), ("sun 23:59", True), ("mon 00:00", False),
    ],
)  # fmt: skip
def test_site_works_within_its_windows_only(moment: str, *, is_open: bool) -> None:
    policy = open_policy(hours=NIGHTS)

    assert open_at(policy, at(moment)) is is_open
    if is_open:
        admit(small_study(), "north", policy, now=at(moment))
    else:
        with pytest.raises(Refusal) as caught:
            admit(small_study(), "north", policy, now=at(moment))
        assert caught.value.crossing() == "outside_hours"


def test_window_over_midnight_on_sunday_ends_on_monday() -> None:
    policy = open_policy(hours={"sun": ("20:00-04:00",)})

    assert [open_at(policy, at(m)) for m in ("sun 19:59", "sun 20:00", "mon 03:59", "mon 04:00")] == [
        False, True, True, False,
    ]  # fmt: skip


def test_site_with_hours_that_does_not_know_the_time_does_not_work() -> None:
    with pytest.raises(Refusal) as caught:
        admit(small_study(), "north", open_policy(hours=NIGHTS))

    assert caught.value.reason is RefusalCode.OUTSIDE_HOURS


def test_site_without_hours_always_works() -> None:
    assert open_at(open_policy(), at("wed 03:00"))
    admit(small_study(), "north", open_policy())


@given(
    windows=st.lists(
        st.tuples(st.integers(0, 1439), st.integers(0, 1440)).filter(lambda w: w[0] != w[1]), min_size=1, max_size=4
    ),
    day=st.sampled_from(["mon", "wed", "sun"]),
    minute=st.integers(0, 7 * 1440 - 1),
)
def test_windows_cover_exactly_the_minutes_that_they_name(
    windows: list[tuple[int, int]], day: Any, minute: int
) -> None:
    """An independent count in minutes of the week: a window that ends before it starts runs into the next day."""
    texts = tuple(f"{a // 60:02d}:{a % 60:02d}-{b // 60:02d}:{b % 60:02d}" for a, b in windows)
    midnight = ("mon", "tue", "wed", "thu", "fri", "sat", "sun").index(day) * 1440
    covered = {(midnight + m) % (7 * 1440) for a, b in windows for m in range(a, b if b > a else b + 1440)}
    moment = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(minutes=minute)

    assert open_at(open_policy(hours={day: texts}), moment) is (minute in covered)


def test_hours_do_not_hide_a_refusal_for_good() -> None:
    policy = open_policy(hours=NIGHTS, max_rounds=1)

    with pytest.raises(Refusal) as caught:
        admit(small_study(), "north", policy, now=at("wed 12:00"))

    assert caught.value.reason is RefusalCode.POLICY_LIMIT


@pytest.mark.parametrize(
    "wrong",
    [
        {"hours": {"monday": ("09:00-10:00",)}},
        {"hours": {"mon": ("9:00-10:00",)}},
        {"hours": {"mon": ("09:00-09:00",)}},
        {"hours": {"mon": ("09:00-24:30",)}},
        {"hours": {"mon": ("25:00-26:00",)}},
        {"signers": {"centre": "ed25519:short"}},
        {"signers": {"centre": "ed25519:" + "_" * 43}},
        {"signers": {"centre": "sha256:" + "G" * 64}},
        {"studies": ("Not A Name",)},
        {"approvals_needed": 3},
        {"approvals_needed": 0},
        {"resources": {"cpus": 0}},
        {"resources": {"gpu_memory_share": 1.5}},
        {"max_delta": float("nan")},
        {"max_epsilon_per_study": float("inf")},
    ],
)
def test_policy_that_makes_no_sense_is_refused_when_it_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(wrong)
