"""A network namespace without an interface that is up: no packet leaves, whatever the child tries."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedward_client.sandbox.linux import CLONE_NEWNET, CLONE_NEWUSER, unshare

__all__ = ["leave_network"]

_SELF: Final = Path("/proc/self")


def leave_network() -> None:
    """Put this process, which has one thread, into a network namespace of its own.

    Root does it directly. Anybody else needs a user namespace first, in which this account is mapped to itself and to
    nobody else, so that files and rights stay what they were.

    Raises:
        OSError: the kernel, a container or a security module forbids it; nothing was changed.
    """
    before = _network()
    user, group = os.geteuid(), os.getegid()
    if user or not _as_root():
        unshare(CLONE_NEWUSER | CLONE_NEWNET)
        with suppress(OSError):  # the maps only let this account be called by its number
            (_SELF / "setgroups").write_bytes(b"deny")
            (_SELF / "uid_map").write_bytes(b"%d %d 1" % (user, user))
            (_SELF / "gid_map").write_bytes(b"%d %d 1" % (group, group))
    if _network() == before:
        msg = "the namespace did not change"
        raise OSError(msg)


def _as_root() -> bool:
    """Leave without a user namespace; a root that has been stripped of its rights cannot."""
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        return False
    return True


def _network() -> int:
    return (_SELF / "ns" / "net").stat().st_ino
