"""The other side of `round_latency`: the same small job as a plain Flower app, to be bundled and run by `flwr run`.

Flower is given every advantage that its users would take: tables already encoded in a file, no privacy mechanism, no
evaluation at the sites and, unless asked otherwise, no framework to import: a ClientApp is a new process in each round.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

__all__ = ["client_app", "server_app"]

Floats = npt.NDArray[np.float32]

client_app = ClientApp()
server_app = ServerApp()


def _with_numpy(weights: Floats, features: Floats, labels: Floats, steps: int, rate: float, speed: float) -> Floats:
    """Return the weights of a logistic regression after some steps over Poisson-sampled rows; the last is the bias."""
    draw = np.random.default_rng()
    for _ in range(steps):
        rows = draw.random(len(features)) < rate
        x, y = features[rows], labels[rows]
        error = 1 / (1 + np.exp(-(x @ weights[:-1] + weights[-1]))) - y
        step = speed * np.append(x.T @ error, error.sum()) / max(1, len(x))
        weights = (weights - step).astype(np.float32)
    return weights


def _with_torch(weights: Floats, features: Floats, labels: Floats, steps: int, rate: float, speed: float) -> Floats:
    """Do the same as `_with_numpy` with autograd and an optimiser."""
    import torch  # noqa: PLC0415  (only jobs that ask for it pay for its import)

    torch.set_num_threads(1)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    model = torch.nn.Linear(x.shape[1], 1)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weights[None, :-1]))
        model.bias.copy_(torch.from_numpy(weights[-1:]))
    optimizer = torch.optim.SGD(model.parameters(), lr=speed)
    for _ in range(steps):
        rows = torch.rand(len(x)) < rate
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x[rows]).squeeze(-1), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = torch.cat([model.weight.detach().ravel(), model.bias.detach()])
    return np.asarray(found.numpy(), dtype=np.float32)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train a few steps on this site's rows."""
    config: dict[str, Any] = dict(context.run_config)
    site = context.node_config["site"]
    with np.load(config["tables"]) as arrays:
        features, labels = arrays[f"x-{site}"], arrays[f"y-{site}"]
    steps = _with_torch if config["torch"] else _with_numpy
    weights = message.content.array_records["arrays"]["weights"].numpy()
    new = steps(weights, features, labels, config["steps"], config["rate"], config["speed"])
    metrics = MetricRecord({"num-examples": len(features)})
    arrays = ArrayRecord({"weights": Array(new)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; after each, judge the model centrally and note the time."""
    config: dict[str, Any] = dict(context.run_config)
    with np.load(config["tables"]) as arrays:
        features, labels = arrays["x"], arrays["y"]

    def judge(_: int, arrays: ArrayRecord) -> MetricRecord:
        weights = arrays["weights"].numpy()
        right = ((features @ weights[:-1] + weights[-1] > 0) == (labels > 0)).mean()
        with Path(config["marks"]).open("a", encoding="ascii") as file:
            file.write(f"{time.monotonic()}\n")
        return MetricRecord({"accuracy": float(right)})

    start = ArrayRecord({"weights": Array(np.zeros(features.shape[1] + 1, dtype=np.float32))})
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)
    strategy.start(grid=grid, initial_arrays=start, num_rounds=config["rounds"], evaluate_fn=judge)
