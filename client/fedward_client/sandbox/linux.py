"""Calls of the Linux kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import os
from typing import Final

__all__ = [
    "CLONE_NEWNET",
    "CLONE_NEWUSER",
    "PR_SET_DUMPABLE",
    "PR_SET_NO_NEW_PRIVS",
    "PR_SET_PDEATHSIG",
    "PR_SET_SECCOMP",
    "current_cpu",
    "keep_capabilities",
    "prctl",
    "syscall",
    "unshare",
]

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38

_CAPABILITY_VERSION_3: Final = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: int) -> int:
    """Return what the system call `number` returns; an argument is a number or an address.

    Raises:
        OSError: as errno says.
    """
    return _checked(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)))


def prctl(option: int, *values: int) -> int:
    """Change this process by the system call of that name, and return its answer; values that are not given are 0.

    Raises:
        OSError: as errno says.
    """
    padded = [*values, 0, 0, 0, 0][:4]
    return _checked(_libc.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, padded)))


def unshare(flags: int) -> None:
    """Move this process into namespaces of its own, by the system call of that name.

    Raises:
        OSError: as errno says.
    """
    _checked(_libc.unshare(ctypes.c_int(flags)))


def keep_capabilities(mask: int) -> None:
    """Give up every capability that is not in `mask`, of the first 32; see capset(2).

    Raises:
        OSError: as errno says.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    held = (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, held))
    wanted = (ctypes.c_uint32 * 6)(held[0] & mask, held[1] & mask)
    _checked(_libc.capset(header, wanted))


def current_cpu() -> int:
    """Return the number of the processor core that this thread runs on now."""
    return _checked(_libc.sched_getcpu())


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
