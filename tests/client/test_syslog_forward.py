"""The log of decisions reaches a syslog receiver over TLS: nothing is lost in an outage, and nothing waits for one."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fedward_client.cohorts import TableEntry
from fedward_client.config import SiteConfig, create_site, load_site, register_cohort, write_site
from fedward_client.syslog_forward import SyslogForwarder, backlog, forwarder
from fedward_client.syslog_message import AuditSettings, backoff_s, frame, message
from fedward_common.audit import AuditLog, Entry
from fedward_common.audit_chain import LINE_BYTES, entry_of
from fedward_common.certificates import create_authority, issue_server_certificate
from fedward_common.errors import InstallationError, LocalDataError, TransportError

NOW = "2026-11-23T12:00:00+00:00"
HEADER = re.compile(rb"<(\d+)>1 (\S+) (\S+) (\S+) - (\S+) - \xef\xbb\xbf(.*)", re.DOTALL)
WAIT_S = 30


class Receiver:
    """A syslog receiver over TLS, one connection at a time.

    Args:
        folder: holds its certificate, ``server.pem`` and ``server.key``.
        port: 0 for a free one.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.messages: list[bytes] = []
        self.cut_after: int | None = None
        self.answers = True
        self.changed = threading.Condition()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(WAIT_S)

    def wait_for(self, count: int) -> list[Entry]:
        """Return the entries that came, once there are `count`."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.messages) >= count, WAIT_S)
            return [entry_of(match[6]) for content in self.messages if (match := HEADER.fullmatch(content))]

    def _serve(self) -> None:
        while True:
            try:
                plain = self._socket.accept()[0]
            except OSError:
                return
            with contextlib.suppress(OSError), plain, self._tls.wrap_socket(plain, server_side=True) as secure:
                self._read(secure)

    def _read(self, secure: ssl.SSLSocket) -> None:
        content = b""
        while chunk := secure.recv(1 << 16):
            content += chunk
            if self.cut_after is not None and len(content) >= self.cut_after:
                secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                secure.close()  # a reset: what was not read is gone
                return
            content = self._take(content)
        if self.answers:
            secure.unwrap()

    def _take(self, content: bytes) -> bytes:
        while (match := re.match(rb"(\d+) ", content)) and len(content) >= match.end() + int(match[1]):
            end = match.end() + int(match[1])
            with self.changed:
                self.messages.append(content[match.end() : end])
                self.changed.notify_all()
            content = content[end:]
        return content


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    now = dt.datetime.now(dt.UTC)
    authority = create_authority(now)
    server = issue_server_certificate(authority, now)
    (folder / "ca.pem").write_bytes(authority.certificate_pem())
    (folder / "other.pem").write_bytes(create_authority(now).certificate_pem())
    (folder / "server.pem").write_bytes(server.certificate_pem)
    (folder / "server.key").write_bytes(server.key_pem)
    return folder


@pytest.fixture
def receiver(certificates: Path) -> Iterator[Receiver]:
    made = Receiver(certificates)
    yield made
    made.close()


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    made = AuditLog(tmp_path)
    written(made, 3)
    return made


def written(log: AuditLog, count: int) -> None:
    for _ in range(count):
        log.append("released", at=NOW, study="a" * 64, round=1, detail="größer")


def settings(receiver: Receiver, certificates: Path, ca: str = "ca.pem") -> AuditSettings:
    return AuditSettings(syslog=f"127.0.0.1:{receiver.port}", ca=str(certificates / ca))


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.number for entry in entries]


# ---------------------------------------------------------------------------------------------------------- the format


def test_a_message_is_what_rfc_5424_says() -> None:
    entry = Entry(7, NOW, "clock set back", {"detail": "größer"}, "0" * 64)

    content = message(entry, host="north.hospital.example")

    assert content.startswith(b"<108>1 2026-11-23T12:00:00+00:00 north.hospital.example fedward - clock_set_back - ")
    match = HEADER.fullmatch(content)
    assert match is not None
    assert match[6] == entry.line()


def test_what_a_site_let_out_is_a_notice_of_the_facility_for_audits() -> None:
    assert message(Entry(1, NOW, "released", {}, ""), host="h").startswith(b"<109>1 ")


@pytest.mark.parametrize("host", ["", "two words", "größer", "x" * 400, "a\nb"])
def test_no_host_name_breaks_the_header(host: str) -> None:
    content = message(Entry(1, "20261123T120000Z", "released", {}, ""), host=host)

    match = HEADER.fullmatch(content)
    assert match is not None
    assert match[2] == b"2026-11-23T12:00:00+00:00"
    assert 1 <= len(match[3]) <= 255


def test_a_frame_counts_octets_and_not_letters() -> None:
    assert frame("größer".encode()) == b"8 gr\xc3\xb6\xc3\x9fer"


def test_pauses_grow_to_five_minutes_and_no_further() -> None:
    assert [backoff_s(failures) for failures in (0, 1, 2, 3, 8, 9, 10, 10**6)] == [0, 1, 2, 4, 128, 256, 300, 300]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("siem.example", ("siem.example", 6514)), ("siem.example:601", ("siem.example", 601)),
        ("10.0.0.1:6514", ("10.0.0.1", 6514)), ("[2001:db8::1]:99", ("2001:db8::1", 99)), ("[::1]", ("::1", 6514)),
    ],
)  # fmt: skip
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert AuditSettings(syslog=text).address == address


@pytest.mark.parametrize("text", ["", "a b", "https://siem", "siem:0", "siem:70000", "siem:x", "::1", "siem:1:2"])
def test_what_is_no_address_is_refused_when_the_policy_is_read(tmp_path: Path, text: str) -> None:
    create_site(tmp_path, "north")
    path = tmp_path / "site.yaml"
    path.write_text(path.read_text(encoding="utf-8") + f"audit: {{syslog: '{text}'}}\n", encoding="utf-8")

    with pytest.raises(LocalDataError, match="audit"):
        load_site(tmp_path)


def test_the_receiver_stands_in_site_yaml_and_survives_a_new_cohort(tmp_path: Path) -> None:
    create_site(tmp_path, "north")
    path = tmp_path / "site.yaml"
    assert "# audit: {syslog:" in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8") + "audit: {syslog: siem.example}\n", encoding="utf-8")

    register_cohort(tmp_path, "chart", TableEntry(table="chart.csv"))
    register_cohort(tmp_path, "second", TableEntry(table="second.csv"))

    config = load_site(tmp_path)
    assert config.audit == AuditSettings(syslog="siem.example")
    assert set(config.cohorts) == {"chart", "second"}
    write_site(tmp_path, config)
    assert load_site(tmp_path) == config


def test_nothing_is_sent_where_no_receiver_is_configured(tmp_path: Path, log: AuditLog) -> None:
    assert forwarder(tmp_path, SiteConfig(site="north").audit) is None
    assert backlog(tmp_path, AuditSettings()) == 0
    assert log.head().number == 3


# -------------------------------------------------------------------------------------------------------- sent and kept


def test_every_entry_arrives_as_it_is_stored(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    sender = SyslogForwarder(tmp_path, settings(receiver, certificates))

    assert sender.forward() == 3

    assert [entry.line() for entry in receiver.wait_for(3)] == list(log.lines())
    assert sender.forward() == 0


def test_a_new_process_goes_on_where_the_last_one_stopped(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    here = settings(receiver, certificates)
    SyslogForwarder(tmp_path, here).forward()
    written(log, 2)
    assert backlog(tmp_path, here) == 2

    SyslogForwarder(tmp_path, here).forward()

    assert numbers(receiver.wait_for(5)) == [1, 2, 3, 4, 5]
    assert backlog(tmp_path, here) == 0
    assert (tmp_path / "syslog.cursor").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [1, 300, 700])
def test_a_batch_that_was_cut_is_sent_again_whole(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path, cut: int
) -> None:
    sender = SyslogForwarder(tmp_path, settings(receiver, certificates))
    receiver.cut_after = cut
    with pytest.raises(OSError):  # noqa: PT011  (a reset, a broken pipe or an end too early, as the kernel has it)
        sender.forward()
    assert backlog(tmp_path, settings(receiver, certificates)) == 3

    receiver.cut_after = None
    assert sender.forward() == 3

    assert numbers(receiver.wait_for(3))[-3:] == [1, 2, 3]
    assert log.verify() == []


def test_a_receiver_that_ends_without_an_answer_has_taken_nothing(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    sender = SyslogForwarder(tmp_path, settings(receiver, certificates))
    receiver.answers = False
    with pytest.raises(TransportError, match="RFC 5425") as caught:
        sender.forward()
    assert "answers: false" in caught.value.remedy

    receiver.answers = True
    sender.forward()

    assert numbers(receiver.wait_for(6)) == [1, 2, 3, 1, 2, 3]
    assert log.head().number == 3


def test_a_receiver_that_never_answers_is_believed_where_the_hospital_says_so(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    """Rsyslog with its GnuTLS driver takes everything and then just ends."""
    receiver.answers = False
    here = settings(receiver, certificates).model_copy(update={"answers": False})

    assert SyslogForwarder(tmp_path, here).forward() == 3

    assert numbers(receiver.wait_for(3)) == [1, 2, 3]
    assert backlog(tmp_path, here) == 0
    receiver.cut_after = 100
    written(log, 1)
    with pytest.raises(OSError):  # noqa: PT011  (a reset is no end)
        SyslogForwarder(tmp_path, here).forward()


def test_a_receiver_of_another_authority_gets_nothing(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    sender = SyslogForwarder(tmp_path, settings(receiver, certificates, "other.pem"))

    with pytest.raises(ssl.SSLCertVerificationError):
        sender.forward()

    assert receiver.messages == []
    assert log.head().number == 3


def test_a_receiver_of_another_name_gets_nothing(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = AuditSettings(syslog=f"siem.example:{receiver.port}", ca=str(certificates / "ca.pem"))
    plain = socket.create_connection(("127.0.0.1", receiver.port), timeout=WAIT_S)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: plain)

    with pytest.raises(ssl.SSLCertVerificationError, match=r"siem\.example"):
        SyslogForwarder(tmp_path, here).forward()

    assert log.head().number == 3


def test_many_entries_go_in_batches_of_500(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    written(log, 508)
    sender = SyslogForwarder(tmp_path, settings(receiver, certificates))

    assert [sender.forward() for _ in range(3)] == [500, 11, 0]

    assert numbers(receiver.wait_for(511)) == list(range(1, 512))
    assert max(map(len, receiver.messages)) < LINE_BYTES + 512


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"receiver":"x","n":"a","offset":0,"hash":""}', b"\xff"])
def test_a_cursor_that_cannot_be_read_begins_anew(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "syslog.cursor").write_bytes(content)

    assert SyslogForwarder(tmp_path, settings(receiver, certificates)).forward() == 3
    assert log.head().number == 3


def test_another_receiver_gets_everything(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    SyslogForwarder(tmp_path, settings(receiver, certificates)).forward()
    second = Receiver(certificates)

    sent = SyslogForwarder(tmp_path, settings(second, certificates)).forward()
    second.close()

    assert sent == 3
    assert numbers(second.wait_for(3)) == [1, 2, 3]
    assert log.head().number == 3


def test_a_log_that_was_replaced_is_sent_from_its_start(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    sender = SyslogForwarder(tmp_path, settings(receiver, certificates))
    sender.forward()
    log.restart(NOW, person="ann", ledger=0)

    with capture_logs() as told:
        assert sender.forward() == 1

    assert [line["event"] for line in told] == ["log_replaced"]
    assert receiver.wait_for(4)[-1].event == "log restarted"


def test_a_line_that_is_being_written_is_not_sent(
    log: AuditLog, receiver: Receiver, certificates: Path, tmp_path: Path
) -> None:
    with log.path.open("ab") as file:
        file.write(b'{"at":"2026')

    assert SyslogForwarder(tmp_path, settings(receiver, certificates)).forward() == 3


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_wrong_authority_file_is_named_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)

    with pytest.raises(InstallationError, match=r"ca\.pem") as caught:
        forwarder(tmp_path, AuditSettings(syslog="siem.example", ca="ca.pem"))

    assert "audit.ca" in caught.value.remedy


# ---------------------------------------------------------------------------------------------------------- the thread


def test_an_outage_neither_blocks_the_log_nor_loses_an_entry(
    log: AuditLog, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver is there, goes, stays away while decisions are made, and comes back on the same port."""
    monkeypatch.setattr("fedward_client.syslog_forward.backoff_s", lambda _: 0.01)
    first = Receiver(certificates)
    sender = SyslogForwarder(tmp_path, settings(first, certificates), look_s=0.01)
    with capture_logs():
        sender.start()
        first.wait_for(3)
        first.close()

        written(log, 4)
        second = Receiver(certificates, first.port)
        got = second.wait_for(4)
        sender.stop()
        second.close()

    assert set(numbers(first.wait_for(0))) | set(numbers(got)) == set(range(1, 8))
    assert log.verify() == []


def test_an_outage_is_told_once_and_its_end_too(
    log: AuditLog, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward_client.syslog_forward.backoff_s", lambda _: 0.01)
    gone = Receiver(certificates)
    gone.close()
    failed = threading.Event()
    tried: list[int] = []
    with capture_logs() as told:
        sender = SyslogForwarder(tmp_path, settings(gone, certificates), look_s=0.01)
        forward = sender.forward

        def counted() -> int:
            tried.append(1)
            if len(tried) == 5:
                failed.set()
            return forward()

        monkeypatch.setattr(sender, "forward", counted)
        sender.start()
        assert failed.wait(WAIT_S)
        back = Receiver(certificates, gone.port)
        back.wait_for(3)
        for _ in range(WAIT_S * 100):
            if not backlog(tmp_path, settings(back, certificates)):
                break
            threading.Event().wait(0.01)
        sender.stop(WAIT_S)
        back.close()

    assert [line["event"] for line in told] == ["syslog_unreachable", "syslog_reached_again"]
    assert log.head().number == 3
