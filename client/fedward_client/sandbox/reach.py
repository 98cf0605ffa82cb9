"""What one child may touch: its cohort's files, the site's cache, and in one case the way to a database."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from fedward_client.cohorts import CohortEntry, ImagesEntry, SqlEntry, TableEntry
from fedward_common.errors import LocalDataError

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["Reach", "needs_fetch", "reach_of"]

_POSTGRES_PORT: Final = 5432
_DNS_PORT: Final = 53
_OWN: Final = (
    "*.key", "*.token", "approvals*", "audit.*", "connection.yaml", "enrolment*", "ledger.*", "site.yaml", "studies",
)  # fmt: skip
"""Names in a site's folder that are never a cohort's."""
_NAME_LOOKUP: Final = tuple(
    Path("/etc", name)
    for name in ("hosts", "resolv.conf", "nsswitch.conf", "host.conf", "gai.conf", "services", "passwd", "ssl", "pki")
)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a child may touch besides the installed programs.

    Attributes:
        home: the site's folder; nothing of it is to be had but what is named here.
        read: files and folders that may be read.
        write: folders in which files may be made, changed and deleted.
        ports: TCP ports that may be connected to where the kernel can tell ports apart; None: no network at all.
        variables: environment variables that the child is given.
        gpu: whether the graphics cards may be used.
    """

    home: Path
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    ports: tuple[int, ...] | None = None
    variables: tuple[tuple[str, str], ...] = ()
    gpu: bool = False


def needs_fetch(entry: CohortEntry) -> bool:
    """Return whether the rows come from a database, so that a child of their own fetches them into the cache."""
    return isinstance(entry, SqlEntry)


def reach_of(entry: CohortEntry, home: Path, *, fetch: bool = False, gpu: bool = False) -> Reach:
    """Return what a child may touch for one cohort.

    The cache is made if it is not there. Whoever trains on a database's rows reads the cache alone; whoever fetches
    them (`fetch`) reaches the database alone.

    Args:
        entry: the register's entry.
        home: the site's folder.
        fetch: whether the child fetches a database's rows, and trains on nothing.
        gpu: whether it may use the graphics cards.

    Raises:
        LocalDataError: the entry names one of the site's own files, or the cache cannot be made.
    """
    home = home.resolve()
    cache = home / "cache"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{cache} cannot be made ({type(error).__name__})"
        raise LocalDataError(msg, remedy="the site's folder must belong to the daemon's account") from None
    ports: tuple[int, ...] | None = None
    variables: tuple[tuple[str, str], ...] = ()
    match entry:
        case TableEntry():
            paths = [home / entry.table]
        case ImagesEntry():
            paths = [home / entry.images, home / entry.manifest, home / entry.seal]
        case SqlEntry() if fetch:
            paths, ports, variables = _database(entry, home)
        case SqlEntry():
            paths = []
        case _:
            assert_never(entry)
    for path in paths:
        _refuse_own(path, home)
    return Reach(home, (*paths, home / "opt-out.txt"), (cache,), ports, variables, gpu)


def _database(entry: SqlEntry, home: Path) -> tuple[list[Path], tuple[int, ...] | None, tuple[tuple[str, str], ...]]:
    from sqlalchemy import make_url  # noqa: PLC0415  (cohorts in files do without)

    url = make_url(entry.database)
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "")
        return [file.with_name(file.name + end) for end in ("", "-wal", "-shm", "-journal")], None, ()
    paths = [*_NAME_LOOKUP, *_certificates(url)]
    if entry.password_file is not None:
        paths.append(home / entry.password_file)
    name = entry.password_variable
    variables = ((name, os.environ[name]),) if name is not None and name in os.environ else ()
    return paths, (url.port or _POSTGRES_PORT, _DNS_PORT), variables


def _certificates(url: URL) -> list[Path]:
    """Return where libpq looks for certificates: what the address names, and its own folder."""
    named = [url.query[key] for key in ("sslrootcert", "sslcert", "sslcrl", "sslcrldir") if key in url.query]
    return [Path.home() / ".postgresql", *(Path(value) for value in named if isinstance(value, str))]


def _refuse_own(path: Path, home: Path) -> None:
    place = path.resolve()
    if not place.is_relative_to(home) or place == home:
        return
    name = place.relative_to(home).parts[0]
    if any(fnmatchcase(name, pattern) for pattern in _OWN):
        msg = f"{path.name} in the site's folder is one of the site's own files, not a cohort's"
        raise LocalDataError(msg, remedy="correct the cohort's entry in site.yaml")
