"""Files that are there whole or not at all, and the one that a round leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedward_common.errors import CoordinatorError

__all__ = ["Checkpoint", "encode_tensors", "read_checkpoint", "write_atomically", "write_checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The coordinator's state after a round: what the next one starts from."""

    study: str
    round: int
    arrays: dict[str, npt.NDArray[Any]]
    progress: str = ""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `path` so that a reader, or a crash at any instant, sees the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # noqa: PTH101  (mkstemp gives a text path; results are for the team to read)
    Path(temporary).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def encode_tensors(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file that is a function of its content alone: equal models are equal files.

    The library writes the metadata in the order of a hash that changes from run to run; here the header is sorted.
    """
    raw = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, dict(metadata))
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


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
    write_atomically(path, encode_tensors(arrays, metadata | {"sha256": _digest(arrays, metadata)}))


def _digest(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, types, shapes, values and metadata."""
    shapes = [[name, arrays[name].dtype.str, arrays[name].shape] for name in sorted(arrays)]
    digest = hashlib.sha256(json.dumps([dict(metadata), shapes], sort_keys=True).encode("utf-8"))
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what `write_checkpoint` wrote.

    Raises:
        CoordinatorError: no checkpoint, or a damaged one.
    """
    msg = f"{path} is no checkpoint"
    remedy = "restore the file from a copy; without it the run ends here"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        sha256 = metadata.pop("sha256")
        found = Checkpoint(metadata["study"], int(metadata["round"]), arrays, metadata["progress"])
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CoordinatorError(msg, remedy=remedy) from error
    if sha256 != _digest(arrays, metadata):
        msg += ": its SHA-256 is another"
        raise CoordinatorError(msg, remedy=remedy)
    return found
