from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedward_common.enrolment import (
    Admission,
    EnrolRequest,
    Invite,
    Membership,
    Reminder,
    RenewRequest,
    check_clock,
    days_left,
    instant,
    new_token,
    refused,
    token_hash,
    warning_due,
)
from fedward_common.errors import EnrolmentCode, EnrolmentError

NOW = dt.datetime(2026, 11, 24, 12, 0, 0, tzinfo=dt.UTC)
TOKEN = "0123456789abcdef." + "A" * 43
INVITE = Invite("hub.example.org", 8443, "north", "f" * 64, TOKEN)


# ------------------------------------------------------------------------------------------------------------ invite
@pytest.mark.parametrize("host", ["hub.example.org", "10.1.2.3", "[2001:db8::1]", "localhost"])
@pytest.mark.parametrize("site", ["north", "St.-Anna_2", "a" * 63])
def test_an_invite_is_one_line_that_comes_back(host: str, site: str) -> None:
    invite = Invite(host, 8443, site, "f" * 64, new_token()[1])

    text = invite.text()

    assert Invite.parse(f"  {text}\n") == invite
    assert not set(text) & set(" \t\n'\"$`\\;&|<>()*?!#")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        INVITE.text()[:-1],
        INVITE.text()[:40],
        INVITE.text() + "x",
        INVITE.text().replace("invite-1", "invite-2"),
        INVITE.text().replace(":8443", ":0"),
        INVITE.text().replace(":8443", ":65536"),
        INVITE.text().replace(":8443", ""),
        INVITE.text().replace("north", "no rth"),
        INVITE.text().replace("north", "../etc"),
        INVITE.text().replace("f" * 64, "F" * 64),
        INVITE.text().replace("f" * 64, "f" * 63),
        INVITE.text().replace("hub.example.org", "hub.example.org/evil"),
        INVITE.text().replace("hub.example.org", "user@hub"),
        INVITE.text() + "\n" + INVITE.text(),
    ],
)
def test_a_line_that_was_cut_or_changed_in_form_is_no_invite(text: str) -> None:
    with pytest.raises(EnrolmentError, match="whole invite") as error:
        Invite.parse(text)
    assert "copy the whole line" in error.value.remedy


@given(st.integers(0, len(INVITE.text()) - 1))
def test_no_beginning_of_an_invite_is_an_invite(length: int) -> None:
    with pytest.raises(EnrolmentError):
        Invite.parse(INVITE.text()[:length])


def test_a_token_is_not_shown() -> None:
    assert TOKEN not in repr(INVITE)
    assert TOKEN not in repr(enrol_request())


def test_tokens_are_never_the_same_and_their_hash_tells_nothing() -> None:
    tokens = [new_token() for _ in range(50)]

    assert len({token for _, token in tokens}) == 50
    for number, token in tokens:
        assert token.startswith(f"{number}.")
        assert token.partition(".")[2] not in token_hash(token)
    assert token_hash(TOKEN) == token_hash(TOKEN)
    assert token_hash(TOKEN) != token_hash(TOKEN[:-1] + "B")


# ----------------------------------------------------------------------------------------------------- what is signed
def enrol_request(**changes: str) -> EnrolRequest:
    values = {
        "site": "north",
        "token": TOKEN,
        "node_key": "node",
        "audit_key": "audit",
        "at": NOW.isoformat(),
        "node_signature": "AA",
        "audit_signature": "BB",
    }
    return EnrolRequest(**(values | changes))


@pytest.mark.parametrize("field", ["site", "token", "node_key", "audit_key", "at"])
def test_every_fact_of_a_request_is_signed(field: str) -> None:
    other = {"token": TOKEN[:-1] + "B"}.get(field, "other")

    assert enrol_request(**{field: other}).payload() != enrol_request().payload()


@pytest.mark.parametrize("field", ["node_signature", "audit_signature"])
def test_a_signature_is_not_signed(field: str) -> None:
    assert enrol_request(**{field: "CC"}).payload() == enrol_request().payload()


