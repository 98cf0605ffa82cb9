"""What both sides must agree on: the study, the wire, the arithmetic, privacy accounting, models, metrics, errors."""

from typing import Final

__all__ = ["__version__"]

__version__: Final = "0.1.0"
