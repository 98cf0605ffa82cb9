"""The only module of the server side that imports internal Flower names.

flwr is pinned to 1.41.x; a contract test resolves every entry of `INTERNAL_NAMES`, so that another version fails there
and not in a hospital's night shift.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
# Each of these would open a second, unguarded listener, or end the process.
os.environ.pop("FLWR_INTERNAL_GRPC_CONTROL_API", None)
os.environ.pop("FLWR_INTERNAL_GRPC_FLEET_API", None)
os.environ.pop("FLWR_OIDC_ENABLED", None)

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, run_from_proto
from flwr.proto import runtime_pb2
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab as FabProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

from fedward_common.errors import CoordinatorError, TransportError
from fedward_common.flower_adapter import check_flower_version
from fedward_server.grid_flower_adapter import PATIENCE_S, CoordinatorGrid, patient, translated

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.middleware import Middleware

__all__ = [
    "INTERNAL_NAMES",
    "RUN_ENDED",
    "CoordinatorGrid",
    "build_superlink",
    "check_flower_version",
    "fleet_routes",
    "register_node",
    "start_run",
    "task_session",
]

RUN_ENDED: Final = RunNotRunningException
"""What a `Grid` call raises once the run is over at the SuperLink (a `BaseException` of Flower's)."""

INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.common.constant": "ACCESS_TOKEN_KEY NOOP_ACCOUNT_NAME NOOP_FLWR_AID",
    "flwr.common.serde": "context_from_proto context_to_proto run_from_proto",
    "flwr.proto.control_pb2": "ListNodesRequest RegisterNodeRequest StartRunRequest",
    "flwr.server.superlink.linkstate": "SqlLinkState.session SqlLinkState.store_message_and_object_tree"
    " SqlLinkState.store_message_ins SqlLinkState.store_message_res",
    "flwr.supercore.object_store": "ObjectStore.preregister",
    "flwr.supercore.auth.typing": "AccountInfo",
    "flwr.supercore.control": "ControlHttpClient.ListNodes ControlHttpClient.RegisterNode ControlHttpClient.StartRun",
    "flwr.supercore.interceptors": "RuntimeVersionHttpInterceptor SuperExecAuthHttpInterceptor",
    "flwr.supercore.protobuf.translation": "PROTOBUF_REQUEST_TYPES",
    "flwr.supercore.run": "RunNotRunningException",
    "flwr.supercore.runtime": "RuntimeHttpClient.AcquireTask RuntimeHttpClient.PullTaskInput"
    " RuntimeHttpClient.PushTaskOutput RuntimeHttpClient.SendTaskHeartbeat",
    "flwr.supercore.task_identity": "TaskIdentity",
    "flwr.superlink.auth_plugin": "NoOpControlAuthnPlugin.validate_tokens_in_metadata",
    "flwr.superlink.cli.flower_superlink": "SuperLinkLifespan",
    "flwr.superlink.config_loader": "SuperLinkLifespanConfig",
    "flwr.superlink.main": "create_app",
}
"""Module and names of all that is used here beyond Flower's public API."""

_IDLE_MIDDLEWARE: Final = frozenset(
    {
        "ControlSensitiveResponseMiddleware",  # marks log-in answers, which this SuperLink never gives
        "ControlLicenseMiddleware",  # Flower Enterprise
        "RuntimeTracingMiddleware",  # off unless asked for by an environment variable
        "ControlEventLogMiddleware",  # without a plugin
        "FleetEventLogMiddleware",  # without a plugin
    }
)
"""Layers of Flower's that do nothing in this configuration and cost .4 ms each for every request."""

_ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"
_HEARTBEAT_S: Final = 15.0
_ONE_SESSION = threading.Lock()


def fleet_routes() -> frozenset[str]:
    """Return the exact paths that a hospital may reach: the Fleet API, except registering and leaving by itself."""
    own = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    return frozenset(path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")) - own


class _SecretAuthn(NoOpControlAuthnPlugin):
    """Control API account check: the one bearer token derived from the coordinator's secret, or 401."""

    def __init__(self, secret: bytes) -> None:
        super().__init__()
        self._token = _control_token(secret)

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        """Return whether the request's one bearer token is ours, compared in constant time."""
        given = dict(metadata).get(ACCESS_TOKEN_KEY, "")
        given = given if isinstance(given, bytes) else given.encode("utf-8")
        if not hmac.compare_digest(given, self._token.encode("ascii")):
            return False, None
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)