def test_a_signature_for_one_use_cannot_stand_in_another() -> None:
    renewal = RenewRequest(
        site="north", node_key="a", new_key="b", at=NOW.isoformat(), node_signature="A", new_signature="A"
    )
    word = membership()

    heads = {
        payload.partition(b"\x00")[0] for payload in (renewal.payload(), enrol_request().payload(), word.payload())
    }
    assert len(heads) == 3


@pytest.mark.parametrize(
    "changes",
    [{"site": "no rth"}, {"site": "x" * 64}, {"token": "short"}, {"node_key": "k" * 601}, {"node_signature": "!"},
     {"node_signature": "A" * 301}, {"at": "x" * 41}, {"audit_signature": ""}, {"extra": "x"}],
)  # fmt: skip
def test_a_request_of_another_form_is_none(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        enrol_request(**changes)


def membership(**changes: str) -> Membership:
    values = {
        "site": "north",
        "node": "18446744073709551615",
        "node_key": "n",
        "audit_key": "a",
        "not_before": NOW.isoformat(),
        "not_after": NOW.isoformat(),
    }
    return Membership(**(values | changes))


def test_an_admission_survives_the_wire_with_the_largest_number_there_is() -> None:
    admission = Admission(membership=membership(), signature="AA", roster_key="r", bundle_sha256="a" * 64)

    twin = Admission.model_validate_json(admission.model_dump_json())

    assert twin == admission
    assert int(twin.membership.node) == 2**64 - 1


# ----------------------------------------------------------------------------------------------------------- the clock
@pytest.mark.parametrize(("seconds", "good"), [(0, True), (299, True), (-299, True), (301, False), (-301, False)])
def test_a_request_is_fresh_for_five_minutes(seconds: int, good: bool) -> None:  # noqa: FBT001  (a table)
    at = (NOW + dt.timedelta(seconds=seconds)).isoformat()
    if good:
        check_clock(at, NOW)
        return
    with pytest.raises(EnrolmentError) as error:
        check_clock(at, NOW)
    assert error.value.reason is EnrolmentCode.CLOCK_SKEW


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-24T12:00:00", "2026-11-24"])
def test_a_time_stamp_says_its_offset(text: str) -> None:
    with pytest.raises(EnrolmentError) as error:
        instant(text)
    assert error.value.reason is EnrolmentCode.REQUEST_INVALID


def test_every_refusal_has_a_text_and_a_remedy() -> None:
    for code in EnrolmentCode:
        error = refused(code)
        assert error.reason is code
        assert code.value in error.message
        assert error.remedy


# ----------------------------------------------------------------------------------------------------------- expiry
@pytest.mark.parametrize(
    ("left", "due"),
    [(31, None), (30, 30), (29, 30), (7, 7), (6, 7), (1, 1), (0, 1), (-5, 1), (365, None)],
)
def test_a_warning_is_due_30_7_and_1_days_ahead(left: int, due: int | None) -> None:
    assert warning_due(NOW + dt.timedelta(days=left), NOW) == due


def test_days_are_counted_whole() -> None:
    assert days_left(NOW + dt.timedelta(days=2, hours=23), NOW) == 2
    assert days_left(NOW + dt.timedelta(hours=1), NOW) == 0
    assert days_left(NOW - dt.timedelta(seconds=1), NOW) == -1


def test_each_warning_is_given_once() -> None:
    reminder, expiry = Reminder(), NOW + dt.timedelta(days=40)
    told = [day for day in range(45) if reminder.due("node key", expiry, NOW + dt.timedelta(days=day))]

    assert told == [10, 33, 39]
    assert reminder.due("CA certificate", expiry, NOW + dt.timedelta(days=39))
    assert reminder.due("node key", NOW + dt.timedelta(days=41), NOW + dt.timedelta(days=40))
