"""Enrolment, renewal and revocation between a real centre's process and a hospital's own commands."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import structlog
from flwr.app import ConfigRecord, Message, RecordDict
from typer.testing import CliRunner

from fedward_client.cli import app as client
from fedward_client.config import create_site
from fedward_client.connection import load_connection, open_way
from fedward_client.enrolment import Detour, KeyFile, enroll, expiry_warnings, finish, load_admission, note_peer, renew
from fedward_client.flower_adapter import FleetConnection, NotAdmittedError, PackedReply, open_fleet, pack_reply
from fedward_common.audit import AuditLog
from fedward_common.certificates import create_authority, create_node_key, fingerprint, public_key_bytes
from fedward_common.enrolment import Invite
from fedward_common.errors import EnrolmentCode, EnrolmentError, FedwardError, InstallationError, TransportError
from fedward_common.flower_adapter import assume_identity, detached_message
from fedward_server.sites_cli import sites
from fedward_server.superlink_client import code_free_bundle
from tests.centres import Centre, now
from tests.network import inspecting_authority, proxy

pytestmark = pytest.mark.deployed

CONTENT = RecordDict({"question": ConfigRecord({"round": 3})})


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    with Centre(tmp_path_factory.mktemp("centre") / "home") as running:
        yield running


_names = iter(range(1000))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the folder of a hospital that has a name and no centre yet."""
    create_site(tmp_path / "site", f"hospital{next(_names)}")
    return tmp_path / "site"


def name_of(home: Path) -> str:
    return (home / "site.yaml").read_text().split("site: ")[1].split("\n")[0]


def joined(home: Path, centre: Centre) -> Path:
    enroll(home, centre.invite(name_of(home)), now())
    return home


def connect(home: Path, wait_s: float = 0.2) -> AbstractContextManager[FleetConnection]:
    """Connect as the daemon of `home` does."""
    settings = load_connection(home)
    way = open_way(settings, {})
    return open_fleet(
        settings.superlink, way.tls, KeyFile(settings.node_key), threading.Event(), proxy=way.proxy, heartbeat_s=10.0,
        wait_s=wait_s, patience_s=5.0,
    )  # fmt: skip


def works(home: Path) -> bool:
    """Return whether the centre accepts what this hospital signs."""
    try:
        with connect(home) as fleet:
            fleet.receive()
    except NotAdmittedError:
        return False
    return True


def refusal(home: Path, invite: Invite, at: dt.datetime | None = None) -> EnrolmentCode:
    before = sorted(path.name for path in home.iterdir())
    with pytest.raises(EnrolmentError) as error:
        enroll(home, invite, at or now())
    assert error.value.remedy
    assert not (home / "connection.yaml").exists()
    assert {path.name for path in home.iterdir()} - set(before) <= {
        "node.key.new", "audit.key", "audit.pub", "audit.jsonl", "audit.head", "audit.lock",
    }  # fmt: skip
    return error.value.reason


# ---------------------------------------------------------------------------------------------------------- enrolment
def test_one_line_joins_a_hospital_to_its_centre(centre: Centre, home: Path) -> None:
    done = CliRunner().invoke(client, ["enroll", centre.invite(name_of(home)).text(), "--home", str(home)])

    assert done.exit_code == 0, done.output
    assert centre.address in done.output
    assert works(home)
    assert (home / "node.key").stat().st_mode & 0o777 == 0o600
    assert not (home / "node.key.new").exists()
    assert load_connection(home).bundle_sha256 == code_free_bundle().sha256
    assert "enrolled at centre" in [entry.event for entry in AuditLog(home).entries()]


def test_no_private_key_leaves(centre: Centre, home: Path, tmp_path: Path) -> None:
    with proxy("", inspecting_authority(), tmp_path) as between:
        (tmp_path / "hospital.pem").write_bytes(between.inspector.certificate_pem())  # type: ignore[union-attr]
        enroll(
            home,
            centre.invite(name_of(home)),
            now(),
            detour=Detour(proxy=between.address, extra_ca=tmp_path / "hospital.pem"),
        )

    assert b"fedward-enrol-1" in between.read
    assert b"PRIVATE" not in between.read
    for key in ("node.key", "audit.key"):
        body = b"".join((home / key).read_bytes().splitlines()[1:-1])
        assert body[:40] not in between.read


