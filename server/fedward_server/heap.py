"""How the C library's heap behaves in the centre's processes: what is freed goes back to the system.

By default glibc keeps freed blocks of some megabytes, in one heap for each thread; a process that handles parts of a
model one at a time then holds many of them. Other C libraries are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

__all__ = ["give_back_what_is_freed"]

_SETTINGS: Final = {
    -3: 256 * 1024,  # M_MMAP_THRESHOLD: from so many bytes on, a block is its own mapping and goes when it is freed
    -1: 1024 * 1024,  # M_TRIM_THRESHOLD: so many free bytes stay at a heap's end
    -8: 2,  # M_ARENA_MAX: heaps
}


def give_back_what_is_freed() -> None:
    """Set the heap of this process up, once and before its threads start."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in _SETTINGS.items():
            mallopt(setting, value)
