"""Addresses that nobody but this computer reaches, as pure rules."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from fedward_common.errors import InstallationError

__all__ = ["DEFAULT_ADDRESS", "Loopback", "loopback"]

_LAST_PORT: Final = 65535
DEFAULT_ADDRESS: Final = "127.0.0.1:8470"
_ADDRESS: Final = re.compile(r"(?P<host>localhost|\[[0-9A-Fa-f:.]+\]|[0-9.]+):(?P<port>[0-9]{1,5})")
_REMEDY: Final = f"local_page in site.yaml: an address like {DEFAULT_ADDRESS} or [::1]:8470; take the line out for none"


@dataclass(frozen=True, slots=True)
class Loopback:
    """A loopback address and a port of it; port 0 stands for any free one."""

    host: str
    port: int

    @property
    def netloc(self) -> str:
        """The address as it stands in a URL and in a request's Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def named_by(self, host_header: str) -> bool:
        """Return whether a request with this Host header was meant for this address.

        A page of the internet that lets its own name point to 127.0.0.1 (DNS rebinding) sends its own name.
        """
        return host_header.lower() in {self.netloc, f"localhost:{self.port}"}


def loopback(text: str) -> Loopback:
    """Return the address in `text`, ``host:port`` with a literal loopback address or ``localhost``.

    Raises:
        InstallationError: no address, another interface than loopback, or a name that could point anywhere.
    """
    match = _ADDRESS.fullmatch(text)
    host = "127.0.0.1" if match and match["host"] == "localhost" else match["host"].strip("[]") if match else ""
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if match is None or not inside or int(match["port"]) > _LAST_PORT:
        msg = f"{text!r} is no loopback address with a port; the page is for this computer only"
        raise InstallationError(msg, remedy=_REMEDY)
    return Loopback(host, int(match["port"]))
