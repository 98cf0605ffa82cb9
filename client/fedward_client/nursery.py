"""The process that children are forked from: imports what is slow, computes nothing, holds no key and no connection.

The daemon starts it as a fresh interpreter with no more environment than it needs, and gives it one end of a socket.
Over it goes, for each child, one message with two descriptors: the child's pipe, and a control socket on which the
nursery answers with the child's number and, at its end, its exit code. Whoever closes the other end of the control
socket kills the child. When the daemon is gone, so is the nursery, and when the nursery is gone, so are its children.

This module imports nothing but the standard library: it is what the nursery starts with.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Final, NoReturn

__all__ = ["Child", "Nursery", "NurseryLostError", "clean_environment", "serve"]

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fedward_client.nursery import serve; "
    "serve(int(sys.argv[2]), sys.argv[3].split())"
)
_NUMBER: Final = struct.Struct("<i")
_STATUS_BYTES: Final = 4096
_GONE_S: Final = 5.0
_KEPT: Final = frozenset({
    "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED",
    "PYTHONPYCACHEPREFIX", "TZ", "TZDIR", "VIRTUAL_ENV",
})  # fmt: skip
_KEPT_PREFIXES: Final = ("CUDA_", "KMP_", "LC_", "MKL_", "NVIDIA_", "OMP_", "PYTORCH_", "TORCH_")


class NurseryLostError(Exception):
    """The nursery ended, or cannot be started."""


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of a daemon's environment its children get: no proxy, no password, no name of a service."""
    kept = {name: value for name, value in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    # One thread while nothing is computed: a process with more is not safe to fork.
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


class Child:
    """The daemon's end of one child."""

    def __init__(self, pipe: Connection, control: socket.socket) -> None:
        self.pipe = pipe
        self._control = control
        answer, handles, _, _ = socket.recv_fds(control, _NUMBER.size, 1)
        if len(answer) < _NUMBER.size or not handles:
            msg = "no child came of it"
            raise NurseryLostError(msg)
        (self.pid,) = _NUMBER.unpack(answer)
        self._status = handles[0]
        self._closed = False

    def status(self) -> bytes:
        """Return what the kernel says of the child (proc_pid_status(5)); nothing once it has ended."""
        try:
            return os.pread(self._status, _STATUS_BYTES, 0)
        except OSError:
            return b""

    def kill(self) -> None:
        """End the child now; safe to call again, from any thread, and after its end."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def wait(self) -> int | None:
        """Return the exit code once the child has ended, negative for a signal; None if nobody knows it any more."""
        with suppress(OSError):
            code = self._control.recv(_NUMBER.size)
            if len(code) == _NUMBER.size:
                return int(_NUMBER.unpack(code)[0])
        return None

    def close(self) -> int | None:
        """End the child, and return what `wait` does."""
        self.kill()
        self.pipe.close()
        code = self.wait()
        self._control.close()
        os.close(self._status)
        return code


class Nursery:
    """The daemon's end: starts the nursery when it is first needed, and again should it end.

    Args:
        preload: modules that it imports before it forks the first child, and ``module:function`` that it calls, in this
            order; what cannot be imported is left out.
        target: ``module:function`` that a child calls with the number of its pipe's descriptor.
    """

    def __init__(self, preload: tuple[str, ...], target: str) -> None:
        self._preload, self._target = preload, target
        self._lock = threading.Lock()
        self._end: weakref.finalize[[socket.socket, subprocess.Popen[bytes]], Nursery] | None = None
        self.starts = 0

    def fork(self) -> Child:
        """Return a new child; a nursery that has ended meanwhile is started again.

        Raises:
            NurseryLostError: it cannot be started, or ends again.
        """
        with self._lock:
            if self._end is not None:
                with suppress(NurseryLostError, OSError):
                    return self._fork()
            self._start()
            try:
                return self._fork()
            except OSError as error:
                msg = f"the process that children are forked from ended: {error.strerror}"
                raise NurseryLostError(msg) from error

    def close(self) -> None:
        """End the nursery and all of its children."""
        with self._lock:
            if self._end is not None:
                self._end()
                self._end = None

    def _start(self) -> None:
        if self._end is not None:
            self._end()
        ours, theirs = socket.socketpair()
        modules = " ".join((self._target, *self._preload))
        command = [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno()), modules]
        with theirs:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=clean_environment(os.environ),
                    pass_fds=[theirs.fileno()],
                )
            except OSError as error:
                ours.close()
                msg = f"no process can be started: {error.strerror}"
                raise NurseryLostError(msg) from error
        self._orders = ours
        self._end = weakref.finalize(self, _end, ours, process)
        self.starts += 1

    def _fork(self) -> Child:
        our_pipe, their_pipe = socket.socketpair()
        our_control, their_control = socket.socketpair()
        with their_pipe, their_control:
            pipe = Connection(our_pipe.detach())
            try:
                socket.send_fds(self._orders, [b"F"], [their_pipe.fileno(), their_control.fileno()])
                their_control.close()
                return Child(pipe, our_control)
            except BaseException:
                pipe.close()
                our_control.close()
                raise


def _end(orders: socket.socket, process: subprocess.Popen[bytes]) -> None:
    orders.close()
    try:
        process.wait(_GONE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(handle: int, modules: list[str]) -> None:
    """Import, then fork a child for each order, until the daemon's end is closed; the nursery's whole life.

    Args:
        handle: the socket that orders come over.
        modules: what children call, then `Nursery`'s `preload`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which ends us in order
    target, *preload = modules
    for name in preload:
        module, _, function = name.partition(":")
        with suppress(ImportError):  # the task itself reports what is missing
            imported = importlib.import_module(module)
            if function:
                getattr(imported, function)()
    gc.collect()
    gc.freeze()  # children share these pages; the collector no longer touches and so copies them
    with socket.socket(fileno=handle) as orders:
        _Ward(orders, target).run()


class _Ward:
    """The nursery's own side: who lives, and who is asked for."""

    def __init__(self, orders: socket.socket, target: str) -> None:
        self._orders, self._target = orders, target
        self._children: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ)
        self._bell, self._rope = socket.socketpair()
        for end in (self._bell, self._rope):
            end.settimeout(0)
        self._selector.register(self._bell, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, _noticed)
        signal.set_wakeup_fd(self._rope.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._orders:
                    if not self._take_order():
                        return self._end_all()
                elif key.fileobj is self._bell:
                    with suppress(BlockingIOError):
                        self._bell.recv(_STATUS_BYTES)
                else:
                    self._selector.unregister(key.fileobj)
                    _kill(key.data)
            self._bury()

    def _take_order(self) -> bool:
        try:
            word, handles, _, _ = socket.recv_fds(self._orders, 1, 2)
        except OSError:
            return False
        if not word or len(handles) != 2:  # noqa: PLR2004  (a pipe and a control socket)
            return False
        pipe, control = handles[0], socket.socket(fileno=handles[1])
        pid = os.fork()
        if pid == 0:
            control.close()
            self._become_child(pipe)
        os.close(pipe)
        self._children[pid] = control
        self._selector.register(control, selectors.EVENT_READ, pid)
        status = os.open(f"/proc/{pid}/status", os.O_RDONLY)
        with suppress(OSError):  # the daemon does not want it any more
            socket.send_fds(control, [_NUMBER.pack(pid)], [status])
        os.close(status)
        return True

    def _become_child(self, pipe: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for end in (self._orders, self._bell, self._rope, *self._children.values()):
                end.close()
            module, _, function = self._target.partition(":")
            getattr(importlib.import_module(module), function)(pipe)
            code = 0
        finally:
            os._exit(code)

    def _bury(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            control = self._children.pop(pid)
            with suppress(KeyError):
                self._selector.unregister(control)
            with suppress(OSError), control:
                control.send(_NUMBER.pack(os.waitstatus_to_exitcode(status)))

    def _end_all(self) -> None:
        for pid in self._children:
            _kill(pid)
        for pid in self._children:
            os.waitpid(pid, 0)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _noticed(_: int, __: FrameType | None) -> None:
    """Let a child's end wake the nursery."""
