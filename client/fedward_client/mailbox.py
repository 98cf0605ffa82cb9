"""What a site must not lose between a message's announcement and its reply: files only, no network, no clock.

::

    <home>/
      inbox/<run>-<message>     what was announced and is not answered yet
      outbox/<run>-<message>    what was computed and is not delivered yet, byte for byte
      cache/objects/<sha256>    what was fetched for a message in the inbox

The SuperLink hands a message out once and forgets its content once that is confirmed; a round is debited once. So a
message is kept before anything is fetched for it, its content is on the disk before it is confirmed, and its reply is
on the disk before the first byte of it is sent. Killed at any point, a site finds here what it still has to do; the
reply of a round that was trained is sent again and never made again.

Files have mode 0600. Content is held against a SHA-256 whenever it is read; what does not fit is not there.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedward_common.files import replaced_file, sync_folder

__all__ = ["Box", "Key", "Mailbox", "ObjectCache"]

_OBJECT: Final = re.compile(r"[0-9a-f]{64}")
_ENTRY: Final = re.compile(r"[0-9]{1,20}-[0-9a-f]{64}")
_DIGEST_BYTES: Final = 32
_LARGE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Key:
    """Which message: the run's number, and the identifier that the SuperLink gave it."""

    run: int
    message: str

    @property
    def name(self) -> str:
        """The file's name; whatever the identifier is, it names no other folder."""
        return f"{self.run}-{hashlib.sha256(self.message.encode()).hexdigest()}"


class Box:
    """A folder of entries, each there whole or not at all.

    Args:
        folder: made with mode 0700 when the first entry comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, key: Key, content: bytes) -> None:
        """Store an entry, over a former one of this key; it is on the disk when this returns."""
        self.keep_pieces(key, (content,))

    def keep_pieces(self, key: Key, pieces: Iterable[bytes | memoryview]) -> None:
        """Store an entry as `keep` does; its pieces are asked for one after another."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with replaced_file(self._folder / key.name) as file:
            file.write(bytes(_DIGEST_BYTES))
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.seek(0)
            file.write(digest.digest())

    def get(self, key: Key) -> bytes | memoryview | None:
        """Return an entry, a large one as a view of its file, or None if there is none or it is damaged."""
        return self._read(self._folder / key.name)

    def entries(self) -> list[tuple[str, bytes | memoryview]]:
        """Return name (`Key.name`) and content of all undamaged entries, the oldest first."""
        found = [(path.name, self._read(path)) for path in self._paths()]
        return [(name, content) for name, content in found if content is not None]

    def drop(self, key: Key) -> None:
        """Forget an entry, if there is one."""
        self.discard(key.name)

    def discard(self, name: str) -> None:
        """Forget the entry of this name, if there is one."""
        (self._folder / name).unlink(missing_ok=True)

    def tidy(self) -> int:
        """Remove what a killed process left half written, and damaged entries; return how many of the latter."""
        if not self._folder.is_dir():
            return 0
        damaged = [path for path in self._paths() if self._read(path) is None]
        strays = [path for path in self._folder.iterdir() if not _ENTRY.fullmatch(path.name)]
        for path in (*damaged, *strays):
            path.unlink(missing_ok=True)
        return len(damaged)

    def _paths(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        paths = [path for path in self._folder.iterdir() if _ENTRY.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))

    @staticmethod
    def _read(path: Path) -> bytes | memoryview | None:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < _LARGE_BYTES:
                    raw: bytes | memoryview = file.read()
                else:
                    raw = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        except (OSError, ValueError):  # the latter: shortened under our hands
            return None
        stated, content = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == stated else None


