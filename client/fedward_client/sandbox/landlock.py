"""Landlock: the kernel's allow-list of folders and files for one process.

See "Landlock: unprivileged access control" in the documentation of the kernel.

What is not allowed is refused, for root as well. Landlock knows hierarchies: who is allowed a folder is allowed all
that is below it, so a folder that holds the site's own files is taken apart (`around`).
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedward_client.sandbox.linux import syscall

__all__ = ["abi", "around", "restrict"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION: Final = 1  # flag of landlock_create_ruleset
_PATH_BENEATH, _NET_PORT = 1, 2

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 5, 1 << 8, 1 << 13, 1 << 14, 1 << 15
_FILES_BY_ABI: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK_SINCE, _SCOPES_SINCE = 4, 6
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_ABSTRACT_SOCKETS, _SIGNALS = 1 << 0, 1 << 1

_READ: Final = _READ_FILE | _READ_DIR
_KEEP: Final = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
_DEVICE: Final = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
_OF_A_FILE: Final = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV | 1

Place = str | Path


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Port(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def abi() -> int:
    """Return the version of the kernel's interface, at least 1.

    Raises:
        OSError: this kernel has none, or it is not switched on.
    """
    return syscall(_CREATE_RULESET, 0, 0, _VERSION)


def restrict(
    *,
    read: Iterable[Place],
    listed: Iterable[Place] = (),
    write: Iterable[Place] = (),
    devices: Iterable[Place] = (),
    ports: Sequence[int] | None = (),
) -> int:
    """Allow this process and what it starts nothing but what is named, for good, and return the interface's version.

    Paths that are not there are left out. The process must have given up new privileges before.

    Args:
        read: folders with all that is below them, and files.
        listed: folders whose names may be read, below them too, but no file.
        write: folders in which files may be made, changed and deleted.
        devices: files that may be read, written and controlled.
        ports: TCP ports that may be connected to, where the kernel can tell; None: any.

    Raises:
        OSError: this kernel has no Landlock, or refuses.
    """
    version = abi()
    handled = _FILES_BY_ABI[min(version, max(_FILES_BY_ABI))]
    network = _BIND_TCP | _CONNECT_TCP if version >= _NETWORK_SINCE and ports is not None else 0
    scoped = _ABSTRACT_SOCKETS | _SIGNALS if version >= _SCOPES_SINCE else 0
    attributes = _Ruleset(handled, network, scoped)
    ruleset = syscall(_CREATE_RULESET, ctypes.addressof(attributes), ctypes.sizeof(attributes), 0)
    try:
        for rights, paths in ((_READ, read), (_READ_DIR, listed), (_KEEP, write), (_DEVICE, devices)):
            for path in paths:
                with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # what is not opened stays shut
                    _allow(ruleset, path, rights & handled)
        for port in (ports or ()) if network else ():
            rule = _Port(_CONNECT_TCP, port)
            syscall(_ADD_RULE, ruleset, _NET_PORT, ctypes.addressof(rule), 0)
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: Place, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _OF_A_FILE
        rule = _Beneath(rights, handle)
        if rights:
            syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(rule), 0)
    finally:
        os.close(handle)


def around(folder: Path, hidden: Path) -> Iterator[Path]:
    """Yield what makes up `folder` without `hidden`: the folder itself, or its parts where `hidden` is in it.

    A name that comes into the folder later is not among them. Links are followed first.
    """
    folder, hidden = folder.resolve(), hidden.resolve()
    if not hidden.is_relative_to(folder):
        yield folder
        return
    while folder != hidden:
        with suppress(OSError):
            yield from (part for part in folder.iterdir() if not _meets(part.resolve(), hidden))
        folder /= hidden.relative_to(folder).parts[0]


def _meets(part: Path, hidden: Path) -> bool:
    return part.is_relative_to(hidden) or hidden.is_relative_to(part)
