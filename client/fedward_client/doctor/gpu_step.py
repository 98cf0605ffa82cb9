"""One training step on each GPU, in a process of its own: prints the GPUs' names as a JSON list.

``python -m fedward_client.doctor.gpu_step``. A driver that is broken may end the process; that is the answer, then.
"""

from __future__ import annotations

import json
import sys

import torch

__all__ = ["main", "trained_devices"]


def trained_devices() -> list[str]:
    """Train a step of a linear model on each CUDA device that torch sees, and return their names.

    Raises:
        RuntimeError: a device is there and the step fails, or its result is wrong.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        device = torch.device("cuda", index)
        features = torch.arange(8.0, device=device).reshape(8, 1)
        model = torch.nn.Linear(1, 1).to(device)
        loss = ((model(features) - 3 * features) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            msg = f"device {index} computes no finite gradient"
            raise RuntimeError(msg)
    return [torch.cuda.get_device_name(index) for index in range(count)]


def main() -> int:
    """Print the names; return the exit code."""
    sys.stdout.write(json.dumps(trained_devices()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
