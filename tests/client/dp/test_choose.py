"""The fastest exact engine is chosen, and one that is asked for and not exact is refused by name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from fedward_client.dp.choose import Wanted, choose
from fedward_common.errors import StudyError
from tests.client.dp.plain import Network, Text, flattened


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("model", [nn.Linear(30, 1), Network(), Text()])
def test_bookkeeping_is_chosen_where_it_is_exact(model: nn.Module) -> None:
    assert choose(model, flattened, "auto").name == "bookkeeping"


def test_hooks_are_chosen_where_it_is_not() -> None:
    assert choose(_tied(), flattened, "auto").name == "hooks"


@pytest.mark.parametrize("wanted", ["bookkeeping", "ghost", "hooks"])
def test_the_wanted_engine_is_given(wanted: Wanted) -> None:
    assert choose(nn.Linear(3, 1), flattened, wanted).name == wanted


@pytest.mark.parametrize("wanted", ["bookkeeping", "ghost"])
def test_a_wanted_engine_that_is_not_exact_is_refused_by_name(wanted: Wanted) -> None:
    with pytest.raises(StudyError, match=r"1\.weight") as caught:
        choose(_tied(), flattened, wanted)
    assert "privacy.engine" in caught.value.remedy


@pytest.mark.parametrize("wanted", ["auto", "hooks"])
def test_a_model_that_no_engine_can_train_is_refused_by_name(wanted: Wanted) -> None:
    with pytest.raises(StudyError, match="1:BatchNorm1d"):
        choose(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), flattened, wanted)


def test_opacus_is_not_imported_for_bookkeeping() -> None:
    script = (
        "import sys; from torch import nn; from fedward_client.dp.choose import choose;"
        "choose(nn.Linear(2, 1), lambda m, r: m(r[0]), 'auto'); sys.exit('opacus' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_all_engines_agree() -> None:
    torch.manual_seed(0)
    model, records = Network(), (torch.randn(6, 1, 3, 8, 8), torch.ones(6, 1))
    wanted: tuple[Wanted, ...] = ("bookkeeping", "ghost", "hooks")
    sums = [torch.cat([t.flatten() for t in choose(model, flattened, w).part(records, 0.3).tensors]) for w in wanted]
    assert torch.allclose(sums[0], sums[1], atol=1e-5)
    assert torch.allclose(sums[0], sums[2], atol=1e-5)
