"""What a child tries, for real, in each layer of its sandbox: each attempt works without one and fails inside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import pytest

from fedward_client.approvals import Approvals
from fedward_client.cohorts import TableEntry
from fedward_client.daemon import SiteBorder
from fedward_client.decisions import Decision
from fedward_client.runner import Runner
from fedward_client.sandbox import EVERY_LAYER, Layer, Sandbox
from fedward_client.worker import Job
from fedward_common.audit import AuditLog
from fedward_common.errors import Refusal
from fedward_common.wire import read_refusal, write_roll_call
from tests.builders import COHORT, open_policy, site_home, small_study
from tests.tiny_worker import CANARY, DIARY

WORKER = "tests.tiny_worker:TinyWorker"
LIGHT = "fedward_client.child"
SECRETS = ("node.key", "audit.key", "ledger.sqlite", "approvals.json", "audit.jsonl", "connection.yaml", "site.yaml")

Confined = Callable[..., Runner]


@pytest.fixture(scope="module")
def confined() -> Iterator[Confined]:
    """Give a runner whose children have these layers only; skip where this computer has not got one of them."""
    runners: dict[frozenset[Layer], Runner] = {}

    def runner(*layers: Layer) -> Runner:
        wanted = frozenset(layers)
        made = runners.setdefault(wanted, Runner(WORKER, preload=LIGHT, layers=wanted))
        report = made.sandbox
        for layer in wanted - {Layer.GUARD} - set(report.holds):
            assert report.missing[layer], f"{layer} is not there, and nobody says why"
            pytest.skip(f"no {layer} on this computer: {report.missing[layer]}")
        return made

    yield runner
    for made in runners.values():
        made.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site's folder with everything in it that a child must not have."""
    home = tmp_path / "north"
    (home / "cache").mkdir(parents=True)
    for name in (*SECRETS, f"{COHORT}.csv"):
        (home / name).write_text(f"of the site: {CANARY}")
    return home


def attempt(runner: Runner, home: Path, how: str) -> str:
    """Return what a child's attempt comes to: ``succeeded``, or the code of the refusal."""
    study = small_study(description=f"open: {how}")
    try:
        with runner.open(Job(home, "north", TableEntry(table=f"{COHORT}.csv"), study, "f" * 64)):
            return "succeeded"
    except Refusal as refusal:
        return refusal.crossing()


