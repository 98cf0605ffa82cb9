"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load, save

from fedward_common.errors import CoordinatorError
from fedward_common.paged import LARGE
from fedward_server.checkpoint import encode_tensors, read_checkpoint, write_atomically, write_checkpoint
from tests.builders import small_study
from tests.doubles import Rehearsal

ARRAYS: dict[str, npt.NDArray[Any]] = {
    "weights": np.arange(5, dtype=np.float32),
    "first": np.linspace(0, 1, 5),
    "tail_total": np.full((2, 3), np.pi),
    "counts": np.array([1 << 62, -1], dtype=np.int64),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def test_everything_comes_back_bit_for_bit(path: Path) -> None:
    write_checkpoint(path, study="a" * 64, round_=17, arrays=ARRAYS, progress="how it went")
    found = read_checkpoint(path)
    assert (found.study, found.round, found.progress) == ("a" * 64, 17, "how it went")
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_views_are_stored_as_what_they_show(path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_checkpoint(path, study="s", round_=1, arrays={"column": matrix[:, 1], "turned": matrix.T})
    found = read_checkpoint(path).arrays
    np.testing.assert_array_equal(found["column"], matrix[:, 1])
    np.testing.assert_array_equal(found["turned"], matrix.T)


def test_the_state_of_an_aggregator_with_memory_is_in_every_rounds_checkpoint(tmp_path: Path) -> None:
    rule = {"rule": "fedadam", "average_last": 0.5}
    rehearsal = Rehearsal(small_study(training={"rounds": 4}, aggregation=rule), tmp_path)
    rounds: list[int] = []
    names: list[set[str]] = []

    def listener(_: object) -> None:
        checkpoint = read_checkpoint(tmp_path / "run-1" / "checkpoint.safetensors")
        rounds.append(checkpoint.round)
        names.append(set(checkpoint.arrays))
        assert checkpoint.study == rehearsal.study.digest

    rehearsal.run(listener=listener)
    assert rounds == [1, 2, 3, 4]
    assert names[0] == {"weights", "released", "first", "second"}
    assert names[3] == {"weights", "released", "first", "second", "tail_total"}


# ------------------------------------------------------------------------------------------------------------ atomicity
def test_crash_between_writing_and_renaming_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(path, study="s", round_=1, arrays=ARRAYS)
    old = path.read_bytes()

    def crash(*_: object) -> Path:
        raise SystemExit

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(SystemExit):
        write_checkpoint(path, study="s", round_=2, arrays=ARRAYS)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert read_checkpoint(path).round == 1


def test_process_killed_at_the_rename_leaves_the_old_file(path: Path) -> None:
    path.write_bytes(b"old")
    script = f"""
import os, signal
from pathlib import Path
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from fedward_server.checkpoint import write_atomically
write_atomically(Path({str(path)!r}), b"new" * 100_000)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    assert path.read_bytes() == b"old"


def test_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_finished_write_leaves_one_file_that_the_team_can_read(path: Path) -> None:
    for content in (b"first", b"second, longer", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


# --------------------------------------------------------------------------------------------------------------- damage
def test_truncation_anywhere_is_an_error_that_names_the_file(path: Path) -> None:
    write_checkpoint(path, study="s", round_=1, arrays=ARRAYS)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CoordinatorError, match=r"checkpoint\.safetensors is no checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 200, b"not a checkpoint", (1 << 62).to_bytes(8, "little") + b"{}"])
def test_foreign_bytes_are_no_checkpoint(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CoordinatorError, match="is no checkpoint"):
        read_checkpoint(path)


def test_a_change_of_any_byte_is_an_error_or_changes_nothing(path: Path) -> None:
    """The header is JSON: a blank more or less is no damage."""
    write_checkpoint(path, study="s", round_=1, arrays=ARRAYS, progress='{"a": 1}')
    whole, refused = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        try:
            found = read_checkpoint(path)
        except CoordinatorError:
            refused += 1
        else:
            assert (found.study, found.round, found.progress) == ("s", 1, '{"a": 1}')
            assert all(np.array_equal(found.arrays[name], array) for name, array in ARRAYS.items())
    assert refused > 0.9 * len(whole)


@pytest.mark.parametrize("metadata", [{}, {"study": "s"}, {"study": "s", "round": "second"}])
def test_file_without_study_and_round_is_no_checkpoint(path: Path, metadata: dict[str, str]) -> None:
    path.write_bytes(encode_tensors(ARRAYS, metadata))
    with pytest.raises(CoordinatorError, match="is no checkpoint"):
        read_checkpoint(path)


def test_missing_file_is_no_checkpoint(path: Path) -> None:
    with pytest.raises(CoordinatorError, match="is no checkpoint"):
        read_checkpoint(path)


# ---------------------------------------------------------------------------------------------------------- determinism
def test_equal_content_is_an_equal_file_in_every_process() -> None:
    script = """
import hashlib
import numpy as np
from fedward_server.checkpoint import encode_tensors
metadata = {name: name * 3 for name in ("study", "format", "round", "a", "b", "c")}
arrays = {name: np.arange(6, dtype=np.float32) for name in ("weight", "bias", "other")}
print(hashlib.sha256(encode_tensors(arrays, metadata)).hexdigest())
"""
    runs = {subprocess.check_output([sys.executable, "-c", script], text=True) for _ in range(3)}
    assert len(runs) == 1


def test_the_library_still_reads_what_we_wrote() -> None:
    content = encode_tensors({"b": np.ones((2, 2)), "a": np.arange(3, dtype=np.float32)}, {"x": "1", "a": "ü"})
    assert int.from_bytes(content[:8], "little") % 8 == 0
    np.testing.assert_array_equal(load(content)["a"], np.arange(3, dtype=np.float32))


# ----------------------------------------------------------------------------------------------------------- in pieces
def test_the_file_is_the_one_that_the_library_writes_but_for_the_order_of_its_header() -> None:
    kinds = ["f8", "i8", "u8", "f4", "i4", "u4", "f2", "i2", "u2", "i1", "u1", "?"]
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.arange(6).reshape(2, 3).astype(kind) for name, kind in zip("zyxwvutsrqpo", kinds, strict=True)
    }
    arrays |= {"empty": np.zeros((0, 3), dtype=np.float32), "single": np.full((), 3.5), "another": np.ones(2)}
    metadata = {"study": "s", "round": "1"}

    ours, theirs = encode_tensors(arrays, metadata), save(arrays, metadata)

    assert len(ours) == len(theirs)
    size = int.from_bytes(theirs[:8], "little")
    assert json.loads(ours[8 : 8 + size]) == json.loads(theirs[8 : 8 + size])
    assert ours[8 + size :] == theirs[8 + size :]


def test_large_arrays_stay_in_the_file_and_keep_their_values(tmp_path: Path) -> None:
    large = np.arange(LARGE // 4 + 3, dtype=np.float32)
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, study="s", round_=1, arrays={"a": np.arange(3), "weights": large, "z": np.ones(2)})

    found = read_checkpoint(path).arrays
    path.unlink()  # as when the next one takes its place

    assert set(found) == {"a", "weights", "z"}
    np.testing.assert_array_equal(found["weights"], large)


def test_a_damaged_large_array_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, study="s", round_=1, arrays={"weights": np.zeros(LARGE // 4, dtype=np.float32)})
    with path.open("r+b") as file:
        file.seek(LARGE // 2)
        file.write(b"\1")

    with pytest.raises(CoordinatorError, match="its SHA-256 is another"):
        read_checkpoint(path)
