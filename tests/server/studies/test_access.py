"""Tokens: what is kept of them, when they count, and what a stranger learns."""

from __future__ import annotations

import datetime as dt
import json
import threading
from pathlib import Path

import pytest

from fedward_common.errors import AccessCode, AccessError, InstallationError
from fedward_server.admission import RateLimit
from fedward_server.studies import access as module
from fedward_server.studies.access import Access, Caller, Role
from tests.candidates import NOW

DAY = dt.timedelta(days=1)


def refused(access: Access, token: str, *, now: dt.datetime = NOW, peer: str = "") -> AccessCode:
    with pytest.raises(AccessError) as caught:
        access.caller(token, now=now, peer=peer)
    assert token not in caught.value.diagnostics() or not token
    return caught.value.reason


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path)


def test_a_token_names_its_holder_and_role(access: Access) -> None:
    ann, bob = access.issue("ann", Role.SCIENTIST, NOW), access.issue("bob", Role.AUDITOR, NOW)

    assert access.caller(ann, now=NOW) == Caller("ann", Role.SCIENTIST)
    assert access.caller(bob, now=NOW) == Caller("bob", Role.AUDITOR)


def test_no_secret_is_kept_and_the_file_is_private(access: Access, tmp_path: Path) -> None:
    token = access.issue("ann", Role.OPERATOR, NOW)
    access.caller(token, now=NOW)

    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert token.partition(".")[2].encode() not in everything
    assert b"$argon2id$v=19$m=19456,t=2,p=1$" in everything
    assert (tmp_path / "access.json").stat().st_mode & 0o777 == 0o600


def test_two_holders_of_one_secret_would_have_two_hashes(access: Access) -> None:
    assert module._hashed("same") != module._hashed("same")
    assert access.grants() == ()


@pytest.mark.parametrize("wrong", ["", "nonsense", "0" * 12 + "." + "A" * 43, "\ud800", "a.b.c", "x" * 10_000])
def test_what_is_no_token_is_refused(access: Access, wrong: str) -> None:
    access.issue("ann", Role.OPERATOR, NOW)

    assert refused(access, wrong) is (AccessCode.WRONG if wrong else AccessCode.MISSING)


def test_a_known_number_with_another_secret_is_refused_in_the_same_words(access: Access) -> None:
    number = access.issue("ann", Role.OPERATOR, NOW).partition(".")[0]
    told = set()
    for guess in (f"{number}.{'A' * 43}", f"{'0' * 12}.{'A' * 43}"):
        with pytest.raises(AccessError) as caught:
            access.caller(guess, now=NOW)
        told.add((caught.value.reason, caught.value.diagnostics()))

    assert len(told) == 1


def test_a_number_that_nobody_has_costs_one_verification_too(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    token = access.issue("ann", Role.OPERATOR, NOW)
    costs: list[str] = []
    original = module._right

    def counted(secret: str, stored: str) -> bool:
        costs.append(stored.rpartition("$")[0].rpartition("$")[0])
        return original(secret, stored)

    monkeypatch.setattr(module, "_right", counted)
    for tried in ("nonsense", f"{'0' * 12}.{'A' * 43}", f"{token.partition('.')[0]}.{'A' * 43}", token):
        if tried == token:
            access.caller(tried, now=NOW)
        else:
            refused(access, tried)

    assert costs == ["$argon2id$v=19$m=19456,t=2,p=1"] * 4
    assert not original("", module._NOBODY)
    assert not original("A" * 43, module._NOBODY)


def test_a_token_expires(access: Access) -> None:
    token = access.issue("ann", Role.OPERATOR, NOW, days=2)

    assert access.caller(token, now=NOW + 2 * DAY - dt.timedelta(seconds=1)).name == "ann"
    assert refused(access, token, now=NOW + 2 * DAY) is AccessCode.EXPIRED


def test_a_revoked_token_counts_no_more_where_it_was_verified_before(access: Access, tmp_path: Path) -> None:
    token = access.issue("ann", Role.OPERATOR, NOW)
    access.caller(token, now=NOW)

    assert Access(tmp_path).revoke("ann", NOW) == 1

    assert refused(access, token) is AccessCode.REVOKED
    assert refused(Access(tmp_path), token) is AccessCode.REVOKED


def test_a_name_has_one_valid_token(access: Access) -> None:
    access.issue("ann", Role.VIEWER, NOW, days=1)
    with pytest.raises(AccessError, match="valid token"):
        access.issue("ann", Role.OPERATOR, NOW)

    later = access.issue("ann", Role.OPERATOR, NOW + DAY)

    assert access.caller(later, now=NOW + DAY).role is Role.OPERATOR
    assert [grant.standing(NOW + DAY) for grant in access.grants()] == ["expired", "valid"]


def test_who_has_none_cannot_be_revoked(access: Access) -> None:
    with pytest.raises(AccessError, match="no valid token"):
        access.revoke("ann", NOW)


@pytest.mark.parametrize("name", ["", " ann", "ann\n", "a b", "x" * 64, "../x", "é"])
def test_a_name_is_a_plain_word(access: Access, name: str) -> None:
    with pytest.raises(AccessError, match="no name"):
        access.issue(name, Role.VIEWER, NOW)


def test_a_damaged_file_lets_nobody_in(access: Access, tmp_path: Path) -> None:
    token = access.issue("ann", Role.OPERATOR, NOW)
    (tmp_path / "access.json").write_text('[{"name": "ann"}]')

    with pytest.raises(InstallationError, match=r"access\.json"):
        access.caller(token, now=NOW)


def test_a_role_that_was_edited_in_to_be_another_word_lets_nobody_in(access: Access, tmp_path: Path) -> None:
    token = access.issue("ann", Role.VIEWER, NOW)
    rows = json.loads((tmp_path / "access.json").read_text())
    rows[0]["role"] = "root"
    (tmp_path / "access.json").write_text(json.dumps(rows))

    with pytest.raises(InstallationError):
        access.caller(token, now=NOW)


def test_a_flood_of_wrong_tokens_is_cut_off_and_shuts_nobody_out_who_is_in(tmp_path: Path) -> None:
    access = Access(tmp_path, limit=RateLimit(3, 5))
    token = access.issue("ann", Role.OPERATOR, NOW)
    access.caller(token, now=NOW, peer="home")

    codes = [refused(access, "nonsense", peer="evil") for _ in range(4)]

    assert codes == [AccessCode.WRONG] * 3 + [AccessCode.RATE_LIMITED]
    assert access.caller(token, now=NOW, peer="evil").name == "ann"


def test_a_right_token_that_is_new_waits_while_a_flood_lasts(tmp_path: Path) -> None:
    access = Access(tmp_path, limit=RateLimit(1, 5))
    token = access.issue("ann", Role.OPERATOR, NOW)
    refused(access, "nonsense")

    assert refused(access, token) is AccessCode.RATE_LIMITED


def test_two_administrators_at_once_lose_no_row(tmp_path: Path) -> None:
    names = [f"user{number}" for number in range(6)]
    threads = [threading.Thread(target=Access(tmp_path).issue, args=(name, Role.VIEWER, NOW)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(grant.name for grant in Access(tmp_path).grants()) == names
