"""Everything that is slow to import, imported once, in the process that tasks are forked from.

Loaded by the fork server alone. Nothing here computes a gradient, opens a GPU, starts a thread or reads a file of the
site: each of these would be broken or shared in the forked children.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from typing import Final

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import torch

__all__ = ["APP_VARIABLE", "is_warm"]

APP_VARIABLE: Final = "FEDWARD_WARM_MODULE"
"""Environment variable with the module of the ClientApp, so that it is imported here too."""

_warm = False


def is_warm() -> bool:
    """Return whether this process has everything imported that a task needs."""
    return _warm


def _warm_up() -> None:
    global _warm  # noqa: PLW0603  (one flag of one process)
    torch.set_num_threads(1)  # a child's OpenMP pool does not survive a fork
    # Building an optimiser loads torch._dynamo (about a second); stepping it would start autograd's threads.
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    optimiser.zero_grad()
    for name in ("opacus", "fedward_client.flower_adapter", os.environ.get(APP_VARIABLE, "")):
        if name:
            with contextlib.suppress(ImportError):  # the task itself reports what is missing
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children share these pages; the collector no longer touches and so copies them
    _warm = True


_warm_up()
