"""A PostgreSQL of a test's own: made, started on a Unix socket, thrown away. Nobody else's database is touched."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

REQUIRED = "FEDWARD_REQUIRE_POSTGRES"
"""Set to 1 where PostgreSQL was installed for the tests: its absence is then a failure."""
OWNER, OWNERS_WORD = "keeper", "throw-away word of the owner"
READER, READERS_WORD = "reader", "throw-away word of the reader"


@dataclass(frozen=True)
class Postgres:
    """A running server with the database ``clinic``."""

    socket: Path

    def url(self, user: str = READER) -> str:
        """Return the database's SQLAlchemy URL, without a password."""
        return f"postgresql://{user}@/clinic?host={self.socket}"

    @contextmanager
    def owner(self, database: str = "clinic") -> Iterator[psycopg.Connection]:
        """Yield a connection that may do everything; each statement is committed."""
        with psycopg.connect(
            host=str(self.socket), user=OWNER, password=OWNERS_WORD, dbname=database, autocommit=True
        ) as connection:
            yield connection


@contextmanager
def running() -> Iterator[Postgres]:
    """Yield a new server; the test is skipped where PostgreSQL is not installed, unless it has to be."""
    programs = _programs()
    if programs is None:
        reason = "PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="fw-pg-", dir="/tmp"))  # a socket's path ends at 107 bytes
    try:
        with _server(programs, folder) as server:
            with server.owner("postgres") as connection:
                connection.execute("CREATE DATABASE clinic")
                connection.execute(f"CREATE ROLE {READER} LOGIN PASSWORD '{READERS_WORD}'")
            yield server
    finally:
        shutil.rmtree(folder)


def _programs() -> Path | None:
    """Return the folder of initdb and postgres, the newest there is; Debian keeps it out of the path."""
    places = [Path(found).parent for found in [shutil.which("postgres")] if found]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


def _libraries(programs: Path) -> dict[str, str]:
    """Return where the programs find their libraries, if they were unpacked and not installed (.ci/postgresql)."""
    root = programs.parents[4] if len(programs.parts) > 6 else Path("/")
    found = [] if root == Path("/") else sorted((root / "usr" / "lib").glob("*-linux-gnu*"))
    return {"LD_LIBRARY_PATH": ":".join(map(str, found))} if found else {}


def _as_nobody_special(folder: Path) -> list[str]:
    """Return what goes before a command: the server refuses to run as root, so `folder` is given to another."""
    if os.geteuid() != 0:
        return []
    names = {user.pw_name: user for user in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextmanager
def _server(programs: Path, folder: Path) -> Iterator[Postgres]:
    word, data = folder / "word", folder / "data"
    word.write_text(OWNERS_WORD, encoding="utf-8")
    folder.chmod(0o755)
    word.chmod(0o644)
    prefix = _as_nobody_special(folder)
    making = ["initdb", f"--pgdata={data}", f"--username={OWNER}", f"--pwfile={word}", "--auth=scram-sha-256",
              "--no-sync", "--locale=C", "--encoding=UTF8"]  # fmt: skip
    environment = os.environ | _libraries(programs)
    subprocess.run(
        [*prefix, programs / making[0], *making[1:]], check=True, capture_output=True, cwd=folder, env=environment
    )
    options = {"fsync": "off", "shared_buffers": "16MB", "listen_addresses": "", "unix_socket_directories": folder}
    settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*prefix, programs / "postgres", "-D", data, *settings], stdout=log, stderr=log, cwd=folder, env=environment
        )
        try:
            found = Postgres(folder)
            _await(found, server)
            yield found
        finally:
            server.terminate()
            server.wait(30)


def _await(server: Postgres, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 60
    while True:
        try:
            with server.owner("postgres"):
                return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > ends:
                raise
            time.sleep(0.02)
