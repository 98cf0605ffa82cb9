"""Asking the coordinator whether it knows this site: one signed question that changes nothing there."""

from __future__ import annotations

import ssl

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.protobuf.client import ProtobufClientInterceptor

from fedward_client.flower_adapter.calls import BoundedClient, Observer, Signer, VersionInterceptor, WireLimits

__all__ = ["greet"]


def greet(
    address: str,
    tls: ssl.SSLContext,
    key: ec.EllipticCurvePrivateKey,
    node_id: int,
    *,
    proxy: httpx.Proxy | None = None,
) -> httpx.Response:
    """Ask for a run that does not exist, signed, and return the answer: HTTP 403 from whoever knows the site.

    No session is begun, so a daemon that has one keeps it, and no message is handed out.

    Args:
        address: host:port of the Fleet API.
        tls: what verifies the SuperLink's certificate.
        key: the site's P-384 key.
        node_id: under which the coordinator knows the key.
        proxy: the HTTP proxy that opens tunnels.

    Raises:
        httpx.HTTPStatusError: any other refusal; 401 where key and node do not belong together, or the clock is wrong.
        httpx.TransportError: no answer.
    """
    answers: list[httpx.Response] = []
    interceptors: list[ProtobufClientInterceptor] = [
        VersionInterceptor(),
        Observer(lambda _, __, response: answers.append(response)),
        Signer(lambda: key),
    ]
    with BoundedClient(f"https://{address}", interceptors, tls, WireLimits(), proxy) as client:
        try:
            client.GetRun(GetRunRequest(node=Node(node_id=node_id), run_id=0))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.FORBIDDEN:
                raise
    return answers[-1]