@pytest.fixture
def listener() -> Iterator[int]:
    """A port of this computer on which somebody accepts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def named(tmp_path: Path) -> Iterator[Path]:
    """A socket in the file system on which somebody accepts, such as that of a container service."""
    path = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path


def _accept(server: socket.socket) -> None:
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        return


# ------------------------------------------------------------------------------------------------------- the network

NETWORK = [(Layer.NAMESPACE,), (Layer.SECCOMP,), (Layer.GUARD,), tuple(Layer)]


@pytest.mark.parametrize("layers", NETWORK, ids=" + ".join)
@pytest.mark.parametrize("how", ["connect {port}", "send_datagram {port}"])
def test_a_child_cannot_reach_the_network(
    confined: Confined, home: Path, listener: int, how: str, layers: tuple[Layer, ...]
) -> None:
    assert attempt(confined(), home, how.format(port=listener)) == "succeeded"
    assert attempt(confined(*layers), home, how.format(port=listener)) == "task_denied"


@pytest.mark.parametrize("layers", [(Layer.SECCOMP,), (Layer.GUARD,), tuple(Layer)], ids=" + ".join)
def test_a_child_cannot_connect_to_a_service_of_this_computer(
    confined: Confined, home: Path, named: Path, layers: tuple[Layer, ...]
) -> None:
    assert attempt(confined(), home, f"connect_by_name {named}") == "succeeded"
    assert attempt(confined(*layers), home, f"connect_by_name {named}") == "task_denied"


@pytest.mark.parametrize("layers", [(Layer.SECCOMP,), (Layer.GUARD,), tuple(Layer)], ids=" + ".join)
def test_a_child_cannot_listen(confined: Confined, home: Path, layers: tuple[Layer, ...]) -> None:
    assert attempt(confined(), home, "listen") == "succeeded"
    assert attempt(confined(*layers), home, "listen") == "task_denied"


def test_a_child_gets_no_ring_past_the_filter(confined: Confined, home: Path) -> None:
    if attempt(confined(), home, "ring") != "succeeded":
        pytest.skip("no io_uring on this computer")

    assert attempt(confined(Layer.SECCOMP), home, "ring") == "task_denied"


# ------------------------------------------------------------------------------------------------------------- files

FILES = [(Layer.LANDLOCK,), (Layer.GUARD,), tuple(Layer)]


@pytest.mark.parametrize("layers", FILES, ids=" + ".join)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_child_cannot_read_the_site_s_own_files(
    confined: Confined, home: Path, secret: str, layers: tuple[Layer, ...]
) -> None:
    assert attempt(confined(), home, f"read {home / secret}") == "succeeded"
    assert attempt(confined(*layers), home, f"read {home / secret}") == "task_denied"


@pytest.mark.parametrize("layers", FILES, ids=" + ".join)
def test_a_child_cannot_read_another_cohort(confined: Confined, home: Path, layers: tuple[Layer, ...]) -> None:
    other = home.parent / "another.csv"
    other.write_text("age")

    assert attempt(confined(), home, f"read {other}") == "succeeded"
    assert attempt(confined(*layers), home, f"read {other}") == "task_denied"


@pytest.mark.parametrize("layers", FILES, ids=" + ".join)
def test_a_child_reads_its_own_cohort_and_writes_to_the_cache(
    confined: Confined, home: Path, layers: tuple[Layer, ...]
) -> None:
    assert attempt(confined(*layers), home, f"read {home / COHORT}.csv") == "succeeded"
    assert attempt(confined(*layers), home, f"append {home / 'cache' / 'rows'}") == "succeeded"
    assert attempt(confined(*layers), home, f"rename {home / 'cache' / 'rows'}") == "succeeded"
    assert attempt(confined(*layers), home, f"delete {home / 'cache' / 'rows.moved'}") == "succeeded"


@pytest.mark.parametrize("layers", FILES, ids=" + ".join)
@pytest.mark.parametrize("how", ["append", "shorten", "delete", "rename", "link"])
def test_a_child_cannot_change_its_cohort(confined: Confined, home: Path, how: str, layers: tuple[Layer, ...]) -> None:
    table = home / f"{COHORT}.csv"
    before = table.read_bytes()

    assert attempt(confined(*layers), home, f"{how} {table}") == "task_denied"
    assert table.read_bytes() == before
    assert attempt(confined(), home, f"{how} {table}") == "succeeded"


@pytest.mark.parametrize("layers", [(Layer.SECCOMP,), (Layer.GUARD,), tuple(Layer)], ids=" + ".join)
@pytest.mark.parametrize("how", ["expose", "backdate"])
def test_a_child_cannot_change_the_rights_or_times_of_a_file(
    confined: Confined, home: Path, how: str, layers: tuple[Layer, ...]
) -> None:
    table = home / f"{COHORT}.csv"
    before = (table.stat().st_mode, table.stat().st_mtime_ns)

    assert attempt(confined(*layers), home, f"{how} {table}") == "task_denied"
    assert (table.stat().st_mode, table.stat().st_mtime_ns) == before
    assert attempt(confined(), home, f"{how} {table}") == "succeeded"


def test_a_child_cannot_change_rights_through_an_open_file_either(confined: Confined, home: Path) -> None:
    assert attempt(confined(Layer.SECCOMP), home, f"expose_by_handle {home / COHORT}.csv") == "task_denied"
    assert attempt(confined(), home, f"expose_by_handle {home / COHORT}.csv") == "succeeded"


@pytest.mark.parametrize("layers", FILES, ids=" + ".join)
@pytest.mark.parametrize(
    "how", ["make_folder {home}", "bind_unix {home}/x.sock", "carry_off {home}/node.key {home}/cache"]
)
def test_a_child_cannot_make_anything_elsewhere(
    confined: Confined, home: Path, how: str, layers: tuple[Layer, ...]
) -> None:
    assert attempt(confined(*layers), home, how.format(home=home)) == "task_denied"
    assert attempt(confined(), home, how.format(home=home)) == "succeeded"


def test_a_link_in_a_readable_folder_does_not_lead_to_the_site_s_files(confined: Confined, home: Path) -> None:
    link = home / "cache" / "innocent"
    link.symlink_to(home / "node.key")

    assert attempt(confined(*Layer), home, f"read {link}") == "task_denied"


# ----------------------------------------------------------------------------------------- processes and other rights


@pytest.mark.parametrize("layers", [(Layer.LANDLOCK, Layer.SECCOMP), (Layer.GUARD,), tuple(Layer)], ids=" + ".join)
@pytest.mark.parametrize("how", ["trace", "look_into", "open_memory", "signal"])
def test_a_child_cannot_touch_its_daemon(confined: Confined, home: Path, how: str, layers: tuple[Layer, ...]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as daemon:
        try:
            assert attempt(confined(*layers), home, f"{how} {daemon.pid}") == "task_denied"
        finally:
            daemon.kill()


@pytest.mark.parametrize("how", ["signal", "starve"])
def test_without_a_sandbox_a_child_could(confined: Confined, home: Path, how: str) -> None:
    """Whether it could also trace or read its daemon depends on the computer; see the ordinary account's test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as daemon:
        try:
            assert attempt(confined(), home, f"{how} {daemon.pid}") == "succeeded"
            assert attempt(confined(Layer.SECCOMP), home, f"{how} {daemon.pid}") == "task_denied"
        finally:
            daemon.kill()


