from __future__ import annotations

import hashlib
import http.client
import importlib
import io
import json
import operator
import os
import signal
import ssl
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.config import get_fab_config
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedward_client.flower_adapter import FleetConnection, NotAdmittedError, open_fleet
from fedward_common.certificates import create_node_key, public_key_bytes
from fedward_common.errors import CoordinatorError, InstallationError, TransportError
from fedward_server import flower_adapter
from fedward_server.superlink import (
    PRIVATE_ROUTES,
    listen,
    load_config,
    main,
)
from fedward_server.superlink_client import SuperLinkClient, code_free_bundle
from fedward_simulations.engines.deployed import LoggedProcess, SuperLinkProcess

# --------------------------------------------------------------------------------------------------- configuration


def settings(folder: Path, **changes: object) -> Path:
    names = {name: name for name in ("database", "certificate", "certificate_key", "secret")}
    path = folder / "superlink.json"
    path.write_text(json.dumps({**names, **changes}))
    return path


def test_relative_files_belong_to_the_configuration(tmp_path: Path) -> None:
    assert load_config(settings(tmp_path)).secret == tmp_path / "secret"


def test_control_and_runtime_never_leave_the_machine(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="no loopback address"):
        load_config(settings(tmp_path, private_host="0.0.0.0"))  # noqa: S104  (what is refused)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"databse": "x"}'])
def test_a_broken_configuration_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "superlink.json"
    path.write_text(content)

    with pytest.raises(InstallationError, match="not a SuperLink configuration"):
        load_config(path)
    assert main(["--config", str(path)]) == 2


def test_a_short_secret_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").write_bytes(b"short")

    assert main(["--config", str(settings(tmp_path))]) == 2
    assert "shorter than 32 bytes" in capsys.readouterr().err


def test_a_port_in_use_is_told() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(InstallationError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])


# ------------------------------------------------------------------------------------------------------ the bundle


def test_the_bundle_is_the_same_everywhere() -> None:
    bundle = code_free_bundle()

    assert bundle == code_free_bundle()
    assert bundle.sha256 == hashlib.sha256(bundle.content).hexdigest()
    assert bundle.sha256 == "b70ef77b6a98d0124d07b2882060e0f4a6fd299e2d04796116f2e2f517752f6a"


def test_the_bundle_holds_no_code() -> None:
    with zipfile.ZipFile(io.BytesIO(code_free_bundle().content)) as archive:
        assert archive.namelist() == [".info/CONTENT", "README.md", "pyproject.toml"]


def test_flower_accepts_the_bundle() -> None:
    components = get_fab_config(code_free_bundle().content)["tool"]["flwr"]["app"]["components"]

    assert components["clientapp"] == "fedward_client.app:app"


# ---------------------------------------------------------------------------------------------- the flwr contract


def test_flwr_version_contract() -> None:
    assert flower_adapter.check_flower_version().startswith("1.41.")
    for module, names in flower_adapter.INTERNAL_NAMES.items():
        for name in names.split():
            operator.attrgetter(name)(importlib.import_module(module))


def test_another_flwr_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.42.0")

    with pytest.raises(InstallationError, match=r"1\.42\.0"):
        flower_adapter.check_flower_version()


def test_no_middleware_is_dropped_unseen() -> None:
    app = flower_adapter.build_superlink(Path(":flwr-in-memory:"), bytes(32))

    names = [flower_adapter._middleware_name(layer) for layer in app.user_middleware]

    assert names == [
        "http_error_translator",
        "ControlAuthenticationMiddleware",
        "ProtobufTranslationMiddleware",
        "NodeAuthMiddleware",
    ]
    assert app.state.enable_supernode_auth is True


def test_every_private_route_exists_in_flower() -> None:
    known = {path for _, path in PROTOBUF_REQUEST_TYPES}

    assert known >= PRIVATE_ROUTES
    assert not PRIVATE_ROUTES & flower_adapter.fleet_routes()


# ------------------------------------------------------------------------------------------------ as a real process


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkProcess]:
    with SuperLinkProcess(tmp_path_factory.mktemp("logs")) as process:
        process.await_ready()
        yield process


def trust(superlink: SuperLinkProcess) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=superlink.ca_pem.decode())
    return context


