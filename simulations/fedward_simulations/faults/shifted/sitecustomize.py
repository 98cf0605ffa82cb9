"""Python imports this module at its start where this folder is in ``PYTHONPATH``: it lets the process's clock be set.

The time of day is that of the computer and as many seconds more as the file says that ``FEDWARD_CLOCK`` names; it is
looked at twenty times a second. Monotonic time is not touched, as where a person sets a clock.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import time_machine

_LOOK_S = 0.05


def _follow(file: Path) -> None:
    offset, nap = 0.0, threading.Event()
    travel: time_machine.travel | None = None
    while not nap.wait(_LOOK_S):
        wanted = offset
        with suppress(OSError, ValueError):
            wanted = float(file.read_text(encoding="ascii"))
        if wanted == offset:
            continue
        if travel is not None:
            travel.stop()
        travel, offset = None, wanted
        if offset:
            travel = time_machine.travel(time.time() + offset, tick=True)
            travel.start()


if _named := os.environ.get("FEDWARD_CLOCK"):
    threading.Thread(target=_follow, args=(Path(_named),), name="clock", daemon=True).start()