@pytest.mark.parametrize("layers", [(Layer.SECCOMP,), (Layer.GUARD,), tuple(Layer)], ids=" + ".join)
@pytest.mark.parametrize("how", ["shell", "fork", "become_a_shell"])
def test_a_child_starts_no_other_process(confined: Confined, home: Path, how: str, layers: tuple[Layer, ...]) -> None:
    assert attempt(confined(*layers), home, how) == "task_denied"
    assert attempt(confined(), home, how) == ("internal_error" if how == "become_a_shell" else "succeeded")


@pytest.mark.parametrize("how", ["unshare", "spread"])
def test_a_child_does_not_climb_out(confined: Confined, home: Path, how: str) -> None:
    assert attempt(confined(Layer.SECCOMP), home, how) == "task_denied"


def test_a_child_has_no_rights_no_core_dump_and_private_files(confined: Confined, home: Path) -> None:
    assert attempt(confined(*Layer), home, "nothing") == "succeeded"

    told = json.loads((home / DIARY).read_text())
    assert told["status"]["NoNewPrivs"] == "1"
    assert int(told["status"]["CapEff"], 16) & ~(1 << 2) == 0
    assert int(told["status"]["CapPrm"], 16) & ~(1 << 2) == 0
    assert told["status"]["Seccomp"] == "2"
    assert told["core"] == [0, 0]
    assert told["umask"] == 0o077


def test_a_child_s_environment_holds_no_proxy_and_no_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://daemon:{CANARY}@proxy:3128")
    monkeypatch.setenv("DATABASE_PASSWORD", CANARY)
    monkeypatch.setenv("LC_MESSAGES", "C")
    runner = Runner(WORKER, preload=LIGHT)

    assert attempt(runner, home, "nothing") == "succeeded"

    told = json.loads((home / DIARY).read_text())["environment"]
    assert CANARY not in str(told)
    assert told["LC_MESSAGES"] == "C"
    assert told["TMPDIR"] == str(home / "cache")
    runner.close()


# --------------------------------------------------------------------------------------------------------- the report


def test_the_report_says_what_holds_here(confined: Confined) -> None:
    report = confined(*Layer).sandbox

    assert set(report.holds) | set(report.missing) >= EVERY_LAYER - {Layer.GUARD}
    assert (Layer.GUARD in report.holds) == (not report.by_kernel)
    assert report.describe().startswith(f"network: {report.network}")
    assert len(report.describe()) <= 160, "longer than a text of the audit log"


@pytest.mark.parametrize(
    ("report", "network", "files", "by_kernel", "text"),
    [
        (Sandbox(), "none", "none", False, "network: none; files: none"),
        (Sandbox(holds=(Layer.GUARD,)), "python guard", "python guard", False,
         "network: python guard; files: python guard"),
        (Sandbox(holds=(Layer.SECCOMP, Layer.LANDLOCK), missing={Layer.NAMESPACE: "not permitted"}, landlock=4),
         "seccomp", "landlock", True,
         "network: seccomp; files: landlock 4; no namespace: not permitted"),
        (Sandbox(holds=tuple(Layer), landlock=7), "namespace", "landlock", True,
         "network: namespace + seccomp + python guard; files: landlock 7"),
    ],
)  # fmt: skip
def test_the_report_names_the_strongest_layer(
    report: Sandbox, network: str, files: str, by_kernel: object, text: str
) -> None:
    assert (report.network, report.files, report.by_kernel, report.describe()) == (network, files, by_kernel, text)
    assert Sandbox.model_validate_json(report.model_dump_json()) == report


