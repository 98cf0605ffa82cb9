"""What a hostile child tries: each attempt returns if it succeeds, and raises an OSError if it is stopped."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

_PTRACE_SEIZE, _PTRACE_DETACH = 0x4206, 17
_IO_URING_SETUP = 425
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def connect(port: str) -> None:
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
        pass


def connect_by_name(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(path)


def send_datagram(port: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(b"x", ("127.0.0.1", int(port)))


def listen() -> None:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        end.listen()


def bind_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path)


def ring() -> None:
    """Make an io_uring, through which a kernel opens sockets that no filter sees."""
    parameters = (ctypes.c_char * 120)()
    os.close(_checked(_libc().syscall(_IO_URING_SETUP, 1, parameters)))


def read(path: str) -> None:
    Path(path).read_bytes()


def append(path: str) -> None:
    with Path(path).open("ab") as file:
        file.write(b"x")


def shorten(path: str) -> None:
    os.truncate(path, 0)


def delete(path: str) -> None:
    Path(path).unlink()


def rename(path: str) -> None:
    Path(path).rename(f"{path}.moved")


def expose(path: str) -> None:
    Path(path).chmod(0o666)


def expose_by_handle(path: str) -> None:
    with Path(path).open("rb") as file:
        os.fchmod(file.fileno(), 0o666)


def backdate(path: str) -> None:
    os.utime(path, (0, 0))


def link(path: str) -> None:
    Path(f"{path}.link").symlink_to(path)


def make_folder(path: str) -> None:
    Path(path, "new").mkdir()


def carry_off(path: str, cache: str) -> None:
    """Give a file a second name in the cache, where it could be read."""
    Path(cache, "stolen").hardlink_to(path)


def trace(pid: str) -> None:
    libc = _libc()
    _checked(libc.ptrace(_PTRACE_SEIZE, int(pid), 0, 0))
    libc.ptrace(_PTRACE_DETACH, int(pid), 0, 0)


def look_into(pid: str) -> None:
    Path(f"/proc/{pid}/environ").read_bytes()


def open_memory(pid: str) -> None:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))


def signal_(pid: str) -> None:
    os.kill(int(pid), 0)


def starve(pid: str) -> None:
    """Read the limits of another process by the call that also sets them."""
    resource.prlimit(int(pid), resource.RLIMIT_NOFILE)


def shell() -> None:
    subprocess.run(["/bin/sh", "-c", "true"], check=True)


def become_a_shell() -> None:
    os.execv("/nowhere/sh", ["sh"])  # noqa: S606  (that is the attempt; allowed, it would say that there is no such file)


def fork() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def unshare() -> None:
    _checked(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNS))


def spread() -> None:
    """Use every core again."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


ATTEMPTS: Mapping[str, Callable[..., None]] = {
    "connect": connect, "connect_by_name": connect_by_name, "send_datagram": send_datagram, "listen": listen,
    "bind_unix": bind_unix, "ring": ring, "read": read, "append": append, "shorten": shorten, "delete": delete,
    "rename": rename, "expose": expose, "expose_by_handle": expose_by_handle, "backdate": backdate, "link": link,
    "make_folder": make_folder, "carry_off": carry_off, "trace": trace, "look_into": look_into,
    "open_memory": open_memory, "signal": signal_, "starve": starve, "shell": shell,
    "become_a_shell": become_a_shell, "fork": fork, "unshare": unshare, "spread": spread,
}  # fmt: skip
