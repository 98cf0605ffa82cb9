"""From a folder of pictures to features by a declared schema alone: one arithmetic at every site and at the centre.

Files are strangers' bytes. Where one is, is checked before it is opened, and its size before it is decoded. No name of
a file, no text of a header and no message of a decoder goes any further: what is wrong is one of a few fixed rules.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import numpy.typing as npt

from fedward_common.dicom import dicom_facts, dicom_values, is_dicom
from fedward_common.errors import LocalDataError
from fedward_common.picture import BrokenImageError, ImageFacts
from fedward_common.raster import is_raster, raster_facts, raster_values
from fedward_common.schema import ImageColumn

__all__ = ["ImageFolder", "image_facts", "image_features", "place_inside"]

_MOST_BYTES: Final = 256 << 20
_MOST_VALUES: Final = 1 << 29
_NO_IMAGE: Final = "neither PNG nor JPEG nor DICOM"
_NOT_PLAIN: Final = "no plain file, or behind a link: copy the file itself into the folder"


class ImageFolder:
    """The pictures of one cohort.

    Args:
        folder: where they are; no name leads out of it, nor through a link.
        sealed: the SHA-256 of each file when the folder was registered, in hexadecimal digits, by its place; None
            where nobody registered it (a simulation).
    """

    def __init__(self, folder: Path, sealed: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._sealed = sealed

    def read(self, name: str) -> bytes:
        """Return the bytes of the file that a cell names.

        Raises:
            BrokenImageError: it is not inside the folder, cannot be read, is too large or not what was registered.
        """
        place = place_inside(name)
        content = _read_inside(self._folder, place)
        if self._sealed is not None and self._sealed.get(str(place)) != hashlib.sha256(content).hexdigest():
            rule = "not as it was when the folder was registered"
            raise BrokenImageError(rule)
        return content

    def pixels(
        self, names: Sequence[str | None], column: ImageColumn
    ) -> tuple[npt.NDArray[np.float32], dict[str, int]]:
        """Return the features of the named pictures and how many of them break which rule.

        Args:
            names: the cells; None, of which there is no picture and no rule, gives zeros.
            column: what the study declares.

        Returns:
            float32 within [-1, 1], shape (names, ``column.size``), zeros for a broken one; and counts by rule.

        Raises:
            LocalDataError: there are more pixels than a round can hold.
        """
        if len(names) * column.size > _MOST_VALUES:
            msg = f"{len(names)} pictures of {column.size} values are too many: {_MOST_VALUES:,} values are possible"
            raise LocalDataError(msg, remedy="register fewer pictures, or ask the study's author for a smaller size")
        features = np.zeros((len(names), column.size), dtype=np.float32)
        broken: Counter[str] = Counter()
        for row, name in enumerate(names):
            if name is None:
                continue
            try:
                features[row] = image_features(self.read(name), column)
            except BrokenImageError as error:
                broken[error.rule] += 1
        return features, dict(broken)


def image_facts(content: bytes) -> ImageFacts:
    """Return what a picture's header states.

    Raises:
        BrokenImageError: it is no picture, or none that can be used.
    """
    if is_raster(content):
        return raster_facts(content)
    if is_dicom(content):
        return dicom_facts(content)
    raise BrokenImageError(_NO_IMAGE)


def image_features(content: bytes, column: ImageColumn) -> npt.NDArray[np.float32]:
    """Return a picture's features, float32 within [-1, 1], shape (``column.size``,).

    Raises:
        BrokenImageError: it is not as `column` declares.
    """
    facts = image_facts(content)
    if facts.channels != column.channels:
        rule = "in colour, the study reads grey ones" if column.channels == 1 else "grey, the study reads colour ones"
        raise BrokenImageError(rule)
    if column.resize == "no" and (facts.height, facts.width) != (column.height, column.width):
        rule = f"not {column.height} x {column.width} pixels"
        raise BrokenImageError(rule)
    values = raster_values(content) if is_raster(content) else dicom_values(content, unit=column.unit)
    _require_range(values, column)
    fitted = _fitted(values.clip(column.minimum, column.maximum), column).astype(np.float64)
    scaled = (2 * fitted - column.minimum - column.maximum) / (column.maximum - column.minimum)
    return scaled.clip(-1.0, 1.0).astype(np.float32).reshape(-1)


def _require_range(values: npt.NDArray[np.float32], column: ImageColumn) -> None:
    if not np.isfinite(values).all():
        rule = "a pixel is not a number"
        raise BrokenImageError(rule)
    if column.outside == "reject" and values.min() < column.minimum:
        rule = f"below {column.minimum:g} {column.unit}"
        raise BrokenImageError(rule)
    if column.outside == "reject" and values.max() > column.maximum:
        rule = f"above {column.maximum:g} {column.unit}"
        raise BrokenImageError(rule)


def _fitted(values: npt.NDArray[np.float32], column: ImageColumn) -> npt.NDArray[np.float32]:
    """Return the picture in the declared size, by the declared rule."""
    from PIL import Image  # noqa: PLC0415  (studies without pictures do without)

    height, width = values.shape[:2]
    if (height, width) == (column.height, column.width):
        return values
    scale = min(column.height / height, column.width / width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    if column.resize == "stretch":
        inner = (column.height, column.width)
    fitted = np.full((column.height, column.width, column.channels), column.minimum, dtype=np.float32)
    top, left = (column.height - inner[0]) // 2, (column.width - inner[1]) // 2
    for channel in range(column.channels):
        plane = Image.fromarray(np.ascontiguousarray(values[:, :, channel]))
        small = plane.resize((inner[1], inner[0]), Image.Resampling.BOX)
        fitted[top : top + inner[0], left : left + inner[1], channel] = np.asarray(small)
    return fitted


def place_inside(name: str) -> PurePosixPath:
    """Return a cell as a place below the folder.

    Raises:
        BrokenImageError: it is absolute, leads out, or is no path of this system.
    """
    place = PurePosixPath(name)
    if place.is_absolute() or not place.parts or ".." in place.parts or "\\" in name or "\0" in name:
        rule = "not a place inside the folder: write it from the folder on, with / between its parts"
        raise BrokenImageError(rule)
    return place


def _read_inside(folder: Path, place: PurePosixPath) -> bytes:
    """Return a file's bytes; every part of the way is opened from the one before it, and none may be a link."""
    directory = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        with ExitStack() as opened:
            handle = os.open(folder, directory)
            opened.callback(os.close, handle)
            for part in place.parts[:-1]:
                handle = os.open(part, directory | os.O_NOFOLLOW, dir_fd=handle)
                opened.callback(os.close, handle)
            # not blocking: a named pipe would otherwise wait for somebody who writes into it
            file = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
            with os.fdopen(file, "rb") as stream:
                _require_plain(os.fstat(file))
                return stream.read(_MOST_BYTES)
    except FileNotFoundError:
        rule = "no such file in the folder"
    except PermissionError:
        rule = "may not be read by the daemon's account: check the permissions, the file may be good"
    except OSError:
        rule = _NOT_PLAIN
    raise BrokenImageError(rule)


def _require_plain(facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise BrokenImageError(_NOT_PLAIN)
    if facts.st_size > _MOST_BYTES:
        rule = f"larger than {_MOST_BYTES >> 20} MiB"
        raise BrokenImageError(rule)