def post(superlink: SuperLinkProcess, path: str, method: str = "POST") -> int:
    """Send an empty request with exactly this path, which no client library has tidied."""
    host, port = superlink.public_address.split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=trust(superlink), timeout=10)
    try:
        connection.putrequest(method, path, skip_host=False)
        connection.putheader("content-length", "0")
        connection.putheader("content-type", PROTOBUF_MEDIA_TYPE)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.deployed
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/health",
        "/openapi.json",
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet//get-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/responses",
        "//v1/control/start-run",
        "http://127.0.0.1/v1/control/start-run",
    ],
)
def test_public_listener_serves_only_the_fleet_api(superlink: SuperLinkProcess, path: str) -> None:
    assert post(superlink, path) == 404
    assert post(superlink, path, "GET") == 404


@pytest.mark.deployed
@pytest.mark.parametrize("path", sorted(flower_adapter.fleet_routes()))
def test_no_fleet_call_works_without_a_key(superlink: SuperLinkProcess, path: str) -> None:
    assert post(superlink, path) == 401


@pytest.mark.deployed
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/docs", 404),
        ("/health", 404),
        ("/v1/control/stream-logs", 404),
        ("/v1/control/list-nodes", 401),
        ("/v1/control/register-node", 401),
        ("/v1/control/start-run", 401),
        ("/v1/fleet/get-run", 404),
        ("/v1/runtime/acquire-task", 401),
        ("/v1/runtime/get-nodes", 401),
        ("/v1/runtime/responses", 404),
    ],
)
def test_loopback_listener_wants_the_secret(superlink: SuperLinkProcess, path: str, expected: int) -> None:
    headers = {"content-type": PROTOBUF_MEDIA_TYPE}

    answer = httpx.post(f"http://{superlink.client.address}{path}", headers=headers, trust_env=False)

    assert answer.status_code == expected


@pytest.mark.deployed
def test_loopback_listener_refuses_a_wrong_secret(superlink: SuperLinkProcess) -> None:
    stranger = SuperLinkClient(superlink.client.address, b"x" * 32)

    with pytest.raises(CoordinatorError, match="401"):
        stranger.start_run(code_free_bundle())
    run = superlink.client.start_run(code_free_bundle())
    with pytest.raises(CoordinatorError, match="401"), stranger.session(run):
        pytest.fail("a stranger became the ServerApp")
    with superlink.client.session(run):
        pass


@pytest.mark.deployed
def test_the_secret_is_not_shown(superlink: SuperLinkProcess) -> None:
    assert "hidden" in repr(superlink.client)
    assert superlink.client.secret.hex() not in repr(superlink.client)


