"""Files that are there whole or not at all, whatever ends the process or the power."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedward_common.errors import LocalDataError

__all__ = ["replace_file", "replaced_file", "sync_folder", "write_new_json"]


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write `path` so that a reader, or a crash at any instant, sees the old content or the new, never a part.

    The content is on the disk when this returns; the file has exactly `mode`.
    """
    with replaced_file(path, mode=mode) as file:
        file.write(content)


@contextlib.contextmanager
def replaced_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Yield a file to write; it takes the place of `path` as `replace_file` says when the ``with`` is left in peace."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in `folder`, as they are now, survive a loss of power (POSIX, "fsync" on a directory)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new_json(path: Path, value: object) -> None:
    """Write a value into a file that is not there yet, for a person to hand on.

    Raises:
        LocalDataError: the file is there, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror})"
        raise LocalDataError(
            msg, remedy="give a new file's name in a folder of yours; nothing is overwritten"
        ) from error
