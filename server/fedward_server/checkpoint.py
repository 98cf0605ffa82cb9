"""Files that are there whole or not at all, and the one that a round leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from fedward_common.errors import CoordinatorError
from fedward_common.paged import LARGE, blocks, let_go, mapped

__all__ = [
    "Checkpoint",
    "encode_tensors",
    "encoded_tensors",
    "read_checkpoint",
    "write_atomically",
    "write_checkpoint",
    "write_pieces",
]

_PIECE: Final = 8 << 20
_TYPES: Final = {
    "u8": "U64", "i8": "I64", "f8": "F64", "f4": "F32", "u4": "U32", "i4": "I32", "f2": "F16", "u2": "U16", "i2": "I16",
    "i1": "I8", "u1": "U8", "b1": "BOOL",
}  # fmt: skip
"""The format's names of NumPy's types, in the order in which the library writes tensors."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The coordinator's state after a round: what the next one starts from."""

    study: str
    round: int
    arrays: dict[str, npt.NDArray[Any]]
    progress: str = ""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `path` so that a reader, or a crash at any instant, sees the old content or the new, never a part."""
    write_pieces(path, (content,))


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write `path` as `write_atomically` does, a piece at a time; return the SHA-256 of all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    digest = hashlib.sha256()
    with os.fdopen(handle, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # noqa: PTH101  (mkstemp gives a text path; results are for the team to read)
    Path(temporary).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest.hexdigest()


def encode_tensors(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file that is a function of its content alone: equal models are equal files."""
    return b"".join(encoded_tensors(tensors, metadata))


def encoded_tensors(
    tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield the file of `encode_tensors` in pieces, so that a large model is never in memory a second time.

    The library, which holds it whole, writes the metadata in the order of a hash that changes from run to run; here the
    header is sorted.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    kinds = list(_TYPES)
    order = sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype.str[1:]), name))
    start = 0
    for name in order:
        array = tensors[name]
        end = start + array.nbytes
        header[name] = {
            "dtype": _TYPES[array.dtype.str[1:]],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield from _raw(tensors[name])


def _raw(array: npt.NDArray[Any]) -> Iterator[memoryview]:
    """Yield an array's bytes, little-endian and in the order of rows, in pieces."""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    for part in blocks(len(flat), _PIECE):
        yield flat[part].data
        let_go(flat)


def write_checkpoint(
    path: Path, *, study: str, round_: int, arrays: Mapping[str, npt.NDArray[Any]], progress: str = ""
) -> None:
    """Write the state after `round_` of the study with this digest, atomically, as safetensors with its SHA-256.

    Args:
        path: the file.
        study: its digest.
        round_: the last committed one.
        arrays: what the next round needs.
        progress: what the result will say about the rounds so far, as JSON.
    """
    metadata = {"study": study, "round": str(round_), "progress": progress}
    write_pieces(path, encoded_tensors(arrays, metadata | {"sha256": _digest(arrays, metadata)}))


def _digest(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, types, shapes, values and metadata."""
    shapes = [[name, arrays[name].dtype.str, arrays[name].shape] for name in sorted(arrays)]
    digest = hashlib.sha256(json.dumps([dict(metadata), shapes], sort_keys=True).encode("utf-8"))
    for name in sorted(arrays):
        for piece in _raw(arrays[name]):
            digest.update(piece)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what `write_checkpoint` wrote; large arrays stay in the file until they are looked at.

    Raises:
        CoordinatorError: no checkpoint, or a damaged one.
    """
    msg = f"{path} is no checkpoint"
    remedy = "restore the file from a copy; without it the run ends here"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: _tensor(path, file, name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        sha256 = metadata.pop("sha256")
        found = Checkpoint(metadata["study"], int(metadata["round"]), arrays, metadata["progress"])
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CoordinatorError(msg, remedy=remedy) from error
    if sha256 != _digest(arrays, metadata):
        msg += ": its SHA-256 is another"
        raise CoordinatorError(msg, remedy=remedy)
    return found


def _tensor(path: Path, file: Any, name: str) -> npt.NDArray[Any]:
    """Return one tensor of an open file: its values, or where they stand if they are many."""
    described = file.get_slice(name)
    shape, width = tuple(described.get_shape()), described.get_dtype()
    dtype = next((np.dtype(f"<{kind}") for kind, known in _TYPES.items() if known == width), None)
    if dtype is None or int(np.prod(shape)) * dtype.itemsize < LARGE:
        found: npt.NDArray[Any] = file.get_tensor(name)
        return found
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        start, _ = json.loads(raw.read(length))[name]["data_offsets"]
    return mapped(path, 8 + length + int(start), dtype, shape)
