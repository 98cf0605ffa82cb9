"""The commands' side of the centre's interface: one call each, errors as Fedward's own."""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx

from fedward_common.errors import AccessCode, AccessError, CoordinatorError, TransportError

__all__ = ["DEFAULT_URL", "PREFIX", "TOKEN_FILE", "Remote", "read_token"]

PREFIX: Final = "/api/v1"
"""Where the interface is below a centre's address."""
DEFAULT_URL: Final = "http://127.0.0.1:8470"
TOKEN_FILE: Final = Path("~/.config/fedward/token")

_TIMEOUT_S: Final = 40.0
_CODES: Final = frozenset(code.value for code in AccessCode)
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_token(environ: Mapping[str, str], file: Path) -> str:
    """Return the token in ``FEDWARD_TOKEN``, else that in `file`.

    Raises:
        AccessError: ``token_missing``: there is neither, or others than its owner may read or change the file.
    """
    if token := environ.get("FEDWARD_TOKEN", "").strip():
        return token
    path = file.expanduser()
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"there is no token: FEDWARD_TOKEN is not set, and {path} cannot be read"
        remedy = "fedward server access issue NAME --role ROLE at the centre makes one"
        raise AccessError(AccessCode.MISSING, msg, remedy=remedy) from error
    if mode & _OTHERS:
        msg = f"{path} is open to other accounts"
        raise AccessError(AccessCode.MISSING, msg, remedy=f"chmod 0600 {path}, and have the token replaced")
    return token


class Remote:
    """The centre at `url`, in the name of a token's holder, as a context manager.

    Raises:
        TransportError: `url` is none, or would send the token over a network in the clear.
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
            msg = f"{url!r} is no address of a centre"
            raise TransportError(msg, remedy=f"for example {DEFAULT_URL}")
        if parts.scheme == "http" and not _inside(parts.hostname):
            msg = "a token goes over no network without TLS"
            raise TransportError(msg, remedy="give an address that begins with https://")
        self._url = url
        headers = {"authorization": f"Bearer {token}"}
        # A proxy of the environment is for the outside; it would see the token of a call to this computer.
        trust = not _inside(parts.hostname)
        self._client = httpx.Client(
            base_url=url.rstrip("/") + PREFIX, headers=headers, timeout=_TIMEOUT_S, trust_env=trust
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: str | float) -> Any:
        """Return the JSON value of an answer; see `_call` for errors."""
        return self._call("GET", path, params=query).json()

    def post(self, path: str, *, content: bytes | None = None, value: object = None, **query: str) -> Any:
        """Send bytes, or a value as JSON, and return the JSON value of the answer; see `_call` for errors."""
        more = {"content": content} if content is not None else {"json": value}
        return self._call("POST", path, params=query, **more).json()

    def fetch(self, path: str) -> bytes:
        """Return the bytes of an answer; see `_call` for errors."""
        return self._call("GET", path).content

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Make one call.

        Raises:
            AccessError: the centre does not let this caller.
            CoordinatorError: it refuses the call, with its own words.
            TransportError: it cannot be reached, or speaks another language.
        """
        try:
            answer = self._client.request(method, path, **more)
        except (httpx.HTTPError, UnicodeEncodeError) as error:
            msg = f"the centre at {self._url} cannot be reached ({type(error).__name__})"
            raise TransportError(msg, remedy="fedward server status at the centre; --url names another") from error
        if answer.is_success:
            return answer
        try:
            told = answer.json()
            code, message, remedy = str(told["code"]), str(told["message"]), str(told["remedy"])
        except (ValueError, KeyError, TypeError) as error:
            msg = f"what answers at {self._url} is no centre (HTTP {answer.status_code})"
            raise TransportError(msg, remedy="look at --url, and at a proxy on the way") from error
        if code in _CODES:
            raise AccessError(AccessCode(code), message, remedy=remedy)
        raise CoordinatorError(message, remedy=remedy)


def _inside(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
