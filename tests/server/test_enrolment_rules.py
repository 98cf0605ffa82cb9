from __future__ import annotations

import datetime as dt

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedward_common.enrolment import EnrolRequest, RenewRequest
from fedward_common.errors import EnrolmentCode, EnrolmentError
from fedward_server.admission import InviteRow, KeyRow, RateLimit, check_enrolment, check_invite, check_renewal, counts
from tests.candidates import NOW, Candidate, node_key

TOKEN = "0123456789abcdef." + "A" * 43


def refusal(request: EnrolRequest, now: dt.datetime = NOW) -> EnrolmentCode:
    with pytest.raises(EnrolmentError) as error:
        check_enrolment(request, now)
    return error.value.reason


def test_a_fresh_request_signed_by_both_keys_passes() -> None:
    north = Candidate()

    assert check_enrolment(north.asks(TOKEN), NOW) == north.public


@pytest.mark.parametrize("changed", ["site", "token", "at"])
def test_a_request_that_was_changed_on_the_way_is_refused(changed: str) -> None:
    other = {"site": "south", "token": TOKEN[:-1] + "B", "at": (NOW + dt.timedelta(seconds=1)).isoformat()}[changed]
    request = Candidate().asks(TOKEN).model_copy(update={changed: other})

    assert refusal(request) is EnrolmentCode.SIGNATURE_INVALID


def test_a_public_key_without_its_private_half_is_refused() -> None:
    north, thief = Candidate(), Candidate()
    theirs = north.asks(TOKEN)

    for field in ("node_key", "audit_key"):
        request = thief.asks(TOKEN, **{field: getattr(theirs, field)})
        assert refusal(request) is EnrolmentCode.SIGNATURE_INVALID


def test_the_two_signatures_cannot_be_exchanged_for_those_of_another_request() -> None:
    north = Candidate()
    one, two = north.asks(TOKEN), north.asks(TOKEN, NOW + dt.timedelta(seconds=1))

    for field in ("node_signature", "audit_signature"):
        assert refusal(one.model_copy(update={field: getattr(two, field)})) is EnrolmentCode.SIGNATURE_INVALID


def test_a_recorded_request_is_stale_after_five_minutes() -> None:
    request = Candidate().asks(TOKEN)

    assert refusal(request, NOW + dt.timedelta(seconds=301)) is EnrolmentCode.CLOCK_SKEW


@pytest.mark.parametrize("key", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "é"])
def test_what_is_no_key_is_refused(key: str) -> None:
    assert refusal(Candidate().asks(TOKEN, node_key=key)) is EnrolmentCode.REQUEST_INVALID
    assert refusal(Candidate().asks(TOKEN, audit_key=key)) is EnrolmentCode.REQUEST_INVALID


def test_a_key_on_another_curve_is_refused() -> None:
    pem = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )

    assert refusal(Candidate().asks(TOKEN, node_key=pem.decode())) is EnrolmentCode.REQUEST_INVALID


def test_a_key_counts_once_however_its_text_is_laid_out() -> None:
    north = Candidate()
    spaced = f"# a comment\n{north.public}\n\n"

    assert check_enrolment(north.asks(TOKEN, node_key=spaced), NOW) == north.public


def test_an_unknown_invite_and_a_wrong_secret_are_refused_alike() -> None:
    north = Candidate()
    request = north.asks(TOKEN)
    messages = []
    for invite in (None, InviteRow("0123456789abcdef", "north", "f" * 64, NOW.isoformat())):
        with pytest.raises(EnrolmentError) as error:
            check_invite(invite, request, north.public, NOW)
        messages.append((error.value.reason, error.value.message))

    assert messages[0] == messages[1]
    assert messages[0][0] is EnrolmentCode.INVITE_UNKNOWN


def test_a_renewal_is_signed_by_both_keys() -> None:
    north, new = Candidate(), node_key()
    request = north.renews(new)
    old, fresh = check_renewal(request, NOW)
    assert old == north.public
    assert fresh != old

    for field in ("node_signature", "new_signature"):
        forged: RenewRequest = request.model_copy(update={field: north.renews(node_key()).node_signature})
        with pytest.raises(EnrolmentError) as error:
            check_renewal(forged, NOW)
        assert error.value.reason is EnrolmentCode.SIGNATURE_INVALID


def test_a_key_is_not_renewed_by_itself() -> None:
    north = Candidate()

    with pytest.raises(EnrolmentError) as error:
        check_renewal(north.renews(north.key), NOW)
    assert error.value.reason is EnrolmentCode.KEY_KNOWN


@pytest.mark.parametrize(
    ("state", "retire", "hours", "expected"),
    [
        ("active", "", 0, True),
        ("active", "", 24, False),
        ("active", "2026-11-24T13:00:00+00:00", 0, True),
        ("active", "2026-11-24T13:00:00+00:00", 1, False),
        ("retired", "", 0, False),
        ("revoked", "", 0, False),
    ],
)
def test_a_key_counts_until_it_is_retired_revoked_or_expired(
    state: str, retire: str, hours: int, *, expected: bool
) -> None:
    key = KeyRow("north", 7, "a", state, (NOW + dt.timedelta(days=1)).isoformat(), retire)  # type: ignore[arg-type]

    assert counts(key, NOW + dt.timedelta(hours=hours)) is expected


def test_one_peer_cannot_ask_without_end_nor_keep_others_out() -> None:
    limit = RateLimit(of_one=3, of_all=100)

    assert [limit.allows("flood", float(k)) for k in range(5)] == [True, True, True, False, False]
    assert limit.allows("hospital", 5.0)
    assert limit.allows("flood", 60.0)
    assert not limit.allows("flood", 60.5)


def test_all_peers_together_are_limited_too() -> None:
    limit = RateLimit(of_one=3, of_all=10)

    allowed = [limit.allows(f"peer {k}", 0.0) for k in range(12)]

    assert allowed == [True] * 10 + [False] * 2
    assert limit.allows("peer 99", 60.0)


def test_what_is_remembered_of_peers_is_bounded() -> None:
    limit = RateLimit(of_one=1, of_all=10**9)
    for number in range(10_000):
        limit.allows(f"peer {number}", 0.0)

    assert len(limit._peers) <= 4096
