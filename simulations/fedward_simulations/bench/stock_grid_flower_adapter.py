"""Flower's own ServerApp side, as `flwr-serverapp` uses it, for a run at our SuperLink."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid

from fedward_server.grid_flower_adapter import CoordinatorGrid

__all__ = ["INTERNAL_NAMES", "stock_grid"]

INTERNAL_NAMES: Final[dict[str, str]] = {"flwr.superlink.grid": "HttpGrid._addr HttpGrid._token"}
"""Module and names of all that is used here beyond Flower's public API."""


@contextlib.contextmanager
def stock_grid(ours: CoordinatorGrid) -> Iterator[Grid]:
    """Yield Flower's own grid for the task that `ours` has; `ours` goes on giving the signs of life."""
    grid = HttpGrid(runtime_api_address=ours._addr, insecure=True, token=ours._token)  # noqa: SLF001
    grid.set_run(ours.run)
    try:
        yield grid
    finally:
        grid.close()
