"""The only module of the server side that imports internal Flower names.

flwr is pinned to 1.41.x; a contract test resolves every entry of `INTERNAL_NAMES`, so that another version fails there
and not in a hospital's night shift.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
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
from flwr.app import Message
from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab as FabProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

from fedward_common.errors import CoordinatorError
from fedward_common.flower_adapter import check_flower_version
from fedward_server.grid_flower_adapter import patient, translated

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.middleware import Middleware

__all__ = [
    "INTERNAL_NAMES",
    "build_superlink",
    "check_flower_version",
    "fleet_routes",
    "register_node",
    "start_run",
]

INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.common.constant": "ACCESS_TOKEN_KEY NOOP_ACCOUNT_NAME NOOP_FLWR_AID",
    "flwr.proto.control_pb2": "ListNodesRequest RegisterNodeRequest StartRunRequest",
    "flwr.server.superlink.linkstate": "SqlLinkState.session SqlLinkState.store_message_and_object_tree"
    " SqlLinkState.store_message_ins SqlLinkState.store_message_res",
    "flwr.supercore.object_store": "ObjectStore.preregister",
    "flwr.supercore.auth.typing": "AccountInfo",
    "flwr.supercore.control": "ControlHttpClient.ListNodes ControlHttpClient.RegisterNode ControlHttpClient.StartRun",
    "flwr.supercore.interceptors": "RuntimeVersionHttpInterceptor",
    "flwr.supercore.sql_mixin": "SQLITE_PRAGMAS",
    "flwr.supercore.protobuf.translation": "PROTOBUF_REQUEST_TYPES",
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
    _keep_the_database_on_the_disk()
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


def _keep_the_database_on_the_disk() -> None:
    """Let each connection to the state hold some megabytes of it; Flower's own map 256 MiB and cache 64 MB more."""
    from flwr.supercore import sql_mixin  # noqa: PLC0415  (see build_superlink)

    small, names = {"cache_size": "-4000", "mmap_size": "0"}, vars(sql_mixin)
    names["SQLITE_PRAGMAS"] = tuple((name, small.get(name, value)) for name, value in names["SQLITE_PRAGMAS"])


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
    """Create a run from a bundle and return its id; the ServerApp task waits for its session.

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
