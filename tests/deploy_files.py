"""Reads a systemd unit and a container file."""

from __future__ import annotations

import configparser
from pathlib import Path

__all__ = ["instructions_of", "unit_of"]


def unit_of(path: Path) -> configparser.ConfigParser:
    """Return a unit's sections; its keys keep their case."""
    parser = configparser.ConfigParser(interpolation=None, strict=True, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path, encoding="utf-8")
    return parser


def instructions_of(text: str) -> list[tuple[str, str]]:
    """Return a container file's instructions and their arguments, lines joined and comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]
