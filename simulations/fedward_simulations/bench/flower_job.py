"""The other side of `simulation_speed`: the same job as a plain Flower app under Flower's own Ray simulation.

Flower is given every advantage that its users would take: tables already encoded in a file, one CPU for each
client, no dashboard, central evaluation only.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["main"]


def _network(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 1))


def _client(path: str, steps: int, rate: float, learning_rate: float, momentum: float) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        part = int(str(context.node_config["partition-id"]))
        with np.load(path) as arrays:
            features, labels = torch.from_numpy(arrays[f"x{part}"]), torch.from_numpy(arrays[f"y{part}"])
        model = _network(features.shape[1])
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
        for _ in range(steps):
            drawn = torch.rand(len(features)) < rate
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(model(features[drawn]).squeeze(-1), labels[drawn])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(features)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def _server(path: str, rounds: int, sites: int) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  (Flower's signature)
        with np.load(path) as arrays:
            features, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
        model = _network(features.shape[1])

        def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(arrays.to_torch_state_dict())
            with torch.no_grad():
                right = ((model(features).squeeze(-1) > 0) == (labels > 0)).float().mean()
            return MetricRecord({"accuracy": float(right)})

        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
        strategy.start(
            grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=rounds, evaluate_fn=evaluate
        )

    return app


def main(path: str, rounds: int, sites: int, options: dict[str, Any]) -> None:
    """Run the job whole, as ``python -m`` of this module does."""
    resources: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "include_dashboard": False},
    }
    run_simulation(
        server_app=_server(path, rounds, sites),
        client_app=_client(path, **options),
        num_supernodes=sites,
        backend_config=resources,
    )


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        {
            "steps": int(sys.argv[4]),
            "rate": float(sys.argv[5]),
            "learning_rate": float(sys.argv[6]),
            "momentum": float(sys.argv[7]),
        },
    )