def test_a_centre_of_another_authority_gets_no_request(centre: Centre, home: Path) -> None:
    other = fingerprint(create_authority(now()).certificate_pem())
    invite = replace(centre.invite(name_of(home)), fingerprint=other)

    assert refusal(home, invite) is EnrolmentCode.FINGERPRINT_MISMATCH
    assert name_of(home) not in centre.log()


def test_a_man_in_the_middle_of_the_enrolment_gets_no_token(centre: Centre, home: Path, tmp_path: Path) -> None:
    """He may pass the true authority's certificate on; he has no certificate of it."""
    invite = centre.invite(name_of(home))
    with proxy("", inspecting_authority(), tmp_path) as between, pytest.raises(TransportError, match="tls"):
        enroll(home, invite, now(), detour=Detour(proxy=between.address))

    assert b"/v1/enrol/authority" in between.read
    assert invite.token.encode() not in between.read


def test_a_used_token_is_refused(centre: Centre, home: Path, tmp_path: Path) -> None:
    invite = centre.invite(name_of(home))
    enroll(home, invite, now())
    create_site(tmp_path / "thief", name_of(home))

    assert refusal(tmp_path / "thief", invite) is EnrolmentCode.INVITE_USED
    assert works(home)


def test_a_wrong_token_is_refused(centre: Centre, home: Path) -> None:
    invite = centre.invite(name_of(home))
    number = invite.token.partition(".")[0]

    assert refusal(home, replace(invite, token=f"{number}.{'A' * 43}")) is EnrolmentCode.INVITE_UNKNOWN


def test_an_expired_invite_is_refused(centre: Centre, home: Path) -> None:
    token = centre.roster.invite(name_of(home), now() - dt.timedelta(days=8), days=7)
    invite = replace(centre.invite("other"), site=name_of(home), token=token)

    assert refusal(home, invite) is EnrolmentCode.INVITE_EXPIRED


def test_another_hospital_s_invite_is_refused_before_anything_is_sent(centre: Centre, home: Path) -> None:
    assert refusal(home, centre.invite("elsewhere")) is EnrolmentCode.NAME_MISMATCH


def test_another_name_under_a_valid_token_is_refused_by_the_centre(centre: Centre, home: Path) -> None:
    invite = replace(centre.invite("elsewhere"), site=name_of(home))

    assert refusal(home, invite) is EnrolmentCode.NAME_MISMATCH


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_clock_that_is_wrong_is_said_to_be(centre: Centre, home: Path, minutes: int) -> None:
    assert (
        refusal(home, centre.invite(name_of(home)), now() + dt.timedelta(minutes=minutes)) is EnrolmentCode.CLOCK_SKEW
    )


def test_enrolling_twice_needs_to_be_meant(centre: Centre, home: Path) -> None:
    joined(home, centre)
    before = (home / "node.key").read_bytes()
    with pytest.raises(InstallationError, match="enrolled already") as error:
        enroll(home, centre.invite(name_of(home)), now())
    assert "renew" in error.value.remedy

    enroll(home, centre.invite(name_of(home)), now(), again=True)

    assert (home / "node.key").read_bytes() != before
    assert works(home)


def test_a_centre_that_is_not_there_is_named_as_the_network(home: Path, centre: Centre) -> None:
    invite = replace(centre.invite(name_of(home)), port=9)

    with pytest.raises(TransportError, match="network"):
        enroll(home, invite, now())


def test_the_public_listener_has_three_paths_more_and_no_other(centre: Centre) -> None:
    with httpx.Client(verify=centre.trust(), trust_env=False) as http:
        answers = {
            path: http.post(f"https://{centre.address}{path}", content=b"").status_code
            for path in ("/v1/enrol/authority", "/v1/enrol/site", "/v1/enrol/renew", "/v1/enrol/", "/v1/enrol",
                         "/v1/enrol/sites", "/v1/enrol/site/", "/v1/control/register-node", "/v1/fleet/register-node")
        }  # fmt: skip
        got = http.get(f"https://{centre.address}/v1/enrol/authority").status_code

    assert got == 404
    assert list(answers.values()) == [200, 400, 400, 404, 404, 404, 404, 404, 404]


