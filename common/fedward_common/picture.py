"""What is said of a picture whatever its format, and the one error that a picture's file can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["BrokenImageError", "ImageFacts", "require_bounds"]

_MOST_PIXELS: Final = 1 << 26


class BrokenImageError(Exception):
    """A file is no picture that can be used.

    Args:
        rule: which of a few fixed rules it breaks. Never the file's name, a header's text or a decoder's message:
            each of them may name a patient.
    """

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """A picture's format (``PNG``, ``JPEG``, ``DICOM CT``, …) and its size in pixels, as its header states them."""

    form: str
    height: int
    width: int
    channels: int

    def __str__(self) -> str:
        """Return it as a person reads it: ``DICOM CT 512 x 512 grey``."""
        return f"{self.form} {self.height} x {self.width} {'grey' if self.channels == 1 else 'colour'}"


def require_bounds(height: int, width: int) -> None:
    """Return if a picture of this size may be decoded.

    Raises:
        BrokenImageError: it is empty, or so large that decoding it may exhaust the memory.
    """
    if not 0 < height * width <= _MOST_PIXELS:
        rule = f"empty, or more than {_MOST_PIXELS:,} pixels"
        raise BrokenImageError(rule)
