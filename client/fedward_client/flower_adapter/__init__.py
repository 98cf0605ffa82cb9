"""The only package of the client side that imports internal Flower names: the connection to the Fleet API.

Flower's own `http_request_response` ends the process when activation fails (`flwr_exit`, with a timer thread that
calls `os._exit`) and signals it on HTTP 401. A hospital's daemon must outlive both, so this package stands one level
lower: on Flower's `FleetHttpClient` and its node-key signatures, with the same requests in the same order.

`calls` is one request, `codec` is messages as bytes, `fleet` is a site's session, `greeting` asks whether there could
be one.
"""

from __future__ import annotations

import os
from typing import Final

# Read by flwr when it is imported, so they are set before that; nobody is told that a hospital trains.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from fedward_client.flower_adapter.calls import Doorbell, Watching, WireLimits
from fedward_client.flower_adapter.codec import Incoming, PackedReply, announced, pack_reply
from fedward_client.flower_adapter.fleet import (
    FleetConnection,
    NotAdmittedError,
    ObjectStore,
    OtherReleaseError,
    RejectedError,
    RunOverError,
    open_fleet,
)
from fedward_client.flower_adapter.greeting import greet
from fedward_common.flower_adapter import check_flower_version

__all__ = [
    "INTERNAL_NAMES",
    "Doorbell",
    "FleetConnection",
    "Incoming",
    "NotAdmittedError",
    "ObjectStore",
    "OtherReleaseError",
    "PackedReply",
    "RejectedError",
    "RunOverError",
    "Watching",
    "WireLimits",
    "announced",
    "check_flower_version",
    "greet",
    "open_fleet",
    "pack_reply",
]


INTERNAL_NAMES: Final[dict[str, str]] = {
    "flwr.app.message": "make_message remove_content_from_message",
    "flwr.common.serde": "message_to_proto recorddict_from_proto recorddict_to_proto",
    "flwr.common.serde_utils": "metadata_from_proto metadata_to_proto",
    "flwr.proto.fleet_pb2": "ActivateNodeRequest DeactivateNodeRequest PullMessagesRequest PushMessagesRequest",
    "flwr.supercore.inflatable.inflatable_object": "get_all_nested_objects get_object_id get_object_tree"
    " iterate_object_tree no_object_id_recompute",
    "flwr.supercore.inflatable.inflatable_protobuf_utils": "make_pull_object_fn_protobuf make_push_object_fn_protobuf",
    "flwr.supercore.inflatable.inflatable_utils": "ObjectPullError ObjectPushError inflate_object_from_contents"
    " pull_objects push_object_contents_from_iterable",
    "flwr.supercore.interceptors.http.utils": "add_headers",
    "flwr.supercore.protobuf.client": "ProtobufClient._send ProtobufClientInterceptor",
    "flwr.supercore.runtime_version_compatibility": "RuntimeVersionMetadata.from_local_component",
    "flwr.supernode.fleet_http_client": "FleetHttpClient.ActivateNode FleetHttpClient.ConfirmMessageReceived"
    " FleetHttpClient.DeactivateNode FleetHttpClient.GetFab FleetHttpClient.GetRun FleetHttpClient.PullMessages"
    " FleetHttpClient.PullObject FleetHttpClient.PushMessages FleetHttpClient.PushObject"
    " FleetHttpClient.SendNodeHeartbeat",
    "flwr.supernode.node_auth_http_interceptor": "NodeAuthHttpInterceptor.intercept",
}
"""Module and names of all that is used here beyond Flower's public API; a contract test resolves every entry."""