def build_superlink(database: Path, secret: bytes) -> FastAPI:
    """Return Flower's SuperLink application on a sqlite file: node keys required, no code executed by it.

    No task is started by the SuperLink itself (isolation ``process``): a ServerApp task goes to whoever proves
    `secret` (HMAC) when asking for it, and the Control API asks for a bearer token derived from the same secret.

    Raises:
        InstallationError: another flwr version is installed.
    """
    check_flower_version()
    # Only the SuperLink process needs these; they cost more than a second to import.
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan  # noqa: PLC0415
    from flwr.superlink.config_loader import SuperLinkLifespanConfig  # noqa: PLC0415
    from flwr.superlink.main import create_app  # noqa: PLC0415

    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",  # host and port are read by the subprocess isolation only, which is off
        port=0,
        insecure=False,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=_SecretAuthn(secret),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )
    app = create_app(config, SuperLinkLifespan)
    _take_whole_messages(app.state.linkstate_factory.state())
    app.user_middleware = [layer for layer in app.user_middleware if _middleware_name(layer) not in _IDLE_MIDDLEWARE]
    return app


def _take_whole_messages(state: Any) -> None:
    """Let `state` store a message that brings its content along without asking for the content's objects.

    Flower's own clients never send such a message. Of its object tree only the root is kept: it says until when a
    message may be handed out again.
    """
    from flwr.server.superlink.linkstate import SqlLinkState  # noqa: PLC0415  (see build_superlink)

    in_parts = state.store_message_and_object_tree

    def store(message: Message, tree: ObjectTree, session: str) -> tuple[bool, list[str]]:
        if message.has_error() or not message.content:
            stored, missing = in_parts(message, tree, session)
            return bool(stored), list(missing)
        head = message.metadata
        with state.session():
            keep = state.store_message_res if head.reply_to_message_id else state.store_message_ins
            if keep(message) is None:
                return False, []
            state.object_store.preregister(head.run_id, ObjectTree(object_id=tree.object_id))
        return True, []

    on_disk = isinstance(state, SqlLinkState)
    if on_disk:
        state.store_message_and_object_tree = store  # on the object: every API has the same one


def _middleware_name(layer: Middleware) -> str:
    return str(getattr(layer.kwargs.get("dispatch", layer.cls), "__name__", ""))