# ------------------------------------------------------------------------------------------------ revoked and expired
def test_a_revoked_site_is_out_within_a_minute_while_it_is_connected(centre: Centre, home: Path) -> None:
    joined(home, centre)
    run = centre.client.start_run(code_free_bundle())
    with centre.client.session(run) as (grid, _), connect(home, wait_s=10.0) as fleet:
        fleet.receive()
        assert fleet.node_id in set(grid.get_node_ids())

        began = time.monotonic()
        done = CliRunner().invoke(sites, ["revoke", name_of(home), "--home", str(centre.home)])
        assert done.exit_code == 0, done.output
        with pytest.raises(NotAdmittedError) as error:
            fleet.receive()
        while fleet.node_id in set(grid.get_node_ids()):
            time.sleep(0.1)
        assert time.monotonic() - began < 60
    assert "revoked" in error.value.remedy
    assert not works(home)


def test_a_message_to_a_revoked_site_is_answered_for_it(centre: Centre, home: Path) -> None:
    joined(home, centre)
    with centre.client.session(centre.client.start_run(code_free_bundle())) as (grid, _), connect(home) as fleet:
        (identifier,) = grid.push_messages([Message(CONTENT, fleet.node_id, "query", ttl=600)])
        centre.roster.revoke(name_of(home), now())
        replies: list[Message] = []
        while not replies:
            replies = list(grid.pull_messages([identifier]))

    assert replies[0].has_error()


def test_a_revoked_site_comes_back_by_a_new_invite_only(centre: Centre, home: Path) -> None:
    joined(home, centre)
    centre.roster.revoke(name_of(home), now())
    with pytest.raises(EnrolmentError) as error:
        renew(home, now())
    assert error.value.reason is EnrolmentCode.SITE_REVOKED

    (home / "node.key.new").unlink()
    enroll(home, centre.invite(name_of(home)), now(), again=True)

    assert works(home)


def test_an_expired_key_is_refused_while_it_is_connected(centre: Centre, home: Path) -> None:
    joined(home, centre)
    roster = centre.roster
    (entry,) = roster.entries(name_of(home))
    word = entry.membership
    with connect(home) as fleet:
        fleet.receive()
        with roster._transaction() as database:
            ends = roster._signed(
                word.site, int(word.node), word.node_key, word.audit_key, now() - dt.timedelta(days=1), 1
            )
            roster._store(database, ends)

        with pytest.raises(NotAdmittedError) as error:
            fleet.receive()
    assert "expired" in error.value.remedy
    with pytest.raises(EnrolmentError) as refused:
        renew(home, now())
    assert refused.value.reason is EnrolmentCode.KEY_EXPIRED


def test_a_key_that_the_roster_does_not_know_is_refused_though_flower_knows_it(centre: Centre, tmp_path: Path) -> None:
    key = create_node_key(tmp_path / "node.key")
    centre.client.register(public_key_bytes(key), "smuggled")
    connection = open_fleet(centre.address, centre.trust(), key, threading.Event(), patience_s=1.0)

    with pytest.raises(NotAdmittedError), connection:
        pytest.fail("the roster was passed by")


def test_a_site_that_was_lost_by_the_superlink_is_registered_again(tmp_path: Path) -> None:
    create_site(tmp_path / "site", "north")
    with Centre(tmp_path / "centre") as centre:
        joined(tmp_path / "site", centre)
        centre.process.__exit__()
        for path in centre.home.glob("state.db*"):
            path.unlink()
        centre.start("again")
        assert works(tmp_path / "site")


