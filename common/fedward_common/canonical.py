"""One byte string for one value: canonical JSON (RFC 8785 for the types used here) and its SHA-256."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

__all__ = ["canonical_json", "digest"]


def _check(value: Any, path: str) -> None:
    match value:
        case float() if not math.isfinite(value):
            msg = f"{path or 'value'} is not a finite number"
            raise ValueError(msg)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    msg = f"{path or 'value'} has a key that is not text"
                    raise TypeError(msg)
                _check(item, f"{path}.{key}".strip("."))
        case list() | tuple():
            for index, item in enumerate(value):
                _check(item, f"{path}[{index}]")


def canonical_json(value: Any) -> bytes:
    """Return the one UTF-8 encoding of a JSON value: sorted keys, no white space, shortest numbers.

    Equal values give equal bytes on every platform. Integral floats and integers stay distinct
    (``1.0`` and ``1``), so a validated model must be dumped, not the text a person typed.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a key is not text, or a type has no JSON form.
    """
    _check(value, "")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """Return the SHA-256 of `canonical_json(value)` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
