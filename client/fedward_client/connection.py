"""``connection.yaml``: how a site reaches its coordinator, through which proxy, and what it trusts on the way."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Final

import httpx
import yaml
from pydantic import Field

from fedward_common.contract import Contract, quantity, validated
from fedward_common.errors import InstallationError, StudyError
from fedward_common.files import replace_file

__all__ = [
    "DIRECT",
    "ConnectionSettings",
    "Outbound",
    "choose_proxy",
    "environment_proxy",
    "load_connection",
    "open_way",
    "read_secret",
    "tls_context",
    "write_connection",
]

DIRECT: Final = "direct"
"""Value of `proxy` that ignores HTTPS_PROXY."""

_HEAD: Final = """\
# How this site reaches its coordinator. Written by `fedward client enroll`; comments of your own are not kept.
# Optional: proxy (http://user@host:port, or direct), proxy_password_file, extra_ca, heartbeat_s, task_wall_s,
# message_bytes, wait_s, cache_bytes, upload_mbit_s, download_mbit_s. docs/hospital-guide.md explains each.
"""
_ADDRESS: Final = r"^([^\s/:]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$"


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How a site reaches its coordinator; the keys of ``connection.yaml``.

    Args:
        superlink: host:port of the coordinator's public listener.
        ca: PEM file of the authority that signed the coordinator's certificate.
        node_key: PEM file of this site's P-384 key, mode 0600.
        bundle_sha256: digest of the one bundle whose runs are answered, 64 lower-case hexadecimal digits.
        heartbeat_s: seconds between the signs of life that the coordinator is promised, 10 to 1800.
        task_wall_s: longest time for one task, in seconds.
        message_bytes: largest message that is accepted or sent, in bytes.
        wait_s: longest time that the coordinator may hold a request for messages, in seconds.
        proxy: ``http://user@host:port`` of an HTTP proxy that opens tunnels (CONNECT); `DIRECT` for none; empty: as
            HTTPS_PROXY and NO_PROXY in the environment say.
        proxy_password_file: file with the proxy's password in its first line, mode 0600.
        extra_ca: PEM file of an authority that is trusted besides `ca`: the hospital's own, where a proxy inspects
            TLS. Whoever holds that authority's key then reads, and can change, what passes.
        cache_bytes: what fetched objects may take on the disk, in bytes.
        upload_mbit_s: what the site may send at most, in 10**6 bits per second; None: no limit.
        download_mbit_s: what it may receive at most.
        study_keys: public keys that sign the centre's studies, as the centre named them at enrolment.
    """

    superlink: str
    ca: Path
    node_key: Path
    bundle_sha256: str
    heartbeat_s: float = 30.0
    task_wall_s: float = 3600.0
    message_bytes: int = 512 * 1024 * 1024
    wait_s: float = 10.0
    proxy: str = ""
    proxy_password_file: Path | None = None
    extra_ca: Path | None = None
    cache_bytes: int = 2 * 1024 * 1024 * 1024
    upload_mbit_s: float | None = None
    download_mbit_s: float | None = None
    study_keys: tuple[str, ...] = ()


class _File(Contract):
    """The same keys as a person writes them."""

    superlink: str = quantity("host:port of the coordinator", pattern=_ADDRESS)
    ca: str = quantity("PEM file of the authority that signed the coordinator's certificate")
    node_key: str = quantity("PEM file of this site's P-384 key")
    bundle_sha256: str = quantity("64 lower-case hexadecimal digits", pattern=r"^[0-9a-f]{64}$")
    heartbeat_s: float = quantity("sign of life", "s", default=30.0, ge=10, le=1800)
    task_wall_s: float = quantity("for one task", "s", default=3600.0, gt=0)
    message_bytes: int = quantity("of one message", "bytes", default=512 * 1024 * 1024, ge=1024)
    wait_s: float = quantity("held requests", "s", default=10.0, ge=0, le=25)
    proxy: str = quantity(
        "http://host:port or http://user@host:port, without a password (that is in proxy_password_file); or direct",
        default="",
        pattern=rf"^$|^{DIRECT}$|^http://([^\s/:@]+@)?([^\s/:@]+|\[[0-9a-fA-F:.]+\]):[0-9]{{1,5}}/?$",
    )
    proxy_password_file: str | None = quantity("file with the proxy's password in its first line", default=None)
    extra_ca: str | None = quantity("PEM file of an authority that is trusted besides `ca`", default=None)
    cache_bytes: int = quantity("on the disk", "bytes", default=2 * 1024 * 1024 * 1024, ge=0)
    upload_mbit_s: float | None = quantity("what the site sends at most", "Mbit/s", default=None, ge=1, le=100_000)
    download_mbit_s: float | None = quantity("what it receives at most", "Mbit/s", default=None, ge=1, le=100_000)
    study_keys: tuple[Annotated[str, Field(pattern=r"^ed25519:[A-Za-z0-9_-]{43}$")], ...] = quantity(
        "public keys that sign the centre's studies", default=()
    )


_PATHS: Final = ("ca", "node_key", "proxy_password_file", "extra_ca")


def load_connection(home: Path) -> ConnectionSettings:
    """Return the settings in ``home/connection.yaml``; relative files are relative to `home`.

    Raises:
        InstallationError: no such file, an unknown, missing or malformed key; the message names it.
    """
    path = home / "connection.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        msg = f"{path} cannot be read"
        raise InstallationError(msg, remedy="fedward client enroll INVITE makes it") from error
    try:
        values = validated(_File, raw if isinstance(raw, dict) else {}, where=str(path)).model_dump()
    except StudyError as error:
        remedy = f"keys: {', '.join(entry.name for entry in fields(ConnectionSettings))}"
        raise InstallationError(error.message, remedy=remedy) from None
    return ConnectionSettings(**values | {key: home / values[key] for key in _PATHS if values[key] is not None})


