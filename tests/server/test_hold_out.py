"""The centre's own rows are read by the study's schema, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedward_common.errors import LocalDataError
from fedward_common.tables import encode
from fedward_server.hold_out import read_hold_out
from tests.builders import small_study, table


def test_the_rows_are_encoded_as_a_site_would(tmp_path: Path) -> None:
    study, frame = small_study(), table(30, seed=3)
    frame.to_csv(tmp_path / "central.csv", index=False)
    hold_out = read_hold_out(tmp_path / "central.csv", study)

    assert np.array_equal(hold_out.rows.features, encode(frame, study.cohort).features)
    assert hold_out.names == ("central",)
    assert hold_out.centres.tolist() == [0] * 30


def test_a_table_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "central.csv").write_text("height,outcome\n180,yes\n")

    with pytest.raises(LocalDataError):
        read_hold_out(tmp_path / "central.csv", small_study())


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    table(3).head(0).to_csv(tmp_path / "central.csv", index=False)

    with pytest.raises(LocalDataError, match="no usable row"):
        read_hold_out(tmp_path / "central.csv", small_study())


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalDataError, match=r"central\.csv"):
        read_hold_out(tmp_path / "central.csv", small_study())
