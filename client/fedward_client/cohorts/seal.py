"""What the files of a folder are: found, hashed, and compared with what they were when somebody registered them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedward_common.errors import LocalDataError
from fedward_common.files import replace_file

__all__ = ["Differences", "compare", "hash_folder", "read_seal", "write_seal"]

_FORMAT: Final = "fedward-seal-1"
_PICTURES: Final = frozenset({"", ".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".ima"})
_MOST_FILES: Final = 1_000_000
_SETTLED_NS: Final = 2_000_000_000

Hashes = Mapping[str, str]
"""SHA-256 in hexadecimal digits by a file's place, from the folder on, with / between its parts."""


@dataclass(frozen=True, slots=True)
class Differences:
    """How many files are not what they were: numbers only, since a file's name may be a patient's."""

    changed: int
    missing: int
    added: int

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self.changed or self.missing or self.added)


def compare(then: Hashes, now: Hashes) -> Differences:
    """Return what became of the files that `then` names, and how many are new."""
    changed = sum(1 for place, digest in then.items() if place in now and now[place] != digest)
    return Differences(changed, len(then.keys() - now.keys()), len(now.keys() - then.keys()))


def hash_folder(folder: Path, *, without: Path | None = None, memory: Path | None = None) -> dict[str, str]:
    """Return the SHA-256 of every picture below `folder`, by its place.

    Pictures are plain files that end as PNG, JPEG and DICOM files do, or that have no ending. Hidden files, other
    endings and links are none.

    Args:
        folder: where they are.
        without: a file that is no picture, wherever it is: the manifest.
        memory: a file that keeps what was hashed, so that a file whose size, times and inode did not change since is
            not read again; None: each is read.

    Raises:
        LocalDataError: the folder or a file in it cannot be read, or there are too many files.
    """
    known = _remembered(memory)
    found: dict[str, list[Any]] = {}
    try:
        skipped = without.stat() if without is not None and without.exists() else None
        for path, facts in _files(folder):
            if skipped is not None and os.path.samestat(facts, skipped):
                continue
            signs = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
            place = _utf8(path.relative_to(folder).as_posix())
            old = known.get(place)
            found[place] = [*signs, old[4] if old and old[:4] == signs else _hash(path)]
            if len(found) > _MOST_FILES:
                msg = f"the folder has more than {_MOST_FILES:,} pictures"
                raise LocalDataError(msg, remedy="register its parts as cohorts of their own")
    except OSError as error:
        msg = f"the folder {folder.name}, or a file in it, cannot be read ({type(error).__name__})"
        raise LocalDataError(msg, remedy="check the path in site.yaml and the permissions of all files") from None
    _remember(memory, found, known)
    return {place: facts[4] for place, facts in sorted(found.items())}


def read_seal(path: Path) -> dict[str, str]:
    """Return the hashes of a folder as it was registered.

    Raises:
        LocalDataError: the seal is missing or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError  # noqa: TRY301  (the same to the reader as a file that is no JSON)
        return {str(place): str(digest) for place, digest in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"the seal {path.name} of an image folder cannot be read ({type(error).__name__})"
        raise LocalDataError(msg, remedy="fedward client cohort seal NAME, after a look at the folder") from None


def write_seal(path: Path, hashes: Hashes) -> None:
    """Keep the hashes of a folder, readable by its owner only: the names of files may be those of patients."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, json.dumps({"format": _FORMAT, "files": dict(hashes)}, indent=0).encode())


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and Path(entry.name).suffix.lower() in _PICTURES:
                yield Path(entry.path), entry.stat(follow_symlinks=False)


def _utf8(place: str) -> str:
    try:
        place.encode("utf-8")
    except UnicodeEncodeError:
        msg = "the name of a file in the folder is no UTF-8"
        raise LocalDataError(msg, remedy="find it with: LC_ALL=C find . -name '*[! -~]*'; and rename it") from None
    return place


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(memory: Path | None) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError):  # it only saves time
        if memory is not None:
            content = json.loads(memory.read_bytes())
            return content if isinstance(content, dict) else {}
    return {}


def _remember(memory: Path | None, found: Mapping[str, list[Any]], known: Mapping[str, list[Any]]) -> None:
    """Keep what was hashed, but of no file that changed so lately that its times may not tell the next change."""
    settled = time.time_ns() - _SETTLED_NS
    kept = {place: facts for place, facts in found.items() if max(facts[1], facts[2]) < settled}
    if memory is not None and kept != known:
        memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(memory, json.dumps(kept).encode())