def write_connection(home: Path, values: Mapping[str, object]) -> None:
    """Write ``connection.yaml`` atomically: `values` over what stands there already.

    Args:
        home: the site's folder.
        values: keys of the file; files relative to `home`. None takes a key out.

    Raises:
        InstallationError: the result would not be readable; the file is as it was.
    """
    path = home / "connection.yaml"
    try:
        former = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        former = None
    merged = {**(former if isinstance(former, dict) else {}), **values}
    kept = {key: value for key, value in merged.items() if value is not None}
    try:
        validated(_File, kept, where=str(path))
    except StudyError as error:
        raise InstallationError(error.message, remedy=f"correct {path}, or delete it, and try again") from None
    replace_file(path, (_HEAD + yaml.safe_dump(kept, sort_keys=False)).encode())


@dataclass(frozen=True, slots=True)
class Outbound:
    """The way out: what verifies the other end, and the proxy in between.

    Args:
        tls: the context; it checks the host name.
        proxy: with its credentials; None for a direct connection.
        inspectable: whether another authority than the coordinator's is trusted, so that somebody may read along.
    """

    tls: ssl.SSLContext
    proxy: httpx.Proxy | None = None
    inspectable: bool = False

    @property
    def proxy_name(self) -> str:
        """host:port of the proxy, without its credentials; empty for none."""
        return f"{self.proxy.url.host}:{self.proxy.url.port}" if self.proxy else ""


def open_way(settings: ConnectionSettings, environ: Mapping[str, str]) -> Outbound:
    """Return the way out that the settings, and where they are silent the environment, describe.

    Raises:
        InstallationError: a file is missing or readable by others, or the environment's proxy is of no known form.
    """
    proxy = choose_proxy(settings.superlink, settings.proxy, settings.proxy_password_file, environ)
    return Outbound(tls_context(settings.ca, settings.extra_ca), proxy, settings.extra_ca is not None)


def choose_proxy(
    address: str, proxy: str, password_file: Path | None, environ: Mapping[str, str]
) -> httpx.Proxy | None:
    """Return the proxy for connections to `address` (host:port): as `proxy` says, else as the environment says.

    Raises:
        InstallationError: the password's file is missing or readable by others, or the proxy is of no known form.
    """
    if proxy == DIRECT:
        return None
    if proxy:
        return _proxy(proxy, read_secret(password_file) if password_file else "")
    found = environment_proxy(address.rpartition(":")[0].strip("[]"), environ)
    return _proxy(found) if found else None


def environment_proxy(host: str, environ: Mapping[str, str]) -> str:
    """Return the proxy that an environment names for HTTPS to `host`, or an empty text.

    HTTPS_PROXY, then ALL_PROXY; the lower-case names count too, and first. NO_PROXY is a list with commas: a host, a
    domain (with or without a leading full stop; all hosts below it), an address, a network as 10.0.0.0/8, or ``*``.
    """
    found = [environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")]
    address = next((value.strip() for value in found if value and value.strip()), "")
    exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if not address or any(_covers(entry.strip(), host) for entry in exceptions.split(",")):
        return ""
    return address if "://" in address else f"http://{address}"


def _covers(entry: str, host: str) -> bool:
    """Return whether one entry of NO_PROXY is about `host`."""
    if not entry:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name, asked = entry.lower().removeprefix("*").lstrip("."), host.lower()
        return entry == "*" or asked == name or (name != "" and asked.endswith(f".{name}"))


def _proxy(address: str, password: str = "") -> httpx.Proxy:
    try:
        url: httpx.URL | None = httpx.URL(address)
    except httpx.InvalidURL:
        url = None
    if url is None or url.scheme != "http" or not url.host:
        msg = "the proxy's address is of no known form, or no HTTP proxy"
        raise InstallationError(msg, remedy="write it as http://host:port, in `proxy` or HTTPS_PROXY")
    auth = (url.username, password or url.password) if url.username else None
    return httpx.Proxy(f"http://{url.netloc.decode('ascii')}", auth=auth)


def read_secret(path: Path) -> str:
    """Return the first line of a file that only its owner may read.

    Raises:
        InstallationError: no such file, or others may read it.
    """
    try:
        mode = path.stat().st_mode & 0o077
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read"
        raise InstallationError(msg, remedy="key `proxy_password_file` names the file with the password") from error
    if mode:
        msg = f"{path} may be read by others than its owner"
        raise InstallationError(msg, remedy=f"chmod 600 {path}")
    return lines[0] if lines else ""


def tls_context(ca: Path | bytes, extra_ca: Path | None = None) -> ssl.SSLContext:
    """Return a context that trusts the authority in `ca`, and that in `extra_ca`, and nobody else.

    It asks for TLS 1.2 or newer and checks the host name.

    Args:
        ca: PEM file, or its bytes.
        extra_ca: PEM file.

    Raises:
        InstallationError: a file is missing or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for key, source in (("ca", ca), ("extra_ca", extra_ca)):
        if source is None:
            continue
        try:
            if isinstance(source, Path):
                context.load_verify_locations(cafile=source)
            else:
                context.load_verify_locations(cadata=source.decode("ascii"))
        except (OSError, ValueError, ssl.SSLError) as error:
            msg = f"{source if isinstance(source, Path) else 'what answers'} holds no CA certificate"
            remedy = f"key `{key}` in connection.yaml names a PEM file with a CA certificate"
            raise InstallationError(msg, remedy=remedy) from error
    return context
