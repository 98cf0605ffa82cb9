"""The process of the centre's interface: ``python -m fedward_server.studies.serve --home CENTRE``, on loopback.

Two lines of JSON on standard output report its port and then that requests are answered.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import socket
import sys
from pathlib import Path
from typing import Final

from fedward_common.errors import FedwardError, InstallationError
from fedward_common.logs import log_json_lines
from fedward_server.centre import load_centre
from fedward_server.superlink import listen, stop_when_input_closes

__all__ = ["address_of", "main"]

_LAST_PORT: Final = 65535
_STOP_S: Final = 3


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, a literal loopback address.

    Raises:
        InstallationError: it is something else; a proxy with TLS may stand before it, on this computer.
    """
    host, _, port = text.rpartition(":")
    try:
        inside = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        inside = False
    if not inside or not port.isdigit() or int(port) > _LAST_PORT:
        msg = f'"console": "{text}" is no loopback address with a port'
        raise InstallationError(
            msg, remedy="127.0.0.1:8470, for example; a proxy on this computer can open it to others"
        )
    return host.strip("[]"), int(port)


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedward_server.studies.serve", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the centre's folder")
    parser.add_argument("--stop-on-eof", action="store_true", help="stop when standard input is closed")
    options = parser.parse_args(arguments)
    log_json_lines()
    if options.stop_on_eof:
        stop_when_input_closes()
    try:
        sock = listen(*address_of(load_centre(options.home).console))
        _report("bound", port=sock.getsockname()[1])
        _serve(options.home, sock)
    except FedwardError as error:
        sys.stderr.write(error.diagnostics() + "\n")
        return 2
    return 0


def _serve(home: Path, sock: socket.socket) -> None:
    import uvicorn  # noqa: PLC0415  (the port is told first)

    from fedward_server.studies.api import build_api  # noqa: PLC0415  (see above)

    class Announced(uvicorn.Server):
        """A server that reports when it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _report("ready")

    settings = uvicorn.Config(
        build_api(home),
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_STOP_S,
    )
    Announced(settings).run([sock])


def _report(event: str, **fields: int) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
