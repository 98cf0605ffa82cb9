"""Everything that is slow to import, imported once, in the process that tasks are forked from.

Loaded by the nursery alone. Nothing here computes a gradient, opens a GPU, starts a thread or reads a file of the
site: each of these would be broken or shared in the forked children.
"""

from __future__ import annotations

import contextlib
import importlib

import torch

__all__: list[str] = []


def _warm_up() -> None:
    torch.set_num_threads(1)  # a thread's pool does not survive a fork; a child that may use more starts its own
    # Building an optimiser loads torch._dynamo (about a second); stepping it would start autograd's threads.
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    optimiser.zero_grad()
    for name in ("fedward_client.trainer", "fedward_client.cohorts"):
        with contextlib.suppress(ImportError):  # the task itself reports what is missing
            importlib.import_module(name)


_warm_up()
