"""Who may do what at the centre: tokens, kept as Argon2id hashes, each of one person or program in one role.

A token is ``number.secret``. The secret has 256 random bits and is shown once. ``access.json`` has its hash, and a copy
of that file opens nothing.
"""

from __future__ import annotations

import base64
import datetime as dt
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fedward_common.errors import AccessCode, AccessError, InstallationError
from fedward_common.files import replace_file
from fedward_server.admission import RateLimit
from fedward_server.studies.rights import Role

__all__ = ["TOKEN_DAYS", "Access", "Caller", "Grant", "Role"]

TOKEN_DAYS: Final = 90
"""Days that a token is valid, unless whoever issues it says otherwise."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", re.ASCII)
_TOKEN: Final = re.compile(r"(?P<number>[0-9a-f]{12})\.(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
_LANES, _ROUNDS, _KIB = 1, 2, 19 * 1024  # OWASP's first choice for Argon2id
_SECRET_BYTES, _SALT_BYTES, _HASH_BYTES = 32, 16, 32
_REMEMBERED: Final = 256


class Grant(BaseModel):
    """One token's row: never the token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: str
    name: str
    role: Role
    issued_at: str
    expires_at: str
    revoked_at: str | None = None
    hash: str

    def standing(self, now: dt.datetime) -> str:
        """Return ``valid``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if now < dt.datetime.fromisoformat(self.expires_at) else "expired"


_GRANTS: Final = TypeAdapter(tuple[Grant, ...])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and in which role."""

    name: str
    role: Role


