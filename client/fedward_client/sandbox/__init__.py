"""What holds a child that opens patients' rows: no network, no file but its own cohort's, no more rights, no process.

Each layer is tried, and what came of it is said (`Sandbox`). `fedward_client.sandbox.enter` puts them on, from the
outside in; none can be taken off again. docs/adr/0011 has the reasons.
"""

from __future__ import annotations

from fedward_client.sandbox.apply import enter
from fedward_client.sandbox.layers import EVERY_LAYER, Layer, Sandbox
from fedward_client.sandbox.reach import Reach, needs_fetch, reach_of

__all__ = ["EVERY_LAYER", "Layer", "Reach", "Sandbox", "enter", "needs_fetch", "reach_of"]
