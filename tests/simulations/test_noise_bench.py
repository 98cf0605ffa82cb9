"""The benchmark of noise measures every side on the same number of values, and its JSON keeps its shape."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from fedward_simulations.bench import noise


def test_json_names_a_rate_for_every_side(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["noise", "--json", "--size", str(1 << 14), "--repeats", "1"])
    try:
        noise.main()
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out)
    assert figures["million_values_per_s"].keys() == noise.SIDES.keys() == noise._WORDS.keys()
    assert all(rate > 0 for rate in figures["million_values_per_s"].values())
    assert figures["size"] == 1 << 14


@pytest.mark.parametrize("name", ["gaussian", "discrete_gaussian", "before"])
def test_whole_sides_add_standard_normal_noise_to_ones(name: str) -> None:
    found = noise.SIDES[name](1 << 16)
    values = found[0] if isinstance(found, tuple) else found
    assert isinstance(values, torch.Tensor)
    assert values.dtype == torch.float32
    assert len(values) == 1 << 16
    assert float(values.mean()) == pytest.approx(1, abs=6 / np.sqrt(1 << 16))
    assert float(values.std()) == pytest.approx(1, abs=6 / np.sqrt(2 << 16))


@pytest.mark.parametrize("size", ["0", "1000", "20000"])
def test_a_size_of_which_sides_would_draw_different_numbers_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["noise", "--size", size])
    with pytest.raises(SystemExit):
        noise.main()
    assert "a multiple of 16384" in capsys.readouterr().err