class Access:
    """The tokens of one centre.

    A token that was verified once is remembered by this object, as a keyed hash that is gone with the process, so that
    a console that asks every second costs one Argon2id computation; its row is looked up each time all the same.

    Args:
        home: the centre's folder.
        limit: how often a token that this object has not verified yet may be tried; a remembered one always counts, so
            a flood of wrong tokens shuts nobody out who is in.
    """

    def __init__(self, home: Path, *, limit: RateLimit | None = None) -> None:
        self._path = home / "access.json"
        self._lock = home / "access.lock"
        self._limit = limit or RateLimit(20, 120)
        self._guard = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, str] = OrderedDict()

    def issue(
        self,
        name: str,
        role: Role,
        now: dt.datetime,
        *,
        days: int = TOKEN_DAYS,
        before: Callable[[], object] = lambda: None,
    ) -> str:
        """Return a new token, the only copy of it; `before` is called once nothing stands against it.

        Raises:
            AccessError: ``forbidden``: `name` is no name, or has a valid token.
        """
        if not _NAME.fullmatch(name):
            msg = f"{name[:63]!r} is no name for a caller"
            raise AccessError(
                AccessCode.FORBIDDEN, msg, remedy="letters, digits, full stop, dash, underscore and @; at most 63"
            )
        number, secret = secrets.token_hex(6), secrets.token_urlsafe(_SECRET_BYTES)
        with self._locked():
            grants = self.grants()
            if any(grant.name == name and grant.standing(now) == "valid" for grant in grants):
                msg = f"{name} has a valid token"
                raise AccessError(AccessCode.FORBIDDEN, msg, remedy=f"fedward server access revoke {name}; then issue")
            grant = Grant(
                number=number,
                name=name,
                role=role,
                issued_at=_stamp(now),
                expires_at=_stamp(now + dt.timedelta(days=days)),
                hash=_hashed(secret),
            )
            before()
            self._write((*grants, grant))
        return f"{number}.{secret}"

    def revoke(self, name: str, now: dt.datetime, *, before: Callable[[], object] = lambda: None) -> int:
        """Let no token of `name` count any more, from this moment on; return how many did. `before` as in `issue`.

        Raises:
            AccessError: ``forbidden``: nobody of this name has a valid one.
        """
        with self._locked():
            grants = self.grants()
            valid = {grant.number for grant in grants if grant.name == name and grant.standing(now) == "valid"}
            if not valid:
                msg = f"{name[:63]!r} has no valid token"
                raise AccessError(AccessCode.FORBIDDEN, msg, remedy="fedward server access list shows all of them")
            before()
            end = {"revoked_at": _stamp(now)}
            self._write(tuple(g.model_copy(update=end) if g.number in valid else g for g in grants))
        return len(valid)

    def grants(self) -> tuple[Grant, ...]:
        """Return all rows, in the order in which they were issued.

        Raises:
            InstallationError: ``access.json`` cannot be read; nobody gets in then.
        """
        if not self._path.exists():
            return ()
        try:
            return _GRANTS.validate_json(self._path.read_bytes())
        except (OSError, ValidationError) as error:
            msg = f"{self._path} cannot be read ({type(error).__name__})"
            raise InstallationError(
                msg, remedy="restore it from a copy, or remove it and issue every token anew"
            ) from error

    def caller(self, token: str, *, peer: str = "", now: dt.datetime | None = None) -> Caller:
        """Return who holds `token`.

        What differs between a number that nobody has and a wrong secret is not to be seen, in words or in time.

        Args:
            token: as `issue` returned it.
            peer: where the request comes from, for the rate limit.
            now: aware; the present if None.

        Raises:
            AccessError: ``token_missing``, ``token_wrong``, ``token_expired``, ``token_revoked`` or ``rate_limited``.
            InstallationError: ``access.json`` cannot be read.
        """
        if not token:
            raise _refused(AccessCode.MISSING)
        match = _TOKEN.fullmatch(token)
        mark = hmac.digest(self._key, token.encode("utf-8", "replace"), hashlib.sha256)
        grant = next((g for g in self.grants() if match and hmac.compare_digest(g.number, match["number"])), None)
        if not self._remembered(mark, grant):
            with self._guard:
                allowed = self._limit.allows(peer, time.monotonic())
            if not allowed:
                raise _refused(AccessCode.RATE_LIMITED)
            right = _right(match["secret"] if match else "", grant.hash if grant else _NOBODY)
            if grant is None or not right:
                raise _refused(AccessCode.WRONG)
            self._remember(mark, grant)
        standing = grant.standing(now or dt.datetime.now(dt.UTC)) if grant else "revoked"
        if grant is None or standing != "valid":
            raise _refused(AccessCode.EXPIRED if standing == "expired" else AccessCode.REVOKED)
        return Caller(grant.name, grant.role)

    def _remembered(self, mark: bytes, grant: Grant | None) -> bool:
        with self._guard:
            return grant is not None and self._verified.get(mark) == grant.hash

    def _remember(self, mark: bytes, grant: Grant) -> None:
        with self._guard:
            self._verified[mark] = grant.hash
            if len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)

    def _write(self, grants: tuple[Grant, ...]) -> None:
        rows = [grant.model_dump(mode="json") for grant in grants]
        replace_file(self._path, (json.dumps(rows, indent=1) + "\n").encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with open(self._lock, "ab", opener=_private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            msg = f"{self._path} cannot be written ({os.strerror(error.errno or 0)})"
            raise InstallationError(msg, remedy="run it as the account that owns the centre's folder") from error


_MESSAGES: Final = {
    AccessCode.MISSING: ("this needs a token", "set FEDWARD_TOKEN; an administrator issues one"),
    AccessCode.WRONG: ("the token is wrong", "fedward server access issue NAME --role ROLE makes one"),
    AccessCode.EXPIRED: ("the token has expired", "ask an administrator for a new one"),
    AccessCode.REVOKED: ("the token was revoked", "ask an administrator for a new one"),
    AccessCode.RATE_LIMITED: ("too many tokens were tried", "wait a minute"),
}


def _refused(code: AccessCode) -> AccessError:
    message, remedy = _MESSAGES[code]
    return AccessError(code, message, remedy=remedy)


def _hashed(secret: str) -> str:
    return Argon2id(
        salt=secrets.token_bytes(_SALT_BYTES),
        length=_HASH_BYTES,
        iterations=_ROUNDS,
        lanes=_LANES,
        memory_cost=_KIB,
    ).derive_phc_encoded(secret.encode())


_NOBODY: Final = "$argon2id$v=19$m={},t={},p={}${}${}".format(
    _KIB,
    _ROUNDS,
    _LANES,
    *(base64.b64encode(bytes(n)).decode().rstrip("=") for n in (_SALT_BYTES, _HASH_BYTES)),
)
"""A hash that nobody's secret has, of the same cost, for numbers that nobody has."""


def _right(secret: str, stored: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(secret.encode(), stored)
    except (InvalidKey, ValueError):
        return False
    return True


def _stamp(now: dt.datetime) -> str:
    return now.astimezone(dt.UTC).isoformat(timespec="seconds")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
