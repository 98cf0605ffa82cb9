"""A file of records that is appended to, synced, and read again after a crash.

A record is ``length of the head (4 bytes) · length of the body (8) · CRC-32 of both (4) · head · body · SHA-256 (32)``,
little-endian; the digest covers the digest before it and all of the record, so none can be changed, moved or taken out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from fedward_common.errors import CoordinatorError, InstallationError
from fedward_common.paged import LARGE
from fedward_server.checkpoint import write_atomically
from fedward_server.journal import Begun, Record, Values, parse_record

__all__ = ["MAX_HEAD", "Entry", "JournalFile", "StoredBody"]

MAX_HEAD: Final = 1 << 24
"""Bytes of a record's head at most: the longest lists the sites of a roll call with their reasons."""

_LENGTHS: Final = struct.Struct("<IQ")
_CRC: Final = struct.Struct("<I")
_FRAME: Final = _LENGTHS.size + _CRC.size
_DIGEST: Final = 32
_ITEM: Final = 8  # bytes of one int64
_PIECE: Final = 1 << 20
_START: Final = b"fedward journal 1".ljust(_DIGEST, b"\0")


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and where its body stands."""

    record: Record
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class StoredBody:
    """A record's body, which was verified when it was written or when the journal was opened; it is read from there."""

    path: Path
    offset: int
    size: int

    def read_into(self, values: Values, first: int) -> None:
        """See `fedward_server.journal.Body`.

        Raises:
            InstallationError: they cannot be read any more.
            ValueError: the body has not so many.
        """
        if first * _ITEM + values.nbytes > self.size:
            msg = f"a body of {self.size // _ITEM} numbers has no {len(values)} from {first} on"
            raise ValueError(msg)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + first * _ITEM)
                if _read_into(file, values.view(np.uint8).data) < values.nbytes:
                    raise _unwritable(self.path, OSError("it ends too early"))
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if sys.byteorder == "big":
            values.byteswap(inplace=True)


class JournalFile:
    """An open journal; made by `create` or `reopen`.

    `write` returns once the record is on the disk. After a write that failed every further one is refused: what is in
    the file behind its last whole record is cut off when it is opened again.
    """

    def __init__(self, path: Path, file: BinaryIO, last: bytes) -> None:
        self.path = path
        self._file: BinaryIO | None = file
        self._last = last

    @classmethod
    def create(cls, path: Path, begun: Begun) -> JournalFile:
        """Put a journal that only begins in the place of what was at `path`, whole or not at all.

        Raises:
            InstallationError: it cannot be written.
        """
        frame, digest = _framed(begun, 0, _START)
        last = digest.digest()
        try:
            write_atomically(path, frame + last)
            return cls(path, path.open("r+b", buffering=0), last)._at_the_end()  # noqa: SLF001  (its own)
        except OSError as error:
            raise _unwritable(path, error) from error

    @classmethod
    def reopen(cls, path: Path, *, body: int) -> tuple[JournalFile, list[Entry]]:
        """Return the journal, cut behind its last whole record, and its records.

        Args:
            path: the file.
            body: bytes that a body has at most.

        Raises:
            CoordinatorError: it is damaged other than by a write that was cut short; nothing was changed.
            InstallationError: it cannot be read or cut.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("r+b", buffering=0))
                entries, end, last = _Reader(path, file, body).all()
                file.truncate(end)
                os.fsync(file.fileno())
            except OSError as error:
                raise _unwritable(path, error) from error
            stack.pop_all()
        return cls(path, file, last)._at_the_end(), entries  # noqa: SLF001  (its own)

    def write(self, record: Record, values: Values | None = None) -> None:
        """Append a record, and return once it is on the disk.

        Raises:
            InstallationError: it cannot be written.
        """
        self.write_parts(record, 0 if values is None else len(values), () if values is None else (values,))

    def write_parts(self, record: Record, count: int, parts: Iterable[Values]) -> StoredBody:
        """Append a record whose body is `count` integers in parts; each is written before the next is asked for.

        The digest that makes it a record is written once a large body is on the disk. An error that `parts` raises
        passes through and leaves the journal as it was.

        Raises:
            InstallationError: it cannot be written.
            ValueError: the parts have not `count` integers together; the journal is as it was.
        """
        if self._file is None:
            raise _unwritable(self.path, OSError("closed, or an earlier write failed"))
        frame, digest = _framed(record, count * _ITEM, self._last)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            try:
                start = self._file.tell()
                _write_all(self._file, memoryview(frame))
                refused = _write_body(self._file, count * _ITEM, iter(parts), digest)
                if refused is not None:
                    self._file.truncate(start)
                    self._file.seek(start)
                else:
                    if count * _ITEM >= LARGE:  # else one sync covers both, or a power cut costs the record
                        os.fdatasync(self._file.fileno())
                    _write_all(self._file, memoryview(digest.digest()))
                    os.fsync(self._file.fileno())
            except OSError as error:
                raise _unwritable(self.path, error) from error
            stack.pop_all()
        if refused is not None:
            raise refused
        self._last = digest.digest()
        return StoredBody(self.path, start + len(frame), count * _ITEM)

    def body(self, entry: Entry) -> StoredBody:
        """Return a record's body, which was verified when the journal was opened."""
        return StoredBody(self.path, entry.offset, entry.size)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _at_the_end(self) -> JournalFile:
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)
        return self