# ------------------------------------------------------------------------------------------------------------ renewal
def test_a_key_is_renewed_under_a_connection_that_stays(centre: Centre, home: Path) -> None:
    joined(home, centre)
    before = (home / "node.key").read_bytes()
    with centre.client.session(centre.client.start_run(code_free_bundle())) as (grid, _), connect(home) as fleet:
        node = fleet.node_id
        (identifier,) = grid.push_messages([Message(CONTENT, node, "query", ttl=60)])
        incoming = fleet.receive()
        assert incoming is not None

        done = CliRunner().invoke(client, ["renew", "--home", str(home)])  # in the middle of a round

        assert done.exit_code == 0, done.output
        assert (home / "node.key").read_bytes() != before
        asked = fleet.fetch(incoming)
        fleet.reply(Message(asked.content, reply_to=asked), 0.1)
        (answer,) = grid.pull_messages([identifier])
        assert answer.has_content()
        assert fleet.node_id == node
    assert works(home)
    admission = load_admission(home)
    assert admission is not None
    assert int(admission.membership.node) == node


def test_a_daemon_that_was_not_told_of_the_new_key_goes_on_with_the_old(centre: Centre, home: Path) -> None:
    joined(home, centre)
    settings, old = load_connection(home), create_node_key
    assert old is create_node_key
    key = KeyFile(settings.node_key)()
    way = open_way(settings, {})
    with open_fleet(settings.superlink, way.tls, key, threading.Event(), heartbeat_s=10.0, wait_s=0.1) as fleet:
        renew(home, now())
        assert fleet.receive() is None
    assert works(home)


def test_renewing_a_site_that_is_not_enrolled_says_so(home: Path) -> None:
    with pytest.raises(FedwardError, match=r"connection\.yaml"):
        renew(home, now())


def test_a_finished_renewal_is_put_in_place_without_the_network(centre: Centre, home: Path) -> None:
    joined(home, centre)
    (home / "node.key").replace(home / "node.key.new")
    create_node_key(home / "node.key")

    assert finish(home)

    assert not finish(home)
    assert works(home)


