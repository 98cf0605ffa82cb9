"""How the heap behaves in the centre's processes: what nobody needs is freed, and what is freed goes to the system.

By default glibc keeps freed blocks of some megabytes, in one heap for each thread; a process that handles parts of a
model one at a time then holds many of them. Other C libraries are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Final

__all__ = ["drop_large", "give_back_what_is_freed", "spare_what_stays"]

_SETTINGS: Final = {
    -3: 256 * 1024,  # M_MMAP_THRESHOLD: from so many bytes on, a block is its own mapping and goes when it is freed
    -1: 1024 * 1024,  # M_TRIM_THRESHOLD: so many free bytes stay at a heap's end
    -8: 2,  # M_ARENA_MAX: heaps
}

_LARGE: Final = 1 << 20


def give_back_what_is_freed() -> None:
    """Set the heap of this process up, once and before its threads start."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in _SETTINGS.items():
            mallopt(setting, value)


def spare_what_stays() -> None:
    """Keep what a server has made until now out of every later collection, which takes milliseconds then."""
    gc.collect()
    gc.freeze()


def drop_large(handled: int) -> None:
    """Collect what a request has left, if it carried a megabyte or more.

    The tasks that a web framework cancels at a request's end hold each other and the request's content, and Python
    looks for such rings after so many objects, however many bytes they are.

    Args:
        handled: bytes that came in and went out.
    """
    if handled >= _LARGE:
        gc.collect()
