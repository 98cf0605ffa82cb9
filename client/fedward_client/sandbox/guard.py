"""The last resort: a Python audit hook that refuses what the kernel here cannot (PEP 578).

It stops Python code that connects, opens or starts something, by mistake or on purpose, and no machine code: whoever
runs a C library of his own passes it by. A hook cannot be taken off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

__all__ = ["below", "guard_files", "guard_network"]

_NETWORK: Final = frozenset({
    "socket.__new__", "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
    "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo", "socket.getservbyname",
})  # fmt: skip
_PROCESSES: Final = frozenset({
    "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.system", "os.killpg", "subprocess.Popen",
    "pty.spawn", "ctypes.dlopen", "ctypes.dlsym",
})  # fmt: skip
_CHANGES: Final = frozenset({"os.remove", "os.rename", "os.mkdir", "os.rmdir"})
_NEVER: Final = frozenset({
    "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.setxattr", "os.removexattr", "os.utime",
    "os.chflags",
})  # fmt: skip
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard_network() -> None:
    """Refuse every socket from now on."""

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in _NETWORK:
            raise PermissionError(event)

    sys.addaudithook(hook)


def guard_files(*, read: Iterable[str | Path], write: Iterable[Path], hidden: Path, named: Iterable[Path]) -> None:
    """Refuse every other file and every other process from now on.

    Args:
        read: folders that may be read, but for what is in `hidden`.
        write: folders in which files may be made, changed and deleted.
        hidden: a folder of which nothing else may be read.
        named: what may be read wherever it is.
    """
    places = _Places([*map(_real, read)], [*map(_real, write)], _real(hidden), [*map(_real, named)])
    own = os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            allowed = places.opens(arguments[0], arguments[2])
        elif event in _CHANGES:
            allowed = all(places.writes(path) for path in arguments if isinstance(path, str | bytes | os.PathLike))
        elif event == "os.kill":
            allowed = arguments[0] == own
        else:
            allowed = event not in _PROCESSES and event not in _NEVER
        if not allowed:
            raise PermissionError(event)

    sys.addaudithook(hook)


class _Places:
    """Which paths are allowed; every path is real, without links."""

    def __init__(self, read: list[str], write: list[str], hidden: str, named: list[str]) -> None:
        self._read, self._write, self._hidden, self._named = read, write, hidden, named

    def opens(self, path: object, flags: object) -> bool:
        """Return whether a path may be opened; what has a handle already may."""
        if not isinstance(path, str | bytes | os.PathLike):
            return True
        place = _real(path)
        if place == os.devnull or self.writes(place):
            return True
        if not isinstance(flags, int) or flags & _WRITES:
            return False
        return _in(place, self._named) or (_in(place, self._read) and not _in(place, [self._hidden]))

    def writes(self, path: str | bytes | os.PathLike[Any]) -> bool:
        """Return whether a path may be made, changed and deleted."""
        return _in(_real(path), self._write)


def _real(path: str | bytes | os.PathLike[Any]) -> str:
    return os.path.realpath(os.fsdecode(path))


def below(place: str, folder: str) -> bool:
    """Return whether a path is a folder, or below it."""
    return place == folder or place.startswith(f"{folder}/")


def _in(place: str, folders: list[str]) -> bool:
    return any(below(place, folder) for folder in folders)
