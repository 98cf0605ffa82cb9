"""Pictures in PNG and JPEG files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from fedward_common.picture import BrokenImageError, ImageFacts, require_bounds

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["is_raster", "raster_facts", "raster_values"]

_BEGINNINGS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_CHANNELS: Final = {"L": 1, "I;16": 1, "I;16B": 1, "I": 1, "RGB": 3}
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = 1
_LYING: Final = frozenset({5, 6, 7, 8})


def is_raster(content: bytes) -> bool:
    """Return whether the bytes begin as a PNG or a JPEG file does."""
    return content.startswith(_BEGINNINGS)


def raster_facts(content: bytes) -> ImageFacts:
    """Return what the header states; nothing is decoded.

    Raises:
        BrokenImageError: it is damaged, too large, moving, or in colours other than grey and RGB.
    """
    with _opened(content) as image:
        height, width = image.height, image.width
        if image.getexif().get(_ORIENTATION) in _LYING:
            height, width = width, height
        return ImageFacts(str(image.format), height, width, _CHANNELS[image.mode])


def raster_values(content: bytes) -> npt.NDArray[np.float32]:
    """Return the picture as it is to be looked at (EXIF orientation), float32, shape (height, width, channels).

    Raises:
        BrokenImageError: see `raster_facts`.
    """
    from PIL import ImageOps  # noqa: PLC0415  (studies without pictures do without)

    with _opened(content) as image:
        turned = image
        if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
            turned = ImageOps.exif_transpose(image)
        values = np.asarray(turned, dtype=np.float32)
        return values.reshape(turned.height, turned.width, _CHANNELS[image.mode])


@contextmanager
def _opened(content: bytes) -> Iterator[Image]:
    """Yield the picture with its header read and judged, its pixels not yet decoded."""
    from PIL import Image  # noqa: PLC0415  (studies without pictures do without)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning's text may quote the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                _judge(image)
                yield image
    except BrokenImageError:
        raise
    except Exception:  # noqa: BLE001  (a decoder of strangers' bytes may raise anything, and quote them)
        rule = "damaged, or no picture"
        raise BrokenImageError(rule) from None


def _judge(image: Image) -> None:
    require_bounds(image.height, image.width)
    if getattr(image, "n_frames", 1) != 1:
        rule = "more than one picture in a file: save each as one"
        raise BrokenImageError(rule)
    if image.mode not in _CHANNELS:
        rule = "neither grey of 8 or 16 bits nor RGB: save it without palette and transparency"
        raise BrokenImageError(rule)
