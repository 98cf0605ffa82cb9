"""Vectors in files behave as vectors do, and their pages can go at any time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedward_common.paged import LARGE, blocks, file_vector, let_go, mapped


@pytest.mark.parametrize(("size", "block"), [(0, 3), (1, 3), (3, 3), (7, 3)])
def test_blocks_cover_each_number_once(size: int, block: int) -> None:
    assert [n for part in blocks(size, block) for n in range(part.start, part.stop)] == list(range(size))


def test_a_large_vector_keeps_its_values_when_its_pages_go_and_leaves_no_file(tmp_path: Path) -> None:
    vector = file_vector(LARGE // 4, tmp_path)
    assert not vector.any()
    vector[:] = np.arange(LARGE // 4)

    let_go(vector)
    let_go(vector[5:])

    np.testing.assert_array_equal(vector, np.arange(LARGE // 4, dtype=np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "where"), [(LARGE // 4 - 1, "folder"), (LARGE // 4, None)])
def test_a_small_vector_or_one_without_a_folder_is_in_memory(size: int, where: str | None, tmp_path: Path) -> None:
    vector = file_vector(size, tmp_path if where else None)
    let_go(vector)
    assert vector.base is None
    assert vector.shape == (size,)
    assert not vector.any()


@pytest.mark.parametrize("offset", [0, 8, 4096, 5000])
def test_an_array_is_read_where_it_stands_and_never_written_back(offset: int, tmp_path: Path) -> None:
    path, numbers = tmp_path / "file", np.arange(6000, dtype="<i4").reshape(60, 100)
    path.write_bytes(bytes(offset) + numbers.tobytes() + b"more")

    found = mapped(path, offset, np.dtype("<i4"), (60, 100))
    np.testing.assert_array_equal(found, numbers)
    found[0, 0] = 9

    assert path.read_bytes() == bytes(offset) + numbers.tobytes() + b"more"
    assert mapped(path, offset, np.dtype("<i4"), (0, 3)).shape == (0, 3)