def test_the_guard_steps_in_where_the_kernel_has_nothing(confined: Confined) -> None:
    assert confined(Layer.GUARD).sandbox.holds == (Layer.GUARD,)
    assert confined(*Layer).sandbox.holds != (Layer.GUARD,)


# ----------------------------------------------------------------------------------------- for the site, and its log


def test_what_a_child_tried_is_in_the_site_s_log(confined: Confined, tmp_path: Path) -> None:
    study = small_study(description="open: read /etc/shadow")
    home = site_home(tmp_path, policy=open_policy())
    Approvals(home).decide(study, Decision("approved", "test", datetime.now(UTC).isoformat(), COHORT, "f" * 64))

    reply = SiteBorder(home, confined(*Layer)).respond(write_roll_call(study))

    assert read_refusal(reply) == "task_denied"
    assert [(e.event, e.fields["code"]) for e in AuditLog(home).entries()][-1] == ("refused", "task_denied")


# ------------------------------------------------------------------------------------------- as an ordinary account

_AS_NOBODY = """
import encodings.idna, json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
from pathlib import Path
from fedward_client.sandbox import EVERY_LAYER, Reach, enter
from fedward_client.sandbox.apply import installed
from fedward_client.sandbox.linux import PR_SET_DUMPABLE, prctl
from tests.break_out import ATTEMPTS

def attempt(how):
    name, *arguments = how.split(" ")
    try:
        ATTEMPTS[name](*arguments)
        return "succeeded"
    except OSError as error:
        return repr(error)

installed()
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
prctl(PR_SET_DUMPABLE, 1)
home, sleeper = Path(sys.argv[2]), os.fork()
if not sleeper:
    sys.stdin.read()
    os._exit(0)
hows = [how.format(sleeper=sleeper) for how in sys.argv[3:]]
before = [attempt(how) for how in hows]
report = enter(Reach(home, read=(home / "cohort.csv",), write=(home / "cache",)), EVERY_LAYER, strict=False)
told = {"report": report.model_dump(mode="json"), "uid": os.geteuid(), "before": before}
print(json.dumps(told | {"after": [attempt(how) for how in hows]}))
"""


@pytest.fixture
def home_of_nobody() -> Iterator[Path]:
    """A site's folder that belongs to another account, below folders that everybody may pass."""
    with tempfile.TemporaryDirectory(prefix="fedward-nobody-") as folder:
        home = Path(folder)
        (home / "cache").mkdir()
        for name in ("cohort.csv", "node.key"):
            (home / name).write_text("x")
        for path in (home, *home.iterdir()):
            os.chown(path, 65534, 65534)
        yield home


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account; then all of the above is this test")
def test_an_ordinary_account_gets_the_same_layers(home_of_nobody: Path, listener: int) -> None:
    home = home_of_nobody
    forbidden = [
        f"connect {listener}", f"read {home}/node.key", f"append {home}/cohort.csv", "fork", "trace {sleeper}",
        "look_into {sleeper}", "signal {sleeper}", "starve {sleeper}",
    ]  # fmt: skip
    allowed = [f"read {home}/cohort.csv", f"append {home}/cache/rows"]

    command = [sys.executable, "-c", _AS_NOBODY, json.dumps(sys.path), str(home), *forbidden, *allowed]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        told: dict[str, Any] = json.loads(cast("IO[str]", process.stdout).readline())
        process.communicate()

    report = Sandbox.model_validate(told["report"])
    assert told["uid"] == 65534
    assert told["before"] == ["succeeded"] * (len(forbidden) + len(allowed))
    assert set(report.holds) | set(report.missing) >= EVERY_LAYER - {Layer.GUARD}
    assert "succeeded" not in told["after"][: len(forbidden)]
    assert told["after"][len(forbidden) :] == ["succeeded", "succeeded"]


def test_strict_refuses_to_go_on_without_a_layer(tmp_path: Path) -> None:
    """A filter for an instruction set that has none: the same as a kernel that takes no filter any more."""
    code = (
        "import platform; platform.machine = lambda: 'pdp11'\n"
        "from fedward_client.sandbox import Layer, Reach, enter\n"
        "from fedward_common.errors import InstallationError\n"
        "from pathlib import Path\n"
        f"reach = Reach(Path({str(tmp_path)!r}))\n"
        "print(enter(reach, {Layer.SECCOMP}, strict=False).missing)\n"
        "try: enter(reach, {Layer.SECCOMP}, strict=True)\n"
        "except InstallationError as error: print(error.message)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "no filter for pdp11" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == "the sandbox does not hold any more: seccomp (no filter for pdp11)"