# ------------------------------------------------------------------------------------------------ the network between
def test_enrolment_and_connection_go_through_a_proxy_with_a_password(
    centre: Centre, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "proxy.password"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    with proxy("fedward:s3cret") as between:
        address = between.address.replace("http://", "http://fedward@")
        enroll(home, centre.invite(name_of(home)), now(), detour=Detour(proxy=address, proxy_password_file=secret))
        assert works(home)
        assert set(between.asked) == {centre.address}

        monkeypatch.setenv("HTTPS_PROXY", between.address.replace("http://", "http://fedward:s3cret@"))
        enroll(home, centre.invite(name_of(home)), now(), again=True)
        asked = len(between.asked)
        assert asked > 2
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        renew(home, now())
        assert len(between.asked) == asked
    assert "s3cret" not in (home / "connection.yaml").read_text()


def test_a_wrong_password_names_the_proxy(centre: Centre, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy("fedward:s3cret") as between:
        monkeypatch.setenv("HTTPS_PROXY", between.address.replace("http://", "http://fedward:wrong@"))
        with pytest.raises(TransportError, match="407") as error:
            enroll(home, centre.invite(name_of(home)), now())
    assert "wrong" not in error.value.diagnostics()


def test_a_proxy_that_inspects_is_trusted_only_by_name_and_said_aloud(
    centre: Centre, home: Path, tmp_path: Path
) -> None:
    authority = inspecting_authority()
    (tmp_path / "hospital.pem").write_bytes(authority.certificate_pem())
    with proxy("", authority, tmp_path) as between:
        invite = centre.invite(name_of(home)).text()
        options = ["enroll", invite, "--home", str(home), "--proxy", between.address]
        refused = CliRunner().invoke(client, options)
        assert isinstance(refused.exception, TransportError)
        assert "extra_ca" in refused.exception.remedy

        done = CliRunner().invoke(client, [*options, "--extra-ca", str(tmp_path / "hospital.pem")])
        assert done.exit_code == 0, done.output
        assert "whoever runs it reads what passes" in done.output
        assert works(home)
        shown = CliRunner().invoke(client, ["connection", "--home", str(home)])
    assert shown.exit_code == 0
    assert "end to end" not in shown.output


def test_a_proxy_that_inspects_can_send_no_reply_in_the_site_s_name(centre: Centre, home: Path) -> None:
    """What it has read of one request's signature does not sign another request's content."""
    joined(home, centre)
    captured: list[httpx.Request] = []
    with connect(home) as fleet:
        fleet.client._client.event_hooks["request"].append(captured.append)
        with pytest.raises(TransportError):  # the run does not exist; the signature is looked at first
            fleet.push(_reply())
    (honest,) = [request for request in captured if request.url.path.endswith("push-messages")]
    headers = dict(honest.headers)
    with httpx.Client(verify=centre.trust(), trust_env=False) as http:
        for body in (b"", honest.content + b"\x00", honest.content[:-1]):
            forged = http.post(honest.url, content=body, headers={**headers, "content-length": str(len(body))})
            assert forged.status_code == 401
        del headers["fedward-signature"]
        assert http.post(honest.url, content=honest.content, headers=headers).status_code == 401


def _reply() -> PackedReply:
    assume_identity(run=1, node=7)
    question = detached_message(CONTENT, source=1, target=7)
    question.metadata.__dict__["_message_id"] = "q" * 64
    return pack_reply(Message(CONTENT, reply_to=question), 0.1)


# ------------------------------------------------------------------------------------------------------------- expiry
def test_expiries_are_known_and_warned_of(centre: Centre, home: Path) -> None:
    joined(home, centre)
    today = now()

    assert expiry_warnings(home, today) == []
    later = expiry_warnings(home, today + dt.timedelta(days=85))
    assert [entry.what for entry in later] == ["coordinator's certificate"]
    assert 3 <= later[0].days_left <= 5
    everything = expiry_warnings(home, today + dt.timedelta(days=3651))
    assert {entry.what for entry in everything} == {"node key", "coordinator's certificate", "CA certificate"}
    assert all(entry.days_left < 0 for entry in everything)


def test_the_coordinator_s_certificate_is_kept_as_it_was_last_seen(centre: Centre, home: Path) -> None:
    joined(home, centre)
    (home / "server.pem").unlink()
    with connect(home) as fleet:
        assert fleet.peer is not None
        note_peer(home, fleet.peer)

    assert fingerprint((home / "server.pem").read_bytes()) == fingerprint((centre.home / "server.pem").read_bytes())


def test_a_key_file_that_cannot_be_read_leaves_the_former_key(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_node_key(path)
    source = KeyFile(path)
    before = source()
    with structlog.testing.capture_logs() as lines:
        path.write_text("damaged")
        assert source() is before
        path.unlink()
        assert source() is before
        create_node_key(path)
        assert source() is not before

    assert [line["event"] for line in lines] == ["key_unreadable", "key_changed"]


# ----------------------------------------------------------------------------------------------------- what is shown
def test_the_centre_s_commands_tell_who_is_there(centre: Centre, home: Path) -> None:
    joined(home, centre)
    name, where = name_of(home), ["--home", str(centre.home)]

    listed = CliRunner().invoke(sites, ["list", *where]).output
    shown = CliRunner().invoke(sites, ["show", name, *where]).output
    invited = CliRunner().invoke(sites, ["invite", "newcomer", "--days", "3", *where]).output

    assert f"{name} " in listed
    assert "enrolled" in listed
    assert "BEGIN PUBLIC KEY" in shown
    assert AuditLog(home).public_key() in shown
    assert Invite.parse(invited).site == "newcomer"
    assert "newcomer" in CliRunner().invoke(sites, ["list", *where]).output


def test_a_connection_that_does_not_work_is_an_exit_code_and_a_remedy(centre: Centre, home: Path) -> None:
    joined(home, centre)
    text = (home / "connection.yaml").read_text()
    (home / "connection.yaml").write_text(text.replace(centre.address, "127.0.0.1:9"))

    shown = CliRunner().invoke(client, ["connection", "--home", str(home)])

    assert shown.exit_code == 1
    assert "network" in shown.output
    assert "remedy" in shown.output
