from __future__ import annotations

import datetime as dt
import sqlite3
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedward_common.certificates import public_key_bytes
from fedward_common.errors import CoordinatorError, EnrolmentCode, EnrolmentError
from fedward_common.signing import load_public_key, verify
from fedward_server.admission import OVERLAP
from fedward_server.roster import Roster
from tests.candidates import NOW, Candidate, make_roster, node_key

DAY = dt.timedelta(days=1)


def code(error: pytest.ExceptionInfo[EnrolmentError]) -> EnrolmentCode:
    return error.value.reason


def rows(roster: Roster, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(roster._path) as database:
        return database.execute(query).fetchall()


# ------------------------------------------------------------------------------------------------------------ invites
def test_a_token_is_stored_nowhere(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    number, _, secret = roster.invite("north", NOW, days=7).partition(".")

    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert number.encode() in everything
    assert secret.encode() not in everything


def test_the_roster_is_private(tmp_path: Path) -> None:
    make_roster(tmp_path)

    assert (tmp_path / "roster.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_site_is_enrolled_once_and_known_by_its_key(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster, 77)

    assert roster.admitted(north.public.encode(), NOW) == 77
    assert roster.nodes(NOW) == {77: "north"}
    (entry,) = roster.entries("north")
    assert entry.membership.not_after == (NOW + 365 * DAY).isoformat()


def test_an_entry_is_signed_by_the_roster_s_key(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    Candidate().enrolled(roster)
    (entry,) = roster.entries()

    verify(load_public_key(roster.public_key), entry.membership.payload(), entry.signature)


@pytest.mark.parametrize("token", ["0123456789abcdef." + "A" * 43, "ffffffffffffffff." + "B" * 43])
def test_a_guessed_token_is_unknown(tmp_path: Path, token: str) -> None:
    roster = make_roster(tmp_path)
    roster.invite("north", NOW, days=7)
    north = Candidate()

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(north.asks(token), north.public, 7, NOW)
    assert code(error) is EnrolmentCode.INVITE_UNKNOWN


def test_the_number_of_an_invite_without_its_secret_is_unknown(tmp_path: Path) -> None:
    roster, north = make_roster(tmp_path), Candidate()
    number = roster.invite("north", NOW, days=7).partition(".")[0]

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(north.asks(f"{number}.{'A' * 43}"), north.public, 7, NOW)
    assert code(error) is EnrolmentCode.INVITE_UNKNOWN


def test_an_intercepted_token_that_was_used_is_worth_nothing(tmp_path: Path) -> None:
    roster, thief = make_roster(tmp_path), Candidate()
    north = Candidate()
    token = roster.invite("north", NOW, days=7)
    roster.enrol(north.asks(token), north.public, 7, NOW)

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(thief.asks(token), thief.public, 8, NOW)
    assert code(error) is EnrolmentCode.INVITE_USED
    assert roster.admitted(thief.public.encode(), NOW) is None


def test_a_site_whose_answer_was_lost_asks_again_and_gets_the_same(tmp_path: Path) -> None:
    roster, north = make_roster(tmp_path), Candidate()
    token = roster.invite("north", NOW, days=7)

    first = roster.enrol(north.asks(token), north.public, 7, NOW)
    again = roster.enrol(north.asks(token, NOW + 9 * DAY), north.public, 7, NOW + 9 * DAY)

    assert again == first
    assert len(roster.entries()) == 1


def test_an_expired_invite_is_refused(tmp_path: Path) -> None:
    roster, north = make_roster(tmp_path), Candidate()
    token = roster.invite("north", NOW, days=2)

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(north.asks(token, NOW + 2 * DAY), north.public, 7, NOW + 2 * DAY)
    assert code(error) is EnrolmentCode.INVITE_EXPIRED


def test_an_invite_for_another_name_is_refused(tmp_path: Path) -> None:
    roster, south = make_roster(tmp_path), Candidate("south")
    token = roster.invite("north", NOW, days=2)

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(south.asks(token), south.public, 7, NOW)
    assert code(error) is EnrolmentCode.NAME_MISMATCH
    assert roster.entries() == []


def test_a_second_invite_voids_the_first(tmp_path: Path) -> None:
    roster, north = make_roster(tmp_path), Candidate()
    first = roster.invite("north", NOW, days=7)
    roster.invite("north", NOW, days=7)

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(north.asks(first), north.public, 7, NOW)
    assert code(error) is EnrolmentCode.INVITE_UNKNOWN


def test_one_token_used_twice_at_the_same_time_enrols_one(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    token = roster.invite("north", NOW, days=7)
    twins = [Candidate(), Candidate()]
    outcomes: list[str] = []
    start = threading.Barrier(2)

    def run(twin: Candidate, node: int) -> None:
        start.wait()
        try:
            roster.enrol(twin.asks(token), twin.public, node, NOW)
            outcomes.append("enrolled")
        except EnrolmentError as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=run, args=(twin, 7 + number)) for number, twin in enumerate(twins)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["enrolled", "invite_used"]
    assert len(roster.entries()) == 1


def test_a_key_of_another_site_cannot_be_enrolled(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster)
    token = roster.invite("south", NOW, days=7)
    twin = Candidate("south", key=north.key)

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(twin.asks(token), twin.public, 8, NOW)
    assert code(error) is EnrolmentCode.KEY_KNOWN


def test_a_hospital_that_lost_its_keys_is_enrolled_anew_and_the_lost_ones_count_no_more(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    lost = Candidate().enrolled(roster, 7)
    fresh = Candidate().enrolled(roster, 8)

    assert roster.admitted(lost.public.encode(), NOW) is None
    assert roster.admitted(fresh.public.encode(), NOW) == 8
    assert roster.departed(NOW) == ({7}, set())


# ------------------------------------------------------------------------------------------------ revoked and expired
def test_a_revoked_site_is_out_at_once(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north, south = Candidate().enrolled(roster, 7), Candidate("south").enrolled(roster, 8)

    assert roster.revoke("north", NOW) == 1

    assert roster.admitted(north.public.encode(), NOW) is None
    assert roster.admitted(south.public.encode(), NOW) == 8
    assert roster.departed(NOW) == ({7}, set())


def test_a_revoked_site_s_invite_is_void_too(tmp_path: Path) -> None:
    roster, north = make_roster(tmp_path), Candidate()
    token = roster.invite("north", NOW, days=7)
    roster.revoke("north", NOW)

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(north.asks(token), north.public, 7, NOW)
    assert code(error) is EnrolmentCode.INVITE_UNKNOWN


def test_a_revoked_site_cannot_come_back_with_its_old_token(tmp_path: Path) -> None:
    roster, north = make_roster(tmp_path), Candidate()
    token = roster.invite("north", NOW, days=7)
    roster.enrol(north.asks(token), north.public, 7, NOW)
    roster.revoke("north", NOW)

    with pytest.raises(EnrolmentError) as error:
        roster.enrol(north.asks(token), north.public, 7, NOW)
    assert code(error) is EnrolmentCode.SITE_REVOKED


def test_revoking_nobody_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CoordinatorError, match="nobody"):
        make_roster(tmp_path).revoke("nobody", NOW)


def test_an_expired_key_is_refused(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster, 7, days=30)

    assert roster.admitted(north.public.encode(), NOW + 30 * DAY - dt.timedelta(seconds=1)) == 7
    assert roster.admitted(north.public.encode(), NOW + 30 * DAY) is None
    assert roster.departed(NOW + 30 * DAY) == (set(), {7})


def test_a_stranger_is_nobody(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    Candidate().enrolled(roster)

    for key in (Candidate().public.encode(), b"", b"\xff\x00", b"' OR 1=1 --"):
        assert roster.admitted(key, NOW) is None


# ---------------------------------------------------------------------------------------------------------- renewal
def renewed(roster: Roster, site: Candidate, at: dt.datetime = NOW) -> Candidate:
    new = node_key()
    public = public_key_bytes(new).decode()
    roster.renew(site.renews(new, at), site.public, public, at)
    return Candidate(site.name, new, site.audit)


def test_old_and_new_key_both_count_until_the_new_one_was_used(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old = Candidate().enrolled(roster, 7, days=30)
    new = renewed(roster, old)
    later = NOW + DAY

    assert roster.admitted(old.public.encode(), later) == 7
    assert roster.admitted(new.public.encode(), later) == 7
    assert roster.admitted(old.public.encode(), later + OVERLAP - dt.timedelta(seconds=1)) == 7
    assert roster.admitted(old.public.encode(), later + OVERLAP) is None
    assert roster.admitted(new.public.encode(), NOW + 300 * DAY) == 7
    assert roster.departed(NOW + 300 * DAY) == (set(), set())


def test_a_renewal_that_was_never_finished_leaves_the_old_key_until_it_expires(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old = Candidate().enrolled(roster, 7, days=30)
    renewed(roster, old)

    assert roster.admitted(old.public.encode(), NOW + 29 * DAY) == 7


def test_a_renewal_whose_answer_was_lost_is_repeated(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old, new = Candidate().enrolled(roster, 7), node_key()
    public = public_key_bytes(new).decode()

    first = roster.renew(old.renews(new), old.public, public, NOW)
    again = roster.renew(old.renews(new), old.public, public, NOW + DAY)

    assert first == again
    assert len(roster.entries("north")) == 2


def test_a_new_key_that_was_lost_is_replaced_by_another(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old = Candidate().enrolled(roster, 7)
    lost = renewed(roster, old)
    found = renewed(roster, old)

    assert roster.admitted(lost.public.encode(), NOW) is None
    assert roster.admitted(found.public.encode(), NOW) == 7
    assert roster.admitted(old.public.encode(), NOW) == 7


def test_an_expired_key_renews_nothing(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old, late = Candidate().enrolled(roster, 7, days=30), NOW + 31 * DAY

    with pytest.raises(EnrolmentError) as error:
        renewed(roster, old, late)
    assert code(error) is EnrolmentCode.KEY_EXPIRED


def test_a_revoked_key_renews_nothing(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old = Candidate().enrolled(roster, 7)
    roster.revoke("north", NOW)

    with pytest.raises(EnrolmentError) as error:
        renewed(roster, old)
    assert code(error) is EnrolmentCode.SITE_REVOKED


def test_a_retired_key_renews_nothing(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old = Candidate().enrolled(roster, 7)
    new = renewed(roster, old)
    assert roster.admitted(new.public.encode(), NOW) == 7

    with pytest.raises(EnrolmentError) as error:
        renewed(roster, old, NOW + OVERLAP)
    assert code(error) is EnrolmentCode.KEY_EXPIRED


def test_a_stranger_renews_nothing_and_a_site_no_other_s_key(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster, 7)
    for site, expected in [
        (Candidate(), EnrolmentCode.KEY_UNKNOWN),
        (Candidate("south", north.key), EnrolmentCode.NAME_MISMATCH),
    ]:
        with pytest.raises(EnrolmentError) as error:
            renewed(roster, site)
        assert code(error) is expected


def test_a_key_of_another_site_is_no_new_key(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north, south = Candidate().enrolled(roster, 7), Candidate("south").enrolled(roster, 8)

    with pytest.raises(EnrolmentError) as error:
        roster.renew(north.renews(south.key), north.public, south.public, NOW)
    assert code(error) is EnrolmentCode.KEY_KNOWN


def test_revoking_takes_all_keys_of_a_site(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    old = Candidate().enrolled(roster, 7)
    new = renewed(roster, old)

    assert roster.revoke("north", NOW) == 2
    assert roster.admitted(old.public.encode(), NOW) is None
    assert roster.admitted(new.public.encode(), NOW) is None


# -------------------------------------------------------------------------------------------------- other hands
def forge(roster: Roster, statement: str, *values: str) -> None:
    with sqlite3.connect(roster._path) as database:
        database.execute(statement, values)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys SET state = 'active'",
        "UPDATE keys SET state = 'active', retire_at = ''",
    ],
)
def test_a_revocation_that_was_undone_by_hand_does_not_let_a_site_back_in(tmp_path: Path, statement: str) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster, 7)
    roster.revoke("north", NOW)

    forge(roster, statement)

    assert roster.admitted(north.public.encode(), NOW) is None
    assert roster.nodes(NOW) == {}


@pytest.mark.parametrize(
    "statement",
    [
        'UPDATE keys SET membership = replace(membership, \'"node":"7"\', \'"node":"8"\')',
        "UPDATE keys SET membership = replace(membership, 'north', 'south'), site = 'south'",
        "UPDATE keys SET membership = replace(membership, '2027', '2099')",
        "UPDATE keys SET signature = seal",
        "UPDATE keys SET seal = signature",
        "UPDATE keys SET retire_at = '2099-01-01T00:00:00+00:00'",
    ],
)
def test_an_entry_that_was_changed_by_hand_counts_for_nothing(tmp_path: Path, statement: str) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster, 7)
    assert roster.admitted(north.public.encode(), NOW) == 7

    forge(roster, statement)

    assert roster.admitted(north.public.encode(), NOW) is None
    assert roster.entries() == []


def test_an_entry_under_another_key_s_name_counts_for_nothing(tmp_path: Path) -> None:
    roster, thief = make_roster(tmp_path), Candidate()
    Candidate().enrolled(roster, 7)

    forge(roster, "UPDATE keys SET node_key = ?", thief.public)

    assert roster.admitted(thief.public.encode(), NOW) is None


def test_a_roster_of_another_key_admits_nobody(tmp_path: Path) -> None:
    north = Candidate().enrolled(make_roster(tmp_path), 7)

    other = Roster(tmp_path / "roster.sqlite", Ed25519PrivateKey.generate())

    assert other.admitted(north.public.encode(), NOW) is None


# -------------------------------------------------------------------------------------------------------- what happened
def test_what_happened_to_a_site_is_told_in_order(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster, 7)
    renewed(roster, north)
    roster.revoke("north", NOW)

    assert [event.event for event in roster.events("north")] == ["invited", "enrolled", "renewed", "revoked"]
    assert roster.events("south") == []


def test_a_superlink_that_lost_its_file_gives_new_numbers(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    north = Candidate().enrolled(roster, 7)

    roster.move(north.public, 99, NOW)

    assert roster.admitted(north.public.encode(), NOW) == 99
    (entry,) = roster.entries()
    verify(load_public_key(roster.public_key), entry.membership.payload(), entry.signature)


def test_open_invites_are_listed_until_they_expire(tmp_path: Path) -> None:
    roster = make_roster(tmp_path)
    roster.invite("north", NOW, days=2)
    Candidate("south").enrolled(roster)

    assert [invite.site for invite in roster.waiting(NOW)] == ["north"]
    assert roster.waiting(NOW + 2 * DAY) == []


def test_two_processes_share_one_roster(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    launcher, command = make_roster(tmp_path, key), make_roster(tmp_path, key)
    north = Candidate().enrolled(launcher, 7)
    assert launcher.admitted(north.public.encode(), NOW) == 7

    command.revoke("north", NOW)

    assert launcher.admitted(north.public.encode(), NOW) is None
    assert rows(command, "SELECT count(*) FROM keys") == [(1,)]