class _BearerInterceptor:
    """Adds the coordinator's bearer token to a Control API request."""

    def __init__(self, secret: bytes) -> None:
        self._value = f"Bearer {_control_token(secret)}"

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request with the token."""
        context.request.headers["authorization"] = self._value
        return call_next(context)


def register_node(address: str, secret: bytes, public_key: bytes, name: str) -> int:
    """Make a site known by its public key (PEM) and return its node id; calling it twice changes nothing.

    Args:
        address: host:port of the loopback listener.
        secret: the coordinator's secret.
        public_key: the PEM of the site's P-384 public key.
        name: what lists show for the site.

    Raises:
        CoordinatorError: the SuperLink does not accept the key.
        TransportError: the SuperLink cannot be reached.
    """
    with _control(address, secret) as client:
        try:
            return int(client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)
        except httpx.HTTPStatusError as error:
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
            known = [node.node_id for node in nodes if node.public_key == public_key]
            if not known:
                msg = f"the SuperLink refuses the key of {name} (HTTP {error.response.status_code})"
                raise CoordinatorError(msg, remedy="a node key is an elliptic-curve key on P-384") from error
            return int(known[0])


def start_run(address: str, secret: bytes, bundle: bytes) -> int:
    """Create a run from a bundle and return its id; the ServerApp task waits for `task_session`.

    Raises:
        CoordinatorError: the SuperLink refuses the bundle.
        TransportError: the SuperLink cannot be reached.
    """
    fab = FabProto(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    with _control(address, secret) as client:
        try:
            run_id = int(client.StartRun(StartRunRequest(fab=fab)).run_id)
        except httpx.HTTPStatusError as error:
            msg = f"the SuperLink refuses the bundle (HTTP {error.response.status_code})"
            raise CoordinatorError(msg) from error
    if not run_id:
        msg = "the SuperLink created no run"
        raise CoordinatorError(msg, remedy="read the SuperLink's log")
    return run_id


@contextlib.contextmanager
def task_session(
    address: str, secret: bytes, run_id: int, *, patience_s: float = PATIENCE_S
) -> Iterator[tuple[CoordinatorGrid, Context]]:
    """Make this process the ServerApp of `run_id`: yield the grid and the context it needs.

    Heartbeats run meanwhile, so a restart of the SuperLink within a minute does not end the run. On leaving, the run
    is reported completed, or failed if an exception passes through; of the exception only its type is told.

    Raises:
        CoordinatorError: no such task is waiting, another run's was, or this process is in a session already.
        TransportError: the SuperLink cannot be reached for `patience_s` seconds.
    """
    if not _ONE_SESSION.acquire(blocking=False):
        msg = "this process is the ServerApp of another run already"
        raise CoordinatorError(msg, remedy="one run for each process: Flower keeps the task's identity globally")
    outcome, details = SubStatus.FAILED, "interrupted"
    with contextlib.ExitStack() as stack:
        stack.callback(_ONE_SESSION.release)
        grid = CoordinatorGrid(address, _acquire(address, secret, run_id), patience_s=patience_s)
        stack.callback(grid.close)
        stack.enter_context(_heartbeats(grid))
        context = _pull_input(grid)
        try:
            yield grid, context
            outcome, details = SubStatus.COMPLETED, ""
        except BaseException as error:
            details = type(error).__name__
            raise
        finally:
            _push_output(grid, context, outcome, details)


def _acquire(address: str, secret: bytes, run_id: int) -> str:
    signer = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
    with (
        translated("the ServerApp task cannot be acquired"),
        RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"), signer],
            retry_invoker=patient(5),
        ) as client,
    ):
        response = client.AcquireTask(runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    if not response.HasField("task") or response.task.run_id != run_id:
        msg = f"the ServerApp task of run {run_id} is not there to be acquired"
        raise CoordinatorError(msg, remedy="start each run once, and its session right after it")
    return str(response.token)


def _pull_input(grid: CoordinatorGrid) -> Context:
    with translated("the run's input cannot be read"):
        response = grid._runtime_client.PullTaskInput(runtime_pb2.PullTaskInputRequest())  # noqa: SLF001  (as Flower's own caller)
    TaskIdentity.task_id = response.task_id
    TaskIdentity.run_id = response.run.run_id
    TaskIdentity.node_id = response.context.node_id
    grid.set_run(run_from_proto(response.run))
    return context_from_proto(response.context)


def _push_output(grid: CoordinatorGrid, context: Context, outcome: str, details: str) -> None:
    grid._retry_invoker.max_time = 2.0  # noqa: SLF001  (leaving: the SuperLink may be gone already)
    context.state = RecordDict()  # state never leaves this process
    request = runtime_pb2.PushTaskOutputRequest(context=context_to_proto(context), sub_status=outcome, details=details)
    with contextlib.suppress(TransportError, httpx.HTTPError, RunNotRunningException):
        grid._runtime_client.PushTaskOutput(request)  # noqa: SLF001


@contextlib.contextmanager
def _heartbeats(grid: CoordinatorGrid) -> Iterator[None]:
    """Tell the SuperLink every 15 s that this process lives; failures are left to the grid's own calls to report."""
    stop = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError, TransportError, RunNotRunningException):
                grid._runtime_client.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest())  # noqa: SLF001
            if stop.wait(_HEARTBEAT_S):
                return

    thread = threading.Thread(target=beat, name="task-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2.0)


@contextlib.contextmanager
def _control(address: str, secret: bytes) -> Iterator[ControlHttpClient]:
    with (
        translated("the SuperLink's Control API cannot be reached"),
        ControlHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="fedward"), _BearerInterceptor(secret)],
            retry_invoker=patient(5),
        ) as client,
    ):
        yield client


def _control_token(secret: bytes) -> str:
    return hmac.new(secret, b"fedward control api v1", hashlib.sha256).hexdigest()
