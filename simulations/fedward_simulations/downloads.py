"""Public data sets from their publishers: every file pinned by size and SHA-256, written whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from fedward_common.contract import nearest
from fedward_common.errors import InstallationError, TransportError, UnknownKeyError

__all__ = ["DATA_SETS", "DataSet", "Opener", "PinnedFile", "fetch"]

_CHUNK_BYTES: Final = 64 * 1024
_SILENCE_S: Final = 30.0
_FILE_S: Final = 300.0


class Readable(Protocol):
    """The body of a response."""

    def read1(self, size: int, /) -> bytes:
        """Return at most `size` bytes as soon as there are any, b"" at the end."""


Opener = Callable[[str, float], AbstractContextManager[Readable]]
"""Takes an address and the longest silence in seconds, returns the body; raises `OSError` where there is none."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file that has to be exactly this one."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DataSet:
    """Files below one address."""

    address: str
    files: tuple[PinnedFile, ...]


DATA_SETS: Final[Mapping[str, DataSet]] = {
    "heart_disease": DataSet(
        "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/",
        (
            PinnedFile(
                "processed.cleveland.data", 18_461, "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8"
            ),
            PinnedFile(
                "processed.hungarian.data", 10_263, "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796"
            ),
            PinnedFile(
                "processed.switzerland.data", 4_109, "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314"
            ),
            PinnedFile("processed.va.data", 6_737, "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f"),
        ),
    ),
}


def fetch(
    name: str,
    folder: Path,
    *,
    opener: Opener | None = None,
    data_sets: Mapping[str, DataSet] = DATA_SETS,
    clock: Callable[[], float] = time.monotonic,
) -> list[Path]:
    """Return the files of the data set `name`, all of them now in `folder` and verified.

    A file that is there and right is not asked for again; one that is there and wrong is replaced.

    Args:
        name: of the data set.
        folder: where its files go; made if not there.
        opener: how an address is read; by default over HTTPS with the system's certificates and proxy.
        data_sets: what can be had.
        clock: monotonic seconds.

    Raises:
        UnknownKeyError: there is no such data set.
        TransportError: a file cannot be had, or is not the pinned one; what was right before is untouched.
        InstallationError: the folder cannot be written.
    """
    if name not in data_sets:
        hint = f"; did you mean {guess!r}?" if (guess := nearest(name, data_sets)) else ""
        msg = f"no data set {name!r} can be downloaded{hint} There are: {', '.join(sorted(data_sets))}"
        raise UnknownKeyError(msg)
    data_set = data_sets[name]
    remedy = (
        f"try again; without a network, copy {', '.join(file.name for file in data_set.files)} from {data_set.address} "
        f"into {folder}, or point FEDWARD_DATA to a folder that has {name}/"
    )
    paths = []
    for file in data_set.files:
        path = folder / file.name
        if not _is_right(path, file):
            content = _downloaded(data_set.address + quote(file.name), file, opener or _https, clock, remedy)
            _write(path, content)
        paths.append(path)
    return paths


def _is_right(path: Path, file: PinnedFile) -> bool:
    try:
        return path.stat().st_size == file.size_bytes and _sha256(path.read_bytes()) == file.sha256
    except OSError:
        return False


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _https(address: str, silence_s: float) -> AbstractContextManager[Readable]:
    response: AbstractContextManager[Readable] = urllib.request.urlopen(address, timeout=silence_s)  # noqa: S310  (the addresses are constants above)
    return response


def _downloaded(address: str, file: PinnedFile, opener: Opener, clock: Callable[[], float], remedy: str) -> bytes:
    """Return the pinned content; never holds more than one byte beyond it."""
    deadline = clock() + _FILE_S
    body = io.BytesIO()
    try:
        with opener(address, _SILENCE_S) as response:
            while body.tell() <= file.size_bytes:
                chunk = response.read1(min(_CHUNK_BYTES, file.size_bytes + 1 - body.tell()))
                if not chunk:
                    break
                body.write(chunk)
                if clock() > deadline:
                    msg = f"{address} was not complete after {_FILE_S:g} s"
                    raise TransportError(msg, remedy=remedy)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or getattr(error, "code", None) or type(error).__name__
        msg = f"{address} cannot be downloaded ({why})"
        raise TransportError(msg, remedy=remedy) from error
    content = body.getvalue()
    if len(content) != file.size_bytes:
        amount = f"more than {file.size_bytes}" if len(content) > file.size_bytes else str(len(content))
        msg = f"{address} has {amount} bytes instead of {file.size_bytes}"
        raise TransportError(msg, remedy=remedy)
    if _sha256(content) != file.sha256:
        msg = f"{address} is not the pinned file: its SHA-256 is {_sha256(content)} instead of {file.sha256}"
        raise TransportError(msg, remedy=remedy)
    return content


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        msg = f"{path} cannot be written ({type(error).__name__})"
        raise InstallationError(msg, remedy="choose a folder that is yours to write with --folder") from error
