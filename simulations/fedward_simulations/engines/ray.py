"""``engine=ray``: the same sites and coordinator under Flower's own simulation, for those who have a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedward_common.errors import InstallationError
from fedward_common.flower_adapter import quieten
from fedward_server.coordinator import Coordinator

__all__ = ["run_on_ray"]

_POLL_S = 0.02


def run_on_ray(coordinator: Coordinator, homes: Mapping[str, Path], *, workers: int) -> None:
    """Run the coordinator over one simulated node for each home; its `result` is set afterwards.

    Raises:
        InstallationError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        msg = "engine=ray needs Ray, which is not installed"
        raise InstallationError(msg, remedy="pip install 'fedward[ray]', or use engine=local, which is faster here")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation  # noqa: PLC0415  (Ray is an extra)

    quieten()
    run_simulation(
        server_app=coordinator.server_app(None, poll_seconds=_POLL_S),
        client_app=_client_app([str(home) for _, home in sorted(homes.items())]),
        num_supernodes=len(homes),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
        },
    )


def _client_app(homes: list[str]) -> ClientApp:
    """Return the sites' ClientApp for Ray, whose nodes know only their number."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        from fedward_client.app import respond  # noqa: PLC0415  (in Ray's worker)

        home = homes[int(str(context.node_config["partition-id"]))]
        return Message(respond(message.content, Path(home)), reply_to=message)

    app.query()(answer)
    app.train()(answer)
    return app