class _Reader:
    """Reads a journal from its start, with bounded memory: a body is hashed in pieces and never held."""

    def __init__(self, path: Path, file: BinaryIO, body: int) -> None:
        self._path, self._file, self._body = path, file, body
        self._size = os.fstat(file.fileno()).st_size

    def all(self) -> tuple[list[Entry], int, bytes]:
        """Return the whole records, where they end, and the last digest."""
        entries: list[Entry] = []
        at, last = 0, _START
        while (found := self._next(at, last)) is not None:
            entry, last = found
            entries.append(entry)
            at = entry.offset + entry.size + _DIGEST
        if not entries:
            raise self._damage(0)  # its first record came with the file, so no crash leaves less
        return entries, at, last

    def _next(self, at: int, last: bytes) -> tuple[Entry, bytes] | None:
        """Return the record at `at` and its digest; None at the end, or where a write was cut short."""
        frame = self._read(at, _FRAME)
        if len(frame) < _FRAME or (not any(frame) and self._is_zero_from(at)):
            return None
        head, body = _LENGTHS.unpack_from(frame)
        if _CRC.unpack_from(frame, _LENGTHS.size)[0] != zlib.crc32(frame[: _LENGTHS.size]):
            raise self._damage(at)
        if head > MAX_HEAD or body > self._body:
            raise self._damage(at)
        end = at + _FRAME + head + body
        if end + _DIGEST > self._size:
            return None
        digest = hashlib.sha256(last + frame)
        text = self._read(at + _FRAME, head)
        digest.update(text)
        for start in range(at + _FRAME + head, end, _PIECE):
            digest.update(self._read(start, min(_PIECE, end - start)))
        if self._read(end, _DIGEST) != digest.digest():
            if self._is_zero_from(end):
                return None
            raise self._damage(at)
        try:
            return Entry(parse_record(text), at + _FRAME + head, body), digest.digest()
        except ValueError as error:
            raise self._damage(at) from error

    def _is_zero_from(self, at: int) -> bool:
        """Return whether the rest is zeros: a file system's trace of a power cut in the middle of a write."""
        return at < self._size and not any(
            any(self._read(start, min(_PIECE, self._size - start))) for start in range(at, self._size, _PIECE)
        )

    def _read(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        parts = bytearray()
        while len(parts) < count and (part := self._file.read(count - len(parts))):
            parts += part
        return bytes(parts)

    def _damage(self, at: int) -> CoordinatorError:
        return CoordinatorError(
            f"{self._path} is damaged at byte {at}",
            remedy="restore the file from a copy; without it the run ends here, and its folder is kept as it is",
        )


def _framed(record: Record, body: int, last: bytes) -> tuple[bytes, hashlib._Hash]:
    """Return a record's frame and head, and the digest that ends it once it has seen a body of so many bytes."""
    text = record.model_dump_json().encode("utf-8")
    if len(text) > MAX_HEAD:
        msg = f"a record of {len(text)} bytes does not fit a journal"
        raise CoordinatorError(msg, remedy=f"at most {MAX_HEAD} bytes do")
    lengths = _LENGTHS.pack(len(text), body)
    frame = lengths + _CRC.pack(zlib.crc32(lengths)) + text
    return frame, hashlib.sha256(last + frame)


def _write_body(file: BinaryIO, size: int, parts: Iterator[Values], digest: hashlib._Hash) -> Exception | None:
    """Write a body of `size` bytes part by part; return why it came to nothing, if the parts are at fault."""
    left = size
    while left >= 0:
        try:
            part = next(parts, None)
        except Exception as error:  # noqa: BLE001  (raised again once what was written is taken back)
            return error
        if part is None:
            break
        raw = np.ascontiguousarray(part, "<i8").data.cast("B")
        left -= len(raw)
        digest.update(raw)
        _write_all(file, raw)
    return ValueError(f"the body has not the {size} bytes that its record states") if left else None


def _read_into(file: BinaryIO, target: memoryview) -> int:
    done = 0
    while done < len(target) and (count := file.readinto(target[done:])):  # type: ignore[attr-defined]
        done += count
    return done


def _write_all(file: BinaryIO, content: memoryview) -> None:
    while len(content):
        content = content[file.write(content) :]


def _unwritable(path: Path, error: OSError) -> InstallationError:
    return InstallationError(
        f"{path} cannot be read or written: {error.strerror or error}",
        remedy="free space or correct the permissions, then start again: the run goes on where it was",
    )
