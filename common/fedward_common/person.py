"""Who sits at this computer: the account that a person logged in with, also behind ``sudo``."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final

__all__ = ["account"]

_NOT_SET: Final = 2**32 - 1
_LOGIN: Final = Path("/proc/self/loginuid")


def account() -> str:
    """Return the name of the account that logged in.

    That is the kernel's audit login, which neither ``su`` nor ``sudo`` changes; where there is none (a container, a
    kernel without audit), the account that called ``sudo``; else the one that this process runs as.
    """
    try:
        login = int(_LOGIN.read_text(encoding="ascii"))
    except (OSError, ValueError):
        login = _NOT_SET
    if login != _NOT_SET:
        return _name(login)
    behind = os.environ.get("SUDO_UID", "")
    return _name(int(behind) if behind.isdigit() else os.getuid())


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except (KeyError, OverflowError):
        return f"uid {number}"