@pytest.mark.deployed
def test_unregistered_node_is_refused(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    key = create_node_key(tmp_path / "stranger.key")

    with (
        pytest.raises(NotAdmittedError) as refused,
        open_fleet(superlink.public_address, trust(superlink), key, threading.Event()),
    ):
        pytest.fail("an unregistered site was admitted")
    assert "not registered" in refused.value.remedy


@pytest.mark.deployed
def test_a_node_of_another_coordinator_cannot_use_its_number(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    known = superlink.client.register(public_key_bytes(create_node_key(tmp_path / "site.key")), "site")
    stranger = create_node_key(tmp_path / "stranger.key")
    connection = open_fleet(
        superlink.public_address, trust(superlink), stranger, threading.Event(), known_node_id=known
    )

    with pytest.raises(NotAdmittedError), connection:
        pytest.fail("a stranger took up another site's session")


@pytest.mark.deployed
def test_registering_twice_changes_nothing(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    public_key = public_key_bytes(create_node_key(tmp_path / "site.key"))

    assert superlink.client.register(public_key, "twice") == superlink.client.register(public_key, "twice")


@pytest.mark.deployed
def test_what_is_no_key_cannot_be_registered(superlink: SuperLinkProcess) -> None:
    with pytest.raises(CoordinatorError, match="refuses the key"):
        superlink.client.register(b"no key", "site")


@pytest.mark.deployed
def test_what_is_no_bundle_starts_no_run(superlink: SuperLinkProcess) -> None:
    bundle = code_free_bundle()

    with pytest.raises(CoordinatorError):
        superlink.client.start_run(type(bundle)(b"no zip", bundle.sha256))


@pytest.mark.deployed
def test_one_process_is_one_server_app(superlink: SuperLinkProcess) -> None:
    with superlink.client.session(superlink.client.start_run(code_free_bundle())):
        another = superlink.client.start_run(code_free_bundle())
        with pytest.raises(CoordinatorError, match="another run"), superlink.client.session(another):
            pytest.fail("two sessions at once")
    with superlink.client.session(another):
        pass


@pytest.mark.deployed
def test_a_run_is_acquired_once(superlink: SuperLinkProcess) -> None:
    run = superlink.client.start_run(code_free_bundle())
    with superlink.client.session(run):
        pass

    with pytest.raises(CoordinatorError, match="not there"), superlink.client.session(run):
        pytest.fail("one run was acquired twice")


@pytest.mark.deployed
def test_a_superlink_that_is_not_there_is_a_transport_error() -> None:
    with listen("127.0.0.1", 0) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"

    with pytest.raises(TransportError):
        SuperLinkClient(address, bytes(32)).register(b"", "site")


def connected(
    superlink: SuperLinkProcess, folder: Path, name: str
) -> tuple[int, AbstractContextManager[FleetConnection]]:
    key = create_node_key(folder / f"{name}.key")
    node = superlink.client.register(public_key_bytes(key), name)
    return node, open_fleet(superlink.public_address, trust(superlink), key, threading.Event(), heartbeat_s=10.0)


@pytest.mark.deployed
def test_a_message_is_delivered_as_soon_as_it_is_sent(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    node, connection = connected(superlink, tmp_path, "north")
    run = superlink.client.start_run(code_free_bundle())
    content = RecordDict({"question": ConfigRecord({"round": 3})})

    with superlink.client.session(run) as (grid, context), connection as fleet:
        assert context.run_id == run
        assert fleet.receive() is None
        (identifier,) = grid.push_messages([Message(content, node, "query", ttl=60)])
        incoming = fleet.receive()
        assert incoming is not None
        asked = fleet.fetch(incoming)
        assert asked.content.config_records["question"]["round"] == 3
        assert fleet.bundle_sha256(asked.metadata.run_id) == code_free_bundle().sha256
        fleet.reply(Message(asked.content, reply_to=asked), 0.1)
        (answer,) = grid.pull_messages([identifier])
        assert answer.metadata.src_node_id == node
        assert answer.content.config_records["question"]["round"] == 3


@pytest.mark.deployed
def test_a_site_that_leaves_is_reported_as_gone(superlink: SuperLinkProcess, tmp_path: Path) -> None:
    node, connection = connected(superlink, tmp_path, "leaver")

    with superlink.client.session(superlink.client.start_run(code_free_bundle())) as (grid, _):
        with connection:
            (identifier,) = grid.push_messages([Message(RecordDict(), node, "query", ttl=60)])
        (answer,) = grid.pull_messages([identifier])
        assert answer.has_error()


@pytest.mark.deployed
def test_a_run_survives_a_restart_of_the_superlink(tmp_path: Path) -> None:
    with SuperLinkProcess(tmp_path / "logs") as superlink:
        superlink.await_ready()
        settings_file = Path(superlink.process._command[-2])
        raw = json.loads(settings_file.read_text())
        ports = {
            "public_port": int(superlink.public_address.rpartition(":")[2]),
            "private_port": int(superlink.client.address.rpartition(":")[2]),
        }
        settings_file.write_text(json.dumps({**raw, **ports}))
        node, connection = connected(superlink, tmp_path, "north")
        with superlink.client.session(superlink.client.start_run(code_free_bundle())) as (grid, _), connection as fleet:
            fleet.receive()
            (identifier,) = grid.push_messages([Message(RecordDict(), node, "query", ttl=60)])
            os.kill(superlink.process.pid, signal.SIGKILL)
            command = ["fedward_server.superlink", "--config", str(settings_file)]
            with LoggedProcess("again", command, tmp_path / "logs") as again:
                again.await_event("ready")
                incoming = fleet.receive()
                assert incoming is not None
                fleet.reply(Message(RecordDict(), reply_to=fleet.fetch(incoming)), 0.1)
                (answer,) = grid.pull_messages([identifier])
                assert answer.has_content()


@pytest.mark.deployed
def test_sigterm_stops_it_cleanly(tmp_path: Path) -> None:
    with SuperLinkProcess(tmp_path / "logs") as superlink:
        superlink.await_ready()
        began = time.monotonic()
        superlink.process.ask_to_stop()
        assert superlink.process._process.wait(10) == 0
        assert time.monotonic() - began < 10