class ObjectCache:
    """Fetched objects by their SHA-256, so that a transfer that was cut goes on where it stopped.

    A name that is no SHA-256 in lower-case hexadecimal digits is nothing's: it comes from the network.

    Args:
        folder: made with mode 0700 when the first object comes.
        limit: bytes on the disk; the objects that were used longest ago make room for new ones.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the one used longest ago first
        self._lock = threading.Lock()
        if folder.is_dir():
            found = [(path, path.stat()) for path in folder.iterdir() if _OBJECT.fullmatch(path.name)]
            for path, stat in sorted(found, key=lambda entry: entry[1].st_mtime_ns):
                self._sizes[path.name] = stat.st_size

    @property
    def used(self) -> int:
        """Bytes on the disk."""
        return sum(self._sizes.values())

    def get(self, object_id: str) -> bytes | None:
        """Return an object whose SHA-256 is `object_id`, or None; one that is damaged is removed."""
        if not _OBJECT.fullmatch(object_id):
            return None
        path = self._folder / object_id
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != object_id:
            self.drop([object_id])
            return None
        os.utime(path)
        with self._lock:
            self._sizes[object_id] = len(content)
            self._sizes.move_to_end(object_id)
        return content

    def put(self, object_id: str, content: bytes) -> None:
        """Store an object, unless it is larger than the limit alone, or the disk is full.

        It is whole at any time, and survives this process at once and a loss of power after `sync`.

        Raises:
            ValueError: `object_id` is not the content's SHA-256.
        """
        if hashlib.sha256(content).hexdigest() != object_id:
            msg = "an object is kept under its SHA-256 only"
            raise ValueError(msg)
        with self._lock:
            self._make_room(len(content))
            if len(content) > self._limit:
                return
            self._sizes[object_id] = len(content)
        try:
            self._write(self._folder / object_id, content)
        except OSError:
            self.drop([object_id])

    def _write(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.replace(path)

    def sync(self, object_ids: Iterable[str]) -> bool:
        """Return whether all these objects are here, once they survive a loss of power."""
        present = True
        for object_id in object_ids:
            try:
                handle = os.open(self._folder / object_id, os.O_RDONLY) if _OBJECT.fullmatch(object_id) else None
            except FileNotFoundError:
                handle = None
            if handle is None:
                present = False
                continue
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        if self._folder.is_dir():
            sync_folder(self._folder)
        return present

    def drop(self, object_ids: Iterable[str]) -> None:
        """Forget these objects."""
        for object_id in filter(_OBJECT.fullmatch, object_ids):
            (self._folder / object_id).unlink(missing_ok=True)
            with self._lock:
                self._sizes.pop(object_id, None)

    def retain(self, needed: Iterable[str]) -> None:
        """Forget all but these objects, and what a killed process left half written."""
        self.drop(set(self._sizes) - set(needed))
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if not _OBJECT.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        while self._sizes and self.used + size > self._limit:
            oldest, _ = self._sizes.popitem(last=False)
            (self._folder / oldest).unlink(missing_ok=True)


class Mailbox:
    """A site's inbox, outbox and cache, and the order in which they change. Used by one process at a time.

    Args:
        home: the site's folder.
        cache_bytes: see `ObjectCache`.
    """

    def __init__(self, home: Path, cache_bytes: int) -> None:
        self.inbox = Box(home / "inbox")
        self.outbox = Box(home / "outbox")
        self.objects = ObjectCache(home / "cache" / "objects", cache_bytes)

    def recover(self) -> int:
        """Clear away what a killed process left half done; return how many damaged entries were lost.

        A message whose reply is in the outbox leaves the inbox: it is answered.
        """
        lost = self.outbox.tidy() + self.inbox.tidy()
        for name, _ in self.outbox.entries():
            self.inbox.discard(name)
        return lost

    def announced(self, key: Key, head: bytes) -> None:
        """Keep a message before anything is fetched for it."""
        self.inbox.keep(key, head)

    def answered(self, key: Key, reply: Iterable[bytes | memoryview], objects: Iterable[str]) -> None:
        """Keep a reply, in pieces, before anything of it is sent; the message, and the objects that it needed, go."""
        self.outbox.keep_pieces(key, reply)
        self.inbox.drop(key)
        self.objects.drop(objects)

    def delivered(self, key: Key) -> None:
        """Forget a reply that was delivered, and its message."""
        self.inbox.drop(key)
        self.outbox.drop(key)

    def abandoned(self, key: Key, objects: Iterable[str] = ()) -> None:
        """Forget all about a message: its run is over."""
        self.inbox.drop(key)
        self.outbox.drop(key)
        self.objects.drop(objects)
