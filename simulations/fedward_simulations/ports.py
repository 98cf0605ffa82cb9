"""Ports for servers that have to be told theirs before they start."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

__all__ = ["free_ports"]

_FROM, _TO = 20_000, 32_768  # below those that Linux gives to outgoing connections, which come and go at any time
_TRIES: Final = 1000


def free_ports(count: int) -> list[int]:
    """Return so many loopback ports that nobody listens on now, each another; no outgoing connection takes one later.

    Raises:
        OSError: there are none.
    """
    draw, found = random.SystemRandom(), list[int]()
    with contextlib.ExitStack() as stack:
        for _ in range(_TRIES):
            if len(found) == count:
                return found
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", draw.randrange(_FROM, _TO)))
                found.append(int(sock.getsockname()[1]))
    msg = f"no {count} free ports between {_FROM} and {_TO}"
    raise OSError(msg)
